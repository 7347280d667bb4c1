"""Pictures of an evaluation, drawn with matplotlib (the extra `plots`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mat.patch import apply_patches
from mat.robustness.figures import BLUE, RED, cut, gallery, picture_style, png
from mat.robustness.score import Scores

_N_PATCHES, _N_EXAMPLES = 12, 10
_LONGEST_NAME = 16  # characters of a name over a small picture


def report_pictures(scores: Scores, report: dict, class_names: Sequence[str]) -> dict[str, bytes]:
    """PNG files, name -> bytes: the strongest patches, images with the worst one and what the network saw, the curves if measured.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with picture_style():
        figures = {"patches.png": _patches(scores, report), "examples.png": _examples(scores, report, class_names)}
        if report["curves"]["iterations"]:
            figures["curves.png"] = _curves(report)
        return {name: png(figure) for name, figure in figures.items()}


def _patches(scores: Scores, report: dict) -> Any:
    """The strongest of the patches that were fitted to the network or given, and the accuracy they leave."""
    patches, panels = {scored.name: scored.patch for scored in (*scores.fitted, *scores.given)}, []
    rows = [*report["grid"], *report["gradient_free"], *report["given"]]
    for row in sorted(rows, key=lambda row: row["accuracy"])[:_N_PATCHES]:
        if "attack" in row:
            goal = "untargeted" if row["target"] is None else f"to {row['target_name']}"
            title = goal if row["attack"] == "white_box" else f"{goal}\nwithout gradients"
        else:
            title = f"given\n{cut(row['name'].removeprefix('given-'), _LONGEST_NAME)}"
        panels.append((patches[row["name"]], f"{title}\naccuracy {row['accuracy']:.1%}", "black"))
    return gallery(panels, n_columns=min(4, len(panels)), width=1.9, height=2.2)


def _examples(scores: Scores, report: dict, class_names: Sequence[str]) -> Any:
    """Images without and with the worst patch that was tried: those it fooled first."""
    tried = (*scores.fitted, *scores.transfer, *scores.given, *scores.controls)
    worst = next(scored for scored in tried if scored.name == report["headline"]["robust"]["name"])
    right, still_right = scores.clean == scores.labels, worst.predictions == scores.labels
    order = np.argsort(np.where(right, still_right, 2), kind="stable")[:_N_EXAMPLES]
    images = tf.gather(scores.images, order)
    patched = apply_patches(images, np.repeat(worst.patch[np.newaxis], len(order), axis=0), scores.offsets[order])
    names = [cut(name, _LONGEST_NAME) for name in class_names]
    panels = [(image, names[scores.labels[i]], "black") for image, i in zip(images, order, strict=True)]
    for image, i in zip(patched, order, strict=True):
        panels.append((image, f"seen as\n{names[worst.predictions[i]]}", BLUE if still_right[i] else RED))
    title = f"True classes, and what the network saw under {worst.name}"
    return gallery(panels, n_columns=len(order), width=1.25, height=1.6, title=title)


def _curves(report: dict) -> Any:
    """Accuracy against iterations and against patch size, the worst patch with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, points in zip((left, right), report["curves"].values(), strict=True):
        x = [point.get("iterations") or np.prod(point["patch_shape"][:2]) for point in points]
        worst, low, high, mean = (np.array([point[key] for point in points]) for key in ("accuracy", "low", "high", "mean"))
        axes.errorbar(x, worst, [worst - low, high - worst], marker="o", capsize=3, color=RED, label="worst patch, 95 % interval")
        axes.plot(x, mean, marker=".", linestyle="--", color=BLUE, label="mean of the patches")
        axes.axhline(report["headline"]["clean"]["accuracy"], color="grey", linewidth=1, linestyle=":", label="clean")
    ticks = [point["iterations"] for point in report["curves"]["iterations"]]
    left.set(xlabel="iterations", ylabel="accuracy", ylim=(0, 1))
    left.set_xscale("log", base=2)
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.minorticks_off()
    left.legend(fontsize=8)
    right.set_xlabel("patch area, pixels")
    return figure
