"""The report of an evaluation: `report.json`, whose schema docs/evaluation.md documents, and `examples.csv`."""

import csv
import importlib
import io
import itertools
import operator
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mat import __version__
from mat.config import EvaluationConfig
from mat.robustness.checklist import checklist
from mat.robustness.intervals import accuracy_interval, interval_text
from mat.robustness.score import ScoredPatch, Scores

# The lists of patches that the headline is the worst of, all of the config's size, and the kind of attack that it then names.
_TRIED = {"grid": "white_box", "gradient_free": "gradient_free", "transfer": "transfer", "given": "given", "controls": "control"}
_LIBRARIES = ("tensorflow", "keras", "tensorflow_probability", "numpy")
_LOSS_WINDOW = 25  # iterations that the first and the last loss are means of


def make_report(scores: Scores, *, protocol: EvaluationConfig, subject: dict, class_names: Sequence[str]) -> dict:
    """The contents of `report.json`, plain values only; `subject` is what was evaluated: weights, data, network, seed."""
    lists = {name: getattr(scores, name) for name in (*_TRIED, "iterations", "patch_sizes")}
    n_tried = sum(len(lists[name]) for name in _TRIED)
    correct = [scored.predictions == scores.labels for scored in itertools.chain(*lists.values())]
    correct += [scores.clean == scores.labels, np.all(correct[:n_tried], axis=0)]
    counts, n_images = np.sum(correct, axis=1), len(scores.labels)
    ends = (values.tolist() for values in accuracy_interval(counts, n_images))
    estimates = (
        {"accuracy": n / n_images, "low": low, "high": high, "n_correct": n, "n_images": n_images}
        for n, low, high in zip(counts.tolist(), *ends, strict=True)
    )
    rows = {name: [_row(scored, scores, class_names) | next(estimates) for scored in patches] for name, patches in lists.items()}
    clean, every_image = estimates
    worst = min((row | {"attack": attack} for name, attack in _TRIED.items() for row in rows[name]), key=lambda row: row["accuracy"])
    accuracies = [row["accuracy"] for row in rows["grid"]]
    statistics: dict[str, Callable] = {"mean": np.mean, "standard_deviation": np.std, "highest": np.max, "lowest": np.min}
    report = {
        "schema_version": 4,
        "headline": {
            "clean": clean,
            "robust": {key: worst[key] for key in (*clean, "name", "attack")},
            "every_image_under_its_worst_patch": every_image,
            "n_patches": n_tried,
        },
        "grid_summary": {"n_patches": len(accuracies)} | {name: float(of(accuracies)) for name, of in statistics.items()},
        **{name: rows[name] for name in _TRIED},
        "curves": {"iterations": _curve(rows["iterations"], "iterations"), "patch_size": _curve(rows["patch_sizes"], "patch_shape")},
        "vanishing_gradients": scores.vanishing,
        "position_gradients": [{"offset": list(offset), "gradient": value} for offset, value in scores.position_gradients.items()],
    }
    versions = {"mat": __version__, "python": platform.python_version()}
    versions |= {name: importlib.import_module(name).__version__ for name in _LIBRARIES}
    report["checklist"] = checklist(report, protocol)
    return report | {"subject": subject, "cost": {"forward_passes": scores.cost}, "versions": versions}


def _row(scored: ScoredPatch, scores: Scores, class_names: Sequence[str]) -> dict:
    """What the report says of a patch beside its accuracy."""
    right, spec = scores.clean == scores.labels, scored.spec
    row: dict[str, Any] = {"name": scored.name, "fooled": _share(scored.predictions[right] != scores.labels[right])}
    if spec is None:
        return row
    row |= {
        "attack": spec.attack,
        "target": spec.target,
        "target_name": None if spec.target is None else class_names[spec.target],
        "start": spec.start,
        "step_size": spec.step_size,
        "iterations": spec.n_iterations,
        "patch_shape": list(spec.patch_shape),
        "first_loss": float(np.mean(scored.losses[:_LOSS_WINDOW])),
        "last_loss": float(np.mean(scored.losses[-_LOSS_WINDOW:])),
    }
    if spec.target is not None:
        row["success"] = _share(scored.predictions[scores.labels != spec.target] == spec.target)
    return row


def _share(flags: np.ndarray) -> float | None:
    """The share of true flags; None where there are none to count."""
    return float(np.mean(flags)) if len(flags) else None


def _curve(rows: list[dict], key: str) -> list[dict]:
    """Points of a curve in rising order: a value of `key`, and the mean and the worst accuracy of the patches that share it."""
    points, by_key = [], operator.itemgetter(key)
    for value, group in itertools.groupby(sorted(rows, key=by_key), key=by_key):
        patches = list(group)
        worst = min(patches, key=operator.itemgetter("accuracy"))
        summary = {key: value, "mean": float(np.mean([row["accuracy"] for row in patches])), "n_patches": len(patches)}
        points.append(summary | {name: worst[name] for name in ("accuracy", "low", "high", "name")})
    return points


def headline_text(report: dict) -> str:
    """The headline of a report in words: `28.1% (25.4% to 30.9%) under the worst of 60 universal patches (white-box)`."""
    robust, n_patches = report["headline"]["robust"], report["headline"]["n_patches"]
    return f"{interval_text(robust)} under the worst of {n_patches} universal patches ({robust['attack'].replace('_', '-')})"


def examples_csv(scores: Scores) -> bytes:
    """`examples.csv`: for every scored image its record, label, clean prediction and the prediction under each patch."""
    patches = [*scores.controls, *scores.grid, *scores.gradient_free, *scores.transfer, *scores.given]
    columns = np.stack([scores.records, scores.labels, scores.clean, *(scored.predictions for scored in patches)], axis=1)
    lines = [["record", "label", "clean", *(scored.name for scored in patches)], *columns.tolist()]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)  # names of given patches may have commas
    return text.getvalue().encode()
