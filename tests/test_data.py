"""Records -> batches: the original's parsing and augmentation, shuffling, determinism, and records that are at fault."""

import random
import shutil
import struct

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data.reading import Records, check_images, read_records
from mat.data.records import make_example, record_path, record_starts, write_records
from mat.data.splits import read_splits
from mat.data.tiny_imagenet import (
    augment,
    initial_images,
    load_dataset,
    resize,
    shrink,
    smooth_one_hot,
    train_dataset,
    validation_dataset,
    validation_image,
)
from mat.seeds import generator, split, stream_seed
from tests.conftest import GOLDEN, golden, write_tiny_split

TINY = {"batch_size": 8, "n_classes": 4, "image_size": 16}


def test_parsed_images_and_labels_equal_the_original(tmp_path):
    z = golden("parser")
    shutil.copy(GOLDEN / "records_16.tfrecord", tmp_path / "validation.tfrecord")
    ((images, labels),) = load_dataset(tmp_path, "validation", batch_size=16)
    assert (images.dtype, labels.dtype) == (tf.float32, tf.float32)
    assert np.abs(images * 255 - z["images_u8"]).max() <= 1.001
    np.testing.assert_array_equal(tf.argmax(labels, axis=1), z["labels"])
    np.testing.assert_array_equal(tf.reduce_sum(labels, axis=1), np.ones(16))


def test_smoothed_labels_equal_the_original():
    z = golden("parser")
    np.testing.assert_allclose(smooth_one_hot(z["labels"][:4], 200, 0.1), z["one_hot_smoothed_0_1"], atol=1e-7)
    np.testing.assert_array_equal(smooth_one_hot([1], 3, 0.0), [[0, 1, 0]])
    np.testing.assert_allclose(tf.reduce_sum(smooth_one_hot([1], 3, 0.3), axis=1), 1, rtol=1e-6)


def test_resize_equals_the_original():
    z = golden("resize")
    image = z["image_u8"].astype(np.float32) / 255
    for (row, column, height, width), expected in zip(z["crops"], z["bicubic64"], strict=True):
        crop = tf.constant(image[row : row + height, column : column + width])
        np.testing.assert_allclose(resize(crop, 64), expected, atol=1e-4)
    np.testing.assert_array_equal(resize(tf.constant(image), 64), image)


def test_validation_serves_every_image_once_in_order_in_every_pass(tiny_data):
    records = read_records(tiny_data, "validation", n_classes=4)
    dataset = validation_dataset(records, **TINY)
    first, second = list(dataset), list(dataset)
    assert [len(images) for images, _ in first] == [8, 4]
    np.testing.assert_array_equal(tf.argmax(tf.concat([y for _, y in first], 0), axis=1), records.labels)
    for (images, _), (again, _) in zip(first, second, strict=True):
        np.testing.assert_array_equal(images, again)


@pytest.mark.parametrize(("height", "width", "function"), [(16, 16, resize), (9, 9, resize), (17, 17, shrink), (9, 17, shrink)])
def test_images_are_resized_as_in_the_original_unless_they_are_larger(height, width, function):
    image = tf.io.decode_png(colored(height, width) if height != width else noise(height))
    square = image if height == width else image[:, (width - height) // 2 :][:, :height]
    expected = function(tf.image.convert_image_dtype(square, tf.float32), 16)
    np.testing.assert_array_equal(validation_image(image, 16), expected)


def noise(side):
    """A PNG of random pixels."""
    return tf.io.encode_png(np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)).numpy()


def test_an_image_is_the_same_whatever_else_is_in_the_data():
    sizes = [16, 9, 40]
    records = Records("here", tf.constant(list(map(noise, sizes))), np.zeros(3, int), np.arange(3), np.repeat(sizes, 2).reshape(3, 2))
    ((together, _),) = validation_dataset(records, **TINY)
    alone = [images[0] for i in range(3) for images, _ in validation_dataset(records.take([i]), **TINY)]
    np.testing.assert_array_equal(together, alone)


def test_shrinking_leaves_no_pixel_out():
    stripes = tf.tile(tf.constant([[[0.0]], [[1.0]]]), [64, 128, 3])  # [128, 128, 3], of one pixel each
    np.testing.assert_allclose(shrink(stripes, 16)[2:-2], 0.5, atol=0.01)
    assert np.ptp(resize(stripes, 16)) + np.abs(np.mean(resize(stripes, 16)) - 0.5) > 0.4
    image = tf.random.stateless_uniform([30, 50, 3], [1, 2])
    bright = shrink(tf.cast(image > 0.5, tf.float32), 16)
    assert (bright.shape, np.min(bright) >= 0, np.max(bright) <= 1) == ((16, 16, 3), True, True)


