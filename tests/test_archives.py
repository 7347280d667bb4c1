"""Sources of the converter as machines leave them: junk, other names and encodings, links, unusual archives, images that are none."""

import io
import random
import stat
import struct
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data import sources
from mat.data.convert import convert
from mat.data.reading import check_images
from mat.data.records import FORMAT, IMAGE

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
JPEG, PNG = tf.io.encode_jpeg(PIXELS).numpy(), tf.io.encode_png(PIXELS).numpy()

FILES = {
    "wnids.txt": b"n1\n",
    "words.txt": b"n1\tone\n",
    "train/n1/n1_boxes.txt": b"n1_0.JPEG\t0\t0\t9\t9\n",
    "train/n1/images/n1_0.JPEG": JPEG,
    "val/val_annotations.txt": b"val_0.JPEG\tn1\t0\t0\t9\t9\n",
    "val/images/val_0.JPEG": JPEG,
    "test/images/test_0.JPEG": JPEG,
}
TRAIN, VAL = "train/n1/images/", "val/images/"
BOXES, ANNOTATIONS = "train/n1/n1_boxes.txt", "val/val_annotations.txt"


def archive(path, files, *, method=zipfile.ZIP_DEFLATED, attributes=None):
    """Write a zip archive; `attributes` are the Unix modes of some files."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (attributes or {}).get(name, 0) << 16
            file.writestr(info, content, method)
    return path


def folder(path, files):
    """Write files into a folder."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def changed(changes):
    """`FILES` with other files; None removes one."""
    return {name: content for name, content in (FILES | changes).items() if content is not None}


def renamed(change):
    """`FILES` under other names."""
    return dict.fromkeys(FILES) | {change(name): content for name, content in FILES.items()}


def counts(source, out):
    return tuple(convert(source, out).values())


def refusal(source, out):
    """The message of a refused conversion, a printable line, which leaves nothing behind."""
    with pytest.raises(UserError) as error:
        convert(source, out)
    assert str(error.value).isprintable()
    assert not out.exists() or not list(out.iterdir())
    return str(error.value)


JUNK = b"\0\5\x16\7\0\2\0\0Mac OS X"

