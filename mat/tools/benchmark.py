"""Command line: how fast the training of a config is on this machine, and how far from what its convolutions alone would take."""

import argparse
import dataclasses
import json
import sys

from mat.cli.command import run_command
from mat.cli.config_keys import plain_values
from mat.cli.console import console, print_facts, print_table
from mat.cli.environment import load_tensorflow
from mat.cli.errors import UserError
from mat.cli.files import expand_path
from mat.config import PatchTrainingConfig

PARTS = ("step", "pipeline", "bank", "checkpoint")


def parse_arguments(arguments):
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mat.tools.benchmark",
        description="Time the training step, the input pipeline, the start and a checkpoint of a config. The last line printed is one JSON "
        "object. Where data_dir has no records, synthetic ones stand in. docs/performance.md tells what the numbers mean.",
    )
    parser.add_argument("config", metavar="CONFIG", type=expand_path, help="YAML file, such as configs/mat.yaml")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="replace a key of the config, as in mat/train.py")
    parser.add_argument("--repeats", metavar="N", type=int, default=5, help="rounds that the medians are of (default: 5)")
    parser.add_argument("--only", metavar="PART", choices=PARTS, help=f"measure one part: {', '.join(PARTS)}")
    parser.add_argument("--breakdown", action="store_true", help="also time SELECT, I-FGSM, OPT and REPTILE, each alone")
    parser.add_argument("--profile", metavar="DIR", type=expand_path, help="also write a TensorFlow profile of one step, for TensorBoard")
    parsed = parser.parse_args(arguments)
    if parsed.repeats < 1:
        parser.error(f"--repeats must be at least 1. Received: {parsed.repeats}")
    return parsed


def benchmark(arguments):
    """Measure what is asked for; print tables and, last, the JSON object."""
    config = PatchTrainingConfig.from_yaml(arguments.config, arguments.set)
    parts = PARTS if arguments.only is None else (arguments.only,)
    if (arguments.breakdown or arguments.profile) and "step" not in parts:
        raise UserError(f"--breakdown and --profile are of the step. Received: --only {arguments.only}")
    console.print(f"{arguments.config}: loading TensorFlow")
    load_tensorflow()
    from mat.cli.devices import memory_limits

    with memory_limits(lambda: f"batch_size: {config.batch_size} and width: {config.width} take too much. Try --set with smaller ones"):
        result = measure(config, parts, arguments)
    print(json.dumps(result), flush=True)


def measure(config, parts, arguments):
    """Measure parts and print their tables; returns all results, a dict that is ready for JSON."""
    from mat.tools import timing

    result = {"config": plain_values(dataclasses.asdict(config)), **timing.environment(config)}
    print_facts("Benchmark", {"device": result["device"], "versions": ", ".join(f"{k} {v}" for k, v in result["versions"].items())})
    if "pipeline" in parts or "bank" in parts:
        with timing.records_of(config) as records:
            if "pipeline" in parts:
                result |= timing.measure_pipeline(config, records, arguments.repeats)
            if "bank" in parts:
                result |= timing.measure_bank(config, records)
        print_data(result)
    if "checkpoint" in parts:
        result |= timing.measure_checkpoint(config, arguments.repeats)
        written = f"{result['checkpoint_seconds']:.2f} s to write {result['checkpoint_bytes'] / 1e6:.1f} MB"
        print_facts("Checkpoint", {"one": f"{written}, {result['restore_seconds']:.2f} s to restore"})
    if "step" in parts:
        result |= timing.measure_step(config, arguments.repeats, breakdown=arguments.breakdown, profile=arguments.profile)
        print_step(result)
    return result


def print_step(result):
    """The tables of `measure_step`."""
    rows = [
        [layer["name"], "x".join(map(str, layer["input"])), "x".join(map(str, layer["kernel"])), f"{1e3 * layer['seconds']:.2f}"]
        + [f"{layer['gflops']:.0f}", str(layer["forward_equivalents"])]
        for layer in result["convolutions"]
    ]
    header = ["convolution alone", "input", "kernel", "ms", "GFLOP/s", "times a step"]
    print_table(f"Convolutions, batch {result['config']['batch_size']}, {result['config']['precision']}", header, rows)
    share_of_best = result["step_gflops"] / result["best_conv_gflops"]
    facts = {
        "step": f"{result['step_seconds']:.3f} s, {result['images_per_second']:.1f} images/s, {result['step_gflops']:.0f} GFLOP/s",
        "its convolutions alone": f"{result['conv_bound_seconds']:.3f} s: {result['fraction_of_conv_bound']:.1%} of the step",
        "best convolution": f"{result['best_conv_gflops']:.0f} GFLOP/s: the step does {share_of_best:.1%}",
        "plain step": f"{result['plain_step_seconds']:.3f} s, its convolutions {result['plain_fraction_of_conv_bound']:.1%} of it",
        "MAT / plain": f"{result['mat_to_plain_ratio']:.2f}",
        "first step": f"{result['first_step_seconds']:.1f} s of tracing and compilation",
        "peak memory": f"{result['peak_memory_bytes'] / 2**30:.2f} GiB",
    }
    print_facts(f"Training step, medians of {result['repeats']}, XLA {'on' if result['xla'] else 'off'}", facts)
    if "breakdown" in result:
        rows = [[name, f"{1e3 * seconds:.1f}", f"{seconds / result['step_seconds']:.1%}"] for name, seconds in result["breakdown"].items()]
        print_table("Parts of the step, each compiled and timed alone", ["", "ms", "of the step"], rows)


def print_data(result):
    """What `measure_pipeline` and `measure_bank` found."""
    facts = {"records": result["records"]}
    if "pipeline_images_per_second" in result:
        ours, plain = result["pipeline_images_per_second"], result["plain_pipeline_images_per_second"]
        facts["pipeline"] = f"{ours:,.0f} images/s, {ours / plain:.2f} times a plain one ({plain:,.0f})"
    if "sample_bank_seconds" in result:
        facts["reading and checking"] = f"{result['read_seconds']:.2f} s"
        facts["sampling the bank"] = f"{result['sample_bank_seconds']:.2f} s"
    print_facts("Data", facts)


def main(arguments=None):
    """Run the command; returns the exit status."""
    return run_command("mat.tools.benchmark", parse_arguments, benchmark, arguments)


if __name__ == "__main__":
    sys.exit(main())
