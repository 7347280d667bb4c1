"""Picture files of all kinds as pixels, the way a viewer shows them; Pillow reads them.

What a viewer does and a decoder alone does not: turning by the EXIF orientation, transparency over white, CMYK by the printer's profile,
16 and 32 bit to 8, the first frame of an animation.
"""

import contextlib
import io
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from mat.cli.file_kinds import JPEG, PNG, UNKNOWN, kind_of_file

MAX_SIDE = 4096  # of a square image, which takes 50 MB when it is decoded
MAX_PIXELS = MAX_SIDE**2

_PNG_BIT_DEPTH = 24  # position in the file
_PNG_EXIF = re.compile(b"eXIf|Raw profile type|XML:com")  # what may tell an orientation; Pillow decodes the pixels to look for it
_TURNS = {  # by the EXIF orientation: what shows the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OF_16_BITS = ("PNG", "PPM")  # formats whose mode I, where Pillow uses it, is 0..65535
_COMPRESSION = 1  # of PNG; the usual 6 takes several times as long for files that are a tenth smaller


def read_picture(source: str | os.PathLike | bytes) -> Image.Image:
    """Read a picture file, or its bytes, as a viewer shows it: mode RGB, 8 bit.

    Raises:
        ValueError: it cannot be read; the message is the reason, such as "a PNG image, damaged or cut short".
    """
    try:
        content = source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from None
    with _plain_errors(content):
        return _as_shown(Image.open(io.BytesIO(content)), content)


def content_for_records(content: bytes) -> tuple[bytes, tuple[int, int] | None]:
    """The bytes of a picture file as the records hold them: a JPEG or PNG in 8-bit RGB or gray, which is shown as it is stored.

    Returns:
        The bytes themselves where they are such a file, of which only the header is looked at, and None; else the picture as a PNG, and
        its width and height.

    Raises:
        ValueError: as of `read_picture`, or it has more than `MAX_PIXELS`.
    """
    with _plain_errors(content):
        image = Image.open(io.BytesIO(content))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{kind_of_file(content)} of {image.width}x{image.height} pixels; at most {MAX_SIDE}x{MAX_SIDE} are read")
    with _plain_errors(content):
        if _is_shown_as_stored(image, content):
            return content, None
        shown = _as_shown(image, content)
    encoded = io.BytesIO()
    shown.save(encoded, "PNG", compress_level=_COMPRESSION)
    return encoded.getvalue(), shown.size


@contextlib.contextmanager
def _plain_errors(content: bytes) -> Iterator[None]:
    """Makes a ValueError in words of whatever Pillow raises."""
    try:
        yield
    except Image.DecompressionBombError:
        raise ValueError(f"{kind_of_file(content)} of more pixels than are read") from None
    except Exception as error:  # decoders raise nearly anything where bytes are damaged
        kind = kind_of_file(content)
        if not isinstance(error, UnidentifiedImageError) or kind in (JPEG, PNG):
            reason = "damaged or cut short" if kind == UNKNOWN else f"{kind}, damaged or cut short"
        else:
            reason = f"{kind}, damaged or of a kind that Pillow does not read here" if kind.endswith(" image") else kind
        raise ValueError(reason) from None


def _is_shown_as_stored(image: Image.Image, content: bytes) -> bool:
    """Whether the pixels of a file, as TensorFlow decodes them, are what a viewer shows."""
    kind = kind_of_file(content)
    plain = kind == JPEG or (kind == PNG and content[_PNG_BIT_DEPTH] == 8 and "transparency" not in image.info)
    upright = (kind == PNG and not _PNG_EXIF.search(content)) or _orientation(image) not in _TURNS
    return plain and image.mode in ("L", "RGB") and upright


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none that can be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a viewer shows pictures with damaged EXIF data too
        return 1


def _as_shown(image: Image.Image, content: bytes) -> Image.Image:
    """The image in 8-bit RGB, upright, over white."""
    image.load()
    orientation = _orientation(image)
    if image.mode in ("CMYK", "LAB"):
        image = _by_profile(image)
    elif image.mode[0] in "IF":  # I, I;16, I;16B, F
        image = _in_8_bits(image)
    elif image.has_transparency_data:
        image = _over_white(image, content)
    image = image.convert("RGB")
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    image.info = {}  # orientation, transparency and profile are dealt with; Pillow would write them again
    return image


def _by_profile(image: Image.Image) -> Image.Image:
    """CMYK, or Lab, in sRGB: by the embedded ICC profile where there is one."""
    embedded: Any = image.info.get("icc_profile")
    profile = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(embedded) if embedded else None
    if profile is None:
        return image
    try:
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except ImageCms.PyCMSError:  # no profile of these colors; viewers do without
        return image


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 or 32 bits a pixel in 8, transparency over white.

    16 bits are 0..65535 and floats in [0, 1] count as such; other numbers have no range that all agree on: the smallest becomes black and
    the largest white.
    """
    values = np.asarray(image, np.float64)
    transparent = values == image.info.get("transparency")
    values = np.where(np.isfinite(values), values, 0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _OF_16_BITS):
        low, high = 0, 65535
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0, 1
    gray = np.round((values - low) * (255 / ((high - low) or 1)))
    return Image.fromarray(np.where(transparent, 255, gray).astype(np.uint8))


def _over_white(image: Image.Image, content: bytes) -> Image.Image:
    """An image with transparency in front of white."""
    color = image.info.get("transparency")
    if kind_of_file(content) == PNG and image.mode in ("L", "RGB"):  # the color that is transparent is in the file's bits, not in 8
        bits = content[_PNG_BIT_DEPTH]
        color = np.asarray(color) >> 8 if bits == 16 else np.asarray(color) * 255 // (2**bits - 1)
        image.info["transparency"] = color.tolist() if image.mode == "L" else tuple(color.tolist())
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
