"""Compiled universal patch attacks on one network, and its predictions under patches.

Shapes: `B` images a batch, `N` images in all, `M` images in an iteration of a patch, `R` patches fitted side by side, `T` iterations,
images `H` x `W`, patches `h` x `w`. Images and patches are float32 in [0, 1]. A target is a class, or `UNTARGETED`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from mat.attack import fit_universal_patches, random_search
from mat.data.reading import Records
from mat.data.tiny_imagenet import validation_dataset
from mat.distribution.replicas import at_own_place, own_share, sum_over_replicas
from mat.distribution.strategy import copies, run_everywhere
from mat.models.prepared import compile_with
from mat.patch import apply_patches

UNTARGETED = -1
UNDEFINED = -1  # the prediction where logits are NaN or infinite
WEIGHT_ABOVE_CAP = 0.01  # of what the cross-entropy of a misclassified image has beyond the cap
_LOAD_BATCH = 500


class Images(NamedTuple):
    """Examples in memory."""

    images: tf.Tensor  # float32 [N, H, W, 3]
    labels: np.ndarray  # int64 [N]
    records: np.ndarray  # int64 [N], the numbers of their records in the file


def load_images(records: Records, *, n_classes: int, image_size: int) -> Images:
    """Decode all images of records."""
    batches = validation_dataset(records, batch_size=_LOAD_BATCH, n_classes=n_classes, image_size=image_size)
    return Images(tf.concat([images for images, _ in batches], axis=0), records.labels, records.numbers)


class UniversalAttacks:
    """Universal patch attacks on one network, compiled, with XLA or without.

    Args:
        model: images [B, H, W, 3] -> logits [B, n_classes], in inference mode; a `keras.Model` or a function.
        images: [N, H, W, 3], which patches are fitted on, of the classes `labels` [N].
        strategy: of the replicas that share the work; None for one device. Each fits its share of `R` patches, which their number must
            divide, and takes its share of a batch.

    Attributes:
        fit, search: compiled, see `_fit` and `_search`.
        strategy: as given, or that of one device.
    """

    def __init__(
        self,
        model: Callable[..., tf.Tensor],
        images: tf.Tensor,
        labels: np.ndarray,
        *,
        jit_compile: bool,
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        self.images, self.labels, self._model = tf.convert_to_tensor(images), tf.cast(labels, tf.int64), model
        self.strategy = strategy or tf.distribute.get_strategy()
        self._data = copies(self.strategy, self.images), copies(self.strategy, self.labels)
        shared = functools.partial(self._shared, jit_compile=jit_compile)
        # What is shared along which axis: of fit and search patches, of the others images.
        self.fit = functools.partial(shared(self._fit, (None, None, 0, 0, 1, 1, 1), (0, 1)), *self._data)
        self.search = functools.partial(shared(self._search, (None, None, 0, 0, 1, 1, 0, 0), (0, 1)), *self._data)
        self._predict_batch, self._gradient_batch = shared(self._predict, (None, 0, 0)), shared(self._patch_gradients, (None, 0, 0, 0))
        self._predict_clean_batch = shared(lambda images: (_classes(model(images, training=False)),), (0,))

    def _shared(self, function, axes, result_axes=(0,), *, jit_compile):
        """A compiled function of the same arguments, which every replica calls with its share along their axes; gives all its results."""
        compiled = compile_with(self._model, function, jit_compile=jit_compile)

        def on_replica(*arguments):
            shares = [x if axis is None else own_share(tf.convert_to_tensor(x), axis) for x, axis in zip(arguments, axes, strict=True)]
            return sum_over_replicas([at_own_place(x, axis) for x, axis in zip(compiled(*shares), result_axes, strict=True)])

        return tf.function(functools.partial(run_everywhere, self.strategy, on_replica), autograph=False)

    def predict(self, patch: np.ndarray, images: tf.Tensor, offsets: np.ndarray, *, images_at_once: int) -> np.ndarray:
        """The classes int64 [N] seen in images under one patch at offsets int32 [N, 2]; `UNDEFINED` where a logit is NaN or infinite."""
        return self._in_batches(lambda *batch: self._predict_batch(patch, *batch), images_at_once, images, offsets)

    def predict_clean(self, images: tf.Tensor, *, images_at_once: int) -> np.ndarray:
        """The classes that the network sees without a patch, as `predict`."""
        return self._in_batches(self._predict_clean_batch, images_at_once, images)

    def patch_gradients(
        self, patch: np.ndarray, images: tf.Tensor, labels: np.ndarray, offsets: np.ndarray, *, images_at_once: int
    ) -> np.ndarray:
        """The sum float32 [N] of the absolute gradient of each image's cross-entropy with respect to the patch; 0 is a sign of masking."""
        return self._in_batches(lambda *batch: self._gradient_batch(patch, *batch), images_at_once, images, labels, offsets)

    def _in_batches(self, function, images_at_once, *arrays):
        """`function` of arrays [N, ...] in batches of one shape, as equal as can be, each of at most `images_at_once` a replica.

        The last image fills the last batch. Returns an array [N, ...].
        """
        n_images, n_replicas = len(arrays[0]), self.strategy.num_replicas_in_sync
        n_batches = -(-n_images // (images_at_once * n_replicas))
        share = -(-n_images // (n_batches * n_replicas))
        batches = np.minimum(np.arange(n_batches * share * n_replicas), n_images - 1).reshape(n_batches, -1)
        return np.concatenate([function(*(tf.gather(array, batch) for array in arrays))[0].numpy() for batch in batches])[:n_images]

    def _fit(self, images, labels, patches, targets, steps, indices, offsets):
        """White-box iterations by unsigned steps [T, R], each on images [T, R, M] at offsets [T, R, M, 2]; see `fit_universal_patches`."""

        def loss_fn(patches, iteration):
            return self._losses(patches, images, labels, targets, indices[iteration], offsets[iteration])

        return fit_universal_patches(loss_fn, patches, steps=tf.where(targets == UNTARGETED, 1.0, -1.0) * steps)

    def _search(self, images, labels, patches, targets, squares, colors, indices, offsets):
        """Gradient-free iterations on one set of images [R, M] at offsets [R, M, 2]; see `random_search`."""
        loss_fn = functools.partial(self._losses, images=images, labels=labels, targets=targets, indices=indices, offsets=offsets)
        return random_search(loss_fn, patches, directions=tf.where(targets == UNTARGETED, 1.0, -1.0), squares=squares, colors=colors)

    def _losses(self, patches, images, labels, targets, indices, offsets):
        """The mean loss [R] of each patch on its images: cross-entropy to its target class or, untargeted, capped to the true ones."""
        n_patches, n_images = indices.shape
        untargeted = targets[:, tf.newaxis] == UNTARGETED
        labels = tf.where(untargeted, tf.gather(labels, indices), targets[:, tf.newaxis])
        patches = tf.broadcast_to(patches[:, tf.newaxis], [n_patches, n_images, *patches.shape[1:]])
        patches = tf.reshape(patches, [-1, *patches.shape[2:]])  # [R M, h, w, 3]
        logits = self._patched_logits(tf.gather(images, tf.reshape(indices, [-1])), patches, tf.reshape(offsets, [-1, 2]))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.reshape(labels, [-1]), logits=logits)
        losses = tf.reshape(losses, [n_patches, n_images])
        losses = tf.where(untargeted, capped_cross_entropy(losses, logits.shape[-1]), losses)
        return tf.reduce_mean(losses, axis=1)

    def _patched_logits(self, images, patches, offsets):
        """The logits [B, n_classes] of images under their own patches [B, h, w, 3]."""
        return self._model(apply_patches(images, patches, offsets), training=False)

    def _predict(self, patch, images, offsets):
        return (_classes(self._patched_logits(images, _copies(patch, images), offsets)),)

    def _patch_gradients(self, patch, images, labels, offsets):
        patches = _copies(patch, images)  # one for each image, so that its gradient is its own
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(patches)
            logits = self._patched_logits(images, patches, offsets)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        return (tf.reduce_sum(tf.abs(tape.gradient(losses, patches)), axis=[1, 2, 3]),)


def capped_cross_entropy(losses: tf.Tensor, n_classes: int) -> tf.Tensor:
    """What an untargeted universal patch raises: cross-entropies of the true class, of little weight beyond the cap log(n_classes).

    There the true class has less than its share of 1 / n_classes, so that the image is misclassified already. The plain mean is
    unbounded, and a patch raises it most by making misclassified images worse; this one counts the images that are still right.
    """
    cap = tf.math.log(tf.cast(n_classes, losses.dtype))
    return tf.minimum(losses, cap) + WEIGHT_ABOVE_CAP * tf.maximum(losses - cap, 0.0)


def _classes(logits):
    """The predicted classes int64 [B] of logits [B, n_classes]; `UNDEFINED` where a logit is NaN or infinite."""
    return tf.where(tf.reduce_all(tf.math.is_finite(logits), axis=-1), tf.argmax(logits, axis=-1), UNDEFINED)


def _copies(patch, images):
    """A patch for each image, [B, h, w, 3]."""
    return tf.broadcast_to(patch[tf.newaxis], [images.shape[0], *patch.shape])
