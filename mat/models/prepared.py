"""Layers that make something of their weights before they use them, once for many calls."""

import contextlib
import functools

import keras
import tensorflow as tf

if keras.config.backend() != "tensorflow":
    raise ImportError(f"Keras runs on {keras.config.backend()} in this process, and mat needs TensorFlow. Set KERAS_BACKEND=tensorflow")


class PreparedLayer(keras.layers.Layer):
    """A layer whose `call` takes `self.prepared()`, what `prepare()` makes of its weights, in place of the weights themselves."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._prepared = None
        self.xla = True  # all operations must be such as XLA can compile

    def prepare(self):
        """What `call` needs of the weights, as tensors."""
        raise NotImplementedError

    def prepared(self):
        """As `prepare`, or as it was on entry to `prepared_once`."""
        return self.prepare() if self._prepared is None else self._prepared


@contextlib.contextmanager
def prepared_once(model, *, xla):
    """Within, the prepared layers of a model prepare their weights once, on entry, instead of in every call.

    For compiled functions that call a model many times with the same weights. Gradients flow to the weights where a tape was recording on
    entry.

    Args:
        model: a `keras.Model`, or any function, which has no such layers.
        xla: whether the function is compiled with XLA; if not, layers may use operations that XLA does not know.
    """
    layers = [layer for layer in getattr(model, "layers", ()) if isinstance(layer, PreparedLayer)]
    try:
        for layer in layers:
            layer._prepared, layer.xla = layer.prepare(), xla
        yield
    finally:
        for layer in layers:
            layer._prepared, layer.xla = None, True


def compile_with(model, function, *, jit_compile):
    """`function`, which calls a model many times with the same weights, as a `tf.function`, within `prepared_once`.

    Args:
        model: as of `prepared_once`.
        function: of tensors.
        jit_compile: compile with XLA, as a whole.
    """

    @functools.wraps(function)  # TensorFlow tells functions apart, in its warnings and profiles, by what is wrapped
    def prepared(*arguments):
        with prepared_once(model, xla=jit_compile):
            return function(*arguments)

    return tf.function(prepared, jit_compile=jit_compile, autograph=False)
