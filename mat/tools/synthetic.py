"""Stand-in records for measurements where there is no data set."""

import numpy as np
import tensorflow as tf

from mat.data.records import make_example, record_path, staged, write_records

N_PICTURES = 1000  # different ones
JPEG_QUALITY = 90
GRID = 8  # of the random colors that a picture is a smooth interpolation of


def make_synthetic_records(data_dir, *, n_train, n_validation, n_classes, image_size):
    """Write `train.tfrecord` and `validation.tfrecord` of smooth random pictures with random labels, the same every time.

    A picture serves many records, so that a large file is made in seconds.
    """
    rng = np.random.default_rng(0)
    grids = tf.constant(rng.uniform(0, 255, [N_PICTURES, GRID, GRID, 3]), tf.float32)
    jpegs = []
    for grid in grids:
        picture = tf.image.resize(grid, [image_size, image_size]) + rng.normal(scale=8.0, size=[image_size, image_size, 3])
        jpegs.append(tf.io.encode_jpeg(tf.saturate_cast(tf.round(picture), tf.uint8), quality=JPEG_QUALITY).numpy())
    with staged(data_dir) as stage:
        for split, n_records in {"train": n_train, "validation": n_validation}.items():
            labels = rng.permutation(np.arange(n_records) % n_classes)
            pictures = rng.integers(N_PICTURES, size=n_records)
            box = (0, 0, image_size - 1, image_size - 1)
            examples = (make_example(jpegs[i], f"n{label}", int(label), box) for i, label in zip(pictures, labels, strict=True))
            write_records(record_path(stage, split), examples)
