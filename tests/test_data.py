"""Records -> batches: the original's parsing and augmentation, shuffling, determinism, and records that are at fault."""

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data import reading
from mat.data import records as schema
from mat.data.reading import SPLITS, read_records
from mat.data.records import framed_payloads, make_example, record_path, write_records
from mat.data.splits import read_splits
from mat.data.tiny_imagenet import augment, initial_images, load_dataset, resize, smooth_one_hot, train_dataset, validation_dataset
from mat.seeds import generator, split, stream_seed
from tests.conftest import GOLDEN, golden, write_tiny_split

GIF = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
WEBP = b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0/\0\0\0\0\x07\x10\x11\xfd\x0fDD\xff\x03"
TINY = {"batch_size": 8, "n_classes": 4, "image_size": 16}


@pytest.fixture
def golden_data(tmp_path):
    (tmp_path / "validation.tfrecord").write_bytes((GOLDEN / "records_16.tfrecord").read_bytes())
    (tmp_path / "train.tfrecord").write_bytes((GOLDEN / "records_16.tfrecord").read_bytes())
    return tmp_path


def test_parsed_images_and_labels_equal_the_original(golden_data):
    z = golden("parser")
    ((images, labels),) = load_dataset(golden_data, "validation", batch_size=16)
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


def test_validation_serves_every_image_once_in_order(tiny_data):
    records = read_records(tiny_data, "validation", n_classes=4)
    batches = list(validation_dataset(records, **TINY))
    assert [len(images) for images, _ in batches] == [8, 4]
    np.testing.assert_array_equal(tf.argmax(tf.concat([y for _, y in batches], 0), axis=1), records.labels)


def batches_of(records, epoch=0, seed=0, **arguments):
    dataset = train_dataset(records, **TINY | {"label_smoothing": 0.0} | arguments, seed=seed, epoch=epoch)
    images, labels = zip(*dataset, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_epochs_repeat_exactly_and_differ_by_seed_and_epoch(tiny_data):
    records = read_records(tiny_data, "train", n_classes=4)
    images, labels = batches_of(records)
    assert (images.shape, labels.shape) == ((32, 16, 16, 3), (32, 4))
    again = batches_of(records)
    np.testing.assert_array_equal(images, again[0])
    np.testing.assert_array_equal(labels, again[1])
    for other in (batches_of(records, epoch=1), batches_of(records, seed=1)):
        assert np.any(labels != other[1])
        np.testing.assert_array_equal(labels.sum(axis=0), other[1].sum(axis=0))  # every example once, in another order


def test_the_remainder_of_a_batch_is_dropped_in_training_only(tiny_data):
    assert len(batches_of(read_records(tiny_data, "train", n_classes=4), batch_size=12)[0]) == 24


def test_augmentation_does_not_depend_on_the_order_of_examples(tiny_data):
    """The augmentation of an example comes from (seed, epoch, example): one thread gives what many give."""
    records = read_records(tiny_data, "train", n_classes=4)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    dataset = train_dataset(records, **TINY, label_smoothing=0.0, seed=0, epoch=0).with_options(options)
    np.testing.assert_array_equal(np.concatenate([images for images, _ in dataset]), batches_of(records)[0])


@pytest.mark.parametrize("batch_size", [1, 3, 9, 11, 31])
def test_images_do_not_depend_on_how_many_are_loaded_in_one_call(tiny_data, batch_size):
    records = read_records(tiny_data, "train", n_classes=4)
    n = 32 // batch_size * batch_size
    for one, other in zip(batches_of(records, batch_size=batch_size), batches_of(records), strict=True):
        np.testing.assert_array_equal(one[:n], other[:n])


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
        np.testing.assert_array_equal(augment(tf.constant(image), 64, stream_seed(i, "test")), expected)


def test_validation_batches_are_the_same_in_every_pass(tiny_data):
    dataset = validation_dataset(read_records(tiny_data, "validation", n_classes=4), **TINY, cached=True)
    first, second = (np.concatenate([images for images, _ in dataset]) for _ in range(2))
    assert len(first) == 12
    np.testing.assert_array_equal(first, second)


def test_augmentation_crops_flips_and_saturates_within_its_ranges():
    """On an image whose red is its column and green its row, a crop shows in the ranges, a flip in the order of columns."""
    ramp = np.linspace(0, 1, 64, dtype=np.float32)
    image = np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, np.newaxis], (1, 64)), np.full((64, 64), 0.5)], axis=-1).astype(np.float32)
    flips, areas, saturations = [], [], []
    for i in range(200):
        result = augment(tf.constant(image), 64, stream_seed(i, "test")).numpy()
        assert (result.shape, result.dtype) == ((64, 64, 3), np.float32)
        assert 0 <= result.min() <= result.max() <= 1
        flips.append(result[32, 0, 0] > result[32, -1, 0])
        saturations.append(np.ptp(result, axis=-1).mean() / np.ptp(image, axis=-1).mean())
    assert 70 < sum(flips) < 130
    assert min(saturations) < 0.7
    assert max(saturations) > 1.2
    gray = np.repeat(image[..., :1], 3, axis=-1)  # saturation leaves gray alone, so that columns can be read off
    for i in range(100):
        columns = np.ptp(augment(tf.constant(gray), 64, stream_seed(i, "test")).numpy()[0, :, 0])
        rows = np.ptp(augment(tf.constant(gray.transpose(1, 0, 2)), 64, stream_seed(i, "test")).numpy()[:, 0, 0])
        areas.append(columns * rows)
        assert 0.55 < columns / rows < 1.8  # the crop's aspect ratio, up to pixels
    assert 0.4 < min(areas) < 0.6
    assert 0.9 < max(areas) <= 1