ACCEPTED = {
    "extensions": (
        {BOXES: b"n1_0.JPEG\t0\t0\t9\t9\na.jpg\t0\t0\t9\t9\nb.Jpeg\t0\t0\t9\t9\nc.PNG\t0\t0\t9\t9\n"}
        | {TRAIN + "a.jpg": JPEG, TRAIN + "b.Jpeg": JPEG, TRAIN + "c.PNG": PNG},
        (4, 1, 1),
    ),
    "no extension": ({"test/images/test_1": JPEG, "test/images/test_2.png": JPEG}, (1, 1, 3)),
    "macOS": (
        {TRAIN + "._n1_0.JPEG": JUNK, VAL + "._val_0.JPEG": JUNK, "test/images/.DS_Store": JUNK, "._wnids.txt": JUNK}
        | {"__MACOSX/train/n1/images/._n1_0.JPEG": JUNK, TRAIN + "__MACOSX/x.JPEG": JUNK, TRAIN + "Icon\r": b"", "train/.DS_Store": JUNK},
        (1, 1, 1),
    ),
    "Windows": ({TRAIN + "Thumbs.db": JUNK, VAL + "THUMBS.DB": JUNK, "test/images/Desktop.ini": JUNK}, (1, 1, 1)),
    "WSL": ({TRAIN + "n1_0.JPEG:Zone.Identifier": b"[ZoneTransfer]", "wnids.txt:Zone.Identifier": b"[ZoneTransfer]"}, (1, 1, 1)),
    "Synology": ({"train/@eaDir/n1/SYNO.jpg": JUNK, TRAIN + "@eaDir/n1_0.JPEG/SYNO_THUMB.jpg": JUNK}, (1, 1, 1)),
    "hidden folders": ({TRAIN + ".ipynb_checkpoints/n1_0-checkpoint.JPEG": JPEG, ".git/wnids.txt": b"n9\n"}, (1, 1, 1)),
    "letter case": ({BOXES: b"N1_0.jpeg 0 0 9 9\n", ANNOTATIONS: b"VAL_0.JPEG N1 0 0 9 9\n"}, (1, 1, 1)),
    "letter case of folders": (renamed(lambda name: name.replace("train", "Train").replace("images", "IMAGES")), (1, 1, 1)),
    "letter case of wnids.txt": (renamed(lambda name: name.replace("wnids.txt", "WNIDS.TXT")), (1, 1, 1)),
    "both letter cases": (
        {BOXES: b"n1_0.JPEG 0 0 9 9\nN1_0.jpeg 0 0 9 9\n", TRAIN + "N1_0.jpeg": JPEG},
        (2, 1, 1),
    ),
    "Unicode forms": (
        {BOXES: "caf\u00e9.JPEG\t0\t0\t9\t9\n".encode(), TRAIN + "cafe\u0301.JPEG": JPEG, TRAIN + "n1_0.JPEG": None},
        (1, 1, 1),
    ),
    "spaces": (
        {"wnids.txt": b"  sea lion \n\n", "train/sea lion/sea lion_boxes.txt": b"a b.JPEG\t0\t0\t9\t9\n", BOXES: None}
        | {"train/sea lion/images/a b.JPEG": JPEG, TRAIN + "n1_0.JPEG": None}
        | {ANNOTATIONS: b"v a l.JPEG\tsea lion\t0\t0\t9\t9\n", VAL + "val_0.JPEG": None, VAL + "v a l.JPEG": JPEG},
        (1, 1, 1),
    ),
    "spaces and no tabs": (
        {BOXES: b"a  b.JPEG 0 0 9 9\n", TRAIN + "n1_0.JPEG": None, TRAIN + "a  b.JPEG": JPEG}
        | {ANNOTATIONS: b" v l.JPEG  n1  0 0 9 9 \n", VAL + "val_0.JPEG": None, VAL + "v l.JPEG": JPEG},
        (1, 1, 1),
    ),
    "byte-order marks": (
        {"wnids.txt": b"\xef\xbb\xbfn1\r\n", BOXES: "n1_0.JPEG\t0\t0\t9\t9\r\n".encode("utf-16")}
        | {ANNOTATIONS: b"\xfe\xff" + "val_0.JPEG\tn1\t0\t0\t9\t9".encode("utf-16-be"), "words.txt": "n1\tone".encode("utf-16")},
        (1, 1, 1),
    ),
    "empty lines": ({BOXES: b"\r\nn1_0.JPEG\t0\t0\t9\t9\r\n\r\n \t\n", ANNOTATIONS: b"\nval_0.JPEG n1 0 0 9 9\n\n"}, (1, 1, 1)),
    "backslashes": (renamed(lambda name: "tiny\\" + name.replace("/", "\\")), (1, 1, 1)),
    "further in": (renamed(lambda name: "a/b/" + name) | {"a/b/copy/wnids.txt": b"n9\n"}, (1, 1, 1)),
    "folders of images": ({BOXES: b"x/n1_0.JPEG 0 0 9 9\n", TRAIN + "n1_0.JPEG": None, TRAIN + "x/n1_0.JPEG": JPEG}, (1, 1, 1)),
}

