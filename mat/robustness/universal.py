"""A network and images behind the closures of `mat.attack`: fitting universal patches on images, and what they do to others.

Shapes: `B` images a batch, `N` images in all, `M` images in an iteration of a patch, `R` patches fitted side by side, `T` iterations,
images `H` x `W`, patches `h` x `w`. Images and patches are float32 in [0, 1]. A target is a class, or `UNTARGETED`.
"""

import numpy as np
import tensorflow as tf

from mat.attack import fit_universal_patches, random_search
from mat.models.prepared import compile_with
from mat.patch import apply_patches

UNTARGETED = -1
FOOLED_WEIGHT = 0.01  # of an image that is misclassified for certain, in the loss of an untargeted patch
UNDEFINED = -1  # the prediction where logits are NaN or infinite


class UniversalAttacks(tf.Module):
    """Universal patch attacks on one network, compiled.

    Args:
        model: images [B, H, W, 3] -> logits [B, n_classes], in inference mode.
        images: float32 [N, H, W, 3], the images that patches are fitted on.
        labels: integers [N].
        jit_compile: compile with XLA.
    """

    def __init__(self, model, images, labels, *, jit_compile):
        super().__init__(name="universal_attacks")
        self.model = model
        self.images = tf.convert_to_tensor(images)
        self.labels = tf.cast(labels, tf.int64)

        def compiled(function):
            return compile_with(model, function, jit_compile=jit_compile)

        self.fit, self.search = compiled(self._fit), compiled(self._search)
        self._predict_batch = compiled(self._predict)
        self._predict_clean_batch = compiled(lambda images: _classes(model(images, training=False)))
        self._gradient_batch = compiled(self._patch_gradients)

    def _fit(self, patches, targets, steps, indices, offsets):
        """White-box iterations of R patches; see `fit_universal_patches`.

        Args:
            patches: float32 [R, h, w, 3].
            targets: int64 [R].
            steps: float32 [T, R], unsigned.
            indices: int32 [T, R, M], the images of each iteration.
            offsets: int32 [T, R, M, 2], where the patches lie.

        Returns:
            The patches, float32 [R, h, w, 3], and the losses before each iteration, float32 [T, R].
        """

        def loss_fn(patches, iteration):
            return self._losses(patches, targets, indices[iteration], offsets[iteration])

        return fit_universal_patches(loss_fn, patches, steps=_directions(targets) * steps)

    def _search(self, patches, targets, squares, colors, indices, offsets):
        """Gradient-free iterations of R patches on one set of images [R, M] at offsets [R, M, 2]; see `random_search`."""

        def loss_fn(patches):
            return self._losses(patches, targets, indices, offsets)

        return random_search(loss_fn, patches, directions=_directions(targets), squares=squares, colors=colors)

    def _losses(self, patches, targets, indices, offsets):
        """The mean loss [R] of each patch on its images: cross-entropy to its target class or, untargeted, what `fooled_or_not` makes of
        that of the true classes.
        """
        n_restarts, n_images = indices.shape
        shape = [n_restarts, n_images, *patches.shape[1:]]
        copies = tf.reshape(tf.broadcast_to(patches[:, tf.newaxis], shape), [-1, *shape[2:]])  # [R M, h, w, 3]
        flat = tf.reshape(indices, [-1])
        labels = tf.where(targets[:, tf.newaxis] == UNTARGETED, tf.gather(self.labels, indices), targets[:, tf.newaxis])
        logits = self._patched_logits(tf.gather(self.images, flat), copies, tf.reshape(offsets, [-1, 2]))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.reshape(labels, [-1]), logits=logits)
        losses = tf.reshape(losses, [n_restarts, n_images])
        losses = tf.where(targets[:, tf.newaxis] == UNTARGETED, fooled_or_not(losses, logits.shape[-1]), losses)
        return tf.reduce_mean(losses, axis=1)

    def _patched_logits(self, images, patches, offsets):
        """The logits [B, n_classes] of images under their own patches [B, h, w, 3]."""
        return self.model(apply_patches(images, patches, offsets), training=False)

    def _predict(self, patch, images, offsets):
        """The predicted classes [B] of a batch under one patch."""
        copies = tf.broadcast_to(patch[tf.newaxis], [images.shape[0], *patch.shape])
        return _classes(self._patched_logits(images, copies, offsets))

    def predict(self, patch, images, offsets, *, images_at_once):
        """The classes that the network sees in images under one patch.

        Args:
            patch: float32 [h, w, 3].
            images: float32 [N, H, W, 3].
            offsets: int32 [N, 2], where the patch lies in each image.
            images_at_once: images in one pass.

        Returns:
            int64 array [N], `UNDEFINED` where a logit is NaN or infinite.
        """
        return _in_batches(lambda images, offsets: self._predict_batch(patch, images, offsets), images_at_once, images, offsets)

    def predict_clean(self, images, *, images_at_once):
        """The classes that the network sees without a patch, as `predict`."""
        return _in_batches(self._predict_clean_batch, images_at_once, images)

    def patch_gradients(self, patch, images, labels, offsets, *, images_at_once):
        """How large the gradient of an image's own loss with respect to the patch on it is.

        Args:
            patch: float32 [h, w, 3].
            images, labels, offsets: float32 [N, H, W, 3], int64 [N] and int32 [N, 2]; the loss is the cross-entropy of the label.
            images_at_once: images in one pass.

        Returns:
            float32 array [N], the sum of the absolute gradients of all pixels: 0 where all are, a sign of masked gradients.
        """
        return _in_batches(
            lambda images, labels, offsets: self._gradient_batch(patch, images, labels, offsets), images_at_once, images, labels, offsets
        )

    def _patch_gradients(self, patch, images, labels, offsets):
        """As `patch_gradients`, of a batch; each image gets a copy of the patch of its own, so that its gradient is its own."""
        copies = tf.broadcast_to(patch[tf.newaxis], [images.shape[0], *patch.shape])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(copies)
            logits = self._patched_logits(images, copies, offsets)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        return tf.reduce_sum(tf.abs(tape.gradient(losses, copies)), axis=[1, 2, 3])


