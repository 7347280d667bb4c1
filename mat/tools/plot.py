"""Command line: plots of training runs and evaluations as PNG files.

python -m mat.tools.plot RUN... [--output DIR] [--dpi 150]

`curves.png`: loss and accuracies of all runs against the epoch; `robustness.png`: their accuracies under patches; for each run,
`bank_RUN.png`: the bank over the epochs, and `confusion_RUN.png`: true classes and predictions without and under the worst patch.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from mat.cli.command import run_command
from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.files import check_writable, replace_file
from mat.cli.paths import expand_path
from mat.robustness.figures import png, required_picture_style
from mat.tools.plot_figures import bank_strips, confusion, learning_curves, robustness
from mat.tools.plot_runs import PlottedRun, read_confusion, read_runs

_DPI = (20, 1200)


def plot(paths: Sequence[str | os.PathLike[str]], *, output: str | os.PathLike[str] | None = None, dpi: int = 150) -> pathlib.Path:
    """Draw what there is of the runs and write it as PNG files, all of them once all are drawn; what a run lacks is printed.

    Args:
        paths: directories of training runs or of evaluations.
        output: directory of the pictures, whose files are replaced; by default `plots` in the directory of one run, and in the current
            directory for several.
        dpi: pixels per inch.

    Returns:
        The directory.

    Raises:
        UserError: matplotlib is not installed, a path is no directory, a file is damaged, there is nothing to draw, or the output
            cannot be written.
    """
    with required_picture_style("plotting"):
        runs = read_runs(paths)
        directory = pathlib.Path(output or ("plots" if len(runs) > 1 else pathlib.Path(paths[0]) / "plots"))
        check_writable(directory, "Choose another --output")
        pictures, missing = _draw(runs, dpi)
    for words in missing:
        console.print(words)
    if not pictures:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names}: nothing to draw. Give result directories of training runs with an epoch in log.csv, or of evaluations")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in pictures.items():
            replace_file(directory / name, content)
    except OSError as error:
        raise UserError(f"{error.filename or directory}: cannot be written: {error.strerror or error}. Choose another --output") from None
    console.print(f"{directory}: {', '.join(pictures)}")
    return directory


def _draw(runs: Sequence[PlottedRun], dpi: int) -> tuple[dict[str, bytes], list[str]]:
    """The pictures of all runs, PNG files by name, and what is left out of them, in words."""
    figures = {"curves.png": learning_curves(runs), "robustness.png": robustness(runs)}
    pictures = {name: png(figure, dpi=dpi) for name, figure in figures.items() if figure}
    missing = []
    for run in runs:
        missing += [f"{run.name}: {words}" for words in run.missing]
        file = run.name.replace(os.sep, "_")
        if run.bank:
            pictures[f"bank_{file}.png"] = png(bank_strips(run), dpi=dpi)
        if run.evaluations:
            counts = read_confusion(run.evaluations[-1])
            if counts is None:
                missing.append(f"{run.name}: no examples.csv in {run.evaluations[-1].directory}: no confusion")
            else:
                pictures[f"confusion_{file}.png"] = png(confusion(run, counts), dpi=dpi)
    return pictures, missing


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mat.tools.plot",
        description="Plots of training runs and evaluations as PNG files: learning curves and robustness of all runs side by side, and "
        "for each run its bank over the epochs and its confusion under the worst patch.",
    )
    meaning = "result directory of a training run, or directory of an evaluation"
    parser.add_argument("runs", metavar="RUN", type=expand_path, nargs="+", help=meaning)
    where = "where the pictures go (default: plots in the directory of one run, in the current directory for several)"
    parser.add_argument("--output", metavar="DIR", type=expand_path, help=where)
    parser.add_argument("--dpi", metavar="N", type=int, default=150, help="pixels per inch (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    if not _DPI[0] <= parsed.dpi <= _DPI[1]:
        parser.error(f"--dpi must be in {_DPI[0]} to {_DPI[1]}. Received: {parsed.dpi}")
    return parsed


def _run(arguments: argparse.Namespace) -> None:
    plot(arguments.runs, output=arguments.output, dpi=arguments.dpi)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat.tools.plot", parse_arguments, _run, arguments)


if __name__ == "__main__":
    sys.exit(main())