def colored(height, width):
    """A PNG whose middle square is gray, and what lies beside it green."""
    side, pixels = min(height, width), np.zeros((height, width, 3), np.uint8) + np.array([0, 255, 0], np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = 100
    return tf.io.encode_png(pixels).numpy()


@pytest.mark.parametrize("sizes", [[(40, 60), (60, 40)], [(15, 9), (9, 14), (12, 12)], [(200, 31)]])
def test_validation_takes_the_square_in_the_middle(sizes):
    images = tf.constant([colored(*size) for size in sizes])
    n = len(sizes)
    records = Records("here", images, np.zeros(n, int), np.arange(n), np.array(sizes)[:, ::-1])
    ((batch, _),) = validation_dataset(records, **TINY)
    assert batch.shape == (n, 16, 16, 3)
    np.testing.assert_allclose(batch, 100 / 255, atol=1e-5)


def test_training_crops_images_of_other_shapes_smoothly():
    """Of 60x40, crops of half the area at least; of 5:1, the whole image."""
    whole = tf.io.decode_png(colored(20, 100))
    np.testing.assert_allclose(
        augment(whole, 16, stream_seed(0, "test"))[:, ::-1],
        augment(tf.reverse(whole, [1]), 16, stream_seed(0, "test")),
        atol=1e-5,
    )
    records = Records("here", tf.constant([colored(40, 60)] * 8), np.zeros(8, int), np.arange(8), np.array([[60, 40]] * 8))
    images, _ = batches_of(records)
    assert images.shape == (8, 16, 16, 3)
    assert len(np.unique(images.reshape(8, -1), axis=0)) == 8


def batches_of(records, epoch=0, seed=0, **arguments):
    dataset = train_dataset(records, **TINY | {"label_smoothing": 0.0} | arguments, seed=seed, epoch=epoch)
    images, labels = zip(*dataset, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_epochs_repeat_exactly_and_differ_by_seed_and_epoch(tiny_data):
    records = read_records(tiny_data, "train", n_classes=4)
    images, labels = batches_of(records)
    assert (images.shape, labels.shape) == ((32, 16, 16, 3), (32, 4))
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1  # one thread gives what many give
    again = list(train_dataset(records, **TINY, label_smoothing=0.0, seed=0, epoch=0).with_options(options))
    np.testing.assert_array_equal(images, np.concatenate([batch for batch, _ in again]))
    np.testing.assert_array_equal(labels, np.concatenate([batch for _, batch in again]))
    for other in (batches_of(records, epoch=1), batches_of(records, seed=1)):
        assert np.any(labels != other[1])
        np.testing.assert_array_equal(labels.sum(axis=0), other[1].sum(axis=0))  # every example once, in another order


@pytest.mark.parametrize("batch_size", [3, 9, 31])
def test_images_do_not_depend_on_the_batch_size_whose_remainder_is_dropped(tiny_data, batch_size):
    records = read_records(tiny_data, "train", n_classes=4)
    n = 32 // batch_size * batch_size
    for one, other in zip(batches_of(records, batch_size=batch_size), batches_of(records), strict=True):
        np.testing.assert_array_equal(one, other[:n])


def test_augmentation_is_that_of_the_public_operations():
    """The same as TensorFlow's own functions in the original's order, on floats from the start."""
    image = np.random.default_rng(0).integers(0, 256, size=(60, 64, 3), dtype=np.uint8)
    for i in range(20):
        seeds = split(stream_seed(i, "test"), 3)
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            image.shape, [[[0.0, 0.0, 1.0, 1.0]]], seeds[0], aspect_ratio_range=(0.75, 1.33), area_range=(0.5, 1.0), max_attempts=20
        )
        expected = tf.slice(tf.image.convert_image_dtype(image, tf.float32), begin, size)
        expected = tf.image.stateless_random_flip_left_right(expected, seeds[1])
        expected = resize(tf.image.stateless_random_saturation(expected, 0.5, 2.0, seeds[2]), 64)
        for given in (image, tf.image.convert_image_dtype(image, tf.float32)):
            np.testing.assert_array_equal(augment(tf.constant(given), 64, stream_seed(i, "test")), expected)


def test_initial_images_are_of_the_targets_and_serve_again_when_used_up(tiny_data):
    records = read_records(tiny_data, "train", n_classes=4)
    solid = [tf.io.encode_jpeg(np.full((16, 16, 3), 40 * label + 20, np.uint8), quality=100).numpy() for label in records.labels]
    records = records._replace(images=tf.constant(solid))
    targets = np.arange(50) % 4
    images, again, anything = (
        np.stack(list(initial_images(records, targets, targeted=targeted, image_size=16, seed=0))) for targeted in (True, True, False)
    )
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)) * 255, 40 * targets + 20, atol=2)
    np.testing.assert_array_equal(images, again)
    classes = np.round((anything.mean(axis=(1, 2, 3)) * 255 - 20) / 40)
    np.testing.assert_array_equal(np.bincount(classes[:32].astype(int)), [8, 8, 8, 8])  # each example once before any twice
    records = read_records(tiny_data, "train", n_classes=4)
    images = np.stack(list(initial_images(records, np.zeros(24, int), targeted=True, image_size=16, seed=0)))
    assert len(np.unique(images.reshape(24, -1), axis=0)) == 24  # an example that serves again is augmented anew


