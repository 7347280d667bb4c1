"""Command line: train a model with meta adversarial training as a YAML file says."""

import argparse
import contextlib
import json
import pathlib
import shlex
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: its own directory is on the path, where `config` or `data` would hide other packages
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from mat import CallableModule
from mat.cli.command import load_tensorflow, run_command
from mat.cli.console import console, print_table
from mat.cli.errors import UserError
from mat.cli.files import check_writable
from mat.cli.paths import expand_path, literal_name
from mat.cli.signals import raised_signals
from mat.config import PatchTrainingConfig

if TYPE_CHECKING:
    from mat.trainer import Trainer, TrainingResult

_STOPPED = "Stopped before training began; nothing was changed"
_EXIT_STATUSES = """
exit status:
  0 done; 2 the config, the data, the weights or the result directory are at fault; 3 the loss became NaN or infinite;
  4 another worker is gone (docs/distributed.md); 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, all after the step in hand is saved; 1 a bug"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(
        prog="mat-train",
        description="Train an image classifier to be robust against universal patches, by meta adversarial training (arXiv:2101.11453).",
        epilog=PatchTrainingConfig.key_list() + _EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", type=expand_path, help="YAML file, such as configs/demo.yaml; its keys: see below")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="replace a key of the config; nested keys as in optimizer.n_iterations=3; may be given several times",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in the result directory from its newest checkpoint")
    parser.add_argument(
        "--extend",
        metavar="N",
        type=int,
        help="continue the run in the result directory, finished or not, to N epochs in total; from the next epoch on the learning rate is "
        "that of a run of N epochs, so it jumps up (docs/resuming.md)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="read and check everything, make two steps in memory, print the plan, the time and the memory of the run, and write nothing; "
        "also with --resume or --extend",
    )
    return parser.parse_args(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Train as the command line says. A faulty config is reported before TensorFlow is imported, which takes seconds."""
    resume = arguments.resume or arguments.extend is not None
    config = PatchTrainingConfig.from_yaml(arguments.config, arguments.set, resume=resume)
    if resume:
        refuse_another_directory(arguments, config)
    dry = "dry run of " if arguments.dry_run else ""
    console.print(f"{arguments.config}: {dry}training into {config.result_dir}; loading TensorFlow")
    with raised_signals(_STOPPED):
        load_tensorflow()
    function = dry_run if arguments.dry_run else train_runs
    function(config, resume=resume, extend=arguments.extend)


def train_runs(config: PatchTrainingConfig, *, resume: bool = False, extend: int | None = None) -> "list[TrainingResult]":
    """Config -> data, model, bank and step -> loop: the run, and with `plain_baseline` the same without patches, which is compared.

    Args:
        config: of the run.
        resume: continue the run in the result directory.
        extend: continue it to so many epochs in total.
    """
    with raised_signals(_STOPPED):
        trainers = build_trainers(config, resume=resume, extend=extend)
    results = [trainer.fit() for trainer in trainers]
    if config.plain_baseline:
        print_comparison({"meta adversarial training": results[0].report, "plain training": results[1].report})
    return results


