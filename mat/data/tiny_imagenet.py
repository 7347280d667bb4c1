"""Records -> `tf.data`: the original's augmentation, shuffled epochs.

Shapes: `N` examples, `B` images a batch. Images are float32 in [0, 1].
"""

import functools

import numpy as np
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data.reading import CHUNK, SPLITS, decode, read_records
from mat.seeds import fold_in, generator, split, stream_seed

CROP_AREA = (0.5, 1.0)
CROP_ASPECT_RATIO = (0.75, 1.33)
CROP_ATTEMPTS = 20
SATURATION = (0.5, 2.0)

CACHE_BYTES = 2**30  # Tiny ImageNet's validation images take 123 MB


def load_dataset(data_dir, split, *, batch_size, n_classes=200, image_size=64, label_smoothing=0.0, seed=0, epoch=0, max_bad_records=0):
    """One epoch of a split as batches: `read_records`, then `train_dataset` or `validation_dataset`.

    Args:
        data_dir: directory of `train.tfrecord` and `validation.tfrecord`.
        split: "train" | "validation".
        batch_size: B.
        n_classes: number of classes.
        image_size: height and width of the images.
        label_smoothing: for training labels, see `smooth_one_hot`.
        seed: the config's seed, for training.
        epoch: which epoch's order and augmentation, for training.
        max_bad_records: see `read_records`.

    Returns:
        tf.data.Dataset of (images float32 [B, image_size, image_size, 3] in [0, 1], labels float32 [B, n_classes]).

    Raises:
        UserError: as `read_records`.
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}. Received: {split!r}")
    records = read_records(data_dir, split, n_classes=n_classes, max_bad_records=max_bad_records)
    arguments = {"batch_size": batch_size, "n_classes": n_classes, "image_size": image_size}
    if split == "train":
        return train_dataset(records, label_smoothing=label_smoothing, seed=seed, epoch=epoch, **arguments)
    return validation_dataset(records, **arguments)


def train_dataset(records, *, batch_size, n_classes, image_size, label_smoothing, seed, epoch, first_batch=0):
    """One epoch of training batches: all examples shuffled, augmented, the remainder of a batch dropped.

    The order is a function of (seed, epoch), the augmentation of (seed, epoch, example): neither depends on threads.

    Args:
        first_batch: leave out so many batches, whose images are not even decoded; all others are those of the whole epoch.

    Returns:
        tf.data.Dataset of (images float32 [B, image_size, image_size, 3], smoothed one-hot labels float32 [B, n_classes]).
    """
    order = generator(seed, f"order/{epoch}").permutation(len(records.labels))
    order = order[first_batch * batch_size : len(order) // batch_size * batch_size]
    seeds = np.tile(stream_seed(seed, f"augmentation/{epoch}"), (len(order), 1))
    images = _augmented_images(records, order, seeds, image_size).rebatch(batch_size, drop_remainder=True)
    labels = tf.data.Dataset.from_tensor_slices(records.labels[order].reshape(-1, batch_size))
    batches = tf.data.Dataset.zip(images, labels)
    return batches.map(lambda x, y: (x, smooth_one_hot(y, n_classes, label_smoothing))).prefetch(tf.data.AUTOTUNE)


def validation_dataset(records, *, batch_size, n_classes, image_size, cached=False):
    """All examples in the order of the file, not augmented; the last batch may be smaller. Elements as of `train_dataset`.

    Args:
        cached: keep the decoded images in memory from the first pass on, if they take less than `CACHE_BYTES`.
    """
    images = tf.data.Dataset.from_tensor_slices(records.images).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    if cached and 3 * int(records.sizes.prod(axis=1).sum()) < CACHE_BYTES:
        images = images.cache()
    images = images.map(lambda image: resize(as_float(image), image_size), num_parallel_calls=tf.data.AUTOTUNE)
    batches = tf.data.Dataset.zip(images, tf.data.Dataset.from_tensor_slices(records.labels)).batch(batch_size)
    return batches.map(lambda x, y: (x, tf.one_hot(y, n_classes))).prefetch(tf.data.AUTOTUNE)


def initial_images(records, targets, *, targeted, image_size, seed):
    """The images that a data-initialized bank starts from (INIT): one augmented training image for each patch.

    The k-th patch of a class gets the k-th example of that class in a shuffled order of its own; where a class has fewer, an example
    serves again under another augmentation. Only these examples are decoded.

    Args:
        records: the training records.
        targets: integers [P], the class of each patch.
        targeted: False takes any example for any patch, in the shuffled order.
        image_size: height and width of the images.
        seed: the config's seed.

    Returns:
        tf.data.Dataset of P images, float32 [image_size, image_size, 3] in [0, 1].

    Raises:
        UserError: a target class has no example.
    """
    order = generator(seed, "bank/order").permutation(len(records.labels))
    classes, labels = (targets, records.labels[order]) if targeted else (np.zeros_like(targets), np.zeros_like(order))
    served = {c: [] for c in np.unique(classes)}  # the examples of each class, in order
    for example, label in zip(order, labels, strict=True):
        if label in served:
            served[label].append(example)
    missing = [int(c) for c, examples in served.items() if not examples]
    if missing:
        raise UserError(
            f"{records.path}: no image of class {', '.join(map(str, missing[:10]))}, and patch_initialization: data starts a patch of each "
            "class from an image of it. Set patch_initialization: random, or n_classes to the classes that the file has"
        )
    turns = dict.fromkeys(served, 0)  # how many patches of the class came before
    examples, rounds = [], []
    for c in classes:
        examples.append(served[c][turns[c] % len(served[c])])
        rounds.append(turns[c] // len(served[c]))
        turns[c] += 1
    seeds = np.stack([stream_seed(seed, f"bank/augmentation/{r}") for r in range(max(rounds) + 1)])
    return _augmented_images(records, np.array(examples), seeds[rounds], image_size).unbatch().take(len(examples))


def _augmented_images(records, examples, seeds, image_size):
    """Images of `examples` [n], each augmented by the draws of its row of `seeds` [n, 2] and its own index.

    They come `CHUNK` at a time, whatever the batch size; the last example fills up the last chunk.
    """
    load = _loader(image_size, CHUNK)
    missing = -len(examples) % CHUNK
    examples, seeds = np.pad(examples, (0, missing), "edge"), np.pad(seeds, ((0, missing), (0, 0)), "edge")
    chunks = tf.data.Dataset.from_tensor_slices((examples.reshape(-1, CHUNK), seeds.reshape(-1, CHUNK, 2)))
    return chunks.map(
        lambda examples, seeds: load(tf.gather(records.images, examples), examples, seeds), num_parallel_calls=tf.data.AUTOTUNE
    )


@functools.cache  # and traced once, not in every epoch
def _loader(image_size, chunk):
    """The compiled function from encoded images [chunk], their indices and seeds to augmented images."""

    @tf.function(autograph=False)
    def load(encoded, examples, seeds):
        return tf.stack([augment(decode(encoded[i]), image_size, fold_in(seeds[i], examples[i])) for i in range(chunk)])

    return load


def augment(image, image_size, seed):
    """The original's augmentation: random crop, flip and saturation, then the resize.

    The crop covers 50-100 % of the area at an aspect ratio of 0.75-1.33, in up to 20 attempts, else it is the whole image.

    Args:
        image: uint8 [H, W, 3], or float32 in [0, 1].
        image_size: height and width of the result.
        seed: int32 [2], a stateless seed.

    Returns:
        float32 [image_size, image_size, 3] in [0, 1].
    """
    seeds = split(seed, 3)
    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image), whole, seeds[0], aspect_ratio_range=CROP_ASPECT_RATIO, area_range=CROP_AREA, max_attempts=CROP_ATTEMPTS
    )
    image = tf.slice(image, begin, size)  # crop and flip move bytes, a quarter of what they would as floats
    flip = tf.random.stateless_uniform([], seeds[1]) < 0.5
    image = tf.reverse(image, axis=tf.range(1, 1 + tf.cast(flip, tf.int32)))  # no axis: as it is; a tf.cond costs more than the flip
    image = tf.image.adjust_saturation(as_float(image), tf.random.stateless_uniform([], seeds[2], *SATURATION))
    return resize(image, image_size)


def resize(image, image_size):
    """Legacy bicubic resize, as of TensorFlow 1 (no half-pixel centers, no anti-aliasing), clipped to [0, 1].

    Args:
        image: float32 [H, W, 3].
        image_size: height and width of the result.

    Returns:
        float32 [image_size, image_size, 3]; the image itself where it has that size.
    """
    size = [image_size, image_size]
    resized = tf.raw_ops.ResizeBicubic(images=image[tf.newaxis], size=size, align_corners=False, half_pixel_centers=False)
    return tf.clip_by_value(resized[0], 0.0, 1.0)


def smooth_one_hot(labels, n_classes, label_smoothing):
    """One-hot labels, clipped to [s / (n_classes - 1), 1 - s] where the smoothing s is above 0.

    Args:
        labels: integers [B].

    Returns:
        float32 [B, n_classes], each row a distribution.
    """
    return tf.clip_by_value(tf.one_hot(labels, n_classes), label_smoothing / (n_classes - 1), 1.0 - label_smoothing)


def as_float(image):
    """uint8 image in 0..255 -> float32 in [0, 1]; a float image stays as it is."""
    return tf.image.convert_image_dtype(image, tf.float32)
