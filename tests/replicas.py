"""Runs on logical CPU devices, for tests/test_distribution.py: python replicas.py CONFIG OUTPUT N [N], each by N replicas.

A process can have one device and one number of several: TensorFlow does not allow groups of two sizes.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf

import mat.run
from mat.config import PatchTrainingConfig
from mat.distribution.replicas import replica_number
from mat.models import create_model
from mat.robustness.universal import UniversalAttacks
from mat.run import build_run
from mat.trainer import Trainer
from tests.conftest import SMALL


def main(config_path: str, output: str, *numbers: str) -> None:
    """Train with each number of replicas, and write what the attacks of all steps gave, and the run's end, into the directory `output`."""
    config, cpu = PatchTrainingConfig.from_yaml(config_path), tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * max(map(int, numbers)))
    for n in map(int, numbers):
        strategy = tf.distribute.get_strategy() if n == 1 else tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(n)])
        arrays = train(config.replace(unique_name=f"replicas_{n}"), strategy)
        if n < 4:  # its functions take long to trace on each device
            arrays |= evaluate(strategy)
        np.savez(pathlib.Path(output) / f"{n}.npz", **arrays)


def train(config, strategy):
    """The results of a run by `strategy`, and what SELECT chose on the way."""
    mat.run.make_strategy = lambda _: strategy
    run = build_run(config)
    attack, first_bank = run.step.attack, run.bank.patches.numpy()
    selected = [[] for _ in range(strategy.num_replicas_in_sync)]  # of each replica, step by step

    def record(replica, indices, offsets):
        selected[replica].append(np.column_stack([indices, offsets]))
        return np.int32(0)

    def recorded_attack(images, labels):
        attacked = attack(images, labels)
        tf.numpy_function(record, [replica_number(), *attacked[2:]], tf.int32)
        return attacked

    run.step.attack = recorded_attack
    model = Trainer(run).fit().model
    return {
        "selected": np.concatenate(selected, axis=1)[:, : config.batch_size],
        "first_bank": first_bank,
        "bank": run.bank.patches.numpy(),
        "weights": np.concatenate([weight.ravel() for weight in model.get_weights()]),
        "rows": np.array([[row[key] for key in ("loss", "accuracy", "validation_accuracy")] for row in run.record.rows]),
    }


def evaluate(strategy):
    """Four universal patches, fitted on a small network side by side, and its predictions under the first."""
    rng = np.random.default_rng(0)
    images, labels = rng.random((21, 16, 16, 3), np.float32), rng.integers(0, 5, 21)
    with strategy.scope():
        model = create_model(PatchTrainingConfig(**SMALL))
    attacks = UniversalAttacks(model, images, labels, jit_compile=False, strategy=strategy)
    patches, steps = rng.random((4, 4, 4, 3), np.float32), np.full((5, 4), 0.05, np.float32)
    indices, offsets = rng.integers(0, 21, (5, 4, 3)).astype(np.int32), rng.integers(0, 13, (5, 4, 3, 2)).astype(np.int32)
    fitted, losses = attacks.fit(patches, np.array([-1, 0, 1, 2]), steps, indices, offsets)
    predictions = attacks.predict(fitted[0].numpy(), images, rng.integers(0, 13, (21, 2)).astype(np.int32), images_at_once=8)
    return {"fitted": fitted.numpy(), "losses": losses.numpy(), "predictions": predictions}


if __name__ == "__main__":
    main(*sys.argv[1:])
