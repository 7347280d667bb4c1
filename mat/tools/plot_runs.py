"""What the plots show of a run: its log, its evaluations, the pictures of its bank and the names of its classes, read and checked."""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mat.cli.command import load_tensorflow
from mat.cli.errors import UserError
from mat.cli.text import single_line
from mat.cli.yaml_reader import read_mapping
from mat.data.metadata import trained_classes
from mat.models.weights import git_blob
from mat.results.run_files import BANK_FILE, CONFIG_FILE, LOG_COLUMNS, LOG_FILE, NETWORK_FILE, ROBUST_COLUMN
from mat.robustness.store import EVALUATION_SUFFIX, REPORT_FILE, read_arrays

_EXAMPLES_FILE = "examples.csv"
_NOT_OF_THE_KIND = ("base_result_dir", "unique_name", "seed")  # keys of a config that runs of one kind may differ in
_WEIGHTS_EPOCH = re.compile(r"_(\d+)(\.weights)?\.h5")


class Estimate(NamedTuple):
    """An accuracy in [0, 1] with its 95 % interval."""

    accuracy: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished evaluation of one of a run's networks: what is drawn of `report.json`, whose schema is in docs/evaluation.md."""

    directory: pathlib.Path
    epoch: int | None  # after which its weights were saved; None: not known
    protocol: str
    n_classes: int
    n_images: int
    n_patches: int
    clean: Estimate
    control: Estimate | None  # the strongest
    grid_mean: Estimate  # without an interval
    worst_patch: str
    robust: Estimate  # under the worst patch
    every_image: Estimate  # under its own worst patch
    by_iterations: dict[int, Estimate]
    by_area: dict[int, Estimate]  # of the patch, pixels
    target_names: dict[int, str]  # of classes, by label


@dataclasses.dataclass(frozen=True, eq=False)
class PlottedRun:
    """What there is to draw of a run."""

    name: str
    kind: str  # runs that differ in their seed alone have the same
    log: dict[str, np.ndarray]  # float64 [epochs] by column of log.csv, NaN where it is empty; no column where there is no epoch
    evaluations: list[Evaluation]  # the last one is of the newest weights, and of those the one with the lowest robust accuracy
    bank: dict[int, np.ndarray]  # by epoch: the first patches, uint8 [n, h, w, 3]
    bank_order: np.ndarray  # int64 [n], their numbers, those of the largest step sizes first
    classes: dict[int, str]  # names by label, of those that are known
    missing: list[str]  # what is left out, in words


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> list[PlottedRun]:
    """The runs in directories of training runs or of evaluations, each once, named by the last parts of their paths that differ.

    Raises:
        UserError: a path is no directory, or a file of it is damaged.
    """
    directories = list(dict.fromkeys(pathlib.Path(os.path.abspath(path)) for path in paths))
    for path in directories:
        if not path.is_dir():
            raise UserError(f"{path}: no such directory. Give the result directory of a training run, or the directory of an evaluation")
    return [_read_run(path, _shown_name(path, directories)) for path in directories]


def _shown_name(path: pathlib.Path, paths: Sequence[pathlib.Path]) -> str:
    """As many of a path's last parts as no other path has."""
    tails = (path.parts[-n:] for n in itertools.count(1))
    return str(pathlib.Path(*next(tail for tail in tails if sum(other.parts[-len(tail) :] == tail for other in paths) == 1)))


