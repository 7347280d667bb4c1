"""Patches as PNG pictures: enlarged by nearest neighbour, read back, and the exact values that a PNG cannot show.

A PNG has 8 bits a channel, and patches are float32: rounding them changes a few predictions. A text chunk of the PNG holds the float32
values. They count only where they round to the pixels, so that a picture that was painted on counts as what it shows.
"""

import base64
import io
import os
import pathlib

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mat.data.picture_files import MAX_PIXELS, MAX_SIDE, read_picture

CONTACT_SHEET = "contact_sheet.png"  # beside exported patches

_EXACT_VALUES = "mat-patch"  # keyword of the text chunk: height, width, and little-endian float32 values in base 64


def resample(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels [H, W, 3] as [height, width, 3] by nearest neighbour: each new pixel has the value at its centre.

    Enlarged, each pixel becomes a cell; shrunk to the original size, the centre of each cell gives its pixel back.
    """
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), pixels.shape[:2], strict=True))
    return pixels[rows][:, columns]


def is_enlarged(picture: np.ndarray, cells: np.ndarray) -> bool:
    """Whether a picture [H, W, 3] shows `cells` [h, w, 3], h <= H and w <= W, enlarged by nearest neighbour.

    A pixel on the border of two cells may be of either: programs round in different ways.
    """
    sides = zip(picture.shape[:2], cells.shape[:2], strict=True)
    rows, columns = ((np.arange(n) * n_cells // n, ((np.arange(n) + 1) * n_cells - 1) // n) for n, n_cells in sides)
    equal = [np.all(picture == cells[row][:, column], axis=-1) for row in rows for column in columns]
    return bool(np.all(np.any(equal, axis=0)))


def encode_patch(patch: np.ndarray, *, size: int, dpi: int) -> bytes:
    """A patch as the bytes of a PNG that shows each of its pixels as a cell, and keeps its exact values.

    Args:
        patch: float32 [h, w, 3] in [0, 1].
        size: pixels of the longer side, at least that of the patch.
        dpi: pixels per inch when it is printed.
    """
    height, width, _ = patch.shape
    picture = resample(_rounded(patch), *(round(side * size / max(height, width)) for side in (height, width)))
    info, content = PngInfo(), io.BytesIO()
    info.add_text(_EXACT_VALUES, f"{height} {width} {base64.b64encode(patch.astype('<f4').tobytes()).decode()}")
    Image.fromarray(picture).save(content, "PNG", dpi=(dpi, dpi), pnginfo=info)
    return content.getvalue()


def decode_patch(path: str | os.PathLike[str]) -> tuple[np.ndarray, bool]:
    """The pixels of a picture file of any kind, or the exact values of a patch that `encode_patch` made a picture of.

    Returns:
        float32 [H, W, 3] in [0, 1], and whether they are exact values.

    Raises:
        ValueError: it cannot be read, has too many pixels or is transparent somewhere; the message is the reason.
    """
    content = pathlib.Path(path).read_bytes()
    shown = read_picture(content)
    if shown.width * shown.height > MAX_PIXELS:
        raise ValueError(f"it has {shown.width}x{shown.height} pixels, and at most {MAX_SIDE}x{MAX_SIDE} are read")
    image = Image.open(io.BytesIO(content))
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError("it is transparent in places, which need a color")
    pixels = np.asarray(shown)
    exact = _exact_values(image.info.get(_EXACT_VALUES), pixels)
    return (pixels.astype(np.float32) / 255, False) if exact is None else (exact, True)


def _exact_values(text, pixels):
    """The patch float32 [h, w, 3] that a text chunk holds; None without one, and where another picture shows it."""
    try:
        height, width, values = text.split(" ")
        patch = np.frombuffer(base64.b64decode(values), "<f4").reshape(int(height), int(width), 3).astype(np.float32)
    except (AttributeError, ValueError):
        return None
    fits = patch.shape[0] <= pixels.shape[0] and patch.shape[1] <= pixels.shape[1] and patch.min() >= 0 and patch.max() <= 1
    return patch if fits and np.array_equal(resample(_rounded(patch), *pixels.shape[:2]), pixels) else None


def _rounded(patch):
    """The 8-bit pixels of a patch."""
    return np.round(255 * patch).astype(np.uint8)
