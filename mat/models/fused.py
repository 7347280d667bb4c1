"""Functions that XLA compiles on CPUs, into few passes over memory where TensorFlow makes one an operation."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def fused(function: Callable) -> Callable:
    """A function of tensors that XLA compiles wherever a `tf.function` calls it, also one that is not compiled with XLA as a whole.

    For elementwise work, which memory bandwidth bounds. It is not compiled where it is called eagerly, as compiling takes longer than what
    it saves, nor on machines with GPUs, where XLA may lack what it needs and operations are soon launched.
    """
    compiled = tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        compile_ = not tf.executing_eagerly() and not tf.config.get_visible_devices("GPU")
        return (compiled if compile_ else function)(*arguments)

    return call
