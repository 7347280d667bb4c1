"""Evaluations from Python."""

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import keras

from mat.api.arrays import as_records
from mat.api.loading import find_network
from mat.api.session import read_config, session
from mat.cli.errors import UserError
from mat.cli.signals import raised_signals
from mat.config import EvaluationConfig, PatchTrainingConfig
from mat.data.reading import Records
from mat.distribution.tf_config import read_cluster
from mat.distribution.workers import report_lost_workers
from mat.evaluate import evaluate_network
from mat.robustness.classifier_config import fill_values
from mat.robustness.display import Report

Path = str | os.PathLike[str]


def evaluate(
    model: keras.Model | Path,
    data: Any = None,
    *,
    quick: bool = False,
    output: Path | None = None,
    resume: bool = False,
    bank: Path | None = None,
    patches_from: Path | Sequence[Path] = (),
    patches: Sequence[Path] = (),
    **keys: Any,
) -> Report:
    """Measure a classifier's accuracy on clean images and under universal patch attacks, as the command `mat-evaluate` does.

    Args:
        model: a Keras classifier of images; or what `mat.load` takes: the directory of a run, a weights file, a `.keras` file.
        data: the directory of a converted data set, or arrays, as `keras.datasets` load them: `((images, labels), (images, labels))`, the
            first to fit patches on and the second to score them on; images [N, H, W, 3], uint8 or float in [0, 1], which is rounded to
            8 bits; labels integers [N] or one-hot. By default the data of the run.
        quick: a first look: white-box only, one start and step size, few iterations.
        output: where the report is written; None for a temporary directory, of which only what is returned stays.
        resume: continue an interrupted evaluation in `output`, or add patches, attacks or curves to a finished one.
        bank: `patches.npz` to start attacks from.
        patches_from: directory or directories of evaluations of other models, whose patches are tried too.
        patches: files of patches that are tried too: PNG, `.npz` of this program, `.npy` [R, h, w, 3].
        keys: keys of the config's section `evaluation`, such as `iterations=100`, and others, such as `patch_shape=(24, 24, 3)` (by default
            3/8 of the image's side), `input_range="0..255"`, `logits=False` or `seed=1`.

    Returns:
        The contents of `report.json` as a dict, with the attributes `patches`, `strongest` and `pictures`, which a notebook shows.

    Raises:
        UserError: the model, the data, a file or a key cannot be used, or do not fit.
        KeyboardInterrupt: what was fitted is kept in `output`.

    Example:
        >>> import mat
        >>> report = mat.evaluate("results/example", quick=True, iterations=5, n_targets=1, max_images=100)
        >>> report["headline"]["robust"]["accuracy"] <= report["headline"]["clean"]["accuracy"]
        True
        >>> report.strongest.shape
        (12, 12, 3)
    """
    given: dict[str, Any] = {
        "sure_of_range": "input_range" in keys,
        "bank": bank,
        "patches_from": [patches_from] if isinstance(patches_from, (str, os.PathLike)) else patches_from,
        "patches": patches,
        "resume": resume,
    }
    kept = f"; what was fitted is kept in {output}: call it again with resume=True" if output else ""
    with session(), report_lost_workers(), raised_signals(f"The evaluation was stopped{kept}"), tempfile.TemporaryDirectory() as temporary:
        arrays = None if data is None or isinstance(data, (str, os.PathLike)) else _splits_of(data)
        config, weights = _config_of(model, data if arrays is None else "arrays in memory", keys, arrays, quick=quick)
        _check_workers(config, model, output)
        in_memory = model if isinstance(model, keras.Model) else None
        report = evaluate_network(config, weights, output or pathlib.Path(temporary, "report"), model=in_memory, splits=arrays, **given)
        if output is None:  # what lies in the directory is read before it goes
            _ = report.patches, report.pictures
        return report


def _check_workers(config: PatchTrainingConfig, model: keras.Model | Path, output: Path | None) -> None:
    """Refuse what several workers cannot do, where `TF_CONFIG` names them."""
    cluster = read_cluster() if config.distribution in ("auto", "multi_worker") else None
    in_memory = isinstance(model, keras.Model)
    if cluster and in_memory and cluster.index > 0:
        raise UserError(f"{cluster.name}: a model in memory is evaluated by one process. Call this on worker 0 alone")
    if cluster and not in_memory and output is None:
        raise UserError(f"{cluster.name}: output is needed where several workers evaluate: a directory that all of them see")


def _splits_of(data: Any) -> tuple[Records, Records]:
    """Arrays, `((images, labels), (images, labels))`, as training and validation records."""
    try:
        (fitted_on, fitted_labels), (scored, scored_labels) = data
    except (TypeError, ValueError):
        remedy = "Give ((images, labels), (images, labels)), or the directory of a converted data set"
        raise UserError(f"data must be two pairs of arrays or a directory. {remedy}. Received: {type(data).__name__}") from None
    splits = as_records(fitted_on, fitted_labels, "the first arrays"), as_records(scored, scored_labels, "the second arrays")
    if (sizes := {int(records.sizes[0, 0]) for records in splits}) != {int(splits[0].sizes[0, 0])}:
        raise UserError(f"images must have one size in both pairs of arrays. Received: {sorted(sizes)} pixels")
    return splits


def _config_of(
    model: keras.Model | Path, data_dir: Path | None, keys: dict[str, Any], arrays: tuple[Records, Records] | None, *, quick: bool
) -> tuple[PatchTrainingConfig, pathlib.Path | None]:
    """The config of an evaluation, in which its class stands for a model in memory, and the file of the weights, if any."""
    flat = {name: value for name, value in keys.items() if name in EvaluationConfig.model_fields}
    values = {name: value for name, value in keys.items() if name not in flat}
    protocol = {**values.get("evaluation", {}), **flat}
    values |= {"evaluation": protocol} if protocol else {}
    values |= {} if data_dir is None else {"data_dir": os.fspath(data_dir)}
    weights = None
    if not isinstance(model, keras.Model):
        config, weights = find_network(model, values)
        weights = weights or pathlib.Path(config.network)
    elif data_dir is None:
        raise UserError("data is needed to evaluate a model in memory: the directory of a converted data set, or arrays. Received: None")
    else:
        size = {} if arrays is None else {"image_size": int(arrays[0].sizes[0, 0])}
        values = {"network": f"{type(model).__module__}:{type(model).__name__}", **size, **values}
        config = read_config(fill_values(model, values), {})
    if (largest := max((int(records.labels.max()) for records in arrays or ()), default=0)) >= config.n_classes:
        raise UserError(f"labels must be in 0..{config.n_classes - 1}, the model's classes. Received: {largest}")
    if quick:
        config = config.replace(evaluation=config.evaluation.quick(protocol))
    return config, weights
