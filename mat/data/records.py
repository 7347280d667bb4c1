"""The schema of the TFRecord files, that of the original's converter, and how they are written."""

import os
import pathlib

import tensorflow as tf

SPLITS = ("train", "validation", "test")
IMAGE = "image/encoded"
FORMAT = "image/format"
WNID = "label/wnid"
LABEL = "label/tiny_imagenet"
BOX = ("bbox/xmin", "bbox/ymin", "bbox/xmax", "bbox/ymax")


def record_path(data_dir, split):
    """The TFRecord file of a split: `data_dir/split.tfrecord`."""
    return pathlib.Path(data_dir) / f"{split}.tfrecord"


def make_example(jpeg, wnid=None, label=None, box=None):
    """One serialized record.

    Args:
        jpeg: the bytes of the JPEG file.
        wnid: WordNet id of the class; None for test images, which have neither label nor box.
        label: the line number of `wnid` in wnids.txt, from 0.
        box: (xmin, ymin, xmax, ymax) of the object, pixels.

    Returns:
        bytes, a `tf.train.Example`.
    """
    features = {IMAGE: _bytes(jpeg), FORMAT: _bytes(b"jpeg")}
    if wnid is not None:
        features |= {WNID: _bytes(wnid.encode()), LABEL: _int64(label)}
        features |= {name: _int64(value) for name, value in zip(BOX, box, strict=True)}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def write_records(path, examples):
    """Write serialized records under a temporary name that becomes `path` when all are written."""
    temporary = pathlib.Path(f"{path}.part")
    try:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for example in examples:
                writer.write(example)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _bytes(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int64(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
