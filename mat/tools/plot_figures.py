"""The figures of the plots, drawn with matplotlib: learning curves, robustness, the bank over the epochs, confusion."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mat.robustness.figures import BLUE, RED, cut
from mat.tools.plot_runs import Estimate, Evaluation, PlottedRun

_LOGGED = {
    "Train Loss": "training loss",
    "Train Accuracy": "training accuracy (with a bank: of patched images)",
    "Valid Accuracy": "clean validation accuracy",
}
_LINES = ("-", "--", ":", "-.")
_MEASURES = {  # of robustness: color and marker
    "clean": ("#555555", "o"),
    "strongest control": ("#7f9f3f", "D"),
    "mean of the white-box grid": (BLUE, "s"),
    "worst patch": (RED, "o"),
    "every image under its own worst patch": ("#7b2d8b", "v"),
}
_MAX_STRIPS, _MAX_PATCHES = 15, 16  # epochs of the bank, patches of each
_MAX_NAMED = 25  # classes whose names fit beside a confusion matrix
_LONGEST_RUN, _LONGEST_CLASS, _LONGEST_PATCH = 40, 24, 60  # characters


def run_styles(runs: Sequence[PlottedRun]) -> list[dict[str, Any]]:
    """Color, line style and label of each run's lines: runs of one kind share a color and differ in their line style."""
    import matplotlib

    colors: Any = matplotlib.colormaps["tab10"]
    kinds, n_before, styles = list(dict.fromkeys(run.kind for run in runs)), collections.Counter[str](), []
    for run in runs:
        kind = kinds.index(run.kind)
        line = _LINES[(n_before[run.kind] + kind // colors.N) % len(_LINES)]
        n_before[run.kind] += 1
        label = f" {cut(run.name, _LONGEST_RUN, middle=True)}"  # one that begins with _ would not be shown
        styles.append({"color": colors(kind % colors.N), "linestyle": line, "label": label})
    return styles


def learning_curves(runs: Sequence[PlottedRun]) -> Any:
    """Loss and accuracies against the epoch, robust ones as points with their intervals; None where no run has a log."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    robust, styles = [_robust_lines(run) for run in runs], run_styles(runs)
    if not any(run.log for run in runs):
        return None
    figure = Figure(figsize=(9, 6.6))
    *panels, last = figure.subplots(2, 2, sharex=True).flat
    for run, style in zip(runs, styles, strict=True):
        for axes, column in zip(panels if run.log else (), _LOGGED, strict=False):
            axes.plot(run.log["Epoch"], run.log[column], marker="." if len(run.log["Epoch"]) == 1 else "", linewidth=1.2, **style)
    # Points of one epoch lie side by side.
    shifts = 0.025 * (panels[0].dataLim.x1 + 1) * (np.arange(len(runs)) - (len(runs) - 1) / 2) / len(runs)
    for lines, style, shift in zip(robust, styles, shifts, strict=True):
        for line in lines:
            _draw_line(last, {epoch + shift: estimate for epoch, estimate in line.items()}, style)
    if not any(robust):
        last.text(0.5, 0.5, "not measured", ha="center", transform=last.transAxes)
    for axes, title in zip(figure.axes, (*_LOGGED.values(), "robust accuracy: worst patch, 95 % interval"), strict=True):
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.25)
        if axes is not panels[0]:
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter("{x:.0%}")
    for axes in figure.axes[2:]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _legend(figure, [style for run, lines, style in zip(runs, robust, styles, strict=True) if run.log or lines])
    return figure


def _draw_line(axes: Any, points: Mapping[Any, Estimate], style: dict[str, Any]) -> None:
    """Accuracies by x, as points with their intervals and the line through them."""
    accuracy, low, high = np.array(list(points.values())).T
    errors = [accuracy - low, high - accuracy]
    axes.errorbar(np.array(list(points)), accuracy, errors, marker="o", markersize=3.5, capsize=2, linewidth=1.2, **style)


def _robust_lines(run: PlottedRun) -> list[dict[int, Estimate]]:
    """Robust accuracy with its interval by epoch, a line for each protocol, and one for what only the log has, without intervals."""
    lines: dict[str, dict[int, Estimate]] = collections.defaultdict(dict)
    for one in run.evaluations:
        if one.epoch is not None:
            lines[one.protocol][one.epoch] = one.robust
    reported = {one.epoch for one in run.evaluations}
    for epoch, accuracy in zip(run.log.get("Epoch", []), run.log.get("Robust Accuracy", []), strict=True):
        if epoch not in reported and not np.isnan(accuracy):
            lines[""][int(epoch)] = Estimate(accuracy, np.nan, np.nan)
    return list(lines.values())


def robustness(runs: Sequence[PlottedRun]) -> Any:
    """The accuracies of each run's last evaluation, and their curves where measured; None where no run has an evaluation."""
    from matplotlib.figure import Figure

    styles = [style for run, style in zip(runs, run_styles(runs), strict=True) if run.evaluations]
    evaluated = {run.name: run.evaluations[-1] for run in runs if run.evaluations}
    if not evaluated:
        return None
    has_curves = any(one.by_iterations for one in evaluated.values())
    height = 0.8 + 0.9 * len(evaluated)
    figure = Figure(figsize=(9, height + 3.4 * has_curves))
    if has_curves:
        panels = figure.subplot_mosaic("AA;IS", height_ratios=[height, 3])
        _draw_accuracies(panels["A"], evaluated)
        _draw_curves(panels["I"], panels["S"], list(evaluated.values()), styles)
        _legend(figure, styles)
    else:
        _draw_accuracies(figure.subplots(), evaluated)
    return figure


def _draw_curves(left: Any, right: Any, evaluations: Sequence[Evaluation], styles: Sequence[dict[str, Any]]) -> None:
    """Accuracy under the worst patch against the attack's iterations, on the left, and against the patch's size."""
    for one, style in zip(evaluations, styles, strict=True):
        for axes, points in ((left, one.by_iterations), (right, one.by_area)):
            if points:
                _draw_line(axes, points, style | {"elinewidth": 0.7})
    ticks = sorted({number for one in evaluations for number in one.by_iterations})
    left.set(xlabel="iterations of the attack", xscale="log", ylabel="accuracy, worst patch, 95 % interval")
    left.set_xticks(ticks, list(map(str, ticks)))
    left.minorticks_off()
    right.set_xlabel("patch area, pixels")
    for axes in (left, right):
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.grid(alpha=0.25)


def _draw_accuracies(axes: Any, evaluated: dict[str, Evaluation]) -> None:
    """A row for each run: its accuracies as points, one below the other, with intervals and in figures."""
    for row, one in enumerate(evaluated.values()):
        estimates = [one.clean, one.control, one.grid_mean, one.robust, one.every_image]
        for i, (estimate, (color, marker)) in enumerate(zip(estimates, _MEASURES.values(), strict=True)):
            if estimate is None:
                continue
            (accuracy, low, high), y = estimate, row + 0.17 * (i - 2)
            axes.errorbar([accuracy], [y], xerr=[[accuracy - low], [high - accuracy]], color=color, marker=marker, markersize=4, capsize=2)
            axes.annotate(f"{accuracy:.1%}", (high, y), (5, 0), textcoords="offset points", va="center", fontsize=7, color=color)
    labels = []
    for name, one in evaluated.items():
        epoch = "" if one.epoch is None else f"epoch {one.epoch}; "
        labels.append(f"{cut(name, 30, middle=True)}\n{epoch}{one.n_patches} patches,\n{one.n_images:,} images")
    axes.set_yticks(range(len(evaluated)), labels)
    axes.set(xlim=(0, 1.06), ylim=(len(evaluated) - 0.5, -0.5), xlabel="accuracy, 95 % interval")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="x", alpha=0.25)
    for edge in range(1, len(evaluated)):
        axes.axhline(edge - 0.5, color="#cccccc", linewidth=0.8)
    handles = [axes.plot([], [], color=color, marker=marker, linestyle="", label=name)[0] for name, (color, marker) in _MEASURES.items()]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=8)


