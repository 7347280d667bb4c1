"""The demo's procedural data set: ten classes of patterns, 32x32 pixels, in the records of Tiny ImageNet.

A class is a pattern in a disc, in random colors, at random scale, phase and place, under noise. Its contrast is low and the disc does
not reach all corners, so that a small patch of high contrast can drown it: a plainly trained network is right on nearly every clean
image and wrong on most patched ones, though most of the pattern stays in sight.
"""

import os
import pathlib

import numpy as np
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data.records import make_example, record_path, staged, write_records

IMAGE_SIZE = 32
N_TRAIN, N_VALIDATION = 4000, 1000

_PERIOD = (5.5, 10.0)  # of the pattern, pixels
_RADIUS = (14.0, 19.0)  # of the disc, pixels
_CENTER = (12.0, 20.0)  # of the disc, row and column
_CONTRAST = (0.14, 0.32)  # between the two colors, root mean square over the channels
_NOISE = 0.02  # standard deviation


def _wave(x):
    return np.sin(2 * np.pi * x)


def _cell(x):
    """Distance to the center of the unit cell, in [0, 0.5]."""
    return np.abs(x - np.floor(x) - 0.5)


# Each pattern is a function of (row, column), in periods, positive on one color and negative on the other; mirroring keeps its class.
PATTERNS = {
    "horizontal stripes": lambda r, c: _wave(r),
    "vertical stripes": lambda r, c: _wave(c),
    "diagonal stripes": lambda r, c: _wave((r + c) / np.sqrt(2)),
    "checkerboard": lambda r, c: _wave(r) * _wave(c),
    "rings": lambda r, c: _wave(np.hypot(r - 2, c - 2)),
    "marble": lambda r, c: _wave(r / 3 + 0.3 * np.sin(2.9 * c) + 0.3 * np.sin(2.1 * r + 3.7 * c)),
    "grid": lambda r, c: np.maximum(_cell(r), _cell(c)) - 0.36,
    "zigzag": lambda r, c: _wave(r + 2 * _cell(c)),
    "spokes": lambda r, c: _wave(4 / np.pi * np.arctan2(r - 2, c - 2)),
    "bricks": lambda r, c: np.maximum(_cell(2 * r), _cell(c + np.floor(2 * r) / 2)) - 0.36,
}


def draw_image(label: int, rng: np.random.Generator) -> np.ndarray:
    """One image of class `label`, uint8 [32, 32, 3]."""
    pattern = list(PATTERNS.values())[label]
    rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    period = rng.uniform(*_PERIOD)
    sign = np.clip(8 * pattern(rows / period - rng.uniform(0, 4), columns / period - rng.uniform(0, 4)), -1, 1)  # soft edges
    row, column = rng.uniform(*_CENTER, size=2)
    disc = np.clip(rng.uniform(*_RADIUS) - np.hypot(rows - row, columns - column), 0, 1)  # 1 within and 0 outside
    sign = (sign * disc)[..., np.newaxis]  # [32, 32, 1]
    direction = rng.normal(size=3)
    contrast = rng.uniform(*_CONTRAST) * direction / np.sqrt(np.mean(direction**2))
    image = rng.uniform(0.3, 0.7, size=3) + sign * contrast / 2 + rng.normal(scale=_NOISE, size=(IMAGE_SIZE, IMAGE_SIZE, 3))
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def make_demo(data_dir: str | os.PathLike) -> None:
    """Write the demo's records, `wnids.txt` and `words.txt`, the same every time.

    Raises:
        UserError: the directory holds other data.
        OSError: a file cannot be written.
    """
    wnids = [f"demo{label:02d}" for label in range(len(PATTERNS))]
    present = pathlib.Path(data_dir) / "wnids.txt"
    if present.exists() and present.read_text("utf-8-sig", errors="replace").split() != wnids:
        raise UserError(f"{data_dir}: holds other data, so the demo's cannot be made there. Set data_dir to another directory")
    with staged(data_dir) as stage:
        (stage / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids), "utf-8")
        (stage / "words.txt").write_text("".join(f"{wnid}\t{pattern}\n" for wnid, pattern in zip(wnids, PATTERNS, strict=True)), "utf-8")
        for stream, (split, n_images) in enumerate({"train": N_TRAIN, "validation": N_VALIDATION}.items()):
            rng = np.random.default_rng([0, stream])
            labels = rng.permutation(np.arange(n_images) % len(PATTERNS)).tolist()
            jpegs = (tf.io.encode_jpeg(draw_image(label, rng), quality=95).numpy() for label in labels)
            box = (0, 0, IMAGE_SIZE - 1, IMAGE_SIZE - 1)
            examples = (make_example(jpeg, wnids[label], label, box) for jpeg, label in zip(jpegs, labels, strict=True))
            write_records(record_path(stage, split), examples)
