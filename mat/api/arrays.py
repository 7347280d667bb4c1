"""Images and labels as arrays: what the functions of `mat.api` accept, and the form that an evaluation takes."""

from typing import Any

import numpy as np
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data.reading import Records
from mat.robustness.inputs import unit_floats


def float_images(images: Any) -> np.ndarray:
    """Images [N, H, W, 3] with N >= 1 and H = W, uint8 or float in [0, 1], as float32 in [0, 1]; a `UserError` tells what else they are."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2] or not images.size:
        raise UserError(f"images must be an array [N, size, size, 3]. Received: an array of the shape {list(images.shape)}")
    return float_pixels(images, "images")


def float_pixels(array: Any, name: str) -> np.ndarray:
    """Pixels of any shape but empty, uint8 or float in [0, 1], as float32 in [0, 1]; a `UserError` tells what else `name` is."""
    try:
        return unit_floats(np.asarray(array))
    except ValueError as error:
        remedy = "Divide by 255, or convert with .astype('uint8')"
        raise UserError(f"{name} must be uint8, or float in [0, 1]: {error}. {remedy}") from None


def integer_labels(labels: Any, n_images: int) -> np.ndarray:
    """Labels of N images, integers [N] or [N, 1] or one-hot [N, n_classes], as int64 [N]; a `UserError` tells what else they are."""
    given = labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "biuf" and np.allclose(labels.sum(axis=1), 1, atol=1e-3):
        labels = labels.argmax(axis=1)
    if labels.size != n_images or labels.dtype.kind not in "biuf" or not np.all((labels >= 0) & (labels == np.floor(labels))):
        received = f"an array {list(given.shape)} of {given.dtype}"
        raise UserError(f"labels must be {n_images} whole numbers of at least 0, one for an image, or one-hot. Received: {received}")
    return labels.reshape(-1).astype(np.int64)


def as_records(images: Any, labels: Any, name: str) -> Records:
    """Arrays as the records of a split: the images as PNG, so in 8 bits, as files have them."""
    images = np.round(255 * float_images(images)).astype(np.uint8)
    labels = integer_labels(labels, len(images))
    encoded = tf.map_fn(lambda image: tf.io.encode_png(image, compression=1), images, fn_output_signature=tf.string)
    sizes = np.full((len(images), 2), images.shape[1], np.int64)
    return Records(name, encoded, labels, np.arange(len(images)), sizes)
