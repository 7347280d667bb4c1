"""Interrupt a small training run again and again, resume it each time, and compare what it ends with to an uninterrupted run's.

python -m mat.tools.interruptions [--kills N] [--seed N] [--directory DIR]

The run is killed (SIGKILL) at random moments: at any time from its start on, while a checkpoint is being written, some time after one, in
turns; and stopped once by SIGTERM and once by Ctrl-C. The exit status is 1 where anything differs: weights, bank, momentum, log.csv,
which values TensorBoard has.
"""

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import yaml

from mat.cli.command import run_command
from mat.cli.environment import load_tensorflow
from mat.cli.files import expand_path

TRAIN = pathlib.Path(__file__).parent.parent / "train.py"
CONFIG = {
    "image_size": 32,
    "n_classes": 10,
    "depth": 8,
    "width": 1,
    "n_stacks": 1,
    "batch_size": 8,
    "n_patches": 20,
    "patch_shape": [8, 8, 3],
    "n_patch_trials": 2,
    "optimizer": {"n_iterations": 1},
    "robust_evaluation": "none",
    "checkpoint_every_minutes": 0.001,
}
N_TRAIN, N_VALIDATION = 40, 10  # images
EPOCHS_PER_INTERRUPTION = 3
START_SECONDS = 120.0  # until a started run has written a checkpoint, at most
RUN_SECONDS = 10.0  # about what starting and the first steps take
MOMENTS = ("within a checkpoint", "at any time", "after a checkpoint")
NOT_COMPARED = ("save_counter/", "_CHECKPOINTABLE", "record/")  # the record is compared as log.csv


def interrupted_run(directory, interruptions, rng):
    """Train into `directory`/`interrupted`, interrupted as said, and then to the end.

    Args:
        directory: where `config.yaml` and the data are.
        interruptions: (signal, moment) pairs, in this order; a moment is one of `MOMENTS`.
        rng: a `random.Random`, which chooses the moments more exactly.

    Returns:
        list of (signal, moment, exit status, newest checkpoint left or None, whether one was half-written), for each interruption.

    Raises:
        RuntimeError: the run ended otherwise, or made no checkpoint.
    """
    from mat.results.checkpoints import Checkpoints  # imports TensorFlow, as below

    result, happened = directory / "interrupted", []
    checkpoints = Checkpoints(result / "checkpoints", keep=1)
    for number, moment in interruptions:
        process = _start(directory, result, resume=True)
        _wait(process, checkpoints, rng, moment)
        process.send_signal(number)
        _, errors = process.communicate(timeout=START_SECONDS)
        expected = -number if number == signal.SIGKILL else 128 + number
        if process.returncode != expected or b"Traceback" in errors:
            raise RuntimeError(f"exit status {process.returncode} after {number.name}: {errors.decode()[-2000:]}")
        newest = next(iter(checkpoints.paths()), None)
        happened.append((number.name, moment, process.returncode, newest, _half_written(checkpoints)))
    _finish(_start(directory, result, resume=True))
    return happened


def uninterrupted_run(directory):
    """Train into `directory`/`whole`."""
    _finish(_start(directory, directory / "whole", resume=False))


def differences(one, other):
    """What differs between the ends of two runs' result directories, a list of words: empty where they are the same."""
    import numpy as np
    import tensorflow as tf

    from mat.results.events import written_tags

    found = [name for name in ("log.csv", "patches.npz") if (one / name).read_bytes() != (other / name).read_bytes()]
    weights = [sorted(path.name for path in run.glob("*.h5")) for run in (one, other)]
    found += [] if weights[0] == weights[1] else ["names of weights files"]
    found += [name for name in weights[0] if not (other / name).exists() or (one / name).read_bytes() != (other / name).read_bytes()]
    readers = [tf.train.load_checkpoint(tf.train.latest_checkpoint(str(run / "checkpoints"))) for run in (one, other)]
    for name in readers[0].get_variable_to_shape_map():
        if not name.startswith(NOT_COMPARED) and not np.array_equal(readers[0].get_tensor(name), readers[1].get_tensor(name)):
            found.append(name)
    found += [] if written_tags(one / "events") == written_tags(other / "events") else ["events"]
    return found


