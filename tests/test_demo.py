"""The demo's data set: its records are those of Tiny ImageNet, its classes can be told apart."""

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.config import DEMO_IMAGE_SIZE, DEMO_N_CLASSES
from mat.data import demo
from mat.data.reading import read_records
from mat.data.records import BOX, FORMAT, IMAGE, LABEL, WNID


def test_config_data_set_and_network_agree():
    assert (demo.IMAGE_SIZE, len(demo.PATTERNS)) == (DEMO_IMAGE_SIZE, DEMO_N_CLASSES)


def test_other_data_is_not_overwritten(tmp_path):
    (tmp_path / "wnids.txt").write_text("n01\n")
    with pytest.raises(UserError, match="holds other data"):
        demo.make_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["wnids.txt"]


def test_records_are_balanced_valid_and_repeatable(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "N_TRAIN", 40)
    monkeypatch.setattr(demo, "N_VALIDATION", 20)
    for name in ("one", "two"):
        demo.make_demo(tmp_path / name)
    for split, n_images in (("train", 40), ("validation", 20)):
        records = read_records(tmp_path / "one", split, n_classes=10)
        np.testing.assert_array_equal(np.bincount(records.labels), np.full(10, n_images // 10))
        assert (tmp_path / "one" / f"{split}.tfrecord").read_bytes() == (tmp_path / "two" / f"{split}.tfrecord").read_bytes()
    (record,) = tf.data.TFRecordDataset(str(tmp_path / "one" / "train.tfrecord")).take(1)
    assert set(tf.train.Example.FromString(record.numpy()).features.feature) == {IMAGE, FORMAT, WNID, LABEL, *BOX}
    assert len((tmp_path / "one" / "wnids.txt").read_text().split()) == 10
    assert (tmp_path / "one" / "words.txt").read_text().splitlines()[3] == "demo03\tcheckerboard"


def test_images_differ_within_a_class_and_leave_room_for_a_patch_of_more_contrast():
    rng = np.random.default_rng(0)
    images = np.stack([demo.draw_image(label, rng) for label in range(10) for _ in range(20)])
    assert (images.shape, images.dtype) == ((200, 32, 32, 3), np.uint8)
    assert len(np.unique(images.reshape(200, -1), axis=0)) == 200
    assert images.std(axis=(1, 2)).mean() < 64  # a patch of black and white has 128
