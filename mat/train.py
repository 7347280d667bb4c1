"""Command line: train a model with meta adversarial training as a YAML file says."""

import argparse
import json
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: its own directory is on the path, where `config` or `data` would hide other packages
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from mat import CallableModule
from mat.cli.command import load_tensorflow, run_command
from mat.cli.console import console, print_table
from mat.cli.errors import UserError
from mat.cli.paths import expand_path, literal_name
from mat.cli.signals import raised_signals
from mat.config import PatchTrainingConfig

if TYPE_CHECKING:
    from mat.trainer import TrainingResult

_STOPPED = "Stopped before training began; nothing was changed"
_EXIT_STATUSES = """
exit status:
  0 done; 2 the config, the data, the weights or the result directory are at fault; 3 the loss became NaN or infinite;
  130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, all after the step in hand is saved; 1 a bug"""


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
    return parser.parse_args(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Train as the command line says. A faulty config is reported before TensorFlow is imported, which takes seconds."""
    config = PatchTrainingConfig.from_yaml(arguments.config, arguments.set, resume=arguments.resume)
    if arguments.resume:
        refuse_another_directory(arguments, config)
    console.print(f"{arguments.config}: training into {config.result_dir}; loading TensorFlow")
    with raised_signals(_STOPPED):
        load_tensorflow()
    train_runs(config, resume=arguments.resume)


def train_runs(config: PatchTrainingConfig, *, resume: bool = False) -> "list[TrainingResult]":
    """Config -> data, model, bank and step -> loop: the run, and with `plain_baseline` the same without patches, which is compared."""
    with raised_signals(_STOPPED):
        from mat.run import build_run
        from mat.trainer import Trainer

        configs = [config, config.without_patches()] if config.plain_baseline else [config]
        resume_config = config.result_dir / "config.yaml"  # resumes both runs
        # Both are built, and so checked, before the hours of the first.
        trainers = [Trainer(build_run(each, resume=resume, resume_config=resume_config)) for each in configs]
    results = [trainer.fit() for trainer in trainers]
    if config.plain_baseline:
        print_comparison({"meta adversarial training": results[0].report, "plain training": results[1].report})
    return results


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
