"""Own images: what each kind of file becomes in the records, measured in grey levels against what a viewer shows."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mat.data.picture_files import content_for_records, read_picture
from mat.data.reading import check_images, decode

rng = np.random.default_rng(0)
HEIGHT, WIDTH = 24, 40
SHAPE = HEIGHT, WIDTH
RGB = rng.integers(0, 256, (*SHAPE, 3), np.uint8)
GRAY = rng.integers(0, 256, SHAPE, np.uint8)
ALPHA = rng.integers(0, 256, SHAPE, np.uint8)
SMOOTH = (np.indices(SHAPE).sum(0)[..., None] * [3, 2, 1] + [10, 60, 120]).astype(np.uint8)  # what a JPEG keeps


def save(pixels, kind, **options):
    """The bytes of a file that Pillow writes."""
    image, file = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels), io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def over_white(pixels, alpha):
    pixels, alpha = np.asarray(pixels, float), np.asarray(alpha, float)[..., None] / 255
    return pixels.reshape(*SHAPE, -1) * alpha + 255 * (1 - alpha)


def is_color(pixels, color):
    return np.all(pixels == color, axis=-1, keepdims=True)


def png(bit_depth, color_type, rows, **chunks):
    """A PNG file of rows of bytes, with more chunks before the pixels, by their names."""
    parts = {"IHDR": struct.pack(">LLBBBBB", WIDTH, HEIGHT, bit_depth, color_type, 0, 0, 0)} | chunks
    parts |= {"IDAT": zlib.compress(b"".join(b"\0" + row for row in rows)), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(data)) + name.encode() + data + struct.pack(">L", zlib.crc32(name.encode() + data))
        for name, data in parts.items()
    )


def packed(values, bits):
    """Rows of numbers of a few bits each as bytes."""
    shifts = np.arange(bits - 1, -1, -1)
    return [np.packbits((row[:, None] >> shifts) & 1).tobytes() for row in values]


def big_endian(values):
    return [row.astype(">u2").tobytes() for row in values.reshape(HEIGHT, -1)]


def with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def ink(*cmyk):
    return Image.new("CMYK", (WIDTH, HEIGHT), cmyk)


def cmyk_profile():
    """An ICC profile of a printer whose cyan is a medium gray: Lab values at the corners of CMYK."""
    corners = [(0, 128, 128) if k else (128, 128, 128) if c and not (m or y) else (255, 128, 128) for c, m, y, k in np.ndindex(2, 2, 2, 2)]
    identity = bytes(range(256))
    matrix = struct.pack(">9l", *np.eye(3, dtype=int).ravel() * 65536)
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * identity + np.array(corners, np.uint8).tobytes() + 3 * identity
    head = struct.pack(">L4sL4s4s4s12s4s", 128 + 16 + len(table), b"none", 0x02400000, b"prtr", b"CMYK", b"Lab ", bytes(12), b"acsp")
    head = head.ljust(68, b"\0") + struct.pack(">3l", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + struct.pack(">L4sLL", 1, b"A2B0", 144, len(table)) + table


PALETTE = Image.fromarray(RGB).quantize(200)
INDICES, COLORS = np.asarray(PALETTE), np.asarray(PALETTE.convert("RGB"))
FIRST = INDICES[0, 0]
MEDIUM = [119.6, 119.6, 119.6]  # L* = 50.2 in sRGB
WIDE = rng.integers(0, 65536, SHAPE)
WIDE[0, 0] = 12345
WIDE_RGB = rng.integers(0, 65536, (*SHAPE, 3))
WIDE_RGB[0, 0] = 1283, 256, 65535
FEW = rng.integers(0, 4, SHAPE)
FLOATS = rng.random(SHAPE).astype(np.float32)
NUMBERS = rng.integers(-1000, 5000, SHAPE).astype(np.int32)
stretched = (NUMBERS - NUMBERS.min()) * (255 / np.ptp(NUMBERS))

LOSSLESS = {  # the file, and the pixels that a viewer shows
    "RGB.png": (save(RGB, "PNG"), RGB),
    "gray.png": (save(GRAY, "PNG"), GRAY),
    "interlaced.png": (save(RGB, "PNG", interlace=1), RGB),
    "1 bit.png": (save(Image.fromarray(GRAY > 99), "PNG"), 255 * (GRAY > 99)),
    "2 bit.png": (png(2, 0, packed(FEW, 2)), FEW * 85),
    "2 bit with a transparent value.png": (png(2, 0, packed(FEW, 2), tRNS=b"\0\1"), np.where(FEW == 1, 255, FEW * 85)),
    "gray with a transparent value.png": (save(GRAY, "PNG", transparency=int(GRAY[0, 0])), np.where(GRAY[0, 0] == GRAY, 255, GRAY)),
    "RGB with a transparent color.png": (
        save(RGB, "PNG", transparency=tuple(RGB[0, 0].tolist())),
        np.where(is_color(RGB, RGB[0, 0]), 255, RGB),
    ),
    "palette.png": (save(PALETTE, "PNG"), COLORS),
    "transparent palette.png": (save(PALETTE, "PNG", transparency=int(FIRST)), np.where(INDICES[..., None] == FIRST, 255, COLORS)),
    "palette with alpha.png": (save(PALETTE, "PNG", transparency=bytes(range(200))), over_white(COLORS, INDICES)),
    "RGBA.png": (save(np.dstack([RGB, ALPHA]), "PNG"), over_white(RGB, ALPHA)),
    "gray with alpha.png": (save(np.dstack([GRAY, ALPHA]), "PNG"), over_white(GRAY, ALPHA)),
    "16 bit.png": (png(16, 0, big_endian(WIDE)), WIDE / 257),
    "16 bit with a transparent value.png": (
        png(16, 0, big_endian(WIDE), tRNS=struct.pack(">H", 12345)),
        np.where(WIDE == 12345, 255, WIDE / 257),
    ),
    "16 bit RGB.png": (png(16, 2, big_endian(WIDE_RGB)), WIDE_RGB / 257),
    "16 bit RGB with a transparent color.png": (
        png(16, 2, big_endian(WIDE_RGB), tRNS=struct.pack(">3H", 1283, 256, 65535)),
        np.where(is_color(WIDE_RGB >> 8, [5, 1, 255]), 255, WIDE_RGB / 257),
    ),
    "16 bit RGBA.png": (png(16, 6, big_endian(np.dstack([WIDE_RGB, 257 * ALPHA.astype(int)]))), over_white(WIDE_RGB >> 8, ALPHA)),
    "16 bit gray with alpha.png": (png(16, 4, big_endian(np.dstack([WIDE, 257 * ALPHA.astype(int)]))), over_white(WIDE >> 8, ALPHA)),
    "damaged EXIF.png": (png(8, 2, [row.tobytes() for row in RGB], eXIf=b"MM\0*\0\0\1"), RGB),
    "RGB.bmp": (save(RGB, "BMP"), RGB),
    "palette.BMP": (save(PALETTE, "BMP"), COLORS),
    "still.gif": (save(PALETTE, "GIF"), COLORS),
    "animated.gif": (save(PALETTE, "GIF", save_all=True, append_images=[Image.new("P", (WIDTH, HEIGHT))]), COLORS),
    "animated.png": (save(RGB, "PNG", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]), RGB),
    "transparent.gif": (save(PALETTE, "GIF", transparency=int(FIRST)), np.where(INDICES[..., None] == FIRST, 255, COLORS)),
    "RGB.webp": (save(RGB, "WEBP", lossless=True), RGB),
    "alpha.WebP": (save(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True), over_white(RGB, ALPHA)),
    "animated.webp": (save(RGB, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]), RGB),
    "RGB.tiff": (save(RGB, "TIFF"), RGB),
    "compressed.tif": (save(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "16 bit.tif": (save(WIDE.astype(np.uint16), "TIFF"), WIDE / 257),
    "32 bit.tif": (save(NUMBERS, "TIFF"), stretched),
    "0 to 1.tif": (save(FLOATS, "TIFF"), FLOATS * 255),
    "floats.tif": (save(NUMBERS.astype(np.float32), "TIFF"), stretched),
    "one value.tif": (save(np.full(SHAPE, 7, np.int32), "TIFF"), np.zeros(SHAPE)),
    "not a number.tif": (save(np.where(FLOATS < 0.5, np.nan, FLOATS), "TIFF"), np.where(FLOATS < 0.5, 0, FLOATS * 255)),
    "CMYK.tif": (save(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB),
    "CMYK with a profile.tif": (save(ink(255, 0, 0, 0), "TIFF", icc_profile=cmyk_profile()), MEDIUM),
    "CMYK with a damaged profile.tif": (save(ink(255, 0, 0, 0), "TIFF", icc_profile=cmyk_profile()[:99]), [0, 255, 255]),
    "Lab.tif": (save(Image.frombytes("LAB", (WIDTH, HEIGHT), bytes([255, 0, 0] * HEIGHT * WIDTH)), "TIFF"), [255, 255, 255]),
    "RGB.ppm": (save(RGB, "PPM"), RGB),
    "16 bit.pgm": (b"P5\n40 24\n65535\n" + b"".join(big_endian(WIDE)), WIDE / 257),
    "0 to 1.pfm": (save(FLOATS, "PPM"), FLOATS * 255),
    "RGB.tga": (save(RGB, "TGA"), RGB),
    "RGB.jp2": (save(RGB, "JPEG2000"), RGB),
}

LOSSY = {  # Pillow's reading is what a viewer shows
    "RGB.jpg": save(SMOOTH, "JPEG", quality=95),
    "gray.JPEG": save(SMOOTH[..., 0], "JPEG"),
    "noise.jpg": save(RGB, "JPEG"),
    "no subsampling.jpe": save(RGB, "JPEG", subsampling=0),
    "progressive.jfif": save(RGB, "JPEG", progressive=True),
    "two pictures.jpg": save(RGB, "MPO", save_all=True, append_images=[Image.fromarray(RGB)]),
    "CMYK.jpg": save(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95),
    "CMYK with a profile.jpg": save(ink(255, 0, 0, 0), "JPEG", icc_profile=cmyk_profile()),
    "turned.jpg": save(SMOOTH, "JPEG", exif=with_orientation(6)),
    "RGB.webp": save(SMOOTH, "WEBP"),
    "JPEG in it.tif": save(SMOOTH, "TIFF", compression="jpeg"),
    "RGB.jp2": save(SMOOTH, "JPEG2000", irreversible=True),
}
KEPT = {"RGB.png", "gray.png", "interlaced.png", "animated.png", "damaged EXIF.png"}
KEPT |= {"RGB.jpg", "gray.JPEG", "noise.jpg", "no subsampling.jpe", "progressive.jfif", "two pictures.jpg"}
LARGEST_JPEG_DIFFERENCE = 4  # grey levels, of TensorFlow's decoder to Pillow's


def record_pixels(content):
    """(the bytes in the records, the pixels that a run reads from them); the bytes and their size are what the check takes."""
    encoded, size = content_for_records(content)
    decodable, sizes = check_images(tf.constant([encoded]))
    assert decodable.all()
    assert size in (None, tuple(sizes[0].tolist()))
    return encoded, decode(tf.constant(encoded)).numpy().astype(float)


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_are_what_a_viewer_shows_to_a_grey_level(name):
    content, expected = LOSSLESS[name]
    encoded, pixels = record_pixels(content)
    expected = np.asarray(expected, float)
    np.testing.assert_allclose(pixels, np.broadcast_to(expected[..., None] if expected.shape == SHAPE else expected, pixels.shape), atol=1)
    assert (encoded is content) == (name in KEPT)
    np.testing.assert_array_equal(np.asarray(read_picture(content)), pixels)
    assert read_picture(content).info == {}


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_files_are_what_a_viewer_shows_to_a_few_grey_levels(name):
    encoded, pixels = record_pixels(LOSSY[name])
    shown = np.asarray(read_picture(LOSSY[name]), float)
    assert np.abs(pixels - shown).max() <= (LARGEST_JPEG_DIFFERENCE if name in KEPT else 0)
    assert (encoded is LOSSY[name]) == (name in KEPT)


def test_ink_is_turned_into_color_by_the_profile():
    np.testing.assert_allclose(read_picture(LOSSY["CMYK with a profile.jpg"]).getpixel((5, 5)), MEDIUM, atol=1)
    plain = np.asarray(read_picture(LOSSY["CMYK.jpg"]), float)
    assert np.abs(plain - SMOOTH).max() < 12


UPRIGHT = {  # by the orientation: what a viewer does to the stored pixels
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.transpose(pixels, (1, 0, 2)),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(np.transpose(pixels, (1, 0, 2)), 2),
    8: np.rot90,
    9: lambda pixels: pixels,  # there is no such orientation
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_pictures_are_turned_as_their_exif_data_tell(kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    content = save(SMOOTH, kind, exif=with_orientation(orientation), **options)
    encoded, pixels = record_pixels(content)
    assert (encoded is content) == (kind in ("PNG", "JPEG") and orientation in (1, 9))
    np.testing.assert_allclose(pixels, UPRIGHT[orientation](SMOOTH), atol=6 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (LOSSLESS["RGB.tiff"][0][:-99], "a TIFF image, damaged or cut short"),
        (LOSSLESS["RGB.bmp"][0][:-99], "a BMP image, damaged or cut short"),
        (LOSSLESS["RGB.tga"][0][:-99], "damaged or cut short"),
        (LOSSLESS["RGBA.png"][0][:-99], "a PNG image, damaged or cut short"),
        (b"<?xml version='1.0'?><!-- a --><svg/>", "an SVG drawing, which Pillow does not read"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC or AVIF image, damaged or of a kind that Pillow does not read here"),
        (b"hello", "text"),
    ],
)
def test_pictures_that_cannot_be_read_have_a_reason_in_words(tmp_path, content, reason):
    for read in (read_picture, content_for_records):
        with pytest.raises(ValueError, match=f"^{reason}$"):
            read(content)
    with pytest.raises(ValueError, match=r"^cannot be read \(No such file or directory\)$"):
        read_picture(tmp_path / "nothing.png")
    (tmp_path / "a.png").write_bytes(LOSSLESS["RGB.png"][0])
    assert read_picture(tmp_path / "a.png").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("side", "reason"), [(5000, "a BMP image of 5000x5000 pixels; at most 4096x4096 are read"), (30000, "more pixels")]
)
def test_pictures_that_are_too_large_are_not_decoded(side, reason):
    content = bytearray(LOSSLESS["RGB.bmp"][0])
    content[18:26] = struct.pack("<LL", side, side)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=reason):
        warnings.simplefilter("ignore")
        content_for_records(bytes(content))
