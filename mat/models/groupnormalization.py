"""The original's group normalization, which normalizes horizontal strips."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="mat")
class StripNormalization(keras.layers.Layer):
    """What the original calls group normalization; released weights were trained with it.

    It reshapes NHWC to [N, groups, H, W, C / groups] without moving the channels to the front, so that a group is a block of contiguous
    memory: a horizontal strip of H / groups rows with all their channels, not a group of channels over the whole image. Mean and
    variance are taken over each strip. Scale and offset follow the same order: the element at position p of strip s gets
    `gamma.reshape(groups, C / groups)[s, p mod (C / groups)]`. `keras.layers.GroupNormalization` has weights of the same shapes and
    computes something else. Statistics are float32 under every precision.

    Args:
        groups: number of strips.
        epsilon: added to the variance.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: [B, H, W, C] -> the same shape; C must be a multiple of `groups`.
    """

    def __init__(self, groups=8, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        if groups < 1:
            raise ValueError(f"groups must be at least 1. Received: groups={groups}")
        self.groups = groups
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.groups:
            raise ValueError(f"channels must be a multiple of groups. Received: channels={channels}, groups={self.groups}")
        self.gamma = self.add_weight(name="gamma", shape=(channels,), initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=(channels,), initializer="zeros", autocast=False)

    def call(self, inputs):
        height, width, channels = inputs.shape[1:]
        # A strip as a matrix [positions, period], in which gamma and beta repeat from row to row. Whole pixels make the
        # longest rows, which vectorize best; where a strip ends within a pixel, rows are one period of gamma.
        period = channels if height * width % self.groups == 0 else channels // self.groups
        strips = tf.reshape(inputs, [-1, self.groups, height * width * channels // (self.groups * period), period])
        strips = tf.cast(strips, tf.float32)
        mean, variance = tf.nn.moments(strips, axes=[2, 3], keepdims=True)  # [B, groups, 1, 1]
        scale = tf.math.rsqrt(variance + self.epsilon) * self._per_strip(self.gamma, period)
        normalized = strips * scale + (self._per_strip(self.beta, period) - mean * scale)
        return tf.cast(tf.reshape(normalized, [-1, height, width, channels]), self.compute_dtype)

    def _per_strip(self, weight, period):
        """gamma or beta [C] as [groups, 1, period]: a strip's C / groups values, repeated to the period."""
        per_strip = tf.reshape(weight, [self.groups, 1, -1])
        return tf.tile(per_strip, [1, 1, period // per_strip.shape[-1]])

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"groups": self.groups, "epsilon": self.epsilon}
