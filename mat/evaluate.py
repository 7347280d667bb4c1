"""Command line: measure a model's accuracy under universal patch attacks."""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

if not __package__:  # run as a file: its own directory is on the path, where `config` or `data` would hide other packages
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from mat import CallableModule
from mat.cli.command import load_tensorflow, run_command
from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.paths import expand_path
from mat.cli.signals import raised_signals
from mat.cli.text import single_line
from mat.cli.yaml_reader import apply_override
from mat.config import EvaluationConfig, PatchTrainingConfig
from mat.data.metadata import trained_classes
from mat.models.other_files import refuse_other_files
from mat.results.run_files import BANK_FILE
from mat.robustness.store import report_path

if TYPE_CHECKING:
    import keras

    from mat.data.reading import Records
    from mat.robustness.display import Report

_EXIT_STATUSES = """
exit status:
  0 done; 2 the config, the data, the weights, the patches or the report directory are at fault;
  130 Ctrl-C, 143 SIGTERM, 129 SIGHUP; 1 a bug"""

PATHS = {  # options: metavariable, meaning
    "--weights": (
        "FILE",
        "weights to evaluate: the original's HDF5, Keras 3's .weights.h5 or .keras (default: those of network: FILE.keras)",
    ),
    "--model": ("FILE", "in place of CONFIG: a whole Keras classifier, saved as .keras; it needs --data"),
    "--data": ("DIR", "the same as --set data_dir=DIR: converted images"),
    "--output": ("DIR", "where the report goes (default: beside FILE, its name with _evaluation)"),
    "--bank": ("FILE", "patches.npz to start attacks from (default: the one beside the weights, if any)"),
}
RANGES = get_args(PatchTrainingConfig.model_fields["input_range"].annotation)
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
    parser.add_argument("config", metavar="CONFIG", nargs="?", type=expand_path, help=meaning)
    for name, (metavar, meaning) in PATHS.items():
        parser.add_argument(name, metavar=metavar, type=expand_path, help=meaning)
    meaning = "the same as --set input_range=RANGE: the pixels that an own network takes"
    parser.add_argument("--input-range", choices=RANGES, help=meaning)
    meaning = "also try these patches: PNG or another picture, .npz of this program, .npy [R, h, w, 3]"
    parser.add_argument("--patches", metavar="FILE", nargs="+", action="extend", default=[], type=expand_path, help=meaning)
    meaning = "also try the patches that an evaluation fitted on another model; may be given several times"
    parser.add_argument("--patches-from", metavar="RUN", action="append", default=[], type=expand_path, help=meaning)
    meaning = "continue an interrupted evaluation in DIR, or add patches, attacks or curves to a finished one"
    parser.add_argument("--resume", action="store_true", help=meaning)
    parser.add_argument("--quick", action="store_true", help="a first look: white-box only, one start and step size, few iterations")
    for name, metavar in KEYS.items():
        to_yaml = "[{}]".format if name == "attacks" else str
        meaning = f"the same as --set evaluation.{name}={to_yaml(metavar)}"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, type=to_yaml, help=meaning)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="replace a key of the config, any number of times")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "-1..1" in words[1:]:  # which argparse takes for an option
        position = words.index("-1..1", 1)
        words[position - 1 : position + 1] = [f"{words[position - 1]}=-1..1"]
    parsed = parser.parse_args(words)
    if (parsed.config is None) == (parsed.model is None):
        parser.error("give CONFIG, or --model FILE.keras in place of it")
    if parsed.model and (parsed.weights or not parsed.data):
        parser.error("--model FILE.keras needs --data DIR, and has its own weights in place of --weights")
    return parsed


def read_config(arguments: argparse.Namespace) -> PatchTrainingConfig:
    """The config with the protocol that the command line asks for; what it asks for by name wins over `--quick`."""
    given = {name: value for name in KEYS if (value := getattr(arguments, name)) is not None}
    overrides = [*arguments.set, *(f"evaluation.{name}={value}" for name, value in given.items())]
    given = {"data_dir": arguments.data, "input_range": arguments.input_range}
    overrides += [f"{name}={json.dumps(value)}" for name, value in given.items() if value is not None]
    config = (
        classifier_config(arguments.model, overrides) if arguments.model else PatchTrainingConfig.from_yaml(arguments.config, overrides)
    )
    if not arguments.quick:
        return config
    named = {override.partition("=")[0].strip() for override in overrides}
    kept = {name for name, _ in config.evaluation if f"evaluation.{name}" in named}
    return config.replace(evaluation=config.evaluation.quick(kept))


def classifier_config(path: str, overrides: list[str]) -> PatchTrainingConfig:
    """The config of a saved classifier, which takes TensorFlow to find out."""
    values: dict[str, Any] = {"network": path}
    for override in overrides:
        apply_override(values, override)
    console.print(f"{path}: loading TensorFlow")
    load_tensorflow()
    from mat.robustness.classifier_config import read_classifier

    return read_classifier(values)