def build_trainers(config: PatchTrainingConfig, *, resume: bool, extend: int | None) -> "list[Trainer]":
    """The trainers of the run and of its plain baseline: both are built, and so checked, before the hours of the first.

    Raises:
        UserError: as `build_run`, or the baseline is missing, or was not extended as the run is.
    """
    from mat.run import build_run
    from mat.trainer import Trainer

    resume_config = config.result_dir / "config.yaml"  # resumes both runs
    run = build_run(config, resume=resume, extend=extend, resume_config=resume_config)
    if not config.plain_baseline:
        return [Trainer(run)]
    plain_config = config.without_patches()
    if run.record.extensions and not any(plain_config.result_dir.glob("checkpoints/ckpt-*.index")):
        raise UserError(
            f"plain_baseline: true compares runs of one schedule, and {plain_config.result_dir} has no run to extend as {run.results.path} "
            f"was. Set plain_baseline: false, or first train it alone, by the same config with n_patches: 0, plain_baseline: false, "
            f"n_epochs: {run.record.extensions[0][1]} and unique_name: {plain_config.unique_name}"
        )
    extend = run.config.n_epochs if run.record.extensions else extend
    plain = build_run(plain_config, resume=resume, extend=extend, resume_config=resume_config)
    if run.record.extensions != plain.record.extensions:
        raise UserError(
            f"plain_baseline: true compares runs of one schedule, and {run.results.path} would be extended after another epoch than "
            f"{plain.results.path}. Finish both with --resume first, or set plain_baseline: false and extend each by itself"
        )
    return [Trainer(run), Trainer(plain)]


def dry_run(config: PatchTrainingConfig, *, resume: bool = False, extend: int | None = None) -> None:
    """Dry run of `train_runs`: all is read, checked and built, two steps are made, and nothing is written.

    Raises:
        UserError: as `train_runs`.
        NonFiniteLossError: the loss or a gradient of these steps is NaN or infinite.
    """
    with raised_signals(_STOPPED), demo_in_temporary_directory(config) as config:
        for trainer in build_trainers(config, resume=resume, extend=extend):
            trainer.dry_run()
    console.print("Nothing was written")


@contextlib.contextmanager
def demo_in_temporary_directory(config: PatchTrainingConfig) -> Iterator[PatchTrainingConfig]:
    """Within the block the config with the demo's data set in a temporary directory, where it is missing and would be made.

    Raises:
        UserError: it could not be made in `data_dir`.
    """
    from mat.data.reading import LABELED_SPLITS
    from mat.data.records import record_path

    if config.dataset != "demo" or all(record_path(config.data_dir, split).exists() for split in LABELED_SPLITS):
        yield config
        return
    check_writable(config.data_dir, "Change data_dir")
    console.print(f"{config.data_dir}: has no data set yet; the dry run makes it in a temporary directory")
    with tempfile.TemporaryDirectory() as directory:
        yield config.replace(data_dir=directory)


def refuse_another_directory(arguments: argparse.Namespace, config: PatchTrainingConfig) -> None:
    """Refuse to resume elsewhere with the `config.yaml` of a run that was moved, or that another working directory was meant for.

    Raises:
        UserError: the config lies in the directory of a run and names another directory, and the command line none.
    """
    path = pathlib.Path(arguments.config).absolute()
    named = any(override.split("=")[0].strip() in ("base_result_dir", "unique_name") for override in arguments.set)
    of_a_run = path.name == "config.yaml" and any(path.parent.glob("checkpoints/ckpt-*.index"))
    if of_a_run and not named and path.parent.resolve() != config.result_dir.resolve():
        places = {"base_result_dir": str(path.parent.parent), "unique_name": literal_name(path.parent.name)}
        flags = " ".join(f"--set {shlex.quote(f'{key}={json.dumps(value, ensure_ascii=False)}')}" for key, value in places.items())
        raise UserError(f"{arguments.config}: its run lies in {path.parent}, and it names {config.result_dir.absolute()}. Add {flags}")


def print_comparison(reports: dict[str, Any]) -> None:
    """Print clean and robust accuracy of evaluated runs, title -> `report.json`, as a table."""
    from mat.robustness.intervals import interval_text

    rows = [[title, *(interval_text(report["headline"][kind]) for kind in ("clean", "robust"))] for title, report in reports.items()]
    n_images = next(iter(reports.values()))["headline"]["clean"]["n_images"]
    print_table(f"Accuracy on {n_images:,} validation images, with 95 % intervals", ["", "clean", "under the worst universal patch"], rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat-train", parse_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
sys.modules[__name__].__class__ = CallableModule  # so that `mat.train` is one thing, whoever imported what before
