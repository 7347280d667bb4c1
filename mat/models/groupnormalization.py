"""The original's group normalization, which normalizes horizontal strips."""

from typing import Any

import keras
import tensorflow as tf

from mat.models.fused import fused
from mat.models.prepared import PreparedLayer

MIN_ROW = 128  # values; shorter rows leave the vector units of a CPU idle where scale and offset are broadcast and summed
BLOCK_ROWS = 16  # at most; XLA's sums over more rows than about 32 are not vectorized on CPUs


@keras.saving.register_keras_serializable(package="mat")
class StripNormalization(PreparedLayer):
    """What the original calls group normalization; the released weights were trained with it.

    It reshapes NHWC to [N, groups, H, W, C / groups] without moving the channels to the front, so that a group is a block of contiguous
    memory: a horizontal strip of H / groups rows with all their channels. Mean and variance are taken over each strip, in float32 under
    every precision. Scale and offset follow the same order: the element at position p of strip s gets
    `gamma.reshape(groups, C / groups)[s, p mod (C / groups)]`. `keras.layers.GroupNormalization` has weights of the same shapes and
    computes something else.

    What follows it in a network, the sum with a shortcut and the ReLU, is part of it if asked for, as all of it is one pass over memory.

    Args:
        relu: whether the ReLU comes last.

    Call arguments:
        inputs: [B, H, W, C] -> the same shape; C must be a multiple of `groups`.
        shortcut: what is added to the normalized inputs, of their shape; None for nothing.
    """

    def __init__(self, groups: int = 8, epsilon: float = 1e-5, *, relu: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if groups < 1:
            raise ValueError(f"groups must be at least 1. Received: groups={groups}")
        self.groups = groups
        self.epsilon = epsilon
        self.relu = relu

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

    def call(self, inputs: tf.Tensor, shortcut: tf.Tensor | None = None) -> tf.Tensor:
        strips, *shortcuts = (tf.reshape(x, self.strips_shape) for x in (inputs, shortcut) if x is not None)
        gamma, beta = self.prepared()
        outputs = _normalize(strips, gamma, beta, shortcuts, epsilon=self.epsilon, relu=self.relu, xla=self.xla)
        return tf.reshape(outputs, [-1, *inputs.shape[1:]])

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"groups": self.groups, "epsilon": self.epsilon, "relu": self.relu}


def _normalize(strips, gamma, beta, shortcuts, *, epsilon, relu, xla):
    """`gamma * (strips - mean) / sqrt(variance + epsilon) + beta + shortcut`, with the statistics over each strip, and then ReLU if `relu`.

    Memory bandwidth is what this costs, so it makes few passes over `strips`: the moments are the sums of values and of squares, the
    gradient keeps nothing of the size of `strips` but `strips` and the result and needs two sums a column, and elementwise work is fused.
    The variance from such sums has a relative error of about 1e-7 (mean / deviation)^2, which matters where strips lie a hundred
    deviations from zero.

    `strips` [B, groups, rows, row] may be of any float dtype, which is also that of the result; all arithmetic is float32. `gamma` and
    `beta` are float32 [groups, 1, row]. `shortcuts` is a list of nothing or of one tensor like `strips`.
    """
    n = strips.shape[2] * strips.shape[3]

    @tf.custom_gradient
    def normalize(strips, gamma, beta, *shortcuts):
        mean, mean_square = (sums / n for sums in _moment_sums(strips, xla=xla))
        outputs = _finish(strips, mean, mean_square, gamma, beta, shortcuts, epsilon, relu)

        def gradient(upstream):
            if relu:
                upstream = _masked(upstream, outputs)
            sums, products = (tf.reduce_sum(blocks, axis=2, keepdims=True) for blocks in _column_sums(upstream, strips))
            totals = [tf.reduce_sum(columns * gamma, axis=3, keepdims=True) / n for columns in (sums, products)]
            to_strips = _to_inputs(upstream, strips, mean, mean_square, gamma, *totals, epsilon)
            to_gamma = tf.reduce_sum(_rsqrt(mean, mean_square, epsilon) * (products - mean * sums), axis=0)
            return to_strips, to_gamma, tf.reduce_sum(sums, axis=0), *([upstream] * len(shortcuts))

        return outputs, gradient

    return normalize(strips, gamma, beta, *shortcuts)


def _moment_sums(strips, *, xla):
    """The sums of the values and of the squares of each strip, float32 [B, groups, 1, 1] each."""
    if strips.dtype == tf.float32 and not xla:  # by TensorFlow's own sums, the faster ones in float32; XLA lacks that of squares
        norm = tf.raw_ops.EuclideanNorm(input=strips, axis=[2, 3], keep_dims=True)
        return tf.reduce_sum(strips, axis=[2, 3], keepdims=True), tf.square(norm)
    return [tf.reduce_sum(blocks, axis=[2, 3], keepdims=True) for blocks in _square_sums(strips)]


@fused
def _square_sums(strips):
    """The sums of values and of squares of each block and column, float32 [B, groups, blocks, row] each."""
    values = _blocks(strips)
    return tf.reduce_sum(values, axis=3), tf.reduce_sum(tf.square(values), axis=3)


@fused
def _column_sums(upstream, strips):
    """The sums of `upstream` and of `upstream * strips` of each block and column, float32 [B, groups, blocks, row] each."""
    values = _blocks(upstream)
    return tf.reduce_sum(values, axis=3), tf.reduce_sum(values * _blocks(strips), axis=3)


def _blocks(strips):
    """Strips [B, groups, rows, row] as float32 [B, groups, blocks, rows of a block, row]."""
    _, groups, rows, row = strips.shape
    block = next(n for n in range(min(rows, BLOCK_ROWS), 0, -1) if rows % n == 0)
    return tf.cast(tf.reshape(strips, [-1, groups, rows // block, block, row]), tf.float32)


@fused
def _finish(strips, mean, mean_square, gamma, beta, shortcuts, epsilon, relu):
    """The result for moments float32 [B, groups, 1, 1]."""
    scale = gamma * _rsqrt(mean, mean_square, epsilon)
    outputs = tf.cast(strips, tf.float32) * scale + (beta - mean * scale)
    outputs = tf.add_n([outputs, *(tf.cast(shortcut, tf.float32) for shortcut in shortcuts)])
    return tf.cast(tf.nn.relu(outputs) if relu else outputs, strips.dtype)


def _rsqrt(mean, mean_square, epsilon):
    """1 / sqrt(variance + epsilon)."""
    return tf.math.rsqrt(tf.maximum(mean_square - tf.square(mean), 0.0) + epsilon)


@fused
def _masked(upstream, outputs):
    """The gradient of the ReLU that gave `outputs`."""
    return tf.where(outputs > 0, upstream, tf.zeros_like(upstream))


@fused
def _to_inputs(upstream, strips, mean, mean_square, gamma, total, total_product, epsilon):
    """The gradient of the strips; the totals are the means over a strip of `gamma * upstream` and of `gamma * upstream * strips`."""
    rsqrt = _rsqrt(mean, mean_square, epsilon)
    slope = rsqrt**3 * (total_product - mean * total)
    constant = rsqrt * total - mean * slope
    gradient = tf.cast(upstream, tf.float32) * (gamma * rsqrt) - (tf.cast(strips, tf.float32) * slope + constant)
    return tf.cast(gradient, strips.dtype)
