"""A run on logical CPU devices, which tests/test_distribution.py starts: python replicas.py CONFIG N_DEVICES OUTPUT.

0 devices mean no strategy.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf

import mat.run
from mat.config import PatchTrainingConfig
from mat.distribution.replicas import at_own_place, sum_over_replicas
from mat.distribution.strategy import run_everywhere
from mat.models import create_model
from mat.robustness.universal import UniversalAttacks
from mat.trainer import Trainer
from tests.conftest import SMALL


def main(config_path: str, n_devices: int, output: str) -> None:
    """Train, and write what each step's attack gave, and the run's end, into the directory `output`."""
    config, strategy = PatchTrainingConfig.from_yaml(config_path), tf.distribute.get_strategy()
    if n_devices:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * n_devices)
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(n_devices)])
    mat.run.make_strategy = lambda _: strategy
    run = mat.run.build_run(config.replace(unique_name=f"replicas_{n_devices}"))
    train_on_batch, attacks, first_bank = run.step.train_on_batch, [], run.bank.patches.numpy()

    def attack(images, labels):
        _, *attacked, offsets = run.step.attack(images, labels)
        shares = [tf.cast(share, tf.float32) for share in (*attacked, offsets)]
        return [whole[: config.batch_size] for whole in sum_over_replicas([at_own_place(share) for share in shares])]

    attack_everywhere = tf.function(lambda *batch: run_everywhere(strategy, attack, *batch), autograph=False)

    def train(*batch):
        attacks.append([each.numpy() for each in attack_everywhere(*batch)])
        return train_on_batch(*batch)

    run.step.train_on_batch = train
    model = Trainer(run).fit().model
    refined, indices, offsets = (np.stack(each) for each in zip(*attacks, strict=True))
    arrays = {"refined": refined, "indices": indices, "offsets": offsets, "first_bank": first_bank, "bank": run.bank.patches.numpy()}
    arrays["weights"] = np.concatenate([weight.ravel() for weight in model.get_weights()])
    arrays["velocities"] = np.concatenate([velocity.numpy().ravel() for velocity in run.step.optimizer.velocities])
    arrays["rows"] = np.array([[row[key] for key in ("loss", "accuracy", "validation_accuracy")] for row in run.record.rows])
    if n_devices < 4:  # its functions take long to trace on each device
        arrays |= evaluate(strategy)
    np.savez(pathlib.Path(output) / f"{n_devices}.npz", **arrays)


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
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
