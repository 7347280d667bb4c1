"""Damaged and hostile TFRecord files: each is read or refused in words that name it, and none takes much memory."""

import resource
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mat.cli.errors import UserError
from mat.data.reading import MAX_PIXELS, read_records
from mat.data.records import _masked_crc, framed_payloads, make_example, record_path, write_records

N_RECORDS = 6
SIDES = [0, 1, 2**10, 4096, 4097, 13_000, 2**16 - 1]  # 13,000 x 13,000: the largest that TensorFlow decodes by itself, 507 MB
MAX_GROWTH = 2**20  # of the largest memory, KiB


def frame(payload, length=None):
    """A record with right checksums, and the length that it claims."""
    header = struct.pack("<Q", len(payload) if length is None else length)
    return header + struct.pack("<I", _masked_crc(header)) + payload + struct.pack("<I", _masked_crc(payload))


def encoded_images():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N_RECORDS, 8, 8, 3), dtype=np.uint8)
    progressive = tf.io.encode_jpeg(images[1], progressive=True).numpy()
    return [progressive, tf.io.encode_png(images[0]).numpy(), *(tf.io.encode_jpeg(image).numpy() for image in images[2:])]


IMAGES = encoded_images()
PAYLOADS = [make_example(image, "n0", i % 4, (0, 0, 7, 7)) for i, image in enumerate(IMAGES)]
BASE = b"".join(map(frame, PAYLOADS))


def claiming(image, width, height):
    """An image whose header claims another size, under right checksums."""
    if image.startswith(b"\x89PNG"):
        chunk = b"IHDR" + struct.pack(">II", width, height) + image[24:29]
        return image[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + image[33:]
    start = max(image.find(marker) for marker in (b"\xff\xc0", b"\xff\xc2"))
    return image[: start + 5] + struct.pack(">HH", height, width) + image[start + 9 :]


def replaced(index, record):
    return b"".join(record if i == index else frame(payload) for i, payload in enumerate(PAYLOADS))


@st.composite
def damaged(draw):
    """A file after up to three overwritten bytes, zeroed, repeated or missing ranges."""
    content = bytearray(BASE)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        stop = min(start + draw(st.integers(1, 60)), len(content))
        kind = draw(st.sampled_from(["flip", "overwrite", "zero", "splice", "remove", "truncate"]))
        if kind == "flip":
            content[start : start + 1] = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in content[start : start + 1])
        elif kind == "overwrite":
            content[start:stop] = draw(st.binary(min_size=stop - start, max_size=stop - start))
        elif kind == "zero":
            content[start:stop] = bytes(stop - start)
        elif kind == "splice":
            to = draw(st.integers(0, len(content)))
            content[to:to] = content[start:stop]
        elif kind == "remove":
            del content[start:stop]
        else:
            del content[start:]
    return bytes(content)


@st.composite
def with_another_record(draw):
    """A file in which one record is another, of right framing and checksums."""
    index = draw(st.integers(0, N_RECORDS - 1))
    kind = draw(st.sampled_from(["length", "payload", "damaged payload", "image", "damaged image", "size"]))
    payload, image = bytearray(PAYLOADS[index]), bytearray(IMAGES[index])
    if kind == "length":
        return replaced(index, frame(bytes(payload), draw(st.sampled_from([2**62, 2**64 - 1, 2**33, 2**32 - 1, 2**30, len(BASE), 0]))))
    if kind == "payload":
        return replaced(index, frame(draw(st.binary(max_size=200))))
    if kind == "damaged payload":
        payload[draw(st.integers(0, len(payload) - 1))] = draw(st.integers(0, 255))
        return replaced(index, frame(bytes(payload)))
    if kind == "size":
        image = claiming(bytes(image), draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES)))
    elif kind == "damaged image":
        image[draw(st.integers(0, len(image) - 1))] = draw(st.integers(0, 255))
    else:
        image = draw(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF"])) + draw(st.binary(max_size=100))
    return replaced(index, frame(make_example(bytes(image), "n0", draw(st.integers(-(2**63), 2**63 - 1) | st.just(1)), (0, 0, 7, 7))))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A directory for the files; all tests together may not let the largest memory of the process grow much."""
    data_dir = tmp_path_factory.mktemp("hostile")
    record_path(data_dir, "train").write_bytes(BASE)
    read_records(data_dir, "train", n_classes=4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield data_dir
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH


def n_read(data_dir, content, max_bad_records):
    """How many records of the file are read; 0 if it is refused, in words that name it."""
    path = record_path(data_dir, "train")
    path.write_bytes(content)
    try:
        records = read_records(data_dir, "train", n_classes=4, max_bad_records=max_bad_records)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
        return 0
    assert records.images.shape == records.labels.shape
    assert ((records.labels >= 0) & (records.labels < 4)).all()
    return len(records.labels)


def check(data_dir, content, strict):
    """The good records of an intact file are read, and no others; the file is refused if it is damaged, or none may be passed over."""
    spans, end = framed_payloads(content)
    lenient = n_read(data_dir, content, 10**9)
    assert lenient <= len(spans)
    if end < len(content):
        assert lenient == 0
    if strict and lenient < len(spans):  # else there is nothing to pass over
        assert n_read(data_dir, content, 0) == 0


FUZZING = settings(max_examples=150, derandomize=True, database=None, deadline=10_000, suppress_health_check=[HealthCheck.too_slow])


def test_records_are_framed_as_tensorflow_frames_them(data_dir):
    path = record_path(data_dir, "validation")
    write_records(path, PAYLOADS)
    assert path.read_bytes() == BASE
    assert n_read(data_dir, BASE, 0) == N_RECORDS


@FUZZING
@given(content=damaged(), strict=st.booleans())
def test_damaged_files_are_read_or_refused(data_dir, content, strict):
    check(data_dir, content, strict)


@FUZZING
@given(content=with_another_record(), strict=st.booleans())
def test_files_with_a_hostile_record_are_read_or_refused(data_dir, content, strict):
    check(data_dir, content, strict)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_giants_are_refused_by_their_size_not_decoded(data_dir, index):
    image = make_example(claiming(IMAGES[index], 13_000, 13_001), "n0", 1, (0, 0, 7, 7))
    record_path(data_dir, "train").write_bytes(replaced(3, frame(image)))
    with pytest.raises(UserError, match=r"record 3 has an image of 13000x13001 pixels; at most 4096x4096 are read"):
        read_records(data_dir, "train", n_classes=4)
    assert n_read(data_dir, replaced(3, frame(image)), 1) == N_RECORDS - 1
    assert n_read(data_dir, frame(image) * 20, 100) == 0


def test_a_length_that_no_file_has_is_refused(data_dir):
    for length in (2**62, 2**64 - 1, 2**34):
        record_path(data_dir, "train").write_bytes(replaced(2, frame(PAYLOADS[2], length)))
        with pytest.raises(UserError, match=rf"truncated or corrupt after 2 intact records, at byte \d+ of {len(BASE)}\. "):
            read_records(data_dir, "train", n_classes=4, max_bad_records=100)


@pytest.mark.parametrize("progressive", [False, True])
def test_many_of_the_largest_images_take_little_memory(data_dir, progressive):
    side = int(MAX_PIXELS**0.5)
    image = tf.io.encode_jpeg(tf.zeros([side, side, 3], tf.uint8), progressive=progressive).numpy()
    record = frame(make_example(image, "n0", 1, (0, 0, 7, 7)))
    assert n_read(data_dir, record * 8, 0) == 8
    assert n_read(data_dir, record * 3 + frame(make_example(image[:-500], "n0", 1, (0, 0, 7, 7))), 1) == 3
