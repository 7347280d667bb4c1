"""Clean accuracy of a network in training, on all validation images."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from mat.data.reading import Records
from mat.data.tiny_imagenet import shared_validation_dataset
from mat.distribution.replicas import sum_over_replicas
from mat.distribution.strategy import next_batch, own_replicas, run_everywhere
from mat.models.prepared import compile_with
from mat.step import is_correct


class Validation:
    """Clean validation, each replica on its share of every batch.

    Args:
        model: images [B, H, W, 3] -> logits [B, n_classes].
        records: the validation images.
        strategy: of the replicas.
        batch_size: images of a batch, of all replicas together.
        n_classes, image_size: see `mat.data.tiny_imagenet`.
        jit_compile: compile with XLA.
    """

    def __init__(
        self,
        model: keras.Model,
        records: Records,
        strategy: tf.distribute.Strategy,
        *,
        batch_size: int,
        n_classes: int,
        image_size: int,
        jit_compile: bool,
    ) -> None:
        self.n_images = len(records.labels)
        self.n_batches = -(-self.n_images // batch_size)
        sizes: dict[str, Any] = {"batch_size": batch_size, "n_classes": n_classes, "image_size": image_size}
        self._strategy = strategy
        self.shares = shared_validation_dataset(records, **sizes, replicas=own_replicas(strategy))
        self._model = model
        count = compile_with(model, self._count_in_share, jit_compile=jit_compile)
        total = functools.partial(run_everywhere, strategy, lambda *share: sum_over_replicas(count(*share)))
        self._count = tf.function(total, autograph=False)

    def accuracy(self, after_batch: Callable[[], None]) -> float:
        """The share of all images that are classified correctly, in [0, 1]; `after_batch` is called after each batch."""
        n_correct, shares = 0, iter(self.shares)
        for _ in range(self.n_batches):
            n_correct += self.count_correct(*next_batch(self._strategy, shares))
            after_batch()
        next(shares, None)  # to the very end, else the decoded images are not kept
        return n_correct / self.n_images

    def count_correct(self, images: tf.Tensor, labels: tf.Tensor) -> int:
        """How many images of a batch, one of `shares` for each replica, are classified correctly."""
        return int(self._count(images, labels))

    def _count_in_share(self, images, labels):
        """How many images [share, H, W, 3] are classified correctly; those that fill up the share have labels of zeros and do not count."""
        counted = tf.reduce_max(labels, axis=-1) > 0
        return tf.math.count_nonzero(counted & is_correct(labels, self._model(images, training=False)))