REFUSED = {
    "other extension": (
        {TRAIN + "n1_0.JPEG": None, TRAIN + "n1_0.jpg": JPEG},
        f"{TRAIN}n1_0.JPEG is missing, and {BOXES} lists it. There is {TRAIN}n1_0.jpg",
    ),
    "path in a list": ({ANNOTATIONS: b"val/images/val_0.JPEG n1 0 0 9 9\n"}, "There is val/images/val_0.JPEG"),
    "several missing": ({BOXES: b"a 0 0 9 9\nb 0 0 9 9\nc 0 0 9 9\n"}, f"{TRAIN}a is missing, and {BOXES} lists it (and 2 more)"),
    "stray file": ({TRAIN + "notes.txt": b"hello"}, f"{BOXES} has no box of {TRAIN}notes.txt. Add its line, or remove the file"),
    "unlisted in val": ({VAL + "val_1.JPEG": JPEG, VAL + "b.x": b""}, f"{ANNOTATIONS} has no box of {VAL}b.x (and 1 more)"),
    "unlisted further in": ({TRAIN + "more/n1_1.JPEG": JPEG}, f"has no box of {TRAIN}more/n1_1.JPEG"),
    "unlisted class": ({"train/n2/images/n2_0.JPEG": JPEG}, "wnids.txt does not list train/n2. Add it, or remove the folder"),
    "empty class": ({TRAIN + "n1_0.JPEG": None, BOXES: b""}, "train/n1/images has no images, and wnids.txt lists the class"),
    "one folder for two classes": ({"wnids.txt": b"n1\nN1\n"}, "wnids.txt lists n1 twice, in different letter case"),
    "one image for two lines": ({ANNOTATIONS: b"val_0.JPEG n1 0 0 9 9\nVAL_0.JPEG n1 0 0 9 9\n"}, "lists VAL_0.JPEG twice"),
    "an image twice in a class": ({BOXES: b"n1_0.JPEG 0 0 9 9\nn1_0.JPEG 1 1 8 8\n"}, f"{BOXES} lists n1_0.JPEG twice. Remove one"),
    "an image twice in val": ({ANNOTATIONS: 2 * b"val_0.JPEG n1 0 0 9 9\n"}, f"{ANNOTATIONS} lists val_0.JPEG twice. Remove one"),
    "no validation": ({ANNOTATIONS: b"", VAL + "val_0.JPEG": None}, f"{ANNOTATIONS} lists no images, and a run validates on them"),
    "beside the images of a class": ({"train/n1/n1_1.JPEG": JPEG}, "train/n1/n1_1.JPEG lies where no images are read"),
    "beside the images of val": ({"val/a.jpg": JPEG, "val/b.PNG": PNG}, "val/a.jpg (and 1 more) lies where no images are read"),
    "beside the images of test": ({"test/test_0.JPEG": JPEG, "test/images/test_0.JPEG": None}, "test/test_0.JPEG lies where no images"),
    "UTF-16 without a mark": ({"wnids.txt": "n1\n".encode("utf-16-le")}, "wnids.txt is not UTF-8 or UTF-16 text (a zero, as of UTF-16"),
    "UTF-32": ({BOXES: "n1_0.JPEG 0 0 9 9\n".encode("utf-32")}, f"{BOXES} is not UTF-8 or UTF-16 text"),
    "listed junk": ({BOXES: b"._n1_0.JPEG 0 0 9 9\n", TRAIN + "._n1_0.JPEG": JUNK}, "Hidden files and what systems leave"),
    "listed junk class": (
        {"wnids.txt": b".DS_Store\nn1\n"},
        "train/.DS_Store/.DS_Store_boxes.txt is missing. Hidden files and what systems leave in folders are",
    ),
    "Latin-1": ({"words.txt": b"n1\tcaf\xe9\n"}, "words.txt is not UTF-8 or UTF-16 text (invalid continuation byte at byte 6). Save it as"),
    "half a character": ({BOXES: b"\xff\xfen"}, f"{BOXES} is not UTF-8 or UTF-16 text"),
    "spaces in a class without tabs": ({ANNOTATIONS: b"val_0.JPEG sea n1x 0 0 9 9\n"}, "names with spaces need tabs between them"),
    "tab too many": ({BOXES: b"n1_0.JPEG\tn1\t0\t0\t9\t9\n"}, "line 1: not `image xmin ymin xmax ymax`"),
    "two data sets": (
        {f"{root}/wnids.txt": b"n1\n" for root in "ab"} | {"wnids.txt": None},
        "wnids.txt is in several folders: a/, b/. Give",
    ),
}


