"""Patches: the bank of meta-patches, and how patches are applied, drawn, selected and updated.

Shapes: `B` images a batch, `F` trials an image, `P` meta-patches in the bank, images `H` x `W`, patches `h` x `w`.
Images and patches are float32 in [0, 1]; offsets are int32 (row, column) of a patch's upper left corner in pixels; seeds are int32 [2],
for stateless draws. Steps are named as in Algorithm 1 of arXiv:2101.11453.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from mat.models.fused import fused
from mat.seeds import draw_integers, split


class PatchBank(tf.Module):
    """The meta-patches that are learned along with the model.

    Args:
        patches: [P, h, w, 3].
        targets: int64 [P], the class that each patch drives images to.
        step_sizes: float32 [P], the I-FGSM step size of each patch, fixed for the whole run.
    """

    def __init__(self, patches: tf.Tensor, targets: tf.Tensor, step_sizes: tf.Tensor) -> None:
        super().__init__(name="patch_bank")
        self.patches = tf.Variable(patches, dtype=tf.float32, trainable=False, name="patches")
        self.targets = tf.Variable(targets, dtype=tf.int64, trainable=False, name="targets")
        self.step_sizes = tf.Variable(step_sizes, dtype=tf.float32, trainable=False, name="step_sizes")

    @classmethod
    def empty(cls, n_patches: int, patch_shape: Sequence[int]) -> "PatchBank":
        """A bank of P patches of shape (h, w, 3) that are all zero, to restore another one into."""
        zeros = tf.zeros([n_patches])
        return cls(tf.zeros([n_patches, *patch_shape]), tf.cast(zeros, tf.int64), zeros)

    def update(self, refined: tf.Tensor, indices: tf.Tensor, patch_lr: float) -> None:
        """REPTILE in place: `reptile_update` on the rows that the batch used, of the calling replica's copy. Arguments as there."""
        rows = _reptile_rows(tf.gather(self.patches, indices), refined, indices, patch_lr)
        tf.raw_ops.ResourceScatterUpdate(resource=self.patches.handle, indices=indices, updates=rows)


def initial_targets(n_patches: int, n_classes: int) -> tf.Tensor:
    """INIT: target classes round robin, patch i -> class i mod n_classes. Returns int64 [P]."""
    return tf.range(n_patches, dtype=tf.int64) % n_classes


def initial_step_sizes(n_patches: int, *, min_step_size: float, max_step_size: float, seed: tf.Tensor) -> tf.Tensor:
    """INIT: one I-FGSM step size a patch, log-uniform in [min_step_size, max_step_size]. Returns float32 [P]."""
    from tensorflow_probability import bijectors, distributions  # takes most of a second to import

    uniform = distributions.Uniform(tf.math.log(min_step_size), tf.math.log(max_step_size))
    log_uniform = distributions.TransformedDistribution(uniform, bijectors.Exp())
    return tf.clip_by_value(log_uniform.sample(n_patches, seed=seed), min_step_size, max_step_size)


def random_patches(n_patches: int, patch_shape: Sequence[int], *, seed: tf.Tensor) -> tf.Tensor:
    """INIT with `patch_initialization: random`: uniform noise. Returns [P, h, w, 3]."""
    return tf.random.stateless_uniform([n_patches, *patch_shape], seed)


def resize_to_patches(images: tf.Tensor, patch_shape: Sequence[int]) -> tf.Tensor:
    """INIT with `patch_initialization: data`: images [P, H, W, 3] shrunk to [P, h, w, 3] by the legacy bilinear resize."""
    resized = tf.raw_ops.ResizeBilinear(images=images, size=patch_shape[:2], align_corners=False, half_pixel_centers=False)
    return tf.clip_by_value(resized, 0.0, 1.0)


