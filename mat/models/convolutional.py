"""Convolution with weight standardization."""

from typing import Any

import keras
import tensorflow as tf

from mat.models.prepared import PreparedLayer

STD_EPSILON = 1e-5  # added to a kernel's standard deviation


@keras.saving.register_keras_serializable(package="mat")
class StandardizedConv2D(PreparedLayer):
    """Convolution whose kernel is standardized before use, see `standardize`, with 'same' padding and bias.

    Call arguments:
        inputs: [B, H, W, C] -> [B, ceil(H / strides), ceil(W / strides), filters].
    """

    def __init__(self, filters: int, kernel_size: int, *, strides: int = 1, kernel_initializer: Any = "he_normal", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if filters < 1 or kernel_size < 1 or strides < 1:
            raise ValueError(f"filters, kernel_size and strides must be at least 1. Received: {filters}, {kernel_size}, {strides}")
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: tuple) -> None:
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=self.kernel_initializer, autocast=False)
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def prepare(self) -> tf.Tensor:
        """The standardized kernel, in the compute dtype."""
        return tf.cast(standardize(self.kernel), self.compute_dtype)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        outputs = tf.nn.conv2d(inputs, self.prepared(), strides=self.strides, padding="SAME")
        if outputs.dtype == tf.float32:
            return tf.nn.bias_add(outputs, self.bias)  # CPUs do it in the convolution itself
        return outputs + self.bias  # whose gradient sums in float32; that of bias_add gets stuck at 256, where bfloat16 has no 257

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], *(-(-size // self.strides) for size in input_shape[1:3]), self.filters)

    def get_config(self) -> dict[str, Any]:
        keys = {key: getattr(self, key) for key in ("filters", "kernel_size", "strides")}
        return super().get_config() | keys | {"kernel_initializer": keras.initializers.serialize(self.kernel_initializer)}


def standardize(kernel: tf.Tensor) -> tf.Tensor:
    """Weight standardization, arXiv:1903.10520: `(w - mean) / (std + 1e-5)` of a float32 kernel [h, w, C, filters], by filter."""
    kernel = tf.convert_to_tensor(kernel)
    axes = [0, 1, 2]

    @tf.custom_gradient  # in half the passes over the kernel that automatic differentiation takes
    def standardize(kernel):
        centered = kernel - tf.reduce_mean(kernel, axes)
        std = tf.sqrt(tf.reduce_mean(tf.square(centered), axes))  # [filters]
        standardized = centered / (std + STD_EPSILON)

        def gradient(upstream):
            to_std = tf.math.divide_no_nan(tf.reduce_mean(upstream * standardized, axes), std)
            return (upstream - tf.reduce_mean(upstream, axes)) / (std + STD_EPSILON) - standardized * to_std

        return standardized, gradient

    return standardize(kernel)