def _read_run(path: pathlib.Path, name: str) -> PlottedRun:
    """What there is to draw of the run or the evaluation in a directory."""
    log: dict[str, np.ndarray] = {}
    bank: dict[int, np.ndarray] = {}
    order = np.zeros(0, np.int64)
    try:
        alone = (path / REPORT_FILE).is_file()
        directories = [path] if alone else [found for found in sorted(path.glob(f"*{EVALUATION_SUFFIX}*")) if found.is_dir()]
        finished = [found for found in directories if (found / REPORT_FILE).is_file()]
        config = read_mapping(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {"run": str(path)}
        if (path / LOG_FILE).is_file():
            load_tensorflow()
            log, (bank, order) = _read_log(path / LOG_FILE), _read_bank(path)
        networks = _last_network(path, config.get("n_epochs"), log) if log else {}
        evaluations = [_read_evaluation(found, networks) for found in finished]
        classes = dict(enumerate(trained_classes(path if alone else path / REPORT_FILE)))
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: classes.txt cannot be read: {error.reason} at byte {error.start}. Save it as UTF-8") from None
    missing = [f"{found.name} has no {REPORT_FILE}: not finished, left out" for found in directories if found not in finished]
    if alone:
        missing.append("an evaluation alone: no learning curves, no bank")
    elif not log:
        missing.append(f"no epoch in {LOG_FILE}: no learning curves")
    if not alone and not bank:
        missing.append("no bank in events: no strips of it")
    if log and bank and (lacking := set(log["Epoch"]) - set(bank)):
        missing.append(f"no bank in events of {len(lacking)} of the {len(log['Epoch'])} epochs in {LOG_FILE}: left out")
    if not evaluations:
        missing.append("no evaluation: no robust accuracy, no confusion")
    for one in evaluations:
        classes = one.target_names | classes
    kind = json.dumps({key: value for key, value in config.items() if key not in _NOT_OF_THE_KIND}, sort_keys=True, default=str)
    evaluations.sort(key=lambda one: (-1 if one.epoch is None else one.epoch, -one.robust.accuracy))
    return PlottedRun(name, kind, log, evaluations, bank, order, classes, missing)


@contextlib.contextmanager
def _reading(path: pathlib.Path, what: str, remedy: str) -> Iterator[None]:
    """Within this block a file that is damaged or cannot be read ends in a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        raise UserError(f"{path}: not {what} ({type(error).__name__}: {single_line(str(error))}). {remedy}") from None


def _read_log(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The columns of a log.csv."""
    with _reading(path, "a log of this program", "Restore it, or leave this run out"):
        rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode()), delimiter=";", strict=True))
        columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in LOG_COLUMNS}
        columns |= {name: np.array([float(row.get(name) or "nan") for row in rows]) for name in ROBUST_COLUMN}
        if not np.isfinite(columns["Epoch"]).all():
            raise ValueError("an epoch is missing")
    return columns if rows else {}


def _last_network(run: pathlib.Path, n_epochs: object, log: dict[str, np.ndarray]) -> dict[str, int]:
    """The epoch of a finished run's whole own network by the git blob of its file, which has no epoch in its name; else empty."""
    if len(log["Epoch"]) != n_epochs or not (run / NETWORK_FILE).is_file():
        return {}  # while a run is extended, the file is that of the epochs before
    return {git_blob(run / NETWORK_FILE): int(log["Epoch"][-1])}


def _read_evaluation(directory: pathlib.Path, networks: dict[str, int]) -> Evaluation:
    """The evaluation in a directory; `networks` are epochs by the git blobs of weights whose names do not tell them."""
    path = directory / REPORT_FILE
    with _reading(path, "a report of this program", "Evaluate that network again, or remove the file"):
        report = json.loads(path.read_bytes())
        head, subject, curves = report["headline"], report["subject"], report["curves"]
        found = _WEIGHTS_EPOCH.search(pathlib.Path(subject["weights"] or "").name)
        return Evaluation(
            directory=directory,
            epoch=int(found[1]) if found else networks.get(subject.get("weights_git_blob")),
            protocol=json.dumps(subject["protocol"], sort_keys=True),
            n_classes=int(subject["n_classes"]),
            n_images=int(head["clean"]["n_images"]),
            n_patches=int(head["n_patches"]),
            clean=_estimate(head["clean"]),
            control=min(map(_estimate, report["controls"]), default=None),
            grid_mean=Estimate(*[float(report["grid_summary"]["mean"])] * 3),
            worst_patch=str(head["robust"]["name"]),
            robust=_estimate(head["robust"]),
            every_image=_estimate(head["every_image_under_its_worst_patch"]),
            by_iterations={int(point["iterations"]): _estimate(point) for point in curves["iterations"]},
            by_area={math.prod(point["patch_shape"][:2]): _estimate(point) for point in curves["patch_size"]},
            target_names={int(row["target"]): str(row["target_name"]) for row in report["grid"] if row["target_name"] is not None},
        )


