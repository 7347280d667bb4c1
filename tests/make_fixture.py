"""What this version writes, for later versions to be tested on: python -m tests.make_fixture writes tests/fixtures/VERSION.

A run of two epochs that was stopped in the second, and its data. Released versions' fixtures stay as they are.
"""

import json
import pathlib
import shutil

import numpy as np

from mat import __version__
from mat.cli.errors import StoppedError
from mat.config import OptimizerConfig, PatchTrainingConfig
from mat.models import load_weights
from tests.conftest import TINY, stop_at, trainer_of, write_tiny_split

FIXTURES = pathlib.Path("tests/fixtures")  # relative, because the files keep it: run from the root of the checkout


def state_of(trainer):
    """The arrays of a trainer's state by their kind."""
    run = trainer.run
    arrays = {"weights": run.model.weights, "momentum": run.step.optimizer.velocities, "patches": [run.bank.patches]}
    return {kind: [array.numpy() for array in values] for kind, values in arrays.items()}


def sums(arrays):
    """The sum of the magnitudes of each kind of arrays: enough to tell whether they are the same."""
    return {kind: float(sum(np.abs(array.astype(np.float64)).sum() for array in values)) for kind, values in arrays.items()}


def main():
    """Write the fixture of this version."""
    directory = FIXTURES / __version__
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "data").mkdir(parents=True)
    write_tiny_split(directory / "data", "train", np.arange(32) % 4)
    write_tiny_split(directory / "data", "validation", np.arange(12) % 4)
    keys = TINY | {"n_stacks": 1, "optimizer": OptimizerConfig(n_iterations=1), "checkpoints_to_keep": 1}
    trainer = trainer_of(PatchTrainingConfig(**keys, data_dir=str(directory / "data"), base_result_dir=str(directory)))
    stop_at(trainer, step=6)
    try:
        trainer.fit()
    except StoppedError:
        shutil.rmtree(directory / "run" / "events")  # TensorBoard's own format
        (directory / "run" / "checkpoints" / "lock").unlink()
    expected = {"checkpoint": sums(state_of(trainer))}
    load_weights(trainer.run.model, directory / "run" / "tiny_imagenet_weights_000.h5")
    patches = np.load(directory / "run" / "patches.npz")["patches"]
    expected["epoch"] = sums({"weights": trainer.run.model.get_weights(), "patches": [patches]})
    (directory / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