def _start(directory, result, *, resume):
    """The process of a run into `result`."""
    command = [sys.executable, str(TRAIN), "config.yaml", "--set", f"unique_name={result.name}", *(["--resume"] if resume else [])]
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _finish(process):
    """Wait for the end of a run."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {errors.decode()[-2000:]}")


def _wait(process, checkpoints, rng, moment):
    """Wait for a moment of a run."""
    if moment == "at any time":  # but not so late that a fast machine is through
        end, seen = time.monotonic() + rng.uniform(0, RUN_SECONDS), set()
        while time.monotonic() < end and len(seen) < 4:
            seen |= set(checkpoints.paths()[:1])
            time.sleep(0.01)
        return
    before, deadline = checkpoints.paths()[:1], time.monotonic() + START_SECONDS
    while checkpoints.paths()[:1] == before:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"no checkpoint was written: {process.communicate()[1].decode()[-2000:]}")
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    if moment == "within a checkpoint":
        while not _half_written(checkpoints) and process.poll() is None:
            pass
        time.sleep(rng.uniform(0, 0.005))


def _half_written(checkpoints):
    """Whether there are files of a checkpoint that is not complete."""
    names = {path.name.split(".")[0] for path in checkpoints.directory.glob("ckpt-*")}
    return bool(names - {pathlib.Path(path).name for path in checkpoints.paths()})


def compare(directory, n_kills, seed):
    """Make both runs in `directory`, which must be empty; returns what happened, as of `interrupted_run`, and the `differences`."""
    from mat.tools.synthetic import make_synthetic_records

    directory = pathlib.Path(directory)
    rng = random.Random(seed)
    interruptions = [(signal.SIGKILL, MOMENTS[i % len(MOMENTS)]) for i in range(n_kills)]
    interruptions += [(signal.SIGTERM, "after a checkpoint"), (signal.SIGINT, "after a checkpoint")]
    rng.shuffle(interruptions)
    shape = {"n_classes": CONFIG["n_classes"], "image_size": CONFIG["image_size"]}
    make_synthetic_records(directory, n_train=N_TRAIN, n_validation=N_VALIDATION, **shape)
    config = CONFIG | {"base_result_dir": ".", "data_dir": ".", "n_epochs": EPOCHS_PER_INTERRUPTION * len(interruptions)}
    (directory / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    uninterrupted_run(directory)
    happened = interrupted_run(directory, interruptions, rng)
    return happened, differences(directory / "whole", directory / "interrupted")


def parse_arguments(arguments):
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(prog="python -m mat.tools.interruptions", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--directory", type=expand_path, help="where the runs go, an empty directory (default: a temporary one)")
    return parser.parse_args(arguments)


def interrupt(arguments):
    """Make the runs and print what happened; returns 1 where anything differs, else 0."""
    load_tensorflow()
    with tempfile.TemporaryDirectory() as temporary:
        happened, different = compare(arguments.directory or temporary, arguments.kills, arguments.seed)
    for name, moment, status, newest, half_written in happened:
        left = pathlib.Path(newest).name if newest else "none"
        print(f"{name:<8} {moment:<20} exit status {status:>4}, checkpoint: {left}{', another half-written' if half_written else ''}")
    n_half = sum(half_written for *_, half_written in happened)
    print(f"{len(happened)} interruptions, {n_half} of them within a checkpoint; different: {', '.join(different) or 'nothing'}")
    return int(bool(different))


def main(arguments=None):
    """Run the command; returns the exit status."""
    return run_command("mat.tools.interruptions", parse_arguments, interrupt, arguments)


if __name__ == "__main__":
    sys.exit(main())