def test_a_class_without_images_is_refused_where_the_bank_needs_it(tiny_data):
    write_tiny_split(tiny_data, "train", [0, 1, 3, 3])
    records = read_records(tiny_data, "train", n_classes=4)
    with pytest.raises(UserError, match="no image of class 2, .* patch_initialization: random"):
        initial_images(records, np.arange(4), targeted=True, image_size=16, seed=0)
    assert len(list(initial_images(records, np.arange(2), targeted=True, image_size=16, seed=0))) == 2
    assert len(list(initial_images(records, np.arange(4), targeted=False, image_size=16, seed=0))) == 4


def test_grayscale_images_become_rgb(tiny_data):
    gray = tf.io.encode_jpeg(np.tile(np.arange(0, 256, 16, dtype=np.uint8)[:, np.newaxis, np.newaxis], (1, 16, 1))).numpy()
    write_tiny_split(tiny_data, "validation", [0, 1], jpeg=gray)
    images, _ = next(iter(load_dataset(tiny_data, "validation", **TINY)))
    assert images.shape[1:] == (16, 16, 3)
    np.testing.assert_array_equal(images[0, ..., 0], images[0, ..., 2])


@pytest.mark.parametrize("batch_size", [3, 8])
def test_an_epoch_from_a_batch_on_is_the_rest_of_the_whole(tiny_data, batch_size):
    records = read_records(tiny_data, "train", n_classes=4)
    n_batches = 32 // batch_size
    arguments = TINY | {"batch_size": batch_size, "label_smoothing": 0.1, "seed": 0, "epoch": 1}
    whole = list(train_dataset(records, **arguments))
    for first_batch in (1, n_batches - 1, n_batches):
        images = records.images.numpy()
        images[generator(0, "order/1").permutation(32)[: first_batch * batch_size]] = b"no image"  # those left out are not decoded
        rest = list(train_dataset(records._replace(images=tf.constant(images)), **arguments, first_batch=first_batch))
        for one, other in zip(rest, whole[first_batch:], strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])


def test_missing_records_and_unknown_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Received: 'test'"):
        load_dataset(tmp_path, "test", batch_size=8)
    with pytest.raises(UserError, match=rf"train\.tfrecord: no such file.*python -m mat\.data\.convert SOURCE {tmp_path}"):
        read_records(tmp_path, "train", n_classes=4)


JPEG = tf.io.encode_jpeg(np.zeros((8, 8, 3), np.uint8)).numpy()
PNG = tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy()
SIZE = JPEG.index(b"\xff\xc0") + 5
GIANT_JPEG = JPEG[:SIZE] + b"\xff\xdb\xff\xdc" + JPEG[SIZE + 4 :]  # the largest sides that libjpeg takes are of 65500
GIANT_PNG = PNG[:16] + struct.pack(">II", 5000, 4000) + PNG[24:]
GIF = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
WEBP = b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0/\0\0\0\0\x07\x10\x11\xfd\x0fDD\xff\x03"
NOT_DECODABLE = "has an image that cannot be decoded as JPEG or PNG"


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({"wnid": None}, "has no label .* Make the file again with mat.data.convert"),
        ({"label": 4}, r"has the label 4, and n_classes: 4 allows 0 \.\. 3\. Set n_classes to the number of classes in wnids\.txt"),
        ({"label": -7}, "has the label -7"),
        *(({"jpeg": content}, NOT_DECODABLE) for content in (b"", b"no image", GIF, WEBP, JPEG[:-30], JPEG[:12], PNG[:-30], PNG[:20])),
        (
            {"jpeg": GIANT_JPEG},
            "has an image of 65500x65499 pixels; at most 4096x4096 are read. Make the file again .*, which names the path",
        ),
        ({"jpeg": GIANT_PNG}, "has an image of 5000x4000 pixels"),
    ],
)
def test_faulty_records_are_refused_by_number(tiny_data, example, words):
    write_tiny_split(tiny_data, "train", [0, 1, 2, 3], **example)
    with pytest.raises(UserError, match=rf"train\.tfrecord: record 0 {words}.*, or set bad_records: skip to pass over bad records"):
        read_records(tiny_data, "train", n_classes=4)


