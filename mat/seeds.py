"""Seeds of independent random streams, and the draws that the compiled step makes.

Every random draw of a run has a seed made of the config's seed, the name of its stream and the index of the step or example,
so that it depends neither on threads nor on what was drawn before. The algorithm is named, because TensorFlow's own choice is another
one under XLA; and the compiled step draws integers only, because XLA rounds floats its own way.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_ALGORITHM = "philox"


def stream_seed(seed: int, name: str) -> np.ndarray:
    """Seed of the stream `name`: int32 [2], for TensorFlow's stateless draws. `name` is hashed stably, by CRC-32."""
    return np.array([seed, zlib.crc32(name.encode())], np.uint32).view(np.int32)


def generator(seed: int, name: str) -> np.random.Generator:
    """NumPy generator of the stream `name`, for draws on the host."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def fold_in(seed: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Seed of one step or example of a stream: int32 [2] from a seed int32 [2] and an integer."""
    return tf.random.experimental.stateless_fold_in(seed, index, alg=_ALGORITHM)


def split(seed: tf.Tensor, n: int) -> tf.Tensor:
    """`n` independent seeds made of one: int32 [n, 2]."""
    return tf.random.experimental.stateless_split(seed, n, alg=_ALGORITHM)


def draw_integers(shape: Sequence[int], seed: tf.Tensor, n: int, dtype: tf.DType) -> tf.Tensor:
    """Uniform integers in 0 .. n - 1 of an integer dtype, the same with XLA and without."""
    return tf.random.stateless_uniform(shape, seed, 0, n, dtype, alg=_ALGORITHM)
