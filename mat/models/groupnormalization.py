"""The original's group normalization, which normalizes horizontal strips."""

from typing import Any

import keras
import tensorflow as tf

from mat.models.prepared import PreparedLayer

MIN_ROW = 128  # values; shorter rows leave the vector units of a CPU idle where scale and offset are broadcast and summed


@keras.saving.register_keras_serializable(package="mat")
class StripNormalization(PreparedLayer):
    """What the original calls group normalization; the released weights were trained with it.

    It reshapes NHWC to [N, groups, H, W, C / groups] without moving the channels to the front, so that a group is a block of contiguous
    memory: a horizontal strip of H / groups rows with all their channels. Mean and variance are taken over each strip, in float32 under
    every precision. Scale and offset follow the same order: the element at position p of strip s gets
    `gamma.reshape(groups, C / groups)[s, p mod (C / groups)]`. `keras.layers.GroupNormalization` has weights of the same shapes and
    computes something else.

    Call arguments:
        inputs: [B, H, W, C] -> the same shape; C must be a multiple of `groups`.
    """

    def __init__(self, groups: int = 8, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if groups < 1:
            raise ValueError(f"groups must be at least 1. Received: groups={groups}")
        self.groups = groups
        self.epsilon = epsilon

    def build(self, input_shape: tuple) -> None:
        height, width, channels = input_shape[1:]
        if None in (height, width):
            raise ValueError(f"height and width must be known, as strips depend on them. Received: {tuple(input_shape)}")
        if channels % self.groups:
            raise ValueError(f"channels must be a multiple of groups. Received: channels={channels}, groups={self.groups}")
        self.input_spec = keras.layers.InputSpec(shape=(None, height, width, channels))
        self.gamma = self.add_weight(name="gamma", shape=(channels,), initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=(channels,), initializer="zeros", autocast=False)
        # A strip as a matrix [rows, row], whose rows are as many periods of gamma and beta as make them long enough.
        period, n_periods = channels // self.groups, height * width
        self.periods_per_row = next(n for n in range(1, n_periods + 1) if n_periods % n == 0 and (n * period >= MIN_ROW or n == n_periods))
        self.strips_shape = (-1, self.groups, n_periods // self.periods_per_row, self.periods_per_row * period)

    def prepare(self) -> list[tf.Tensor]:
        """gamma and beta as rows, float32 [groups, 1, row] each."""
        return [tf.tile(tf.reshape(weight, [self.groups, 1, -1]), [1, 1, self.periods_per_row]) for weight in (self.gamma, self.beta)]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        gamma, beta = self.prepared()
        normalized = _normalize(tf.reshape(inputs, self.strips_shape), gamma, beta, self.epsilon, xla=self.xla)
        return tf.reshape(normalized, [-1, *inputs.shape[1:]])

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"groups": self.groups, "epsilon": self.epsilon}


def _normalize(strips, gamma, beta, epsilon, *, xla):
    """`gamma * (strips - mean) / sqrt(variance + epsilon) + beta`, with the statistics over each strip, in the dtype of `strips`.

    Memory bandwidth is what this costs, so it makes few passes over `strips`: the moments are the sums of values and of squares, the
    gradient keeps nothing of the size of `strips` but `strips` and needs two sums a column, and elementwise work is fused. The variance
    from such sums has a relative error of about 1e-7 (mean / deviation)^2, which matters where strips lie a hundred deviations from zero.

    `strips` [B, groups, rows, row] may be of any float dtype, all arithmetic is float32; `gamma` and `beta` are float32 [groups, 1, row].
    """
    fuse = not xla and not tf.config.get_visible_devices("GPU")  # where XLA may lack what it needs, and a kernel is soon launched
    affine, product, to_inputs = (fused if fuse else function for function, fused in _ELEMENTWISE)
    n = strips.shape[2] * strips.shape[3]

    @tf.custom_gradient
    def normalize(strips, gamma, beta):
        values = tf.cast(strips, tf.float32)
        mean = tf.reduce_mean(values, axis=[2, 3], keepdims=True)  # [B, groups, 1, 1]
        if xla:
            mean_square = tf.reduce_mean(tf.square(values), axis=[2, 3], keepdims=True)
        else:  # in one pass, by an operation that XLA lacks and, as it fuses, does not need
            mean_square = tf.square(tf.raw_ops.EuclideanNorm(input=values, axis=[2, 3], keep_dims=True)) / n
        variance = mean_square - tf.square(mean)
        rsqrt = tf.math.rsqrt(tf.maximum(variance, 0.0) + epsilon)
        scale = gamma * rsqrt

        def gradient(upstream):
            column_sums = tf.reduce_sum(tf.cast(upstream, tf.float32), axis=2, keepdims=True)  # [B, groups, 1, row]
            column_products = tf.reduce_sum(product(upstream, strips), axis=2, keepdims=True)
            to_mean = tf.reduce_sum(column_sums * scale, axis=3, keepdims=True) / n  # [B, groups, 1, 1]
            to_product = tf.reduce_sum(column_products * scale, axis=3, keepdims=True) / n
            slope = tf.square(rsqrt) * (to_product - mean * to_mean)
            to_gamma = tf.reduce_sum(rsqrt * (column_products - mean * column_sums), axis=0)
            to_strips = to_inputs(upstream, strips, scale, slope, to_mean - mean * slope)
            return to_strips, to_gamma, tf.reduce_sum(column_sums, axis=0)

        return affine(strips, scale, beta - mean * scale), gradient

    return normalize(strips, gamma, beta)


def _affine(strips, scale, offset):
    return tf.cast(tf.cast(strips, tf.float32) * scale + offset, strips.dtype)


def _product(upstream, strips):
    return tf.cast(upstream, tf.float32) * tf.cast(strips, tf.float32)


def _to_inputs(upstream, strips, scale, slope, constant):
    gradient = tf.cast(upstream, tf.float32) * scale - (tf.cast(strips, tf.float32) * slope + constant)
    return tf.cast(gradient, strips.dtype)


# Each as it is, and as a single pass over memory, which XLA makes of it on CPUs also where the rest is not compiled by XLA.
_ELEMENTWISE = [(function, tf.function(function, jit_compile=True, autograph=False)) for function in (_affine, _product, _to_inputs)]
