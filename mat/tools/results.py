"""Command line: repeat the runs that docs/results.md reports, or some of them: train, evaluate, write their figures.

make results [DATA=tiny-imagenet-200.zip] [ONLY="mat_0 standard_0"]

What is done is skipped, what was interrupted goes on. A network is attacked with the patches of others too: of those that are
repeated here by then, and else of those in weights/. The figures go into docs/results/RUN.json, of which
`python -m mat.tools.results_tables` makes the tables.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import mat.evaluate as evaluate
from mat.cli.command import run_command
from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.files import replace_file
from mat.cli.paths import expand_path
from mat.config import PatchTrainingConfig
from mat.data.metadata import DATASET_FILE
from mat.results.run_files import BANK_FILE, LOG_FILE, weights_name
from mat.robustness.store import has_all, read_report, report_path
from mat.tools.results_tables import FIGURES, run_figures

CONFIGS = pathlib.Path("configs", "results")
PROTOCOL = CONFIGS / "evaluation.yaml"
CLASSES = CONFIGS / "classes.txt"
PUBLISHED = pathlib.Path("weights")  # has networks that these runs made, with their patches
EVALUATED_EPOCHS = 5  # the weights of every fifth epoch are evaluated of a run that is evaluated by epochs


class ResultRun(NamedTuple):
    """A run of configs/results with a seed."""

    config: str  # the stem of its file
    seed: int = 0
    with_curves: bool = False  # whether curves over iterations and patch size are measured
    by_epochs: bool = False  # whether the weights of earlier epochs are evaluated too

    @property
    def name(self) -> str:
        """The name of its result directory."""
        return f"{self.config}_{self.seed}"

    @property
    def published(self) -> pathlib.Path:
        """Where its network is, with its patches, if it comes with the program."""
        return PUBLISHED / f"tiny_imagenet_10_{self.name.removesuffix('_0')}"

    def read_config(self) -> PatchTrainingConfig:
        """Its config."""
        return PatchTrainingConfig.from_yaml(CONFIGS / f"{self.config}.yaml", [f"seed={self.seed}"])

    def weights(self) -> list[pathlib.Path]:
        """The weights files to evaluate, that of the last epoch last."""
        config = self.read_config()
        epochs = range(EVALUATED_EPOCHS, config.n_epochs, EVALUATED_EPOCHS) if self.by_epochs else ()
        return [config.result_dir / weights_name(epoch - 1) for epoch in (*epochs, config.n_epochs)]

    def is_trained(self) -> bool:
        """Whether its last epoch is logged, which follows its weights and its bank."""
        config = self.read_config()
        log = config.result_dir / LOG_FILE
        return log.is_file() and len(log.read_text("utf-8").splitlines()) == 1 + config.n_epochs


STANDARD, MAT = ResultRun("standard", with_curves=True), ResultRun("mat", with_curves=True)
OTHER_SEEDS = (ResultRun("standard", seed=1), ResultRun("mat", seed=1, by_epochs=True))
RUNS = (
    *(STANDARD, MAT, *OTHER_SEEDS),
    *map(ResultRun, ("adversarial_training", "shared_patch", "mat_untargeted", "mat_from_standard", "standard_long")),
)


def make_results(runs: Sequence[ResultRun], source: str | None) -> None:
    """Train and evaluate runs, and write their figures.

    Args:
        runs: in their order.
        source: folder or zip of Tiny ImageNet, where it is not converted yet.

    Raises:
        UserError: there is no data, or figures cannot be written.
        SystemExit: a training or an evaluation failed; with its exit status.
    """
    data = pathlib.Path(runs[0].read_config().data_dir)
    if not (data / DATASET_FILE).exists():
        if source is None:
            raise UserError(f"{data}: no data. Give Tiny ImageNet's folder or zip: make results DATA=tiny-imagenet-200.zip")
        _call("-m", "mat.data.convert", source, str(data), "--classes", str(CLASSES))
    for run in runs:
        if not run.is_trained():
            resume = ["--resume"] if run.read_config().result_dir.exists() else []
            _call("mat/train.py", str(CONFIGS / f"{run.config}.yaml"), "--set", f"seed={run.seed}", *resume)
        if not read_report(_report_directory(run)):
            _evaluate(run.weights()[-1])
        for weights in run.weights() if run.by_epochs else ():
            _evaluate(weights, "--quick")
    for run in runs:  # now that their patches are fitted
        others = [found for other in _others(run) if (found := _patches_of(other))]
        if len(others) < len(_others(run)):
            names = ", ".join(other.name for other in _others(run))
            console.print(f"{run.name}: no figures, as the patches of {names} are tried for these, and not all of them are there")
            continue
        options = ["--set", "evaluation.curves=true"] if run.with_curves else []
        options += [word for other in others for word in ("--patches-from", str(other))]
        _evaluate(run.weights()[-1], *options, "--patches", _bank())
        _write_figures(run)


def _write_figures(run: ResultRun) -> None:
    path = FIGURES / f"{run.name}.json"
    try:
        FIGURES.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(run_figures(run.weights()), indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}. Mend that, and run the same command again") from None


def _others(run: ResultRun) -> list[ResultRun]:
    """The runs whose patches are transferred to a run: the standard network and MAT, of the other seed for these."""
    return [other for other in (STANDARD, MAT, *OTHER_SEEDS) if other != run and (other.seed == 0 or other.config == run.config)]


def _report_directory(run: ResultRun) -> pathlib.Path:
    return report_path(run.weights()[-1], quick=False)


def _patches_of(run: ResultRun) -> pathlib.Path | None:
    """The evaluation whose patches were fitted to a run: of its repetition here, or else the published one; None without either."""
    return next((directory for directory in (_report_directory(run), run.published) if read_report(directory)), None)


def _bank() -> str:
    """The file of MAT's bank, of the run whose patches are transferred."""
    directory = MAT.published if _patches_of(MAT) == MAT.published else MAT.read_config().result_dir
    return str(directory / BANK_FILE)