def test_initial_images_are_of_the_targets_and_serve_again_when_used_up(tiny_data):
    records = read_records(tiny_data, "train", n_classes=4)
    solid = [tf.io.encode_jpeg(np.full((16, 16, 3), 40 * label + 20, np.uint8), quality=100).numpy() for label in records.labels]
    records = records._replace(images=tf.constant(solid))
    targets = np.arange(50) % 4
    images = np.stack(list(initial_images(records, targets, targeted=True, image_size=16, seed=0)))
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)) * 255, 40 * targets + 20, atol=2)
    anything = np.stack(list(initial_images(records, targets, targeted=False, image_size=16, seed=0)))
    classes = np.round((anything.mean(axis=(1, 2, 3)) * 255 - 20) / 40)
    np.testing.assert_array_equal(np.bincount(classes[:32].astype(int)), [8, 8, 8, 8])  # each example once before any twice
    np.testing.assert_array_equal(images, np.stack(list(initial_images(records, targets, targeted=True, image_size=16, seed=0))))


def test_an_example_that_serves_again_is_augmented_anew(tiny_data):
    records = read_records(tiny_data, "train", n_classes=4)
    images = np.stack(list(initial_images(records, np.zeros(24, int), targeted=True, image_size=16, seed=0)))
    assert len(np.unique(images.reshape(24, -1), axis=0)) == 24


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


def test_unknown_splits_are_refused(tiny_data):
    with pytest.raises(ValueError, match="Received: 'test'"):
        load_dataset(tiny_data, "test", batch_size=8)


def test_missing_records_are_refused_with_the_command_that_makes_them(tmp_path):
    for name in SPLITS:
        with pytest.raises(UserError, match=rf"{name}\.tfrecord: no such file.*python -m mat\.data\.convert SOURCE {tmp_path}"):
            read_records(tmp_path, name, n_classes=4)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({"wnid": None}, "record 0 has no label"),
        ({"label": 4}, r"record 0 has the label 4, and n_classes: 4 allows 0 \.\. 3"),
        ({"label": -7}, "record 0 has the label -7"),
        ({"jpeg": b"no image"}, "record 0 has an image that cannot be decoded"),
        ({"jpeg": b""}, "record 0 has an image that cannot be decoded"),
        ({"jpeg": GIF}, "record 0 has an image that cannot be decoded as JPEG or PNG"),
        ({"jpeg": WEBP}, "record 0 has an image that cannot be decoded as JPEG or PNG"),
    ],
)
def test_faulty_records_are_refused_by_number(tiny_data, example, words):
    write_tiny_split(tiny_data, "train", [0, 1, 2, 3], **example)
    with pytest.raises(UserError, match=rf"train\.tfrecord: {words}"):
        read_records(tiny_data, "train", n_classes=4)


def test_damaged_files_are_refused_with_what_is_intact(tiny_data):
    path = tiny_data / "train.tfrecord"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(UserError, match="truncated or corrupt after 31 intact records"):
        read_records(tiny_data, "train", n_classes=4)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="no records"):
        read_records(tiny_data, "train", n_classes=4)
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(make_example(tf.io.encode_jpeg(np.zeros((8, 8, 3), np.uint8)).numpy(), "n0", 1, (0, 0, 1, 1)))
        writer.write(b"\xff no example")
    with pytest.raises(UserError, match="record 1 is not an example"):
        read_records(tiny_data, "train", n_classes=4)


