"""Convolution with weight standardization."""

import keras
import tensorflow as tf

EPSILON = 1e-5


@keras.saving.register_keras_serializable(package="mat")
class StandardizedConv2D(keras.layers.Layer):
    """3x3-style convolution whose kernel is standardized in every call, 'same' padding, with bias.

    The kernel used is `(w - mean) / (std + 1e-5)`, over height, width and input channels, separately for each filter. The statistics
    are computed in float32 under every precision.

    Args:
        filters: number of output channels.
        kernel_size: height and width of the kernel, pixels.
        strides: stride in both directions, pixels.
        kernel_initializer: initializer of the raw kernel.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: [B, H, W, C] -> [B, ceil(H / strides), ceil(W / strides), filters].

    Reference:
        Weight Standardization, arXiv:1903.10520.
    """

    def __init__(self, filters, kernel_size, *, strides=1, kernel_initializer="he_normal", **kwargs):
        super().__init__(**kwargs)
        if filters < 1 or kernel_size < 1 or strides < 1:
            raise ValueError(f"filters, kernel_size and strides must be at least 1. Received: {filters}, {kernel_size}, {strides}")
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=self.kernel_initializer, autocast=False)
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, inputs):
        kernel = tf.cast(standardize(self.kernel), self.compute_dtype)
        return tf.nn.conv2d(inputs, kernel, strides=self.strides, padding="SAME") + self.bias

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *(-(-size // self.strides) for size in input_shape[1:3]), self.filters)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def standardize(kernel):
    """`(w - mean) / (std + 1e-5)` of a kernel [h, w, C, filters], over all axes but the last."""
    kernel = tf.convert_to_tensor(kernel)
    mean = tf.reduce_mean(kernel, axis=[0, 1, 2], keepdims=True)
    centered = kernel - mean
    std = tf.sqrt(tf.reduce_mean(tf.square(centered), axis=[0, 1, 2], keepdims=True))
    return centered / (std + EPSILON)
