"""Layers that derive tensors from their weights, once for many calls."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from mat.models.twin import Twin

if keras.config.backend() != "tensorflow":
    raise ImportError(f"Keras runs on {keras.config.backend()} in this process, and mat needs TensorFlow. Set KERAS_BACKEND=tensorflow")


def all_layers(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that a model or another layer is made of, at every depth, each once, in the order in which they are held.

    Keras' own recursion goes through the layers in another order, and has no public name.
    """
    return list(dict.fromkeys(_walk(layer)))


def _walk(layer):
    for part in layer._flatten_layers(include_self=False, recursive=False):
        yield part
        yield from _walk(part)


class PreparedLayer(keras.layers.Layer):
    """A layer whose `call` uses `self.prepared()`, what `prepare()` derives from its weights, in place of the weights themselves."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._prepared = None
        self.xla = True  # only operations that XLA can compile may be used

    def prepare(self) -> Any:
        """The tensors that `call` needs of the weights."""
        raise NotImplementedError

    def prepared(self) -> Any:
        """What `prepare` returns; within `prepared_once`, what it returned on entry."""
        return self.prepare() if self._prepared is None else self._prepared


@contextlib.contextmanager
def prepared_once(model: Callable | None, *, xla: bool) -> Iterator[None]:
    """Prepare the weights of a model's layers once, on entry, for all its calls in the block; of a plain function, or None, nothing.

    Gradients flow to the weights where a tape was recording on entry. `xla` tells whether the block is compiled with XLA.
    """
    network, weights = (model.network, model.weights()) if isinstance(model, Twin) else (model, contextlib.nullcontext())
    layers = [layer for layer in all_layers(network) if isinstance(layer, PreparedLayer)] if isinstance(network, keras.Model) else []
    try:
        with weights:
            for layer in layers:
                layer._prepared, layer.xla = layer.prepare(), xla
        yield
    finally:
        for layer in layers:
            layer._prepared, layer.xla = None, True


def compile_with(model: Callable, function: Callable, *, jit_compile: bool) -> Callable:
    """A `tf.function` of `function`, which calls `model` many times with the same weights; `jit_compile` compiles it with XLA."""

    @functools.wraps(function)  # TensorFlow tells functions apart, in its warnings and profiles, by what is wrapped
    def prepared(*arguments):
        with prepared_once(model, xla=jit_compile):
            return function(*arguments)

    return tf.function(prepared, jit_compile=jit_compile, autograph=False)
