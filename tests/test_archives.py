"""Sources of the converter as machines leave them: junk, other names and encodings, links, damaged archives, bad images."""

import random
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data.convert import convert
from mat.data.reading import check_images

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


def archive(path, files):
    """Write a zip archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
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
    "extensions": {BOXES: b"n1_0.JPEG 0 0 9 9\na.jpg 0 0 9 9\nb.Jpeg 0 0 9 9\nc.PNG 0 0 9 9\n"}
    | {TRAIN + "a.jpg": JPEG, TRAIN + "b.Jpeg": JPEG, TRAIN + "c.PNG": PNG},
    "no extension": {"test/images/test_1": JPEG, "test/images/test_2.png": JPEG},
    "macOS": {TRAIN + "._n1_0.JPEG": JUNK, VAL + "._val_0.JPEG": JUNK, "test/images/.DS_Store": JUNK, "._wnids.txt": JUNK}
    | {"__MACOSX/train/n1/images/._n1_0.JPEG": JUNK, TRAIN + "__MACOSX/x.JPEG": JUNK, TRAIN + "Icon\r": b"", "train/.DS_Store": JUNK},
    "Windows": {TRAIN + "Thumbs.db": JUNK, "test/images/Desktop.ini": JUNK, TRAIN + "n1_0.JPEG:Zone.Identifier": b"[ZoneTransfer]"},
    "Synology and hidden folders": {"train/@eaDir/n1/SYNO.jpg": JUNK, ".git/wnids.txt": b"n9\n", TRAIN + ".ipynb/n1_0.JPEG": JPEG},
    "letter case": {BOXES: b"N1_0.jpeg 0 0 9 9\n", ANNOTATIONS: b"VAL_0.JPEG N1 0 0 9 9\n"},
    "letter case of folders": renamed(lambda name: name.replace("train", "Train").replace("images", "IMAGES").replace("wnids", "WNIDS")),
    "both letter cases": {BOXES: b"n1_0.JPEG 0 0 9 9\nN1_0.jpeg 0 0 9 9\n", TRAIN + "N1_0.jpeg": JPEG},
    "Unicode forms": {BOXES: "caf\u00e9.JPEG 0 0 9 9\n".encode(), TRAIN + "cafe\u0301.JPEG": JPEG, TRAIN + "n1_0.JPEG": None},
    "spaces": {"wnids.txt": b"  sea lion \n\n", "train/sea lion/sea lion_boxes.txt": b"a b.JPEG\t0\t0\t9\t9\n", BOXES: None}
    | {"train/sea lion/images/a b.JPEG": JPEG, TRAIN + "n1_0.JPEG": None}
    | {ANNOTATIONS: b"v a l.JPEG\tsea lion\t0\t0\t9\t9\n", VAL + "val_0.JPEG": None, VAL + "v a l.JPEG": JPEG},
    "spaces and no tabs": {BOXES: b"a  b.JPEG 0 0 9 9\n", TRAIN + "n1_0.JPEG": None, TRAIN + "a  b.JPEG": JPEG}
    | {ANNOTATIONS: b" v l.JPEG  n1  0 0 9 9 \n", VAL + "val_0.JPEG": None, VAL + "v l.JPEG": JPEG},
    "byte-order marks": {"wnids.txt": b"\xef\xbb\xbfn1\r\n", BOXES: "n1_0.JPEG\t0\t0\t9\t9\r\n".encode("utf-16")}
    | {ANNOTATIONS: b"\xfe\xff" + "val_0.JPEG\tn1\t0\t0\t9\t9".encode("utf-16-be"), "words.txt": "n1\tone".encode("utf-16")},
    "empty lines": {BOXES: b"\r\nn1_0.JPEG\t0\t0\t9\t9\r\n\r\n \t\n", ANNOTATIONS: b"\nval_0.JPEG n1 0 0 9 9\n\n"},
    "backslashes": renamed(lambda name: "tiny\\" + name.replace("/", "\\")),
    "further in": renamed(lambda name: "a/b/" + name) | {"a/b/copy/wnids.txt": b"n9\n"},
    "folders of images": {BOXES: b"x/n1_0.JPEG 0 0 9 9\n", TRAIN + "n1_0.JPEG": None, TRAIN + "x/n1_0.JPEG": JPEG},
}
COUNTS = {"extensions": (4, 1, 1), "no extension": (1, 1, 3), "both letter cases": (2, 1, 1)}  # of training, validation and test images

REFUSED = {
    "no wnids.txt": ({"wnids.txt": None}, "wnids.txt is missing. Add it, or give the official folder or zip"),
    "no words.txt": ({"words.txt": None}, "words.txt is missing. Add it, or give the official folder or zip"),
    "no classes": ({"wnids.txt": b"\n"}, "wnids.txt must list each class once"),
    "a class twice": ({"wnids.txt": b"n1\nN1\n"}, "wnids.txt must list each class once, one a line; letter case makes no difference"),
    "missing class": ({"wnids.txt": b"n1\nn4\n"}, "train/n4/n4_boxes.txt is missing"),
    "unlisted class": ({"train/n2/images/n2_0.JPEG": JPEG}, "wnids.txt does not list train/n2. Add it, or remove the folder"),
    "unknown class": ({ANNOTATIONS: b"val_0.JPEG n4 1 2 3 4\n"}, f"{ANNOTATIONS} gives val_0.JPEG the class n4, which is not in wnids.txt"),
    "spaces in a class without tabs": ({ANNOTATIONS: b"val_0.JPEG sea n1x 0 0 9 9\n"}, "names with spaces need tabs between them"),
    "empty class": ({TRAIN + "n1_0.JPEG": None, BOXES: b""}, f"{BOXES} lists no images; every class needs some"),
    "missing": ({VAL + "val_0.JPEG": None}, f"{VAL}val_0.JPEG is missing, and {ANNOTATIONS} lists it. Add it, or remove its line"),
    "several missing": ({BOXES: b"a 0 0 9 9\nb 0 0 9 9\nc 0 0 9 9\n"}, f"{TRAIN}a (and 2 more) is missing, and {BOXES} lists it"),
    "other extension": ({TRAIN + "n1_0.JPEG": None, TRAIN + "n1_0.jpg": JPEG}, f"{BOXES} lists it. There is {TRAIN}n1_0.jpg: correct the"),
    "listed junk": ({BOXES: b"._n1_0.JPEG 0 0 9 9\n", TRAIN + "._n1_0.JPEG": JUNK}, "hidden files and what systems leave"),
    "an image twice": ({BOXES: b"n1_0.JPEG 0 0 9 9\nn1_0.JPEG 1 1 8 8\n"}, f"{BOXES} lists n1_0.JPEG twice"),
    "one image for two lines": ({ANNOTATIONS: b"val_0.JPEG n1 0 0 9 9\nVAL_0.JPEG n1 0 0 9 9\n"}, "lists VAL_0.JPEG twice"),
    "stray file": ({TRAIN + "notes.txt": b"hello"}, f"{BOXES} has no box of {TRAIN}notes.txt. Add its line, or remove the file"),
    "unlisted in val": ({VAL + "val_1.JPEG": JPEG, VAL + "b.x": b""}, f"{ANNOTATIONS} has no box of {VAL}b.x (and 1 more)"),
    "beside the images of a class": ({"train/n1/n1_1.JPEG": JPEG}, "train/n1/n1_1.JPEG lies where no images are read"),
    "beside the images of test": ({"test/test_0.JPEG": JPEG, "test/images/test_0.JPEG": None}, "test/test_0.JPEG lies where no images"),
    "half a line": ({BOXES: b"n1_0.JPEG 1 2 3\n"}, f"{BOXES}, line 1: not `image xmin ymin xmax ymax`. Received: 'n1_0.JPEG 1 2 3'"),
    "no class": ({ANNOTATIONS: b"\nval_0.JPEG 1 2 3 4\n"}, f"{ANNOTATIONS}, line 2: not `image wnid xmin ymin xmax ymax`"),
    "no pixels": ({BOXES: b"n1_0.JPEG -1 0 9.5 9\n"}, "not `image xmin ymin xmax ymax`"),
    "UTF-16 without a mark": ({"wnids.txt": "n1\n".encode("utf-16-le")}, "wnids.txt is not UTF-8 or UTF-16 text (a zero, as of UTF-16"),
    "Latin-1": ({"words.txt": b"n1\tcaf\xe9\n"}, "words.txt is not UTF-8 or UTF-16 text (invalid continuation byte at byte 6). Save it as"),
    "two data sets": ({"a/wnids.txt": b"", "b/wnids.txt": b"", "wnids.txt": None}, "wnids.txt is in several folders: a/, b/. Give one"),
}


@pytest.mark.parametrize("write", [folder, archive])
@pytest.mark.parametrize("name", ACCEPTED)
def test_sources_of_other_machines_are_converted(tmp_path, write, name):
    assert counts(write(tmp_path / "source", changed(ACCEPTED[name])), tmp_path / "out") == COUNTS.get(name, (1, 1, 1))


@pytest.mark.parametrize("write", [folder, archive])
@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_lists_and_folders_that_do_not_agree_are_refused_by_name(tmp_path, write, changes, words):
    assert words in refusal(write(tmp_path / "source", changed(changes)), tmp_path / "out")


# Images.

UNREAD = "damaged or of a kind that Pillow does not read here"
GIANT = b"IHDR" + struct.pack(">LL", 5000, 5000) + PNG[24:29]
BAD_IMAGES = {
    "empty.JPEG": (b"", "empty"),
    "zeros.JPEG": (bytes(9000), "nothing but zeros"),
    "bmp.JPEG": (b"BM" + struct.pack("<LLL", 100, 0, 54) + bytes(80), "a BMP image, damaged or cut short"),
    "webp.JPEG": (b"RIFF\x20\0\0\0WEBPVP8 ", "a WebP image, damaged or cut short"),
    "gif.JPEG": (b"GIF89a\1\0\1\0", f"a GIF image, {UNREAD}"),
    "tiff.JPEG": (b"II*\0\x08\0\0\0", f"a TIFF image, {UNREAD}"),
    "heic.JPEG": (b"\0\0\0\x18ftypheic\0\0\0\0", f"a HEIC or AVIF image, {UNREAD}"),
    "page.JPEG": (b"\n<!DOCTYPE HTML><title>403</title>", "an HTML page"),
    "notes.txt": ("Grüße\n".encode(), "text"),
    "pointer.JPEG": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself"),
    "random.JPEG": (b"\1\2\3\4", "of no known kind"),
    "cut.JPEG": (JPEG[:-20], "a JPEG image, damaged or cut short"),
    "head.jpg": (JPEG[:4], "a JPEG image, damaged or cut short"),
    "cut.png": (PNG[:-20], "a PNG image, damaged or cut short"),
    "giant.png": (
        PNG[:12] + GIANT + struct.pack(">L", zlib.crc32(GIANT)) + PNG[33:],
        "a PNG image of 5000x5000 pixels; at most 4096x4096 are read",
    ),
}


@pytest.mark.parametrize("write", [folder, archive])
def test_images_that_cannot_be_read_are_all_named_with_what_they_are(tmp_path, write):
    changes = {f"test/images/{name}": content for name, (content, _) in BAD_IMAGES.items()} | {TRAIN + "n1_0.JPEG": b"jpeg"}
    with pytest.raises(UserError) as error:
        convert(write(tmp_path / "source", changed(changes)), tmp_path / "out")
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"{tmp_path / 'source'}: {len(BAD_IMAGES) + 1} of {len(BAD_IMAGES) + 3} images cannot be read. Replace each")
    assert set(lines) == {f"  test/images/{name}: {words}" for name, (_, words) in BAD_IMAGES.items()} | {f"  {TRAIN}n1_0.JPEG: text"}
    assert not (tmp_path / "out").exists()


def test_what_the_check_lets_through_can_be_decoded_and_nothing_else():
    """The check decodes JPEGs at an eighth of their size."""
    draw, images = random.Random(0), []
    pixels = np.kron(PIXELS, np.ones((4, 4, 1), np.uint8))
    bases = [tf.io.encode_jpeg(pixels, progressive=progressive).numpy() for progressive in (False, True)]
    for i in range(100):
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
    assert 10 < sum(expected) < 90


# Archives.


def test_archives_of_old_and_of_other_tools_are_converted(tmp_path):
    """Entries for folders, `./` before all names, backslashes, and names in UTF-8 that do not say so."""
    names = {"./": b"", "./train/": b"", ".\\train\\n1\\": b""} | {f"./{name}": content for name, content in FILES.items()}
    assert counts(archive(tmp_path / "a.zip", names), tmp_path / "a") == (1, 1, 1)
    utf_8 = {name.replace("n1", "nXX"): content.replace(b"n1", "né".encode()) for name, content in FILES.items()}
    path = archive(tmp_path / "b.zip", utf_8 | {"train/nXX/images/": b""})
    path.write_bytes(path.read_bytes().replace(b"nXX", "né".encode()))
    assert counts(path, tmp_path / "b") == (1, 1, 1)


@pytest.mark.parametrize(
    ("offset", "change", "words"),
    [
        (8, lambda flags: 1, "is encrypted, password required for extraction). Unpack it and give the folder"),
        (10, lambda method: 9, "(That compression method is not supported). Unpack it and give the folder"),
        (16, lambda crc: crc ^ 1, "(Bad CRC-32 for file 'wnids.txt'). Check the folder, or fetch the archive again"),
    ],
)
def test_archives_that_cannot_be_read_tell_why(tmp_path, offset, change, words):
    """A byte of every entry of the archive's directory is changed."""
    content = bytearray(archive(tmp_path / "a.zip", FILES).read_bytes())
    for entry in re.finditer(b"PK\1\2", bytes(content)):
        content[entry.start() + offset] = change(content[entry.start() + offset])
    (tmp_path / "a.zip").write_bytes(content)
    assert words in refusal(tmp_path / "a.zip", tmp_path / "out")


