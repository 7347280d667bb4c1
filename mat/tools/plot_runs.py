"""What the plots show of a run: its log, its evaluations, the pictures of its bank and the names of its classes, read and checked."""

import csv
import dataclasses
import io
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydantic
from PIL import Image

from mat.cli.command import load_tensorflow
from mat.cli.errors import UserError
from mat.cli.text import single_line
from mat.cli.yaml_reader import read_mapping
from mat.data.metadata import trained_classes
from mat.robustness.store import EVALUATION_SUFFIX, REPORT_FILE, read_arrays

_LOG_FILE, _CONFIG_FILE, _BANK_FILE, _EXAMPLES_FILE = "log.csv", "config.yaml", "patches.npz", "examples.csv"
_NOT_OF_THE_KIND = ("base_result_dir", "unique_name", "seed")  # keys of a config that runs of one kind may differ in
_WEIGHTS_EPOCH = re.compile(r"_(\d+)(\.weights)?\.h5")


class Estimate(pydantic.BaseModel):
    """An accuracy in [0, 1] with its 95 % interval."""

    accuracy: float
    low: float
    high: float


class _Worst(Estimate):
    name: str


class _Clean(Estimate):
    n_images: int


class _Headline(pydantic.BaseModel):
    clean: _Clean
    robust: _Worst
    every_image_under_its_worst_patch: Estimate
    n_patches: int


class _Fitted(pydantic.BaseModel):
    target: int | None
    target_name: str | None


class _GridSummary(pydantic.BaseModel):
    mean: float


class _IterationsPoint(Estimate):
    iterations: int


class _SizePoint(Estimate):
    patch_shape: tuple[int, int, int]


class _Curves(pydantic.BaseModel):
    iterations: list[_IterationsPoint]
    patch_size: list[_SizePoint]


class _Subject(pydantic.BaseModel):
    n_classes: int
    weights: str | None
    protocol: dict[str, Any]


class EvaluationReport(pydantic.BaseModel):
    """The part of `report.json` that is drawn; docs/evaluation.md has its schema."""

    headline: _Headline
    grid: list[_Fitted]
    grid_summary: _GridSummary
    controls: list[Estimate]
    curves: _Curves
    subject: _Subject


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished evaluation of one of a run's networks."""

    directory: pathlib.Path
    epoch: int | None  # after which its weights were saved; None: not known
    report: EvaluationReport


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
    return [_read_run(path, _unique_name(path, directories)) for path in directories]


def _unique_name(path: pathlib.Path, paths: Sequence[pathlib.Path]) -> str:
    """As many of a path's last parts as no other path has."""
    tails = (path.parts[-n:] for n in itertools.count(1))
    return str(pathlib.Path(*next(tail for tail in tails if sum(other.parts[-len(tail) :] == tail for other in paths) == 1)))


def _read_run(path: pathlib.Path, name: str) -> PlottedRun:
    """What there is to draw of the run or the evaluation in a directory."""
    missing: list[str] = []
    log: dict[str, np.ndarray] = {}
    bank: dict[int, np.ndarray] = {}
    order = np.zeros(0, np.int64)
    alone = (path / REPORT_FILE).is_file()
    directories = [path] if alone else [found for found in sorted(path.glob(f"*{EVALUATION_SUFFIX}*")) if found.is_dir()]
    try:
        if (path / _LOG_FILE).is_file():
            load_tensorflow()
            log, (bank, order) = _read_log(path / _LOG_FILE), _read_bank(path)
        finished = [found for found in directories if (found / REPORT_FILE).is_file()]
        last_epoch = int(log["Epoch"][-1]) if log else None
        evaluations = [_read_evaluation(found, last_epoch) for found in finished]
        config = read_mapping(path / _CONFIG_FILE) if (path / _CONFIG_FILE).is_file() else {"run": str(path)}
        classes = dict(enumerate(trained_classes(path if alone else path / REPORT_FILE)))
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: classes.txt cannot be read: {error.reason} at byte {error.start}. Save it as UTF-8") from None
    missing += [f"{found.name} has no {REPORT_FILE}: not finished, left out" for found in directories if found not in finished]
    if alone:
        missing.append("an evaluation alone: no learning curves, no bank")
    else:
        missing += [f"no epoch in {_LOG_FILE}: no learning curves"] * (not log) + ["no bank in events: no strips of it"] * (not bank)
    if bank and (lacking := set(log["Epoch"]) - set(bank)):
        missing.append(f"no bank in events of {len(lacking)} of the {len(log['Epoch'])} epochs in {_LOG_FILE}: left out")
    missing += ["no evaluation: no robust accuracy, no confusion"] * (not evaluations)
    for one in evaluations:
        classes = {row.target: row.target_name for row in one.report.grid if row.target is not None and row.target_name} | classes
    kind = json.dumps({key: value for key, value in config.items() if key not in _NOT_OF_THE_KIND}, sort_keys=True, default=str)
    evaluations.sort(key=lambda one: (-1 if one.epoch is None else one.epoch, -one.report.headline.robust.accuracy))
    return PlottedRun(name, kind, log, evaluations, bank, order, classes, missing)