@pytest.mark.parametrize(("n_records", "bad"), [(1, 0), (8, 7), (11, 5), (11, 10)])
def test_an_image_that_cannot_be_decoded_is_found_wherever_it_is(tmp_path, n_records, bad):
    """Images are checked several in a call, and those that are left over one by one."""
    jpegs = [tf.io.encode_jpeg(np.zeros((8, 8, 3), np.uint8)).numpy()] * n_records
    jpegs[bad] = b"no image"
    write_records(record_path(tmp_path, "train"), (make_example(jpeg, "n0", 1, (0, 0, 7, 7)) for jpeg in jpegs))
    with pytest.raises(UserError, match=f"record {bad} has an image that cannot be decoded"):
        read_records(tmp_path, "train", n_classes=4)


def corrupt(path, *records):
    """Flip a bit in the payload of each of these records."""
    content = bytearray(path.read_bytes())
    spans, _ = framed_payloads(content)
    for record in records:
        content[spans[record][0] + 30] ^= 1
    path.write_bytes(content)


def test_a_wrong_checksum_stops_with_the_record_and_the_way_out(tiny_data):
    corrupt(tiny_data / "train.tfrecord", 17, 20)
    with pytest.raises(UserError, match=r"train\.tfrecord: record 17 is corrupt \(its checksum does not fit\)\. .*bad_records: skip"):
        read_records(tiny_data, "train", n_classes=4)


@pytest.mark.parametrize("records", [[0], [31], [0, 1, 2, 3], [3, 4, 5, 15, 16, 31], range(31), range(32), []])
def test_corrupt_records_are_found_wherever_they_are(tiny_data, monkeypatch, records):
    monkeypatch.setattr(schema, "RANGE", 4)
    path = tiny_data / "train.tfrecord"
    corrupt(path, *records)
    np.testing.assert_array_equal(schema.corrupt_records(path, schema.record_starts(path)), list(records))


JPEG = tf.io.encode_jpeg(np.zeros((8, 8, 3), np.uint8)).numpy()
SOF = JPEG.index(b"\xff\xc0")


def write_bad_split(data_dir):
    """14 records, of which those with an even number are bad in seven ways; the labels of the good ones are 0, 1, 2, 3, 0, 1, 2."""
    box = (0, 0, 7, 7)
    giant = JPEG[: SOF + 5] + b"\xff\xdb\xff\xdc" + JPEG[SOF + 9 :]  # the largest sides that libjpeg takes are of 65500
    bad = [
        make_example(JPEG, "n0", 0, box),  # corrupt below
        b"\xff no example",
        make_example(JPEG),
        make_example(JPEG, "n0", 4, box),
        make_example(b"no image", "n0", 0, box),
        make_example(giant, "n0", 0, box),
        make_example(JPEG[:-30], "n0", 0, box),
    ]
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


def test_every_kind_of_bad_record_has_its_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reading, "FAULTS_SHOWN", 7)
    write_bad_split(tmp_path)
    read_records(tmp_path, "train", n_classes=4, max_bad_records=7)
    line = capsys.readouterr().out
    assert "record 6 has the label 4, and n_classes: 4 allows 0 .. 3, record 8 has an image that cannot be decoded" in line
    assert "record 10 has an image of 65500x65499 pixels; at most 4096x4096 are read, record 12 has an image that cannot be decoded" in line
    assert "..." not in line


def test_more_bad_records_than_allowed_are_refused(tmp_path, tiny_data):
    path = write_bad_split(tmp_path)
    with pytest.raises(
        UserError, match=r"7 of 14 records are bad, and max_bad_records: 6 allows fewer: record 0 is corrupt .*raise max_bad_records"
    ):
        read_records(tmp_path, "train", n_classes=4, max_bad_records=6)
    with pytest.raises(UserError, match=r"record 0 is corrupt .*bad_records: skip"):
        read_records(tmp_path, "train", n_classes=4)
    content = path.read_bytes()
    path.write_bytes(content[: framed_payloads(content)[0][0][1] + 4])
    with pytest.raises(UserError, match=r"all 1 records are bad: record 0 is corrupt"):
        read_records(tmp_path, "train", n_classes=4, max_bad_records=100)


def test_damaged_framing_is_refused_whatever_may_be_passed_over(tiny_data):
    path = tiny_data / "train.tfrecord"
    content = path.read_bytes()
    start, stop = framed_payloads(content)[0][5]
    path.write_bytes(content[:start] + b"?" + content[start:])
    with pytest.raises(UserError, match=rf"truncated or corrupt after 6 intact records, at byte {stop + 4} of {len(content) + 1}\. "):
        read_records(tiny_data, "train", n_classes=4, max_bad_records=100)


