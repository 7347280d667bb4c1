"""Command line: what a network says of picture files, without and with a patch, by default the strongest that its evaluation fitted.

python -m mat.tools.classify MODEL PICTURE... [--patch FILE] [--offset ROW COLUMN] [--top 3] [--save FILE.png] [--set KEY=VALUE]

Shapes: `V` versions, without and with the patch, of `N` pictures; images `H` x `W`.
"""

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import mat
from mat.cli.command import load_tensorflow, run_command
from mat.cli.console import console, print_facts, print_table
from mat.cli.errors import UserError
from mat.cli.files import replace_file
from mat.cli.paths import expand_path
from mat.cli.text import single_line
from mat.cli.yaml_reader import apply_override
from mat.robustness.figures import BLUE, RED, cut, gallery, png, required_picture_style

_TITLES = ("without a patch", "with the patch")
_NO_PATCH = "none, as no finished evaluation of these weights is beside them. Make one with mat/evaluate.py, or give --patch FILE"
_PICTURES_IN_ROW = 3  # of the file of --save
_LONGEST = 26  # characters in a line over a picture in it


def classify(arguments: argparse.Namespace) -> None:
    """Print the most probable classes of each picture, without and with the patch; write the file of `--save`.

    Raises:
        UserError: a file cannot be read or written, or the patch does not fit.
    """
    load_tensorflow()
    import tensorflow as tf

    from mat.api.loading import find_network
    from mat.tools.strongest_patch import fitted_patches_file, read_strongest

    keys: dict[str, Any] = {}
    for override in arguments.set:
        apply_override(keys, override)
    config, weights = find_network(arguments.model, keys)
    pictures, source = arguments.pictures, weights or pathlib.Path(arguments.model)
    versions, facts = [np.stack([mat.read_image(picture, config.image_size) for picture in pictures])], {"patch": _NO_PATCH}
    if file := pathlib.Path(arguments.patch) if arguments.patch else fitted_patches_file(source):
        patch, facts = read_strongest(file, config.patch_shape if arguments.patch else None)
        _check_offset(arguments.offset, config.image_size, patch)
        versions.append(mat.apply_patches(versions[0], patch, arguments.offset).numpy())
    elif arguments.offset:
        raise UserError(f"--offset: no patch to put there: {_NO_PATCH}")
    network = mat.load(source, **keys)  # not a newer one that a run has saved in the meantime
    names, logits = network.class_names, network.predict(np.concatenate(versions), verbose=0)
    probabilities = tf.nn.softmax(logits).numpy().reshape(len(versions), len(pictures), -1)
    print_facts(str(source), {"classes": f"knows only these {len(names)}: {single_line(', '.join(names))}"} | facts)
    for i, picture in enumerate(pictures):
        header = [cell for title in _TITLES for cell in (title, "")] if len(versions) > 1 else ["", ""]
        print_table(single_line(picture), header, _rows(probabilities[:, i], names, arguments.top))
        without, *patched = probabilities[:, i].argmax(axis=1)
        if patched and patched[0] != without:
            console.print(f"  The patch changes the prediction from {names[without]} to {names[patched[0]]}")
    if arguments.save:
        try:
            replace_file(arguments.save, _draw(pictures, np.stack(versions), probabilities, names))
        except OSError as error:
            raise UserError(f"{arguments.save}: cannot be written: {error.strerror}. Choose another --save") from None
        console.print(f"{arguments.save}: the pictures as the network saw them")


def _check_offset(offset: Sequence[int] | None, image_size: int, patch: np.ndarray) -> None:
    """Refuse an offset at which the patch would not lie in the image."""
    height, width, _ = patch.shape
    rows, columns = image_size - height, image_size - width
    if offset and not (0 <= offset[0] <= rows and 0 <= offset[1] <= columns):
        sizes = f"the patch has {height}x{width} pixels and the network's image {image_size}x{image_size}"
        raise UserError(f"--offset must be in 0..{rows} and 0..{columns}, as {sizes}. Received: {offset[0]} {offset[1]}")


def _rows(probabilities: np.ndarray, names: Sequence[str], top: int) -> Iterator[list[str]]:
    """The table of a picture with `probabilities` [V, n_classes]: in each row a class and its probability for each version."""
    for labels in np.argsort(-probabilities, axis=1, kind="stable")[:, :top].T:
        yield [cell for label, each in zip(labels, probabilities, strict=True) for cell in (names[label], f"{each[label]:.1%}")]


def _draw(pictures: Sequence[str], images: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> bytes:
    """A PNG of `images` [V, N, H, W, 3] with their most probable class; `probabilities` are [V, N, n_classes]."""
    panels = []
    for i, picture in enumerate(pictures):
        labels = probabilities[:, i].argmax(axis=1)
        for version, label in enumerate(labels):
            title = _TITLES[1] if version else pathlib.Path(picture).name
            color = "black" if not version else BLUE if label == labels[0] else RED
            seen = f"{cut(names[label], _LONGEST - 5)} {probabilities[version, i, label]:.0%}"
            panels.append((images[version, i], f"{cut(title, _LONGEST)}\n{seen}", color))
    n_columns = len(images) * min(len(pictures), _PICTURES_IN_ROW)
    return png(gallery(panels, n_columns=n_columns, width=2, height=2.4))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mat.tools.classify", description="Print what a network says of picture files, without and with a patch."
    )
    meaning = "result directory of a run, a weights file beside its config.yaml, or a whole model, FILE.keras"
    parser.add_argument("model", metavar="MODEL", type=expand_path, help=meaning)
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", type=expand_path, help="of any size: the square in its middle counts")
    meaning = "a patch, as of mat-evaluate --patches; of several the strongest, or the first (default: the strongest of the evaluation)"
    parser.add_argument("--patch", metavar="FILE", type=expand_path, help=meaning)
    meaning = "of the patch's upper left corner in the network's image, pixels (default: in the middle)"
    parser.add_argument("--offset", metavar=("ROW", "COLUMN"), nargs=2, type=int, help=meaning)
    parser.add_argument("--top", metavar="N", type=int, default=3, help="how many classes to print (default: %(default)s)")
    parser.add_argument("--save", metavar="FILE.png", type=expand_path, help="also write a picture of what the network saw, a new file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="replace a key of the config: input_range=0..255")
    parsed = parser.parse_args(arguments)
    if parsed.top < 1:
        parser.error(f"--top must be at least 1. Received: {parsed.top}")
    if parsed.save and (not parsed.save.lower().endswith(".png") or os.path.lexists(parsed.save)):
        parser.error(f"--save must name a new .png file. Received: {parsed.save}")
    return parsed


def _run(arguments: argparse.Namespace) -> None:
    with required_picture_style("--save") if arguments.save else contextlib.nullcontext():
        classify(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat.tools.classify", parse_arguments, _run, arguments)


if __name__ == "__main__":
    sys.exit(main())
