"""The schema of the TFRecord files, that of the original's converter, and how they are written."""

import contextlib
import os
import pathlib
import tempfile

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


@contextlib.contextmanager
def staged(destination):
    """A temporary directory below `destination`, whose files move into it when the block ends well, and go when it does not.

    Raises:
        OSError: a file cannot be written.
    """
    destination = pathlib.Path(destination)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, prefix="unfinished-") as stage:
        try:
            yield pathlib.Path(stage)
        except tf.errors.OpError as error:  # TensorFlow's own file system
            raise OSError(error.message) from None
        for path in sorted(pathlib.Path(stage).iterdir()):
            os.replace(path, destination / path.name)


def write_records(path, examples):
    """Write serialized records to a TFRecord file."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example)


def _bytes(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int64(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
