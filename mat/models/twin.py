"""A network that computes in another precision with the weights of a given one."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf


class Twin:
    """A network of another precision that has the weights of `model`, as they are at each call.

    Args:
        network: made like `model`, but with another dtype policy. Its own weights are not used.
        model: whose variables, in the same order, take their place.
    """

    def __init__(self, network: keras.Model, model: keras.Model) -> None:
        self.network = network
        self._pairs = list(zip(network.variables, model.variables, strict=True))

    @contextlib.contextmanager
    def weights(self) -> Iterator[None]:
        """Within the block the layers of `network` have the weights of the model."""
        with keras.StatelessScope(state_mapping=[(own, other.value) for own, other in self._pairs]):
            yield

    def __call__(self, images: tf.Tensor, training: bool = False) -> Any:
        """The logits of images [B, H, W, 3] in inference mode; `training` must be False, as no variable is changed."""
        with self.weights():
            return self.network(images, training=training)