def _evaluate(weights: pathlib.Path, *options: str) -> None:
    """Evaluate weights by the protocol and `options` of the command, unless the report beside them has all of that."""
    arguments = [str(PROTOCOL), "--weights", str(weights), *options]
    parsed = evaluate.parse_arguments(arguments)
    directory = report_path(weights, quick=parsed.quick)
    if report := read_report(directory):
        n_tried = len(report["subject"]["patches_from"] or ())
        if has_all(report, evaluate.read_config(parsed).evaluation.fixed_values()) and n_tried >= len(parsed.patches_from):
            return
    _call("mat/evaluate.py", *arguments, *(["--resume"] if directory.exists() else []))


def _call(*arguments: str) -> None:
    """Run a command of this program in a process of its own, whose memory ends with it; where it fails, end with its exit status."""
    interrupted = False
    with subprocess.Popen([sys.executable, *arguments]) as process:
        signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
        while process.poll() is None:
            try:
                process.wait()
            except KeyboardInterrupt:  # which the command gets too: it saves what it has
                interrupted = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if status := process.returncode:
        sys.exit(status if status > 0 else 128 - status)  # as a shell tells of a signal
    if interrupted:
        raise KeyboardInterrupt


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mat.tools.results", description="Repeat the runs that docs/results.md reports. What is done is skipped."
    )
    parser.add_argument("--data", metavar="SOURCE", type=expand_path, help="folder or zip of Tiny ImageNet, where it is not converted yet")
    names = [run.name for run in RUNS]
    parser.add_argument("--only", metavar="RUN", nargs="+", choices=names, default=names, help=f"some of {', '.join(names)}")
    return parser.parse_args(arguments)


def _run(arguments: argparse.Namespace) -> None:
    make_results([run for run in RUNS if run.name in arguments.only], arguments.data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat.tools.results", parse_arguments, _run, arguments)


if __name__ == "__main__":
    sys.exit(main())