def bank_strips(run: PlottedRun) -> Any:
    """Patches of the bank after each epoch, or after epochs that are evenly spread, first and last included.

    Of the first patches, whose pictures a run keeps, those with the largest step sizes: the others hardly leave their start.
    """
    from matplotlib.figure import Figure

    all_epochs = list(run.bank)
    epochs = [all_epochs[i] for i in np.unique(np.linspace(0, len(all_epochs) - 1, _MAX_STRIPS).round().astype(int))]
    chosen = np.sort(run.bank_order[:_MAX_PATCHES])
    n_patches, height, width, _ = run.bank[epochs[0]][chosen].shape
    gap = max(1, round(max(height, width) / 12))
    cells = np.stack([run.bank[epoch][chosen] for epoch in epochs])
    cells = np.pad(cells, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    picture = cells.transpose(0, 2, 1, 3, 4).reshape(len(epochs) * (height + gap), n_patches * (width + gap), 3)
    inches = 0.55 / max(height, width)
    figure = Figure(figsize=(1 + picture.shape[1] * inches, 0.9 + picture.shape[0] * inches))
    axes = figure.subplots()
    axes.imshow(picture, interpolation="nearest")
    axes.set_yticks((height - 1) / 2 + (height + gap) * np.arange(len(epochs)), list(map(str, epochs)))
    axes.set_xticks((width - 1) / 2 + (width + gap) * np.arange(n_patches), list(map(str, chosen)))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(ylabel="epoch", xlabel="number of the patch in the bank")
    axes.set_title(cut(run.name, max(12, 6 * n_patches), middle=True), fontsize=9)
    return figure


def confusion(run: PlottedRun, counts: dict[str, np.ndarray]) -> Any:
    """The matrices of `read_confusion`, as shares of the images of each true class, side by side."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    one, n_classes = run.evaluations[-1], len(counts["clean"])
    named = n_classes <= _MAX_NAMED
    side = max(2.6, 0.36 * n_classes) if named else 4.5
    ticks = np.arange(0, n_classes, 1 if named else -(-n_classes // _MAX_NAMED))
    labels = [cut(run.classes.get(tick, str(tick)), _LONGEST_CLASS) for tick in ticks.tolist()]
    label_inches = 0.07 * max(map(len, labels))
    figure = Figure(figsize=(2 * side + 1.4 + label_inches, side + 0.9 + label_inches))
    panels = figure.subplots(1, 2, sharey=True)
    norm = PowerNorm(1 if named else 0.5, vmin=0, vmax=1)  # among many classes small shares matter
    titles = {
        "clean": f"without a patch: {one.clean.accuracy:.1%} right",
        "robust": f"under the worst patch: {one.robust.accuracy:.1%} right",
    }
    for axes, (name, matrix) in zip(panels, counts.items(), strict=True):
        totals = matrix.sum(axis=1, keepdims=True)
        shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
        image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
        axes.set_facecolor("#dddddd")  # classes without an image
        axes.set_title(titles[name], fontsize=9)
        axes.set_xticks(ticks, labels, rotation=90, fontsize=7)
        axes.set_yticks(ticks, labels, fontsize=7)
        axes.set_xlabel("predicted class")
        for row, column in np.argwhere(np.round(100 * shares) >= 1) if named else ():
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=6.5, color=color)
    panels[0].set_ylabel("true class")
    figure.colorbar(
        image, ax=panels, label="share of the images of the true class", format="{x:.0%}", fraction=0.04, pad=0.015, shrink=0.85
    )
    epoch = "" if one.epoch is None else f", epoch {one.epoch}"
    figure.suptitle(f"{cut(run.name, _LONGEST_RUN, middle=True)}{epoch}: {cut(one.worst_patch, _LONGEST_PATCH)}", fontsize=9)
    return figure


def _legend(figure: Any, styles: Sequence[dict[str, Any]]) -> None:
    """The runs' lines, below the panels, for which the figure gets higher."""
    from matplotlib.lines import Line2D

    n_columns = max(1, min(len(styles), 130 // (8 + max(len(style["label"]) for style in styles))))
    figure.set_figheight(figure.get_figheight() + 0.19 * (-(-len(styles) // n_columns) - 1))
    figure.legend(handles=[Line2D([], [], **style) for style in styles], loc="outside lower center", ncols=n_columns, frameon=False)