@pytest.mark.parametrize(("n_images", "bad"), [(0, []), (1, []), (1, [0]), (8, [7]), (11, [5]), (11, [10]), (1030, [3, 4, 1023, 1029])])
def test_images_that_cannot_be_decoded_are_found_wherever_they_are(n_images, bad):
    images = [b"no image" if i in bad else (JPEG, PNG)[i % 2] for i in range(n_images)]
    decodable, sizes = check_images(tf.constant(images, tf.string))
    np.testing.assert_array_equal(np.flatnonzero(~decodable), bad)
    np.testing.assert_array_equal(sizes, np.outer(decodable, [8, 8]))


def test_the_largest_images_and_all_kinds_of_jpegs_are_read():
    image = tf.zeros([4096, 4096, 1], tf.uint8)
    images = [tf.io.encode_png(image), tf.io.encode_jpeg(image), tf.io.encode_jpeg(image[:17, :5], progressive=True)]
    decodable, sizes = check_images(tf.stack(images))
    assert decodable.all()
    np.testing.assert_array_equal(sizes, [[4096, 4096], [4096, 4096], [5, 17]])


def flip(path, *positions):
    """Flip a bit of the bytes at these positions."""
    content = bytearray(path.read_bytes())
    for position in positions:
        content[position] ^= 1
    path.write_bytes(content)


def corrupt(path, *records):
    """Flip a bit in the payload of each of these records."""
    flip(path, *(record_starts(path)[list(records)] + 40))


@pytest.mark.parametrize("bad", [[0], [31], [0, 1, 2, 3], [3, 4, 5, 15, 16, 31], [*range(31)]])
def test_corrupt_records_are_passed_over_wherever_they_are(tiny_data, bad):
    whole = read_records(tiny_data, "train", n_classes=4)
    corrupt(tiny_data / "train.tfrecord", *bad)
    with pytest.raises(UserError, match=rf"record {bad[0]} is corrupt \(its checksum does not fit\)\. .*bad_records: skip"):
        read_records(tiny_data, "train", n_classes=4)
    good = np.setdiff1d(np.arange(32), bad)
    records = read_records(tiny_data, "train", n_classes=4, max_bad_records=31)
    for array, expected in zip(records[1:], whole.take(good)[1:], strict=True):
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(records.numbers, good)


def write_bad_split(data_dir):
    """14 records, of which those with an even number are bad in seven ways; the labels of the good ones are 0, 1, 2, 3, 0, 1, 2."""
    box = (0, 0, 7, 7)
    bad = [make_example(JPEG, "n0", 0, box), b"\xff no example", make_example(JPEG), make_example(JPEG, "n0", 4, box)]
    bad += [make_example(image, "n0", 0, box) for image in (b"no image", GIANT_JPEG, JPEG[:-30])]
    good = [make_example(tf.io.encode_png(np.full((8, 8, 3), i, np.uint8)).numpy(), "n0", i % 4, box) for i in range(7)]
    path = record_path(data_dir, "train")
    write_records(path, [record for pair in zip(bad, good, strict=True) for record in pair])
    corrupt(path, 0)
    return path


def test_bad_records_are_passed_over_and_reported_in_one_line(tmp_path, capsys):
    path = write_bad_split(tmp_path)
    records = read_records(tmp_path, "train", n_classes=4, max_bad_records=7)
    assert [tf.io.decode_png(image)[0, 0, 0].numpy() for image in records.images] == list(range(7))
    np.testing.assert_array_equal(records.labels, [0, 1, 2, 3, 0, 1, 2])
    np.testing.assert_array_equal(records.numbers, [1, 3, 5, 7, 9, 11, 13])
    np.testing.assert_array_equal(records.sizes, 7 * [[8, 8]])
    np.testing.assert_array_equal(records.take([6, 0]).numbers, [13, 1])
    assert capsys.readouterr().out == (
        f"{path}: passing over 7 bad of 14 records: record 0 is corrupt (its checksum does not fit), "
        "record 2 is not an example of an image and a label, record 4 has no label (feature label/tiny_imagenet), ...\n"
    )


