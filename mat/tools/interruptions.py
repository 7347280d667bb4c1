"""Interrupt a small training run again and again, resume it each time, and compare what it ends with to an uninterrupted run's.

python -m mat.tools.interruptions [--kills N] [--seed N] [--directory DIR]

The run is killed (SIGKILL) at random moments: at any time from its start on, while a checkpoint is being written, some time after one, in
turns; and stopped once by SIGTERM and once by Ctrl-C. The exit status is 1 where anything differs: weights, bank, momentum, log.csv,
which values TensorBoard has.
"""

import argparse
import filecmp
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import yaml

from mat.cli.command import load_tensorflow, run_command
from mat.cli.paths import expand_path
from mat.results.run_files import BANK_FILE, LOG_FILE

_TRAIN = pathlib.Path(__file__).parent.parent / "train.py"
_SIZES = {"image_size": 32, "n_classes": 10}
_CONFIG = _SIZES | {"depth": 8, "width": 1, "n_stacks": 1, "batch_size": 8, "n_patches": 20, "patch_shape": [8, 8, 3], "n_patch_trials": 2}
_CONFIG |= {"optimizer": {"n_iterations": 1}, "robust_evaluation": "none", "checkpoint_every_minutes": 0.001}
_EPOCHS_PER_INTERRUPTION = 3
_START_SECONDS, _MAX_START_SECONDS = 10.0, 120.0  # what starting and the first steps take: about, and at most
_MOMENTS = ("within a checkpoint", "at any time", "after a checkpoint")
_NOT_COMPARED = ("save_counter/", "_CHECKPOINTABLE", "record/")  # the record is compared as log.csv


def compare(directory: str | pathlib.Path, n_kills: int, seed: int) -> tuple[list[tuple], list[str]]:
    """Make both runs in an empty directory.

    Returns:
        (signal, moment, exit status, newest checkpoint left, whether another one was half-written) of each interruption, and the names of
        what differs between the runs' ends.

    Raises:
        RuntimeError: a run ended otherwise than it was made to.
    """
    from mat.tools.synthetic import make_synthetic_records

    directory, rng = pathlib.Path(directory), random.Random(seed)
    interruptions = [(signal.SIGKILL, _MOMENTS[i % len(_MOMENTS)]) for i in range(n_kills)]
    interruptions += [(signal.SIGTERM, "after a checkpoint"), (signal.SIGINT, "after a checkpoint")]
    rng.shuffle(interruptions)
    make_synthetic_records(directory, n_train=40, n_validation=10, **_SIZES)
    config = _CONFIG | {"base_result_dir": ".", "data_dir": ".", "n_epochs": _EPOCHS_PER_INTERRUPTION * len(interruptions)}
    (directory / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    _end(_start(directory, "whole"), 0)
    happened = [_interrupt_once(directory, number, moment, rng) for number, moment in interruptions]
    _end(_start(directory, "interrupted", "--resume"), 0)
    return happened, _differences(directory / "whole", directory / "interrupted")


def _start(directory, name, *flags):
    command = [sys.executable, str(_TRAIN), "config.yaml", "--set", f"unique_name={name}", *flags]
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _end(process, expected):
    """Wait for the end of a run, which must be of an exit status and without a traceback."""
    _, errors = process.communicate()
    if process.returncode != expected or b"Traceback" in errors:
        raise RuntimeError(f"exit status {process.returncode}, expected {expected}: {errors.decode()[-2000:]}")


def _interrupt_once(directory, number, moment, rng):
    """Start or resume the run, and send it a signal at a moment; returns what happened, see `compare`."""
    checkpoints = directory / "interrupted" / "checkpoints"
    before, _ = _checkpoints(checkpoints)
    process = _start(directory, "interrupted", "--resume")
    if moment == "at any time":  # but not so late that a fast machine is through
        _wait(process, rng.uniform(0, _START_SECONDS), lambda: _checkpoints(checkpoints)[0] >= before + 4)
    else:
        _wait(process, _MAX_START_SECONDS, lambda: _checkpoints(checkpoints)[0] > before)
        time.sleep(rng.uniform(0, 0.3))
    if moment == "within a checkpoint":
        _wait(process, _MAX_START_SECONDS, lambda: _checkpoints(checkpoints)[1], pause=0)
        time.sleep(rng.uniform(0, 0.005))
    process.send_signal(number)
    _end(process, -number if number == signal.SIGKILL else 128 + number)
    newest, half_written = _checkpoints(checkpoints)
    return number.name, moment, process.returncode, newest, half_written


def _wait(process, seconds, condition, pause=0.01):
    """Wait for a condition, but no longer than some seconds or the process."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not condition():
        time.sleep(pause)


def _checkpoints(directory):
    """The number of the newest whole checkpoint, 0 without one, and whether there are files of one that is not whole."""
    names = {path.name.split(".")[0] for path in directory.glob("ckpt-*")}
    whole = {path.stem for path in directory.glob("ckpt-*.index")}
    return max((int(name.removeprefix("ckpt-")) for name in whole), default=0), bool(names - whole)


def _differences(one, other):
    """The names of files and variables that differ between the result directories of two runs."""
    import numpy as np
    import tensorflow as tf

    from mat.results.events import written_tags

    names = {LOG_FILE, BANK_FILE, *(path.name for run in (one, other) for path in run.glob("*.h5"))}
    _, different, missing = filecmp.cmpfiles(one, other, sorted(names), shallow=False)
    readers = [tf.train.load_checkpoint(tf.train.latest_checkpoint(str(run / "checkpoints"))) for run in (one, other)]
    for name in readers[0].get_variable_to_shape_map():
        if not name.startswith(_NOT_COMPARED) and not np.array_equal(readers[0].get_tensor(name), readers[1].get_tensor(name)):
            different.append(name)
    return different + missing + ([] if written_tags(one / "events") == written_tags(other / "events") else ["events"])


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(prog="python -m mat.tools.interruptions", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--directory", type=expand_path, help="where the runs go, an empty directory (default: a temporary one)")
    return parser.parse_args(arguments)


def interrupt(arguments: argparse.Namespace) -> int:
    """Make the runs and print what happened; returns 1 where anything differs, else 0."""
    load_tensorflow()
    with tempfile.TemporaryDirectory() as temporary:
        happened, different = compare(arguments.directory or temporary, arguments.kills, arguments.seed)
    for name, moment, status, newest, half_written in happened:
        left = f"ckpt-{newest}" if newest else "none"
        print(f"{name:<8} {moment:<20} exit status {status:>4}, checkpoint: {left}{', another half-written' if half_written else ''}")
    n_half = sum(half_written for *_, half_written in happened)
    print(f"{len(happened)} interruptions, {n_half} of them within a checkpoint; different: {', '.join(different) or 'nothing'}")
    return int(bool(different))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat.tools.interruptions", parse_arguments, interrupt, arguments)


if __name__ == "__main__":
    sys.exit(main())