def weights_file(arguments: argparse.Namespace, config: PatchTrainingConfig) -> pathlib.Path:
    """The file of the weights to evaluate."""
    if arguments.weights:
        if not config.own_network:
            refuse_other_files(arguments.weights)
        return pathlib.Path(arguments.weights)
    if not config.network.endswith(".keras"):
        raise UserError(f"{arguments.config}: its network: {config.network} comes without weights. Give them with --weights FILE")
    if arguments.config and pathlib.Path(arguments.config).with_name("checkpoints").is_dir():
        raise UserError(f"{arguments.config}: its run has weights of its own. Give those to evaluate with --weights FILE")
    if config.fresh_weights:
        raise UserError(
            f"fresh_weights: true puts the weights of {config.network} away. Set it to false, or give weights with --weights FILE"
        )
    return pathlib.Path(config.network)


@raised_signals("Stopped; what was fitted is kept: run the same command with --resume")
def run(arguments: argparse.Namespace) -> None:
    """Evaluate a weights file; the config is reported on before the seconds that TensorFlow takes to import."""
    config = read_config(arguments)
    weights = weights_file(arguments, config)
    directory = pathlib.Path(arguments.output) if arguments.output else report_path(weights, quick=arguments.quick)
    console.print(f"{weights}: evaluating into {directory}{'' if arguments.model else '; loading TensorFlow'}")
    if not arguments.model:
        load_tensorflow()
    given = {name: getattr(arguments, name) for name in ("bank", "patches_from", "patches", "resume")}
    from mat.distribution.workers import report_lost_workers

    with report_lost_workers("See what it says, and run the same command with --resume on all of them"):
        evaluate_network(config, weights, directory, sure_of_range=arguments.input_range is not None, **given)


def evaluate_network(
    config: PatchTrainingConfig,
    weights: pathlib.Path | None,
    directory: str | os.PathLike[str],
    *,
    model: "keras.Model | None" = None,
    splits: "tuple[Records, Records] | None" = None,
    bank: str | os.PathLike[str] | None = None,
    sure_of_range: bool = False,
    **options: Any,
) -> "Report":
    """Evaluate a network on its data, and write the report into a directory.

    Args:
        config: of the network, the data and the protocol.
        weights: the file of its weights, those in the network's own file included; None for a `model` that is given.
        directory: where the report goes.
        model: a Keras classifier in memory, in place of the config's network.
        splits: training and validation records, in place of those in `data_dir`.
        bank: `patches.npz` to start attacks from; by default the one beside the weights, if any.
        sure_of_range: whether the user named the `input_range` in this call; see `check_input_range`.
        options: `patches_from`, `patches` and `resume` of `measure_robustness`.

    Raises:
        UserError: the network, the data, a file or the directory cannot be used.
    """
    from mat.cli.devices import configure
    from mat.data.splits import class_names, read_splits
    from mat.distribution.strategy import make_strategy
    from mat.models import create_model, load_weights
    from mat.models.own_network import wrap_model
    from mat.robustness.input_range import check_input_range
    from mat.robustness.measure import measure_robustness

    strategy = make_strategy("none" if model is not None else config.distribution)  # a model in memory is this process's own
    configure(precision=config.precision, deterministic=config.deterministic)
    if model is None:
        with strategy.scope():
            model = create_model(config)
        if weights is not None and (str(weights) != config.network or config.fresh_weights):
            load_weights(model, weights)
    else:
        keys = ("image_size", "n_classes", "input_range", "logits")
        model = wrap_model(model, **{key: getattr(config, key) for key in keys})
    if bank is None and weights is not None and "bank" in config.evaluation.starts:
        beside = weights.with_name(BANK_FILE)
        bank = beside if beside.is_file() else None
    if splits is None:
        splits = read_splits(config.dataset, config.data_dir, n_classes=config.n_classes, max_bad_records=config.bad_records_allowed)
        if weights is not None:
            warn_of_other_classes(weights, class_names(config.data_dir, config.n_classes))
    check_input_range(config, model, splits[1], sure=sure_of_range)
    return measure_robustness(config, model, splits, directory, weights=weights, strategy=strategy, bank=bank, **options)


def warn_of_other_classes(weights: pathlib.Path, names: Sequence[str]) -> None:
    """Print a warning where the run that wrote the weights was trained on classes of other names: labels may mean something else."""
    pairs = zip(trained_classes(weights), names, strict=False)
    if different := [f"{one} where the data has {other}" for one, other in pairs if one != other]:
        shown = single_line(", ".join(different[:3]) + ", ..." * (len(different) > 3))
        remedy = "If they are others, the accuracies mean nothing"
        console.print(f"WARNING: {weights}: these weights were trained on other classes: {shown}. {remedy}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat-evaluate", parse_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
sys.modules[__name__].__class__ = CallableModule  # so that `mat.evaluate` is one thing, whoever imported what before