def fooled_or_not(losses, n_classes):
    """What an untargeted universal patch raises: the cross-entropy of the true class, of little weight where it is beyond log(n_classes).

    There the true class has less than its share of 1 / n_classes, so that the image is misclassified already. The plain mean is
    unbounded, and a patch raises it most by making misclassified images worse; this one counts the images that are still right.

    Args:
        losses: float32, cross-entropies of any shape.
        n_classes: number of classes.

    Returns:
        float32 in the shape of `losses`.
    """
    fooled = tf.math.log(tf.cast(n_classes, losses.dtype))
    return tf.minimum(losses, fooled) + FOOLED_WEIGHT * tf.maximum(losses - fooled, 0.0)


def _classes(logits):
    """The predicted classes int64 [B] of logits [B, n_classes]; `UNDEFINED` where a logit is NaN or infinite."""
    return tf.where(tf.reduce_all(tf.math.is_finite(logits), axis=-1), tf.argmax(logits, axis=-1), UNDEFINED)


def _directions(targets):
    """1 to raise the loss of the true class, -1 to lower the loss to a target class; float32 [R]."""
    return tf.where(targets == UNTARGETED, 1.0, -1.0)


def _in_batches(function, images_at_once, *arrays):
    """`function` of arrays [N, ...] cut into batches of one shape, the last one filled up; an array [N, ...]."""
    n_images = len(arrays[0])
    batch_size = -(-n_images // -(-n_images // images_at_once))  # batches as equal as can be
    results = []
    for start in range(0, n_images, batch_size):
        batch = [array[start : start + batch_size] for array in arrays]
        missing = batch_size - len(batch[0])
        if missing:
            batch = [tf.pad(part, [[0, missing]] + [[0, 0]] * (len(part.shape) - 1)) for part in batch]
        results.append(function(*batch).numpy()[: batch_size - missing])
    return np.concatenate(results)