def _read_log(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The columns of a log.csv."""
    from mat.results.run_directory import LOG_COLUMNS, ROBUST_COLUMN

    try:
        rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode()), delimiter=";", strict=True))
        columns = {name: [float(row[name] or "nan") for row in rows] for name in LOG_COLUMNS}
        columns |= {name: [float(row.get(name) or "nan") for row in rows] for name in ROBUST_COLUMN}
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        columns, reason = {"Epoch": [math.nan]}, f"{type(error).__name__}: {single_line(str(error))}"
    else:
        reason = "an epoch is missing"
    if not np.isfinite(columns["Epoch"]).all():
        raise UserError(f"{path}: not a log of this program ({reason}). Restore it, or leave this run out")
    return {name: np.array(values) for name, values in columns.items()} if rows else {}


def _read_evaluation(directory: pathlib.Path, last_epoch: int | None) -> Evaluation:
    """The evaluation in a directory."""
    path = directory / REPORT_FILE
    try:
        report = EvaluationReport.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as failure:
        first = failure.errors(include_url=False)[0]
        reason = single_line(": ".join([*[".".join(map(str, first["loc"]))] * bool(first["loc"]), first["msg"]]))
        raise UserError(f"{path}: not a report of this program ({reason}). Evaluate that network again, or remove the file") from None
    weights = pathlib.Path(report.subject.weights or "").name
    if weights == "network.keras":  # of a run: its own network after the last epoch
        return Evaluation(directory, last_epoch, report)
    found = _WEIGHTS_EPOCH.search(weights)
    return Evaluation(directory, int(found[1]) if found else None, report)


def _read_bank(run: pathlib.Path) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """The first patches of the bank by epoch, from the pictures in a run's events, and their order; none where it has no bank."""
    from mat.results.events import read_pictures
    from mat.results.run_directory import MAX_PATCHES_IN_EVENTS

    file = run / _BANK_FILE
    if not file.is_file() or not (pictures := read_pictures(run / "events", "patches")):
        return {}, np.zeros(0, np.int64)
    try:
        arrays = read_arrays(file)
        n_patches, height, width, _ = arrays["patches"].shape  # which the pictures do not tell
        order = np.argsort(-arrays["step_sizes"][:MAX_PATCHES_IN_EVENTS], kind="stable")
        return {epoch: _cells(png, min(n_patches, MAX_PATCHES_IN_EVENTS), height, width) for epoch, png in pictures.items()}, order
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
    path, n_classes = evaluation.directory / _EXAMPLES_FILE, evaluation.report.subject.n_classes
    columns = {"clean": "clean", "robust": evaluation.report.headline.robust.name}
    if not path.is_file():
        return None
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode()), strict=True))
        label, *predictions = (np.array([int(row[name]) for row in rows], np.int64) for name in ("label", *columns.values()))
        flat = [n_classes * label + predicted for predicted in predictions]
        if not all(np.isin(values, range(n_classes)).all() for values in (label, *predictions)):
            raise ValueError(f"a class beyond 0..{n_classes - 1}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        reason = f"{type(error).__name__}: {single_line(str(error))}"
        raise UserError(f"{path}: not the examples of the report beside it ({reason}). Evaluate again, or remove the file") from None
    counts = (np.bincount(one, minlength=n_classes**2).reshape(n_classes, n_classes) for one in flat)
    return dict(zip(columns, counts, strict=True))