def apply_patches(images: tf.Tensor, patches: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    """Paste one patch into each image, [B, H, W, 3]. Pixels are copied exactly; gradients flow to images and patches.

    Args:
        images: [B, H, W, 3].
        patches: [B, h, w, 3], h <= H and w <= W.
        offsets: [B, 2], within 0..H-h and 0..W-w.
    """
    images, patches = tf.convert_to_tensor(images), tf.convert_to_tensor(patches)
    offsets = tf.cast(offsets, tf.int32)
    width, patch_shape = images.shape[2], patches.shape[1:3]

    # Position in the image of every patch pixel, [B, h, w]: the gradient is a gather too, not a slow and unordered scatter.
    image_rows = offsets[:, 0, tf.newaxis, tf.newaxis] + tf.range(patch_shape[0])[:, tf.newaxis]
    image_columns = offsets[:, 1, tf.newaxis, tf.newaxis] + tf.range(patch_shape[1])[tf.newaxis]
    destination = image_rows * width + image_columns

    @tf.custom_gradient
    def paste(images, patches):
        def gradient(upstream):
            inside, _ = _patch_pixels(upstream.shape[1:3], patch_shape, offsets)
            return tf.where(inside, tf.zeros_like(upstream), upstream), tf.gather(_flat_pixels(upstream), destination, batch_dims=1)

        return _paste(images, patches, offsets), gradient

    return paste(images, patches)


@fused
def _paste(images, patches, offsets):
    """`apply_patches` without its gradient."""
    inside, source = _patch_pixels(images.shape[1:3], patches.shape[1:3], offsets)
    return tf.where(inside, tf.gather(_flat_pixels(patches), source, batch_dims=1), images)


def _patch_pixels(image_shape, patch_shape, offsets):
    """For every pixel of the images whether the patch covers it, bool [B, H, W, 1], and by which of its h w pixels, int32 [B, H, W]."""
    # Row and column within the patch: [B, H, 1] and [B, 1, W].
    rows, columns = (tf.range(size)[tf.newaxis] - offsets[:, axis, tf.newaxis] for axis, size in enumerate(image_shape))
    rows, columns = rows[:, :, tf.newaxis], columns[:, tf.newaxis, :]
    inside = (rows >= 0) & (rows < patch_shape[0]) & (columns >= 0) & (columns < patch_shape[1])
    source = tf.clip_by_value(rows, 0, patch_shape[0] - 1) * patch_shape[1] + tf.clip_by_value(columns, 0, patch_shape[1] - 1)
    return inside[..., tf.newaxis], source


def _flat_pixels(images):
    """[B, H, W, 3] -> [B, H * W, 3]."""
    return tf.reshape(images, [tf.shape(images)[0], images.shape[1] * images.shape[2], images.shape[3]])


def draw_trials(
    seed: tf.Tensor, *, n_trials: int, batch_size: int, n_patches: int, image_shape: Sequence[int], patch_shape: Sequence[int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """The random (patch, position) trials of SELECT. Patches are drawn with replacement, positions uniformly.

    Args:
        image_shape, patch_shape: (H, W, ...) and (h, w, ...).

    Returns:
        indices int64 [F, B] in 0..P-1 and offsets [F, B, 2] in 0..H-h and 0..W-w, both ends included.
    """
    seeds = split(seed, 3)
    shape = [n_trials, batch_size]
    indices = draw_integers(shape, seeds[0], n_patches, tf.int64)
    rows = draw_integers(shape, seeds[1], image_shape[0] - patch_shape[0] + 1, tf.int32)
    columns = draw_integers(shape, seeds[2], image_shape[1] - patch_shape[1] + 1, tf.int32)
    return indices, tf.stack([rows, columns], axis=-1)


def select_patches(
    loss_fn: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], bank_patches: tf.Tensor, trial_indices: tf.Tensor, trial_offsets: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """SELECT^F: for each image, the trial with the largest loss; on a tie the earlier one.

    Args:
        loss_fn: patches [B, h, w, 3], offsets [B, 2] -> losses [B]; MAT gives the cross-entropy of the true label, also for
            targeted attacks. It is not called when F = 1.
        bank_patches: [P, h, w, 3].
        trial_indices, trial_offsets: integers [F, B] in 0..P-1, and [F, B, 2]; see `draw_trials`.

    Returns:
        indices [B] and offsets [B, 2] of the selected trials, in the dtypes of the trials.
    """
    trial_indices, trial_offsets = tf.convert_to_tensor(trial_indices), tf.convert_to_tensor(trial_offsets)
    n_trials = trial_indices.shape[0]
    if n_trials == 1:
        return trial_indices[0], trial_offsets[0]

    def trial_loss(trial):
        return loss_fn(tf.gather(bank_patches, trial_indices[trial]), trial_offsets[trial])

    def keep_worse(trial, best_loss, indices, offsets):
        loss = trial_loss(trial)
        worse = loss > best_loss
        indices = tf.where(worse, trial_indices[trial], indices)
        offsets = tf.where(worse[:, tf.newaxis], trial_offsets[trial], offsets)
        return trial + 1, tf.maximum(loss, best_loss), indices, offsets

    first = (1, trial_loss(0), trial_indices[0], trial_offsets[0])  # before the loop, as losses may be of any type
    _, _, indices, offsets = tf.while_loop(lambda trial, *_: trial < n_trials, keep_worse, first, maximum_iterations=n_trials - 1)
    return indices, offsets


def reptile_update(bank_patches: tf.Tensor, refined: tf.Tensor, indices: tf.Tensor, patch_lr: float) -> tf.Tensor:
    """REPTILE: bank <- (1 - patch_lr) bank + patch_lr * refined, for the patches that the batch used.

    A patch used by several images moves towards the mean of its refined copies; the others stay as they are.

    Args:
        bank_patches: [P, h, w, 3].
        refined: [B, h, w, 3], the refined copies.
        indices: integers [B] in 0..P-1, the patch that each copy came from.
        patch_lr: sigma in [0, 1].
    """
    rows = _reptile_rows(tf.gather(bank_patches, indices), refined, indices, patch_lr)
    return tf.tensor_scatter_nd_update(bank_patches, tf.convert_to_tensor(indices)[:, tf.newaxis], rows)


def _reptile_rows(used, refined, indices, patch_lr):
    """The updated patch of every image, [B, h, w, 3]; images that share a patch get equal rows. `used` are the patches before."""
    refined, indices = tf.convert_to_tensor(refined), tf.convert_to_tensor(indices)
    batch_size = indices.shape[0]
    same = indices[:, tf.newaxis] == indices[tf.newaxis, :]  # [B, B]
    first = tf.argmax(same, axis=1, output_type=tf.int32)  # the first image with the same patch
    counts = tf.reduce_sum(tf.cast(same, refined.dtype), axis=1)[:, tf.newaxis, tf.newaxis, tf.newaxis]
    means = tf.gather(tf.math.unsorted_segment_sum(refined, first, batch_size), first) / counts
    return (1.0 - patch_lr) * used + patch_lr * means
