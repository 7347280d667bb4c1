"""Input pipeline: the original's augmentation, in shuffled epochs.

Shapes: `N` examples, `B` images a batch. Images are float32 in [0, 1].
"""

import os
from typing import Any

import numpy as np
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data.reading import LABELED_SPLITS, Records, decode, read_records
from mat.distribution.replicas import FILLING, ONE_REPLICA, Replicas
from mat.seeds import fold_in, generator, split, stream_seed

CROP_AREA = (0.5, 1.0)
CROP_ASPECT_RATIO = (0.75, 1.33)
CROP_ATTEMPTS = 20
SATURATION = (0.5, 2.0)

_IMAGES_PER_CALL = 8  # of the augmentation; a call by itself costs as much as decoding an image of 64x64
_CACHE_BYTES = 2**30  # Tiny ImageNet's validation images take 123 MB


def load_dataset(
    data_dir: str | os.PathLike,
    split: str,
    *,
    batch_size: int,
    n_classes: int = 200,
    image_size: int = 64,
    label_smoothing: float = 0.0,
    seed: int = 0,
    epoch: int = 0,
    max_bad_records: int = 0,
) -> tf.data.Dataset:
    """One epoch of a split, "train" | "validation": `read_records`, which may raise a `UserError`, then the split's dataset.

    Returns:
        batches of (images float32 [B, image_size, image_size, 3] in [0, 1], labels float32 [B, n_classes]).
    """
    if split not in LABELED_SPLITS:
        raise ValueError(f"split must be one of {LABELED_SPLITS}. Received: {split!r}")
    records = read_records(data_dir, split, n_classes=n_classes, max_bad_records=max_bad_records)
    arguments: dict[str, Any] = {"batch_size": batch_size, "n_classes": n_classes, "image_size": image_size}
    if split == "train":
        return train_dataset(records, label_smoothing=label_smoothing, seed=seed, epoch=epoch, **arguments)
    return validation_dataset(records, **arguments)


