"""Command line: how fast the training of a config is on this machine, and how far from what its convolutions alone would take."""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

from mat import __version__
from mat.cli.command import load_tensorflow, run_command
from mat.cli.console import console, print_facts, print_table
from mat.cli.errors import UserError
from mat.cli.files import check_writable
from mat.cli.paths import expand_path
from mat.config import PatchTrainingConfig

_PARTS = ("step", "pipeline", "bank", "checkpoint")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mat.tools.benchmark",
        description="Time the training step, the input pipeline, the start and a checkpoint of a config. The last line printed is one JSON "
        "object. Where data_dir has no records, synthetic ones stand in. docs/performance.md tells what the numbers mean.",
    )
    parser.add_argument("config", metavar="CONFIG", type=expand_path, help="YAML file, such as configs/mat.yaml")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="replace a key of the config, as in mat/train.py")
    parser.add_argument("--repeats", metavar="N", type=int, default=5, help="rounds that the medians are of (default: 5)")
    parser.add_argument("--only", metavar="PART", choices=_PARTS, help=f"measure one part: {', '.join(_PARTS)}")
    parser.add_argument("--breakdown", action="store_true", help="also time SELECT, I-FGSM, OPT and REPTILE, each alone")
    parser.add_argument("--profile", metavar="DIR", type=expand_path, help="also write a TensorFlow profile of one step, for TensorBoard")
    parsed = parser.parse_args(arguments)
    if parsed.repeats < 1:
        parser.error(f"--repeats must be at least 1. Received: {parsed.repeats}")
    return parsed


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure what is asked for; print what was found and, last, the JSON object."""
    config = PatchTrainingConfig.from_yaml(arguments.config, arguments.set)
    if (arguments.breakdown or arguments.profile) and arguments.only not in (None, "step"):
        raise UserError(f"--breakdown and --profile are of the step. Received: --only {arguments.only}")
    if arguments.profile:
        check_writable(arguments.profile, "Change --profile")
    console.print(f"{arguments.config}: loading TensorFlow")
    load_tensorflow()
    from mat.cli.devices import report_device_errors

    with report_device_errors(
        lambda: f"batch_size: {config.batch_size} and width: {config.width} take too much. Try --set with smaller ones"
    ):
        result = measure(config, arguments)
    print(json.dumps(result), flush=True)


def measure(config: PatchTrainingConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts that are asked for, and print what each found; returns all results, ready for JSON."""
    import keras
    import tensorflow as tf

    from mat.cli.devices import device_name, use_xla
    from mat.tools.file_timing import measure_checkpoint, measure_data
    from mat.tools.step_timing import measure_step

    parts = _PARTS if arguments.only is None else (arguments.only,)
    versions = {"mat": __version__, "python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__}
    result = {"config": config.to_values(), "versions": versions, "device": device_name(), "xla": use_xla(config.jit_compile)}
    print_facts("benchmark", versions | {"device": result["device"], "xla": result["xla"]})
    if "pipeline" in parts or "bank" in parts:
        result |= print_found("data", measure_data(config, parts, arguments.repeats))
    if "checkpoint" in parts:
        result |= print_found("checkpoint", measure_checkpoint(config, arguments.repeats))
    if "step" in parts:
        found = measure_step(config, arguments.repeats, breakdown=arguments.breakdown, profile=arguments.profile)
        result |= print_found("training step", found)
    return result


def print_found(part: str, found: dict[str, Any]) -> dict[str, Any]:
    """Print the results of a part: values under their names in the JSON object, and a table of the convolutions; returns them."""
    if layers := found.get("convolutions"):
        print_table("convolutions, each alone", list(layers[0]), [list(map(_text, layer.values())) for layer in layers])
    print_facts(part, {name: _text(value) for name, value in found.items() if not isinstance(value, (list, dict))})
    if parts := found.get("breakdown"):
        shares = {name: f"{seconds:.4g} s, {seconds / found['step_seconds']:.1%} of the step" for name, seconds in parts.items()}
        print_facts("breakdown, each part compiled and timed alone", shares)
    return found


def _text(value):
    """A result in words: four digits, shapes as in 3x3x16."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat.tools.benchmark", parse_arguments, benchmark, arguments)


if __name__ == "__main__":
    sys.exit(main())