def test_data_sets_and_splits_pass_over_bad_records(tiny_data):
    corrupt(tiny_data / "train.tfrecord", 3)
    corrupt(tiny_data / "validation.tfrecord", 4)
    assert [len(records.labels) for records in read_splits("tiny_imagenet", tiny_data, n_classes=4, max_bad_records=1)] == [31, 11]
    assert sum(len(labels) for _, labels in load_dataset(tiny_data, "validation", **TINY, max_bad_records=1)) == 11
    with pytest.raises(UserError, match="record 3 is corrupt"):
        read_splits("tiny_imagenet", tiny_data, n_classes=4)


@pytest.mark.parametrize("encode", [tf.io.encode_jpeg, tf.io.encode_png])
def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch, encode):
    """Outside of any data set, whose calls run in parallel; what is as large as allowed is read, and what cannot be decoded is found."""
    in_parallel, one_by_one, decode = [], [], reading.decode

    def counted(encoded, shrinkage=1):
        if tf.executing_eagerly():
            one_by_one.append(encoded.numpy())
            return decode(encoded)
        return decode(tf.numpy_function(lambda content: in_parallel.append(content) or content, [encoded], tf.string))

    monkeypatch.setattr(reading, "decode", counted)
    monkeypatch.setattr(reading, "_mapped", reading._mapped.__wrapped__)  # no function that was traced before
    monkeypatch.setattr(reading, "LARGE_PIXELS", 64)
    monkeypatch.setattr(reading, "MAX_PIXELS", 256)
    rng = np.random.default_rng(0)
    sizes = [(8, 8), (8, 9), (16, 16), (16, 17), (16, 16)]
    images = [encode(rng.integers(0, 256, (*size, 3), np.uint8)).numpy() for size in sizes]
    images[4] = images[4][:-30]
    write_records(record_path(tmp_path, "train"), (make_example(image, "n0", 1, (0, 0, 7, 7)) for image in images))
    with pytest.raises(UserError, match=r"2 of 5 .*record 3 has an image of 17x16 pixels.*, record 4 has an image that cannot be decoded"):
        read_records(tmp_path, "train", n_classes=4, max_bad_records=1)
    assert one_by_one == [images[1], images[2], images[4]]
    assert images[0] in in_parallel
    assert not set(images[1:]) & set(in_parallel)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 11])
def test_an_epoch_from_a_batch_on_is_the_rest_of_the_whole(tiny_data, batch_size):
    records = read_records(tiny_data, "train", n_classes=4)
    n_batches = 32 // batch_size
    arguments = TINY | {"batch_size": batch_size, "label_smoothing": 0.1, "seed": 0, "epoch": 1}
    whole = list(train_dataset(records, **arguments))
    for first_batch in (1, n_batches - 1, n_batches):
        rest = list(train_dataset(records, **arguments, first_batch=first_batch))
        assert len(rest) == n_batches - first_batch
        for one, other in zip(rest, whole[first_batch:], strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])


def test_batches_that_are_left_out_are_not_decoded(tiny_data):
    records = read_records(tiny_data, "train", n_classes=4)
    order = generator(0, "order/0").permutation(32)
    images = records.images.numpy()
    images[order[:16]] = b"no image"
    arguments = TINY | {"label_smoothing": 0.0, "seed": 0, "epoch": 0}
    rest = list(train_dataset(records._replace(images=tf.constant(images)), **arguments, first_batch=2))
    np.testing.assert_array_equal(rest[0][0], list(train_dataset(records, **arguments))[2][0])


def test_a_jpeg_of_very_many_scans_is_bad(tiny_data):
    """Each scan of a progressive JPEG takes the time of the whole image, and may have 33 bytes."""
    jpeg = tf.io.encode_jpeg(np.zeros((16, 16, 3), np.uint8), progressive=True).numpy()
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    write_tiny_split(tiny_data, "train", [0, 1, 2, 3], jpeg=jpeg[:-2] + 200 * last + jpeg[-2:])
    with pytest.raises(UserError, match="record 0 has an image that cannot be decoded"):
        read_records(tiny_data, "train", n_classes=4)
    write_tiny_split(tiny_data, "train", [0, 1, 2, 3], jpeg=jpeg)
    assert read_records(tiny_data, "train", n_classes=4).sizes.tolist() == 4 * [[16, 16]]


def test_a_file_of_too_many_records_is_refused(tiny_data, monkeypatch):
    monkeypatch.setattr("mat.data.records.MAX_RECORDS", 31)
    with pytest.raises(UserError, match="more than 31 records"):
        read_records(tiny_data, "train", n_classes=4)
    monkeypatch.setattr("mat.data.records.MAX_RECORDS", 32)
    assert len(read_records(tiny_data, "train", n_classes=4).labels) == 32
