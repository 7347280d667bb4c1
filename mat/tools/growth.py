"""Command line: how the time and the memory of a training step grow with what a config sets. Prints the table of docs/performance.md."""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence

from mat.cli.command import run_command
from mat.cli.files import expand_path

_SERIES = {
    "batch_size": [8, 32, 128],
    "n_patches": [10, 1000, 100_000],
    "n_patch_trials": [1, 5, 10],
    "optimizer.n_iterations": [0, 5, 10],
    "image_size": [64, 128],
    "width": [1, 2, 4],
}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    description = "Time the training step of a config while one key at a time changes, each in a process of its own."
    parser = argparse.ArgumentParser(prog="python -m mat.tools.growth", description=description)
    parser.add_argument("config", metavar="CONFIG", type=expand_path, help="YAML file, such as configs/mat.yaml")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="replace a key of the config")
    parser.add_argument("--repeats", metavar="N", type=int, default=3, help="rounds that the medians are of (default: 3)")
    parser.add_argument("--keys", metavar="KEY", nargs="+", choices=_SERIES, default=list(_SERIES), help="keys to change (default: all)")
    return parser.parse_args(arguments)


def measure(arguments: argparse.Namespace, key: str, value: int) -> dict:
    """The benchmark's result for a config with one more key replaced; where it fails, it has said why, and the process ends."""
    settings = [f"--set={setting}" for setting in (*arguments.set, f"{key}={value}")]
    command = [sys.executable, "-m", "mat.tools.benchmark", arguments.config, *settings, "--only=step", f"--repeats={arguments.repeats}"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(run.returncode)
    return json.loads(run.stdout.splitlines()[-1])


def grow(arguments: argparse.Namespace) -> None:
    """Run the series; a row is printed as soon as it is measured, with the e of `quantity ~ value^e` since the row above."""
    print("| key | value | s a step | exponent | GFLOP a step | its exponent | plain step, s | peak memory, GiB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for key in arguments.keys:
        above = None
        for value in _SERIES[key]:
            result = measure(arguments, key, value)
            seconds, plain, memory = result["step_seconds"], result["plain_step_seconds"], result["peak_memory_bytes"] / 2**30
            gflop = seconds * result["step_gflops"]
            exponents = ["", ""]
            if above and above[0]:
                growths = [math.log(now / then) for now, then in zip((value, seconds, gflop), above, strict=True)]
                exponents = [f"{growth / growths[0]:.2f}" for growth in growths[1:]]
            numbers = f"{seconds:.3f} | {exponents[0]} | {gflop:,.0f} | {exponents[1]} | {plain:.3f} | {memory:.2f}"
            print(f"| `{key}` | {value:,} | {numbers} |", flush=True)
            above = value, seconds, gflop


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat.tools.growth", parse_arguments, grow, arguments)


if __name__ == "__main__":
    sys.exit(main())
