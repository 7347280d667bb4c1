"""Stand-in records for measurements where there is no data set."""

import pathlib

import numpy as np
import tensorflow as tf

from mat.data.records import make_example, record_path, staged, write_records

_N_PICTURES = 1000  # different ones
_GRID = 8  # of the random colors that a picture is a smooth interpolation of


def make_synthetic_records(data_dir: str | pathlib.Path, *, n_train: int, n_validation: int, n_classes: int, image_size: int) -> None:
    """Write `train.tfrecord` and `validation.tfrecord` of smooth random pictures with random labels, the same every time.

    A picture serves many records, so that a large file is made in seconds.
    """
    rng = np.random.default_rng(0)
    jpegs = []
    for grid in tf.constant(rng.uniform(0, 255, [_N_PICTURES, _GRID, _GRID, 3]), tf.float32):
        picture = tf.image.resize(grid, [image_size, image_size]) + rng.normal(scale=8.0, size=[image_size, image_size, 3])
        jpegs.append(tf.io.encode_jpeg(tf.saturate_cast(tf.round(picture), tf.uint8), quality=90).numpy())
    box = (0, 0, image_size - 1, image_size - 1)
    with staged(data_dir) as stage:
        for split, n_records in {"train": n_train, "validation": n_validation}.items():
            labels = rng.permutation(np.arange(n_records) % n_classes)
            pictures = rng.integers(_N_PICTURES, size=n_records)
            examples = (make_example(jpegs[i], f"n{label}", int(label), box) for i, label in zip(pictures, labels, strict=True))
            write_records(record_path(stage, split), examples)
