"""Command line: measure a model's accuracy under universal patch attacks."""

import argparse
import pathlib
import sys

if not __package__:  # run as a file: its own directory is on the path, where `config` or `data` would hide other packages
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from mat.cli.command import load_tensorflow, run_command
from mat.cli.console import console
from mat.cli.paths import expand_path
from mat.cli.signals import raised_signals
from mat.config import EvaluationConfig, PatchTrainingConfig
from mat.models.other_files import refuse_other_files
from mat.robustness.store import report_path

_EXIT_STATUSES = """
exit status:
  0 done; 2 the config, the data, the weights, the patches or the report directory are at fault;
  130 Ctrl-C, 143 SIGTERM, 129 SIGHUP; 1 a bug"""

PATHS = {  # options: metavariable, meaning
    "--weights": ("FILE", "weights to evaluate: the original's HDF5 or Keras 3's .weights.h5"),
    "--output": ("DIR", "where the report goes (default: beside FILE, its name with _evaluation)"),
    "--bank": ("FILE", "patches.npz to start attacks from (default: the one beside the weights, if any)"),
    "--patches-from": ("RUN", "also try the patches that an evaluation fitted on another model"),
}
KEYS = {"attacks": "NAME[,NAME]", "max_images": "N", "restarts": "N", "iterations": "N"}  # options for keys of `evaluation`: metavariable


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(
        prog="mat-evaluate",
        description="Measure a model's accuracy on clean images and under universal patch attacks, and write a report.",
        epilog=EvaluationConfig.key_list() + _EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    meaning = "YAML file of the model, such as configs/evaluation.yaml or a run's config.yaml"
    parser.add_argument("config", metavar="CONFIG", type=expand_path, help=meaning)
    for name, (metavar, meaning) in PATHS.items():
        parser.add_argument(name, metavar=metavar, required=name == "--weights", type=expand_path, help=meaning)
    parser.add_argument("--resume", action="store_true", help="continue an interrupted evaluation in DIR")
    parser.add_argument("--quick", action="store_true", help="a first look: white-box only, one start and step size, few iterations")
    for name, metavar in KEYS.items():
        to_yaml = "[{}]".format if name == "attacks" else str
        meaning = f"the same as --set evaluation.{name}={to_yaml(metavar)}"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, type=to_yaml, help=meaning)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="replace a key of the config, any number of times")
    return parser.parse_args(arguments)


def read_config(arguments: argparse.Namespace) -> PatchTrainingConfig:
    """The config with the protocol that the command line asks for; what it asks for by name wins over `--quick`."""
    given = {name: value for name in KEYS if (value := getattr(arguments, name)) is not None}
    overrides = [*arguments.set, *(f"evaluation.{name}={value}" for name, value in given.items())]
    config = PatchTrainingConfig.from_yaml(arguments.config, overrides)
    if not arguments.quick:
        return config
    named = {override.partition("=")[0].strip() for override in overrides}
    kept = {name: value for name, value in config.evaluation if f"evaluation.{name}" in named}
    return config.replace(evaluation=config.evaluation.quick().replace(**kept))


@raised_signals("Stopped; what was fitted is kept: run the same command with --resume")
def run(arguments: argparse.Namespace) -> None:
    """Evaluate a weights file; the config is reported on before the seconds that TensorFlow takes to import."""
    config, weights = read_config(arguments), pathlib.Path(arguments.weights)
    refuse_other_files(weights)
    directory = pathlib.Path(arguments.output) if arguments.output else report_path(weights, quick=arguments.quick)
    console.print(f"{weights}: evaluating into {directory}; loading TensorFlow")
    load_tensorflow()
    from mat.cli.devices import configure
    from mat.data.splits import read_splits
    from mat.models import create_model, load_weights
    from mat.robustness.measure import measure_robustness

    configure(precision=config.precision, deterministic=config.deterministic)
    model = create_model(config)
    load_weights(model, weights)
    bank = arguments.bank
    if bank is None and "bank" in config.evaluation.starts and (found := weights.with_name("patches.npz")).is_file():
        bank = found
    splits = read_splits(config.dataset, config.data_dir, n_classes=config.n_classes, max_bad_records=config.bad_records_allowed)
    options = {"bank": bank, "patches_from": arguments.patches_from, "resume": arguments.resume}
    measure_robustness(config, model, splits, directory, weights=weights, **options)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat-evaluate", parse_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
