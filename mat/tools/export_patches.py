"""Command line: the patches of a training run or of an evaluation as PNG files to print, with a contact sheet and a table of them.

python -m mat.tools.export_patches RUN|FILE [--size 300] [--dpi 300] [--output DIR]
"""

import argparse
import csv
import dataclasses
import io
import math
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mat.cli.command import run_command
from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.files import check_writable
from mat.cli.paths import expand_path
from mat.cli.yaml_reader import read_mapping
from mat.data.metadata import trained_classes
from mat.data.picture_files import MAX_SIDE
from mat.results.run_files import BANK_FILE, CONFIG_FILE
from mat.robustness.inputs import read_labeled
from mat.robustness.patch_pictures import CONTACT_SHEET, encode_patch, resample
from mat.robustness.store import FITTED_PATCHES_FILE, read_arrays, read_report

_CELL, _FONT_SIZE, _MARGIN = 96, 12, 8  # of the contact sheet, pixels: towards which small patches are enlarged, of text, between patches
_BACKGROUND = "#dcdcdc"  # against which white edges of patches are seen
_MILLIMETERS = 25.4  # in an inch


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedPatch:
    """A patch, and what is known of it."""

    file: str  # of its picture
    name: str  # in the report, or its number in the bank
    patch: np.ndarray  # float32 [h, w, 3] in [0, 1]
    target_class: int | str  # "untargeted", and empty where it is not known
    class_name: str | None  # None, here and below: not known
    step_size: float | None
    accuracy: float | None  # of the network that it was fitted to, under it

    def row(self) -> dict[str, str]:
        """Its row of the table."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "patch"}
        return {name: "" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for name, value in values.items()}


def read_exported(file: pathlib.Path) -> list[ExportedPatch]:
    """The patches of a bank, `patches.npz`, or of an evaluation, `universal_patches.npz`, with what the files beside it say of them.

    Raises:
        UserError: the file holds no such patches.
    """
    try:
        arrays = read_arrays(file)
        label = "names" if "names" in arrays else "targets"
        patches, labels = read_labeled(file, label)
    except ValueError as error:
        remedy = f"Give the {BANK_FILE} of a training run, or the {FITTED_PATCHES_FILE} of an evaluation"
        raise UserError(f"{file}: not patches of this program ({error}). {remedy}") from None
    unknown, digits = np.full(len(patches), None), len(str(len(patches) - 1))
    numbers = [f"{i:0{digits}}" for i in range(len(patches))]
    if label == "targets":
        classes, steps = dict(enumerate(trained_classes(file))), arrays.get("step_sizes", unknown).tolist()
        targets = labels.tolist() if _is_targeted(file) else ["untargeted"] * len(patches)  # a bank has targets that nothing is driven to
        facts = zip(numbers, patches, targets, steps, strict=True)
        return [ExportedPatch(f"patch_{i}.png", i, patch, target, classes.get(target), step, None) for i, patch, target, step in facts]
    report = read_report(file.parent) or {"grid": [], "gradient_free": []}
    rows = {row["name"]: row for row in (*report["grid"], *report["gradient_free"])}
    exported = []
    for i, name, patch, accuracy in zip(numbers, labels.tolist(), patches, arrays.get("accuracies", unknown).tolist(), strict=True):
        row, picture = rows.get(name, {"target": ""}), f"{i}_{re.sub('[^a-zA-Z0-9_.-]', '_', name)}.png"
        target = "untargeted" if row["target"] is None else row["target"]
        exported.append(ExportedPatch(picture, name, patch, target, row.get("target_name"), row.get("step_size"), accuracy))
    return exported


def _is_targeted(bank: pathlib.Path) -> bool:
    """Whether the patches of a bank drive images to their target classes, as far as the config beside it tells."""
    config = bank.with_name(CONFIG_FILE)
    values = read_mapping(config) if config.is_file() else {}
    return (values.get("optimizer") or {}).get("targeted_attack", True)


def contact_sheet(exported: Sequence[ExportedPatch]) -> bytes:
    """A PNG of all patches in a grid about as wide as high, each with its number, its accuracy and its target class where known."""
    height, width, _ = exported[0].patch.shape
    scale = max(1, round(_CELL / max(height, width)))
    cell_height, cell_width = height * scale + 2 * _FONT_SIZE + 2 * _MARGIN, max(width * scale, _CELL) + _MARGIN
    n_columns = min(len(exported), math.ceil(math.sqrt(len(exported) * cell_height / cell_width)))
    n_rows = -(-len(exported) // n_columns)
    sheet = Image.new("RGB", (n_columns * cell_width + _MARGIN, n_rows * cell_height + _MARGIN), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for number, one in enumerate(exported):
        x, y = _MARGIN + number % n_columns * cell_width, _MARGIN + number // n_columns * cell_height
        pixels = np.round(255 * resample(one.patch, height * scale, width * scale)).astype(np.uint8)
        sheet.paste(Image.fromarray(pixels), (x, y))
        # The font that comes with Pillow has no other letters than ASCII's.
        goal = one.class_name if one.class_name and one.class_name.isascii() else one.target_class
        for i, line in enumerate([f"{number}" if one.accuracy is None else f"{number}:  {one.accuracy:.1%}", f"{goal}"]):
            while font.getlength(line) > cell_width - _MARGIN:
                line = line.removesuffix("...")[:-1] + "..."
            draw.text((x, y + height * scale + 2 + i * (_FONT_SIZE + 2)), line, fill="black", font=font)
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def export_patches(source: str | os.PathLike[str], *, size: int, dpi: int, output: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Write the patches of a source as PNG files, `contact_sheet.png` and `patches.csv`; all of them or nothing.

    Args:
        source: directory of a training run or of an evaluation, or the `.npz` file of one.
        size: pixels of a picture's longer side.
        dpi: pixels per inch when it is printed.
        output: an empty directory or a new one; by default beside the `.npz` file, its name with `_exported`.

    Returns:
        The directory.

    Raises:
        UserError: the source has no patches, they are larger than `size`, or the directory cannot be used.
    """
    file = _patches_file(pathlib.Path(source))
    directory = pathlib.Path(output) if output else file.with_name(f"{file.stem}_exported")
    try:
        if os.path.lexists(directory) and not (directory.is_dir() and next(directory.iterdir(), None) is None):
            raise UserError(f"{directory}: exists already and is no empty directory. Choose another --output, or remove it")
        check_writable(directory, "Choose another --output")
        exported = read_exported(file)
        height, width, _ = exported[0].patch.shape
        if size < max(height, width):
            raise UserError(
                f"{file}: patches of {height}x{width} cannot be shown by --size {size}. Set --size {max(height, width)} or more"
            )
        table = io.StringIO()
        writer = csv.DictWriter(table, exported[0].row(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(one.row() for one in exported)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exported-", dir=directory.parent) as temporary:
            stage = pathlib.Path(temporary) / "patches"
            stage.mkdir()
            for one in exported:
                (stage / one.file).write_bytes(encode_patch(one.patch, size=size, dpi=dpi))
            (stage / CONTACT_SHEET).write_bytes(contact_sheet(exported))
            (stage / "patches.csv").write_text(table.getvalue(), "utf-8")
            stage.rename(directory)
    except OSError as error:
        raise UserError(f"{error.filename or directory}: cannot be written: {error.strerror or error}. Choose another --output") from None
    printed = " x ".join(f"{side * size / max(height, width) / dpi * _MILLIMETERS:.4g}" for side in (width, height))
    console.print(f"{directory}: {len(exported)} patches of {height}x{width}, each {printed} mm at {dpi} dpi; {CONTACT_SHEET}, patches.csv")
    return directory


def _patches_file(source: pathlib.Path) -> pathlib.Path:
    """The `.npz` file that is meant by a directory or a file."""
    if not source.is_dir():
        return source
    for name in (FITTED_PATCHES_FILE, BANK_FILE):
        if (source / name).is_file():
            return source / name
    raise UserError(
        f"{source}: has neither {BANK_FILE} nor {FITTED_PATCHES_FILE}. Give the directory of a training run with patches, or of an "
        "evaluation that is finished"
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mat.tools.export_patches",
        description="Write the bank of a training run, or the patches that an evaluation fitted, as PNG files to print, with a contact "
        "sheet and a table. mat-evaluate --patches takes the PNG files back, with the exact values.",
    )
    meaning = f"directory of a training run or an evaluation, or a {BANK_FILE} or {FITTED_PATCHES_FILE}"
    parser.add_argument("source", metavar="RUN|FILE", type=expand_path, help=meaning)
    parser.add_argument("--size", metavar="N", type=int, default=300, help="pixels of a picture's longer side (default: %(default)s)")
    parser.add_argument("--dpi", metavar="N", type=int, default=300, help="pixels per inch when printed (default: %(default)s)")
    parser.add_argument("--output", metavar="DIR", type=expand_path, help="where they go (default: beside the file, with _exported)")
    parsed = parser.parse_args(arguments)
    if not 1 <= parsed.size <= MAX_SIDE:
        parser.error(f"--size must be in 1 to {MAX_SIDE}. Received: {parsed.size}")
    if parsed.dpi < 1:
        parser.error(f"--dpi must be at least 1. Received: {parsed.dpi}")
    return parsed


def _run(arguments: argparse.Namespace) -> None:
    export_patches(arguments.source, size=arguments.size, dpi=arguments.dpi, output=arguments.output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat.tools.export_patches", parse_arguments, _run, arguments)


if __name__ == "__main__":
    sys.exit(main())