def test_more_bad_records_than_allowed_are_refused(tmp_path):
    path = write_bad_split(tmp_path)
    words = r"7 of 14 records are bad, and max_bad_records: 6 allows fewer: record 0 is corrupt .*raise max_bad_records"
    with pytest.raises(UserError, match=words):
        read_records(tmp_path, "train", n_classes=4, max_bad_records=6)
    path.write_bytes(path.read_bytes()[: record_starts(path)[1]])
    with pytest.raises(UserError, match="all 1 records are bad: record 0 is corrupt"):
        read_records(tmp_path, "train", n_classes=4, max_bad_records=100)


def test_data_sets_and_splits_pass_over_bad_records(tiny_data):
    corrupt(tiny_data / "train.tfrecord", 3)
    corrupt(tiny_data / "validation.tfrecord", 4)
    assert [len(records.labels) for records in read_splits("tiny_imagenet", tiny_data, n_classes=4, max_bad_records=1)] == [31, 11]
    assert sum(len(labels) for _, labels in load_dataset(tiny_data, "validation", **TINY, max_bad_records=1)) == 11
    with pytest.raises(UserError, match="record 3 is corrupt"):
        read_splits("tiny_imagenet", tiny_data, n_classes=4)


@pytest.mark.parametrize("offset", range(16))
def test_a_damaged_length_is_refused_and_a_damaged_checksum_passed_over(tiny_data, offset):
    """A length (8 bytes) tells where the next record is; its checksum (4 bytes) and that of the payload (the last 4) do not."""
    path = tiny_data / "train.tfrecord"
    starts, size = record_starts(path), path.stat().st_size
    flip(path, starts[5] + offset if offset < 12 else starts[6] - 16 + offset)
    if offset < 8:
        words = rf"truncated or corrupt after 5 intact records, at byte {starts[5]} of {size}\. Make the file again"
        with pytest.raises(UserError, match=words):
            read_records(tiny_data, "train", n_classes=4, max_bad_records=100)
    else:
        with pytest.raises(UserError, match="record 5 is corrupt"):
            read_records(tiny_data, "train", n_classes=4)
        assert len(read_records(tiny_data, "train", n_classes=4, max_bad_records=1).labels) == 31


def test_truncated_files_are_refused_wherever_they_end(tiny_data):
    path = tiny_data / "train.tfrecord"
    content, starts = path.read_bytes(), record_starts(path)
    for size in [*range(1, 30), *range(starts[5] + 1, starts[6], 29), *range(starts[6] - 5, starts[6]), len(content) - 1]:
        path.write_bytes(content[:size])
        n_intact = np.searchsorted(starts, size) - 1
        with pytest.raises(UserError, match=f"corrupt after {n_intact} intact records, at byte {starts[n_intact]} of {size}"):
            read_records(tiny_data, "train", n_classes=4, max_bad_records=100)
    path.write_bytes(content[: starts[6]] + bytes(4000))  # what was not written is zeros
    with pytest.raises(UserError, match=f"corrupt after 6 intact records, at byte {starts[6]} of"):
        read_records(tiny_data, "train", n_classes=4, max_bad_records=100)


@pytest.mark.parametrize("content", [b"", JPEG, PNG, b"PK\3\4" + bytes(200), b"<html><body>Sign in</body></html>", b"a", bytes(600)])
def test_other_files_are_refused(tmp_path, content):
    path = record_path(tmp_path, "train")
    path.write_bytes(content)
    words = "truncated or corrupt after 0 intact records, at byte 0 of" if content else "no records"
    with pytest.raises(UserError, match=f"^{path}: {words}.* Make the file again with mat.data.convert$"):
        read_records(tmp_path, "train", n_classes=4, max_bad_records=100)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_give_intact_records_or_one_message(tiny_data, seed):
    path, draw = tiny_data / "validation.tfrecord", random.Random(seed)
    images = set(read_records(tiny_data, "validation", n_classes=4).images.numpy())
    content = path.read_bytes()
    start = draw.randrange(len(content))
    stop = start + draw.randrange(1, 100)
    damage = draw.choice([b"", bytes(stop - start), draw.randbytes(stop - start), draw.randbytes(9)])
    path.write_bytes(content[:start] + damage + content[stop:])
    try:
        assert set(read_records(tiny_data, "validation", n_classes=4, max_bad_records=100).images.numpy()) < images
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
