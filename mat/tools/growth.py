"""Command line: how the time and the memory of a training step grow with what a config sets. Prints the table of docs/performance.md."""

import argparse
import json
import math
import subprocess
import sys

from mat.cli.command import run_command
from mat.cli.files import expand_path

SERIES = {
    "batch_size": [8, 32, 128],
    "n_patches": [10, 1000, 100_000],
    "n_patch_trials": [1, 5, 10],
    "optimizer.n_iterations": [0, 5, 10],
    "image_size": [64, 128],
    "width": [1, 2, 4],
}


def parse_arguments(arguments):
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mat.tools.growth",
        description="Time the training step of a config while one key at a time changes, each in a process of its own.",
    )
    parser.add_argument("config", metavar="CONFIG", type=expand_path, help="YAML file, such as configs/mat.yaml")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="replace a key of the config")
    parser.add_argument("--repeats", metavar="N", type=int, default=3, help="rounds that the medians are of (default: 3)")
    parser.add_argument(
        "--keys", metavar="KEY", nargs="+", choices=list(SERIES), default=list(SERIES), help="keys to change (default: all)"
    )
    return parser.parse_args(arguments)


def measure(arguments, key, value):
    """The benchmark's result for a config with one more key replaced."""
    settings = [word for setting in (*arguments.set, f"{key}={value}") for word in ("--set", setting)]
    command = [sys.executable, "-m", "mat.tools.benchmark", arguments.config, *settings]
    run = subprocess.run([*command, "--only", "step", "--repeats", str(arguments.repeats)], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(run.returncode)  # the benchmark has said why
    return json.loads(run.stdout.splitlines()[-1])


def exponent(one, other, values):
    """e of `quantity ~ value^e` between two of its values."""
    return f"{math.log(other / one) / math.log(values[1] / values[0]):.2f}" if values[0] else ""


def grow(arguments):
    """Run the series; a row is printed as soon as it is measured."""
    print("| key | value | s a step | exponent | GFLOP a step | its exponent | plain step, s | peak memory, GiB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for key in arguments.keys:
        before = None
        for value in SERIES[key]:
            result = measure(arguments, key, value)
            seconds, gflop = result["step_seconds"], result["step_seconds"] * result["step_gflops"]
            exponents = ["", ""]
            if before:
                exponents = [exponent(one, other, (before[0], value)) for one, other in zip(before[1:], (seconds, gflop), strict=True)]
            cells = [f"`{key}`", f"{value:,}", f"{seconds:.3f}", exponents[0], f"{gflop:,.0f}", exponents[1]]
            cells += [f"{result['plain_step_seconds']:.3f}", f"{result['peak_memory_bytes'] / 2**30:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)
            before = value, seconds, gflop


def main(arguments=None):
    """Run the command; returns the exit status."""
    return run_command("mat.tools.growth", parse_arguments, grow, arguments)


if __name__ == "__main__":
    sys.exit(main())