def test_flipped_bits_are_refused_in_words_or_do_no_harm(tmp_path):
    whole = archive(tmp_path / "a.zip", FILES).read_bytes()
    convert(tmp_path / "a.zip", tmp_path / "a")
    for place in range(0, len(whole), 29):
        out = tmp_path / f"out{place}"
        (tmp_path / "b.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            convert(tmp_path / "b.zip", out)
        except UserError:
            assert not out.exists() or not list(out.iterdir())
        else:
            assert (out / "train.tfrecord").read_bytes() == (tmp_path / "a" / "train.tfrecord").read_bytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "but empty. Remove it and fetch it again"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "but an HTML page"),
        (b"\x1f\x8b\x08\0\0", "but a gzip archive. Unpack it and give the folder"),
        (b"BZh91AY&SY\0", "but a bzip2 archive. Unpack it"),
        (b"\xfd7zXZ\0\0", "but an xz archive. Unpack it"),
        (b"wnids.txt".ljust(257, b"\0") + b"ustar\x0000", "but a tar archive. Unpack it"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "but a 7z archive. Unpack it"),
        (b"Rar!\x1a\7\1\0", "but a RAR archive. Unpack it"),
        (None, "but one that is cut off or damaged (File is not a zip file). Remove it and fetch it again"),
    ],
)
def test_files_that_are_no_zip_archive_are_told_as_what_they_are(tmp_path, content, words):
    path = tmp_path / "tiny-imagenet-200.zip"
    path.write_bytes(archive(path, FILES).read_bytes()[:-30] if content is None else content)
    assert f"{path}: not a readable zip archive, {words}" in refusal(path, tmp_path / "out")