@pytest.mark.parametrize("write", [folder, archive])
@pytest.mark.parametrize(("changes", "expected"), ACCEPTED.values(), ids=ACCEPTED)
def test_sources_of_other_machines_are_converted(tmp_path, write, changes, expected):
    assert counts(write(tmp_path / "source", changed(changes)), tmp_path / "out") == expected


@pytest.mark.parametrize("write", [folder, archive])
@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_lists_and_folders_that_do_not_agree_are_refused_by_name(tmp_path, write, changes, words):
    assert words in refusal(write(tmp_path / "source", changed(changes)), tmp_path / "out")


# Images.

BAD_IMAGES = {
    "empty.JPEG": (b"", "empty"),
    "zeros.JPEG": (bytes(9000), "nothing but zeros"),
    "bmp.JPEG": (b"BM" + struct.pack("<LLL", 100, 0, 54) + bytes(80), "a BMP image"),
    "webp.JPEG": (b"RIFF\x20\0\0\0WEBPVP8 ", "a WebP image"),
    "gif.JPEG": (b"GIF89a\1\0\1\0", "a GIF image"),
    "tiff.JPEG": (b"II*\0\x08\0\0\0", "a TIFF image"),
    "heic.JPEG": (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC or AVIF image"),
    "page.JPEG": (b"\n<!DOCTYPE HTML><title>403</title>", "an HTML page"),
    "notes.txt": ("Grüße\n".encode(), "text"),
    "pointer.JPEG": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself"),
    "random.JPEG": (b"\1\2\3\4", "of no known kind"),
    "cut.JPEG": (JPEG[:-20], "a JPEG image, damaged or cut short"),
    "head.jpg": (JPEG[:4], "a JPEG image, damaged or cut short"),
    "cut.png": (PNG[:-20], "a PNG image, damaged or cut short"),
    "giant.png": (PNG[:16] + struct.pack(">LL", 5000, 5000) + PNG[24:], "a PNG image of 5000x5000 pixels; at most 4096x4096 are read"),
}


@pytest.mark.parametrize("write", [folder, archive])
def test_images_that_cannot_be_read_are_all_named_with_what_they_are(tmp_path, write):
    changes = {f"test/images/{name}": content for name, (content, _) in BAD_IMAGES.items()} | {
        TRAIN + "n1_0.JPEG": b"jpeg",
        VAL + "val_0.JPEG": PNG,
    }
    with pytest.raises(UserError) as error:
        convert(write(tmp_path / "source", changed(changes)), tmp_path / "out")
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"{tmp_path / 'source'}: {len(BAD_IMAGES) + 1} of {len(BAD_IMAGES) + 3} images cannot be read")
    expected = {f"  test/images/{name}: {words}" for name, (_, words) in BAD_IMAGES.items()} | {f"  {TRAIN}n1_0.JPEG: text"}
    assert set(lines) == expected
    assert list((tmp_path / "out").iterdir()) == []


def test_images_are_checked_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("mat.data.convert.CHECKED_IMAGES", 3)
    monkeypatch.setattr("mat.data.convert.CHECKED_BYTES", 2000)
    images = {f"test/images/{i}.JPEG": JPEG[: len(JPEG) - 30 * (i in (2, 7, 11))] + bytes(3000 * (i == 5)) for i in range(12)}
    with pytest.raises(UserError) as error:
        convert(folder(tmp_path / "source", changed(images)), tmp_path / "out")
    assert [line.split(":")[0] for line in str(error.value).splitlines()[1:]] == [f"  test/images/{i}.JPEG" for i in (2, 7, 11)]
    assert " 3 of 15 images" in str(error.value)


