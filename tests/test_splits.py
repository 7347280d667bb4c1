"""Both splits of a data folder: their classes, their sizes, and whether data is the same."""

import codecs

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data.reading import Records
from mat.data.splits import class_names, describe, fingerprint, read_splits


def records(labels, size=(16, 16), images=None, path="here"):
    """`Records` of labels, with images of one size or a size each."""
    n = len(labels)
    images = tf.constant(images or [b"image"] * n)
    return Records(path, images, np.array(labels), np.arange(n), np.broadcast_to(np.array(size, np.int64), (n, 2)))


def test_class_names_are_the_first_words_in_the_order_of_the_labels(tmp_path):
    assert class_names(tmp_path, 2) == ["0", "1"]
    (tmp_path / "wnids.txt").write_text("n3\nn1\nn7\nn8\n")
    (tmp_path / "words.txt").write_text("n1\tgoldfish, Carassius auratus\nn2\tunused\nn3\tking penguin\nn8\t , odd\nno tab\n")
    assert class_names(tmp_path, 5) == ["king penguin", "goldfish", "n7", "n8", "4"]
    (tmp_path / "wnids.txt").write_text("sea lion, bull\nn1, n2\n")
    assert class_names(tmp_path, 2) == ["sea lion, bull", "n1, n2"]  # commas divide synonyms in words.txt alone


@pytest.mark.parametrize(("mark", "encoding"), [(b"", "utf-8"), (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_class_names_are_read_whatever_program_saved_them(tmp_path, mark, encoding, end):
    (tmp_path / "wnids.txt").write_bytes(mark + f"n3{end}sea lion{end}{end}".encode(encoding))
    (tmp_path / "words.txt").write_bytes(mark + f"n3\tKöniginnenpinguin{end}".encode(encoding))
    assert class_names(tmp_path, 2) == ["Königinnenpinguin", "sea lion"]


@pytest.mark.parametrize("n_listed", [2, 3, 5, 200])
def test_n_classes_is_held_against_the_list_of_classes(tiny_data, n_listed):
    (tiny_data / "wnids.txt").write_text("".join(f"n{i}\n" for i in range(n_listed)))
    with pytest.raises(UserError, match=rf"n_classes is 4, and wnids.txt lists {n_listed} classes. Set n_classes: {n_listed}"):
        read_splits("tiny_imagenet", tiny_data, n_classes=4)
    (tiny_data / "wnids.txt").write_text("n0\nn1\nn2\nn3\n")
    assert len(read_splits("tiny_imagenet", tiny_data, n_classes=4)) == 2


def test_a_list_of_classes_that_cannot_be_read_is_named(tiny_data):
    (tiny_data / "wnids.txt").write_bytes(b"n\xff")
    with pytest.raises(UserError, match="wnids.txt cannot be read .*Convert the data again"):
        read_splits("tiny_imagenet", tiny_data, n_classes=4)


@pytest.mark.parametrize(
    ("size", "image_size", "data", "warning"),
    [
        ((64, 64), 64, "of 64x64, 2 classes", None),
        ((64, 48), 64, "of 64x48, resized to 64x64, 2 classes", None),
        ((500, 120), 32, "of 500x120, resized to 32x32, 2 classes", "100% of the training images are squeezed from shapes beyond 2.66:1"),
        ((20, 100), 32, "of 20x100, resized to 32x32, 2 classes", "squeezed from shapes beyond 2.66:1 into squares"),
        ((100, 40), 32, "of 100x40, resized to 32x32, 2 classes", "100% of the validation images lose more than 40%"),
        ((90, 60), 32, "of 90x60, resized to 32x32, 2 classes", None),
        ((32, 32), 64, "of 32x32, resized to 64x64, 2 classes", "100% of the training images are enlarged 2 times or more"),
        ((300, 300), 64, "of 300x300, resized to 64x64, 2 classes", None),  # smoothly
        ([(64, 64)] * 9 + [(64, 200)], 64, "of 64x64..200, resized to 64x64", "10% of the training images are squeezed"),
        ([(64, 64)] * 49 + [(64, 200)], 64, "of 64x64..200, resized to 64x64", None),  # few
        ([(64, 32), (32, 64)], 64, "of 32..64x32..64, resized to 64x64, 2 classes", "enlarged 2 times or more"),
    ],
)
def test_the_real_sizes_of_the_images_are_told(tmp_path, size, image_size, data, warning):
    n = len(size) if isinstance(size, list) else 4
    splits = records(np.arange(n) % 2, size), records(np.arange(n) % 2, size)
    lines = describe(splits, tmp_path, image_size=image_size, n_classes=2)
    assert lines["data"].startswith(f"{tmp_path}: {n} training and {n} validation images {data}")
    assert (warning is None) == ("data sizes" not in lines)
    if warning:
        assert lines["data sizes"].startswith("WARNING: ")
        assert warning in lines["data sizes"]


def test_a_split_that_is_distorted_is_told_however_small_it_is(tmp_path):
    splits = records(np.zeros(1000, int), (64, 64)), records(np.zeros(4, int), (500, 120))
    lines = describe(splits, tmp_path, image_size=64, n_classes=1)
    assert lines["data sizes"] == "WARNING: 100% of the validation images lose more than 40%, as only the square in the middle is used"


def test_classes_without_images_are_told(tmp_path):
    (tmp_path / "wnids.txt").write_text("".join(f"n{i}\n" for i in range(9)))
    complete = records(np.arange(9))
    assert "data classes" not in describe((complete, complete), tmp_path, image_size=16, n_classes=9)
    told = describe((complete, records([0, 1, 2, 3, 4, 5, 6])), tmp_path, image_size=16, n_classes=9)["data classes"]
    assert told == "WARNING: 2 of 9 classes have no validation image (n7, n8)"
    told = describe((records([8]), complete), tmp_path, image_size=16, n_classes=9)["data classes"]
    assert told == "WARNING: 8 of 9 classes have no training image (n0, n1, n2, n3, n4, ...)"


def test_fingerprints_are_of_labels_and_images_wherever_they_lie():
    splits = records([0, 1], images=[b"ab", b"c"]), records([2], images=[b"d"])
    same = records([0, 1], images=[b"ab", b"c"], path="there"), splits[1]
    others = [records([0, 1], images=[b"a", b"bc"]), records([1, 0], images=[b"ab", b"c"]), records([0], images=[b"ab"])]
    assert fingerprint(splits) == fingerprint(same)
    assert len({fingerprint(splits), *(fingerprint((other, splits[1])) for other in others)}) == 4
