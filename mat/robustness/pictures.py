"""Pictures of an evaluation, drawn with matplotlib (the extra `plots`)."""

import io

import numpy as np
import tensorflow as tf

from mat.patch import apply_patches

N_PATCHES = 12
N_EXAMPLES = 10
COLORS = ("#2a6fbb", "#c0392b")


def report_pictures(findings, report, class_names):
    """The pictures of a report: its strongest patches, images with the worst one and what the network saw, and the curves.

    Args:
        findings: `Findings` of an evaluation.
        report: the report made of them.
        class_names: list of the classes' names.

    Returns:
        dict of PNG files, name -> bytes; `curves.png` only where curves were measured.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        pictures = {"patches.png": _patches(Figure, findings, report), "examples.png": _examples(Figure, findings, report, class_names)}
        if report["curves"]["iterations"]:
            pictures["curves.png"] = _curves(Figure, report)
    return pictures


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def _show(axes, image, title):
    axes.imshow(image, vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=8, parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _patches(figure_class, findings, report):
    """The strongest of the patches that were fitted to the network, and the accuracy they leave."""
    patches = {outcome.name: outcome.patch for outcome in findings.fitted}
    rows = sorted([*report["grid"], *report["gradient_free"]], key=lambda row: row["accuracy"])[:N_PATCHES]
    n_columns = min(4, len(rows))
    n_rows = -(-len(rows) // n_columns)
    figure = figure_class(figsize=(1.9 * n_columns, 2.2 * n_rows), layout="constrained")
    for axes in figure.subplots(n_rows, n_columns, squeeze=False).flat[len(rows) :]:
        axes.set_axis_off()
    for axes, row in zip(figure.axes, rows, strict=False):
        goal = "untargeted" if row["target"] is None else f"to {row['target_name']}"
        kind = "" if row["attack"] == "white_box" else "\nwithout gradients"
        _show(axes, patches[row["name"]], f"{goal}{kind}\naccuracy {row['accuracy']:.1%}")
    return _png(figure)


def _examples(figure_class, findings, report, class_names):
    """Images without and with the worst patch that was tried: those it fooled first."""
    tried = (*findings.fitted, *findings.transfer, *findings.controls)
    worst = next(outcome for outcome in tried if outcome.name == report["headline"]["robust"]["name"])
    right = findings.clean == findings.labels
    fooled = right & (worst.predictions != findings.labels)
    order = np.concatenate([np.flatnonzero(fooled), np.flatnonzero(right & ~fooled), np.flatnonzero(~right)])[:N_EXAMPLES]
    images = tf.gather(findings.images, order)
    patched = apply_patches(images, np.repeat(worst.patch[np.newaxis], len(order), axis=0), findings.offsets[order])
    figure = figure_class(figsize=(1.25 * len(order), 3.2), layout="constrained")
    top, bottom = figure.subplots(2, len(order), squeeze=False)
    for i, example in enumerate(order):
        _show(top[i], images[i], f"{_short(class_names[findings.labels[example]])}")
        _show(bottom[i], patched[i], f"seen as\n{_short(class_names[worst.predictions[example]])}")
        right_under_patch = worst.predictions[example] == findings.labels[example]
        bottom[i].title.set_color(COLORS[0] if right_under_patch else COLORS[1])
    figure.suptitle(f"True classes, and what the network saw under {worst.name}", fontsize=9)
    return _png(figure)


def _short(name):
    """A class name that fits over a small picture."""
    return name if len(name) <= 16 else name[:15] + "…"


def _curves(figure_class, report):
    """Accuracy against iterations and against patch size, the worst patch with its interval."""
    figure = figure_class(figsize=(8, 3.2), layout="constrained")
    panels = {
        "iterations": ("iterations", lambda point: point["iterations"]),
        "patch_size": ("patch area, pixels", lambda point: point["patch_shape"][0] * point["patch_shape"][1]),
    }
    for axes, (key, (label, position)) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        points = report["curves"][key]
        x = [position(point) for point in points]
        worst, low, high, mean = (np.array([point[name] for point in points]) for name in ("accuracy", "low", "high", "mean"))
        axes.errorbar(x, worst, [worst - low, high - worst], marker="o", capsize=3, color=COLORS[1], label="worst patch, 95 % interval")
        axes.plot(x, mean, marker=".", linestyle="--", color=COLORS[0], label="mean of the patches")
        axes.axhline(report["headline"]["clean"]["accuracy"], color="grey", linewidth=1, linestyle=":", label="clean")
        axes.set_xlabel(label)
        axes.set_ylim(0, 1)
        if key == "iterations":
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [str(value) for value in x])
            axes.minorticks_off()
            axes.set_ylabel("accuracy")
            axes.legend(fontsize=8)
    return _png(figure)