def _estimate(values: dict[str, Any]) -> Estimate:
    """An accuracy of a report."""
    return Estimate(*(float(values[name]) for name in Estimate._fields))


def _read_bank(run: pathlib.Path) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """The first patches of the bank by epoch, from the pictures in a run's events, and their order; none where it has no bank."""
    from mat.results.events import read_values
    from mat.results.run_directory import MAX_PATCHES_IN_EVENTS

    file = run / BANK_FILE
    if not file.is_file() or not (pictures := read_values(run / "events", "patches")):
        return {}, np.zeros(0, np.int64)
    try:
        arrays = read_arrays(file)
        n_patches, height, width, _ = arrays["patches"].shape  # which the pictures do not tell
        order = np.argsort(-arrays["step_sizes"][:MAX_PATCHES_IN_EVENTS], kind="stable")
        return {epoch: _cells(png, min(n_patches, MAX_PATCHES_IN_EVENTS), height, width) for epoch, (_, _, png) in pictures.items()}, order
    except (ValueError, KeyError, Image.UnidentifiedImageError) as error:
        reason = single_line(str(error))
        raise UserError(f"{file}: not the bank that {run / 'events'} has pictures of ({reason}). Restore both, or remove events") from None


def _cells(png: bytes, n_patches: int, height: int, width: int) -> np.ndarray:
    """The patches, uint8 [n, h, w, 3], that `mat.results.run_directory.patch_grid` made a picture of."""
    n_columns = math.ceil(math.sqrt(n_patches))
    n_rows = -(-n_patches // n_columns)
    with Image.open(io.BytesIO(png)) as picture:
        grid = np.asarray(picture.convert("RGB"))
    cells = grid.reshape(n_rows, grid.shape[0] // n_rows, n_columns, -1, 3).transpose(0, 2, 1, 3, 4)[..., 1:-1, 1:-1, :]
    scale = cells.shape[2] // height
    if cells.shape[2:4] != (scale * height, scale * width):
        raise ValueError(f"patches of {height}x{width} do not fit cells of {cells.shape[2]}x{cells.shape[3]} pixels")
    return cells.reshape(-1, *cells.shape[2:])[:n_patches, ::scale, ::scale]


def read_confusion(evaluation: Evaluation) -> dict[str, np.ndarray] | None:
    """How often images of a class are taken for each class, without a patch (`clean`) and under the worst one (`robust`).

    Returns:
        By name, int64 [n_classes, n_classes]: true class, prediction. None where the evaluation has no examples.csv.

    Raises:
        UserError: the file is damaged, or of another evaluation.
    """
    path, n_classes = evaluation.directory / _EXAMPLES_FILE, evaluation.n_classes
    columns = {"clean": "clean", "robust": evaluation.worst_patch}
    if not path.is_file():
        return None
    with _reading(path, "the examples of the report beside it", "Evaluate again, or remove the file"):
        rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode()), strict=True))
        label, *predictions = (np.array([int(row[name]) for row in rows], np.int64) for name in ("label", *columns.values()))
        flat = [n_classes * label + predicted for predicted in predictions]
        if not all(np.isin(values, range(n_classes)).all() for values in (label, *predictions)):
            raise ValueError(f"a class beyond 0..{n_classes - 1}")
    counts = (np.bincount(one, minlength=n_classes**2).reshape(n_classes, n_classes) for one in flat)
    return dict(zip(columns, counts, strict=True))