# Folders.


@pytest.mark.parametrize("name", ["tiny-imagenet-200.zip", "data.ZIP"])
def test_a_source_around_the_archive_is_told_so(tmp_path, name):
    files = {name: b"", "zipped/readme.txt": b""}
    root, path = folder(tmp_path / "folder", files), archive(tmp_path / "a.zip", files)
    assert f"Give the zip in it: {root}/{name}" in refusal(root, tmp_path / "out")
    assert f"Unpack it and give {name}" in refusal(path, tmp_path / "out")


def test_a_folder_in_the_data_set_and_one_that_is_not_there_are_told_so(tmp_path):
    root = folder(tmp_path / "folder", FILES)
    assert f"Tiny ImageNet in its official layout. Give the folder around it: {root}" in refusal(root / "train", tmp_path / "out")
    assert "nothing: no folder or archive that can be read (No such file or directory)" in refusal(tmp_path / "nothing", tmp_path / "out")


def test_links_are_followed_also_out_of_the_source(tmp_path):
    elsewhere = folder(tmp_path / "elsewhere", {name.replace("train/", ""): c for name, c in FILES.items() if name.startswith("train")})
    (elsewhere / "n1/images/n1_0.JPEG").rename(tmp_path / "blob")
    (elsewhere / "n1/images/n1_0.JPEG").symlink_to(tmp_path / "blob")
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
    (root / "val/images/val_0.JPEG").unlink()
    (root / "val/images/val_0.JPEG").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"val/images/val_0.JPEG: cannot be read \(No such file or directory\)"):
        convert(root, tmp_path / "c")