def train_dataset(
    records: Records,
    *,
    batch_size: int,
    n_classes: int,
    image_size: int,
    label_smoothing: float,
    seed: int,
    epoch: int,
    first_batch: int = 0,
    replicas: Replicas = ONE_REPLICA,
) -> tf.data.Dataset:
    """One epoch of training batches as of `load_dataset`: all examples shuffled, augmented, the remainder of a batch dropped.

    The order is a function of (seed, epoch), the augmentation of (seed, epoch, example): neither depends on threads. The batches before
    `first_batch` are left out, and not even decoded; all others are those of the whole epoch. Of a batch each of the `replicas` gets its
    share, one after the other, and what others get is not decoded.
    """
    order = generator(seed, f"order/{epoch}").permutation(len(records.labels))
    order = order[first_batch * batch_size : len(order) // batch_size * batch_size]
    shares = np.maximum(replicas.shares_of(order.reshape(-1, batch_size)), 0)
    seeds = np.tile(stream_seed(seed, f"augmentation/{epoch}"), (shares.size, 1))
    images = _augmented_images(records, shares.ravel(), seeds, image_size).rebatch(shares.shape[1], drop_remainder=True)
    labels = tf.data.Dataset.from_tensor_slices(records.labels[shares])
    batches = tf.data.Dataset.zip(images, labels)
    return _prefetched(batches.map(lambda x, y: (x, smooth_one_hot(y, n_classes, label_smoothing))))


def validation_dataset(records: Records, *, batch_size: int, n_classes: int, image_size: int) -> tf.data.Dataset:
    """All examples in the order of the file as batches of `load_dataset`, not augmented; the last batch may be smaller.

    Of an image that is not square, it is the square in the middle.
    """
    examples = np.arange(len(records.labels))
    return _validation_batches(records, examples, batch_size=batch_size, n_classes=n_classes, image_size=image_size, cached=False)


def shared_validation_dataset(records: Records, *, batch_size: int, n_classes: int, image_size: int, replicas: Replicas) -> tf.data.Dataset:
    """What these replicas get of `validation_dataset`: shares of one size, one after the other, filled up with images of labels of zeros.

    Decoded images stay in memory from the first pass on, if those of all records take less than 1 GiB.

    Returns:
        for each batch and replica (images float32 [share, image_size, image_size, 3] in [0, 1], labels float32 [share, n_classes]), where
        share = ceil(batch_size / R).
    """
    n_batches = -(-len(records.labels) // batch_size)
    numbers = np.pad(np.arange(len(records.labels)), (0, n_batches * batch_size - len(records.labels)), constant_values=FILLING)
    shares = replicas.shares_of(numbers.reshape(n_batches, batch_size))
    sizes = {"batch_size": shares.shape[1], "n_classes": n_classes, "image_size": image_size}
    return _validation_batches(records, shares.ravel(), cached=True, **sizes)


def _validation_batches(records, examples, *, batch_size, n_classes, image_size, cached):
    """Batches of the examples of these numbers; any image with a label of zeros in place of `FILLING`."""
    images = tf.data.Dataset.from_tensor_slices(np.maximum(examples, 0))
    images = images.map(lambda i: decode(tf.gather(records.images, i)), num_parallel_calls=tf.data.AUTOTUNE)
    if cached and 3 * int(records.sizes.prod(axis=1).sum()) < _CACHE_BYTES:
        images = images.cache()
    some_larger = bool(np.any(records.sizes > image_size))
    images = images.map(lambda image: validation_image(image, image_size, some_larger=some_larger), tf.data.AUTOTUNE)
    labels = np.where(examples == FILLING, FILLING, records.labels[examples])  # which has no one-hot label
    batches = tf.data.Dataset.zip(images, tf.data.Dataset.from_tensor_slices(labels))
    batches = batches.batch(batch_size, drop_remainder=len(examples) % batch_size == 0)
    return _prefetched(batches.map(lambda x, y: (x, tf.one_hot(y, n_classes))))


def _prefetched(batches):
    """Batches that are loaded in the background, by as many threads as there are cores.

    Without autotuning, whose thread is not always woken up when an iterator is deleted, so that an epoch ended up to a minute later.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def initial_images(records: Records, targets: np.ndarray, *, targeted: bool, image_size: int, seed: int) -> tf.data.Dataset:
    """The images that a data-initialized bank starts from (INIT): one augmented training image for each patch.

    The k-th patch of a class, by `targets` [P], gets the k-th example of that class in a shuffled order of its own; where a class has
    fewer, an example serves again under another augmentation. If not `targeted`, any patch gets any example. Only these are decoded.

    Returns:
        P images, float32 [image_size, image_size, 3] in [0, 1].

    Raises:
        UserError: a target class has no example.
    """
    order = generator(seed, "bank/order").permutation(len(records.labels))
    classes, labels = (targets, records.labels[order]) if targeted else (np.zeros_like(targets), np.zeros_like(order))
    if missing := np.setdiff1d(classes, labels).tolist():
        raise UserError(
            f"{records.path}: no image of class {', '.join(map(str, missing[:10]))}, and patch_initialization: data starts a patch of each "
            "class from an image of it. Set patch_initialization: random, or n_classes to the classes that the file has"
        )
    examples, rounds = np.zeros((2, len(classes)), order.dtype)
    for c in np.unique(classes):
        (patches,), candidates = np.nonzero(classes == c), order[labels == c]
        rounds[patches], turns = np.divmod(np.arange(len(patches)), len(candidates))
        examples[patches] = candidates[turns]
    seeds = np.stack([stream_seed(seed, f"bank/augmentation/{r}") for r in range(rounds.max() + 1)])
    return _augmented_images(records, examples, seeds[rounds], image_size).unbatch().take(len(examples))


def _augmented_images(records, examples, seeds, image_size):
    """Images of `examples` [n], each augmented by the draws of its row of `seeds` [n, 2] and its own index.

    They come `_IMAGES_PER_CALL` at a time, whatever the batch size; the last example fills up the last call.
    """
    missing = -len(examples) % _IMAGES_PER_CALL
    examples, seeds = np.pad(examples, (0, missing), "edge"), np.pad(seeds, ((0, missing), (0, 0)), "edge")
    calls = tf.data.Dataset.from_tensor_slices((examples.reshape(-1, _IMAGES_PER_CALL), seeds.reshape(-1, _IMAGES_PER_CALL, 2)))
    some_larger = bool(np.any(records.sizes > image_size))
    return calls.map(
        lambda indices, seeds: _load(tf.gather(records.images, indices), indices, seeds, image_size, some_larger), tf.data.AUTOTUNE
    )


@tf.function(autograph=False)  # traced once, not in every epoch
def _load(encoded, examples, seeds, image_size, some_larger):
    """Augmented images of `_IMAGES_PER_CALL` encoded ones, by their indices and seeds."""
    seeds = [fold_in(seeds[i], examples[i]) for i in range(_IMAGES_PER_CALL)]
    return tf.stack([augment(decode(encoded[i]), image_size, seed, some_larger=some_larger) for i, seed in enumerate(seeds)])


def augment(image: tf.Tensor, image_size: int, seed: tf.Tensor, *, some_larger: bool = True) -> tf.Tensor:
    """The original's augmentation: random crop, flip and saturation, then the resize.

    The crop covers 50-100 % of the area at an aspect ratio of 0.75-1.33, in up to 20 attempts, else it is the whole image. An image, uint8
    [H, W, 3] or float32 in [0, 1], becomes float32 [image_size, image_size, 3] in [0, 1]; `seed` is stateless, int32 [2]. False for
    `some_larger` says that H and W are at most `image_size`, and saves asking.
    """
    seeds, original_size = split(seed, 3), tf.shape(image)[:2]
    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image), whole, seeds[0], aspect_ratio_range=CROP_ASPECT_RATIO, area_range=CROP_AREA, max_attempts=CROP_ATTEMPTS
    )
    image = tf.slice(image, begin, size)  # crop and flip move bytes, a quarter of what they would as floats
    flip = tf.random.stateless_uniform([], seeds[1]) < 0.5
    image = tf.reverse(image, axis=tf.range(1, 1 + tf.cast(flip, tf.int32)))  # no axis: as it is; a tf.cond costs more than the flip
    image = tf.image.convert_image_dtype(image, tf.float32)
    image = tf.image.adjust_saturation(image, tf.random.stateless_uniform([], seeds[2], *SATURATION))
    return _resized(image, image_size, original_size) if some_larger else resize(image, image_size)


def validation_image(image: tf.Tensor, image_size: int, *, some_larger: bool = True) -> tf.Tensor:
    """An image uint8 [H, W, 3] as it is validated on: the square in its middle, float32 [image_size, image_size, 3] in [0, 1].

    `some_larger` is as for `augment`.
    """
    size = tf.shape(image)[:2]
    side = tf.reduce_min(size)
    square = tf.slice(image, [*tf.unstack((size - side) // 2), 0], [side, side, 3])
    square = tf.image.convert_image_dtype(square, tf.float32)
    return _resized(square, image_size, size) if some_larger else resize(square, image_size)


def _resized(image, image_size, original_size):
    """`resize`, or `shrink` for what was cut out of an image of an `original_size` [2] beyond `image_size`."""
    large = tf.reduce_max(original_size) > image_size
    return tf.cond(large, lambda: shrink(image, image_size), lambda: resize(image, image_size))


def shrink(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Bicubic resize with anti-aliasing, clipped to [0, 1]: `resize` looks at four pixels in a row and leaves out the rest.

    float32 [H, W, 3] -> float32 [image_size, image_size, 3].
    """
    return tf.clip_by_value(tf.image.resize(image, [image_size, image_size], "bicubic", antialias=True), 0.0, 1.0)


def resize(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Legacy bicubic resize, as of TensorFlow 1 (no half-pixel centers, no anti-aliasing), clipped to [0, 1].

    float32 [H, W, 3] -> float32 [image_size, image_size, 3]; the image itself where it has that size.
    """
    size = [image_size, image_size]
    resized = tf.raw_ops.ResizeBicubic(images=image[tf.newaxis], size=size, align_corners=False, half_pixel_centers=False)
    return tf.clip_by_value(resized[0], 0.0, 1.0)


def smooth_one_hot(labels: tf.Tensor, n_classes: int, label_smoothing: float) -> tf.Tensor:
    """One-hot labels, clipped to [s / (n_classes - 1), 1 - s] where the smoothing s is above 0: integers [B] -> float32 [B, n_classes]."""
    return tf.clip_by_value(tf.one_hot(labels, n_classes), label_smoothing / (n_classes - 1), 1.0 - label_smoothing)
