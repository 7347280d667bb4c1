"""The figures of the runs that docs/results.md reports, docs/results/RUN.json, and its tables.

python -m mat.tools.results_tables writes the tables anew.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from mat.cli.files import replace_file
from mat.config import PatchTrainingConfig
from mat.robustness.intervals import interval_text
from mat.robustness.store import REPORT_FILE, read_report, report_path
from mat.robustness.tables import curve_value, markdown_table

RESULTS_DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "results.md"
FIGURES = RESULTS_DOCUMENT.with_suffix("")
RUN_TITLES = {
    "standard_0": "standard training, seed 0",
    "standard_1": "standard training, seed 1",
    "standard_long_0": "standard training for as long as MAT",
    "mat_0": "**MAT**, seed 0",
    "mat_1": "**MAT**, seed 1",
    "mat_untargeted_0": "MAT, untargeted",
    "mat_from_standard_0": "MAT from the standard network, whose training comes before",
    "shared_patch_0": "one shared patch",
    "adversarial_training_0": "fresh patches, no meta-learning",
}
_KINDS = {"grid": "white-box", "gradient_free": "gradient-free", "transfer": "transferred", "given": "MAT's bank", "controls": "control"}


def run_figures(weights: Sequence[pathlib.Path]) -> dict[str, Any]:
    """What docs/results.md takes of a run: of its config, and of the reports beside its weights files, the last of them the final one.

    Quick reports count where several weights files are given.
    """
    directory, report = weights[-1].parent, json.loads((report_path(weights[-1], quick=False) / REPORT_FILE).read_bytes())
    config = PatchTrainingConfig.from_yaml(directory / "config.yaml")
    quick = {path.stem.rpartition("_")[2]: read_report(report_path(path, quick=True)) for path in weights if len(weights) > 1}
    targeted = [row for row in report["grid"] if row["target"] is not None]
    return {
        "n_epochs": config.n_epochs,
        "forward_equivalents": forward_equivalents(config),
        **{key: report[key] for key in ("headline", "grid_summary", "curves", "cost", "versions", "run", "subject")},
        "strongest": {kind: min(report[kind], key=lambda row: row["accuracy"]) for kind in _KINDS if report[kind]},
        "lowest_by_goal": _lowest_by_goal(report["grid"]),
        "highest_success": max(targeted, key=lambda row: row["success"]),
        "epochs": {epoch: found["headline"] for epoch, found in quick.items() if found},
    }


def _lowest_by_goal(grid: list[dict[str, Any]]) -> dict[str, float]:
    """The lowest accuracy under the white-box patches towards each class, and the untargeted ones."""
    lowest: dict[str, float] = {}
    for row in grid:
        goal = row["target_name"] or "untargeted"
        lowest[goal] = min(row["accuracy"], lowest.get(goal, 1.0))
    return lowest


def forward_equivalents(config: PatchTrainingConfig) -> int:
    """The computation of a training step for one image, counted in forward passes: F + 2 K + 3 with patches, 3 without.

    A gradient of the input counts as a forward pass, and so does one of the weights.
    """
    trials = config.n_patch_trials if config.n_patch_trials > 1 else 0  # a single trial is not compared with others
    return 3 + (trials + 2 * config.optimizer.n_iterations if config.n_patches else 0)


def tables(figures: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The tables of the document by name, in Markdown; `figures` are those of the runs by their names."""
    runs = {title: figures[name] for name, title in RUN_TITLES.items() if name in figures}
    with_epochs = {title: run for title, run in runs.items() if run["epochs"]}
    with_curves = {title: run for title, run in runs.items() if run["curves"]["iterations"]}
    by_goal = {title: run["lowest_by_goal"] for title, run in runs.items() if "lowest_by_goal" in run}
    made = {"accuracies": _accuracies(runs), "kinds": _kinds(runs), "goals": _goals(by_goal)}
    return made | {"epochs": _epochs(with_epochs), "curves": _curves(with_curves)}


def _accuracies(runs: dict[str, dict[str, Any]]) -> str:
    columns = ["clean", "**under the worst patch**", "mean of the white-box patches", "every image under its own worst patch"]
    rows = []
    for title, run in runs.items():
        headline, success = run["headline"], run["highest_success"]
        estimates = [interval_text(headline["clean"]), interval_text(headline["robust"]), f"{run['grid_summary']['mean']:.1%}"]
        estimates += [interval_text(headline["every_image_under_its_worst_patch"]), f"{success['success']:.1%} ({success['target_name']})"]
        rows.append([title, *estimates, str(run["n_epochs"] * run["forward_equivalents"])])
    return markdown_table(["", *columns, "highest targeted success", "forward passes for each training image"], rows)


def _kinds(runs: dict[str, dict[str, Any]]) -> str:
    cells = {title: [run["strongest"].get(kind, {}).get("accuracy") for kind in _KINDS] for title, run in runs.items()}
    rows = [[title, *("" if value is None else f"{value:.1%}" for value in values)] for title, values in cells.items()]
    return markdown_table(["", *_KINDS.values()], rows)


def _goals(runs: dict[str, dict[str, float]]) -> str:
    goals = list(dict.fromkeys(goal for lowest in runs.values() for goal in lowest))
    return markdown_table(["", *goals], [[title, *(f"{lowest[goal]:.1%}" for goal in goals)] for title, lowest in runs.items()])


def _epochs(runs: dict[str, dict[str, Any]]) -> str:
    epochs = sorted({epoch for run in runs.values() for epoch in run["epochs"]})
    rows = []
    for title, run in runs.items():
        for kind in ("clean", "robust"):
            cells = [f"{run['epochs'][epoch][kind]['accuracy']:.1%}" if epoch in run["epochs"] else "" for epoch in epochs]
            rows.append([f"{title}: {kind}", *cells])
    return markdown_table(["after epoch", *(str(int(epoch) + 1) for epoch in epochs)], rows)


def _curves(runs: dict[str, dict[str, Any]]) -> str:
    parts: list[str] = []
    for name, key, label in (("iterations", "iterations", "iterations"), ("patch_size", "patch_shape", "patch")):
        curves = {title: {curve_value(point, key): point for point in run["curves"][name]} for title, run in runs.items()}
        values = list(dict.fromkeys(value for points in curves.values() for value in points))
        rows = [[title, *(f"{points[v]['accuracy']:.1%}" if v in points else "" for v in values)] for title, points in curves.items()]
        parts.append(markdown_table([label, *values], rows))
    return "\n\n".join(parts)


def with_tables(document: str, figures: dict[str, dict[str, Any]]) -> str:
    """The document with its tables, each between `<!-- table NAME -->` and `<!-- end -->`, written anew."""
    made = tables(figures)
    return re.sub(
        r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", lambda match: f"{match[1]}{made[match[2]]}\n{match[3]}", document, flags=re.DOTALL
    )


def read_figures() -> dict[str, dict[str, Any]]:
    """The figures of the runs that are there, by name."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FIGURES.glob("*.json"))}


if __name__ == "__main__":
    replace_file(RESULTS_DOCUMENT, with_tables(RESULTS_DOCUMENT.read_text("utf-8"), read_figures()).encode())