def test_records_tell_the_format_of_their_image(tmp_path):
    convert(folder(tmp_path / "source", changed({"test/images/test_1.JPEG": PNG})), tmp_path / "out")
    records = [tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(tmp_path / "out" / "test.tfrecord"))]
    features = [record.features.feature for record in records]
    assert [f[IMAGE].bytes_list.value[0] for f in features] == [JPEG, PNG]
    assert [f[FORMAT].bytes_list.value[0] for f in features] == [b"jpeg", b"png"]


def test_what_the_check_lets_through_can_be_decoded_and_nothing_else():
    """The check decodes JPEGs at an eighth of their size."""
    draw, images = random.Random(0), []
    bases = [
        tf.io.encode_jpeg(np.kron(PIXELS, np.ones((4, 4, 1), np.uint8)), progressive=progressive).numpy() for progressive in (False, True)
    ]
    for i in range(400):
        image = bytearray(bases[i % 2])
        for _ in range(2):
            image[draw.randrange(3, len(image))] = draw.randrange(256)
        images.append(bytes(image[: draw.randrange(len(image))] if i % 5 == 0 else image))
    decodable, sizes = check_images(tf.constant(images))
    expected = []
    for image, size in zip(images, sizes, strict=True):
        try:
            expected.append(tf.io.decode_jpeg(image, channels=3).shape[1::-1] == tuple(size))
        except tf.errors.InvalidArgumentError:
            expected.append(False)
    assert decodable.tolist() == expected
    assert 40 < sum(expected) < 360


# Archives.


def test_archives_of_old_and_of_other_tools_are_converted(tmp_path):
    """Entries for folders, `./` before all names, backslashes, and names in UTF-8 that do not say so."""
    names = {"./": b"", "./train/": b"", ".\\train\\n1\\": b""} | {f"./{name}": content for name, content in FILES.items()}
    assert counts(archive(tmp_path / "a.zip", names), tmp_path / "a") == (1, 1, 1)
    name = "n\u00e9"
    utf_8 = {key.replace("n1", name): content.replace(b"n1", name.encode()) for key, content in FILES.items()}
    path = archive(tmp_path / "b.zip", utf_8 | {"train/n\u00e9/images/": b""})
    content = path.read_bytes()
    assert content.count(b"\0\x08") >= 4
    with zipfile.ZipFile(path) as file:
        flagged = [(info.header_offset + 6, info) for info in file.infolist() if info.flag_bits & 0x800]
    content = bytearray(content)
    for offset, _ in flagged:
        content[offset + 1] &= ~0x08
    position = content.find(b"PK\1\2")
    while position >= 0:
        content[position + 9] &= ~0x08
        position = content.find(b"PK\1\2", position + 4)
    path.write_bytes(content)
    assert counts(path, tmp_path / "b") == (1, 1, 1)


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (8, b"\x01", "is encrypted, unlike in the official archive. Unpack it and give the folder"),
        (10, b"\x09", "is compressed with Deflate64, not Deflate"),
        (10, b"\x5d", "is compressed with Zstandard, not Deflate"),
        (10, b"\x63", "is compressed with method 99, not Deflate"),
    ],
)
def test_archives_that_cannot_be_read_tell_why(tmp_path, offset, value, words):
    path = archive(tmp_path / "a.zip", FILES)
    content = path.read_bytes()
    start = content.index(b"PK\1\2") + offset
    path.write_bytes(content[:start] + value + content[start + 1 :])
    assert f"wnids.txt {words}" in refusal(path, tmp_path / "out")


def test_one_file_under_two_spellings_of_its_name_is_refused(tmp_path):
    path = archive(tmp_path / "a.zip", FILES | {"train\\n1\\images\\n1_0.JPEG": JPEG})
    assert f"{TRAIN}n1_0.JPEG is in it twice" in refusal(path, tmp_path / "out")


def test_what_is_wrong_with_junk_in_an_archive_does_not_matter(tmp_path):
    path = archive(tmp_path / "a.zip", FILES | {"__MACOSX/link": b"x"}, attributes={"__MACOSX/link": stat.S_IFLNK | 0o777})
    assert counts(path, tmp_path / "out") == (1, 1, 1)


