"""The strongest universal patch in a file, by default of those that an evaluation fitted to weights, and what is known of it."""

import contextlib
import pathlib
import re

import numpy as np

from mat.cli.errors import UserError
from mat.cli.text import single_line
from mat.models.weights import git_blob
from mat.robustness.given import read_given
from mat.robustness.store import EVALUATION_SUFFIX, FITTED_PATCHES_FILE, read_report, report_path
from mat.tools.export_patches import ExportedPatch, read_exported


def fitted_patches_file(weights: pathlib.Path) -> pathlib.Path | None:
    """The file of the patches that were fitted to weights: beside them, or in their newest finished evaluation; None without one."""
    if (beside := weights.with_name(FITTED_PATCHES_FILE)).is_file():
        return beside
    stem = re.escape(report_path(weights, quick=False).name.removesuffix(EVALUATION_SUFFIX))
    name = re.compile(rf"{stem}(_quick)?{EVALUATION_SUFFIX}(_\d+)?")
    found = ((path, read_report(path)) for path in weights.parent.iterdir() if name.fullmatch(path.name))
    blob = git_blob(weights)  # an extended run writes network.keras anew, beside the evaluation of the one before
    finished = {path: report["run"]["finished"] for path, report in found if report and report["subject"]["weights_git_blob"] == blob}
    return max(finished, key=finished.__getitem__) / FITTED_PATCHES_FILE if finished else None


def read_strongest(file: pathlib.Path, patch_shape: tuple[int, ...] | None) -> tuple[np.ndarray, dict[str, str]]:
    """The patch of a file under which accuracy was lowest, or the first one where the file has no accuracies.

    Args:
        file: what `read_given` takes.
        patch_shape: (h, w, 3) that the patch is brought to; None for its own, in a file that `read_exported` takes.

    Returns:
        The patch, float32 [h, w, 3] in [0, 1], and which one it is, in words by name.

    Raises:
        UserError: the file cannot be read, or holds no patch of these proportions.
    """
    known: list[ExportedPatch] = []
    with contextlib.suppress(UserError) if patch_shape else contextlib.nullcontext():  # a picture, or another program's file
        known = read_exported(file)
    given, told = read_given([file], patch_shape or known[0].patch.shape, option="--patch")
    if not given:
        raise UserError(f"{file}: shows all patches of a source (--patch). Give the picture of one of them")
    accuracies = [one.accuracy for one in known if one.accuracy is not None]
    number = int(np.argmin(accuracies)) if accuracies else 0
    words = [given[number][0].removeprefix("given-")]
    if known and (target := known[number].class_name or known[number].target_class) != "":
        words.append(target if target == "untargeted" else f"target class {target}")
    if accuracies:
        words.append(f"validation accuracy {accuracies[number]:.1%} of the network that it was fitted to")
    choice = f"; the {'strongest' if accuracies else 'first'} is taken" if len(given) > 1 else ""
    return given[number][1], {"patch": single_line(", ".join(map(str, words))), "from": f"{file}, in it {told}{choice}"}