def zip_bytes(files):
    content = io.BytesIO()
    archive(content, files)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "but empty. Remove it and fetch it again"),
        (bytes(600), "but nothing but zeros. Remove it"),
        (b"<html><body>Sign in</body></html>", "but an HTML page. Remove it"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "but an HTML page"),
        (b"\x1f\x8b\x08\0\0", "but a gzip archive. Unpack it and give the folder"),
        (b"BZh91AY&SY\0", "but a bzip2 archive. Unpack it"),
        (b"\xfd7zXZ\0\0", "but an xz archive. Unpack it"),
        (b"wnids.txt".ljust(257, b"\0") + b"ustar\x0000", "but a tar archive. Unpack it"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "but a 7z archive. Unpack it"),
        (b"Rar!\x1a\7\1\0", "but a RAR archive. Unpack it"),
        (JPEG, "but a JPEG image. Remove it"),
        (zip_bytes(FILES)[:-30], "but one that is cut off: its end is missing. Remove it and fetch it again"),
        (b"some notes", "but text. Remove it"),
    ],
)
def test_files_that_are_no_zip_archive_are_told_as_what_they_are(tmp_path, content, words):
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(content)
    assert f"not a readable zip archive, {words}" in refusal(tmp_path / "tiny-imagenet-200.zip", tmp_path / "out")


# Folders.


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Tiny-ImageNet-200.zip", "other.zip"], "Give the zip in it: {}/Tiny-ImageNet-200.zip"),
        (["data.ZIP", "readme.txt"], "Give the zip in it: {}/data.ZIP"),
        (["a.zip", "b.zip"], "Give the official folder or zip"),
    ],
)
def test_a_folder_around_the_archive_is_told_so(tmp_path, names, words):
    root = folder(tmp_path / "folder", dict.fromkeys(names, b""))
    assert words.format(root) in refusal(root, tmp_path / "out")


def test_wrong_levels_of_the_layout_are_told_so(tmp_path):
    root = folder(tmp_path / "folder", FILES)
    assert f"no wnids.txt in it, so not Tiny ImageNet in its official layout. Give the folder around it: {root}" in refusal(
        root / "train", tmp_path / "out"
    )
    path = archive(tmp_path / "a.zip", {"tiny-imagenet-200.zip": b"", "x/license.txt": b""})
    assert "Unpack it and give tiny-imagenet-200.zip" in refusal(path, tmp_path / "out")


def test_links_to_folders_are_followed_also_out_of_the_source(tmp_path):
    elsewhere = folder(tmp_path / "elsewhere", {name.replace("train/", ""): c for name, c in FILES.items() if name.startswith("train")})
    (elsewhere / "n1/images/n1_0.JPEG").rename(elsewhere / "blob")
    (elsewhere / "n1/images/n1_0.JPEG").symlink_to("../../blob")  # within what the link leads to
    root = folder(tmp_path / "folder", {name: content for name, content in FILES.items() if not name.startswith(("train", "test"))})
    (root / "train").symlink_to(elsewhere)
    (root / "test").symlink_to("val")
    (root / "val/images/back").symlink_to(root)  # in a circle
    (elsewhere / "n1/images/up").symlink_to(elsewhere)
    assert counts(root, tmp_path / "a") == (1, 1, 1)
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "v1").symlink_to(root)
    (outer / "latest").symlink_to("v1")  # the same under another name
    assert counts(outer, tmp_path / "b") == (1, 1, 1)


def test_links_that_make_a_few_folders_look_like_many_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_ENTRIES", 1000)
    root = folder(tmp_path / "folder", FILES)
    for i in range(12):
        (root / f"d{i}").mkdir()
        for name in "ab":
            (root / f"d{i}" / name).symlink_to(f"../d{i + 1}")
    assert "more than 1,000 files in it and where its links lead" in refusal(root, tmp_path / "out")
