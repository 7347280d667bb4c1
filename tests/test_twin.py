"""Attacks in another precision than training: the twin of a network."""

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.config import PatchTrainingConfig
from mat.models import create_model
from mat.run import create_step, create_twin
from mat.tools.step_timing import noise_bank, noise_batch
from tests.conftest import SMALL

KEYS = SMALL | {"batch_size": 6, "n_patches": 7, "n_patch_trials": 3}


def test_no_twin_where_the_precision_is_the_same():
    for keys, twin in [
        ({}, False),
        ({"attack_precision": "float32"}, False),
        ({"precision": "tensorfloat32", "attack_precision": "float32"}, False),
        ({"precision": "mixed_bfloat16", "attack_precision": "bfloat16"}, False),
        ({"attack_precision": "bfloat16", "n_patches": 0}, False),
        ({"attack_precision": "bfloat16"}, True),
        ({"precision": "mixed_bfloat16", "attack_precision": "float32"}, True),
    ]:
        config = PatchTrainingConfig(**KEYS | keys)
        assert (create_twin(config, create_model(config)) is not None) is twin, keys


@pytest.mark.parametrize("normalization", ["strip", "batch"])
def test_attacks_are_those_of_the_other_precision_and_training_is_not(normalization):
    """A float32 network attacked in bfloat16, beside a bfloat16 network of the same weights, which gives the attack."""
    configs = [PatchTrainingConfig(**KEYS, normalization=normalization, attack_precision="bfloat16")]
    configs.append(configs[0].replace(precision="mixed_bfloat16", attack_precision="same"))
    steps = [create_step(config, create_model(config), noise_bank(config)) for config in configs]
    batch = noise_batch(configs[0], 6)
    for _ in range(2):  # before and after the weights have changed
        steps[1].model.set_weights(steps[0].model.get_weights())
        steps[1].bank.patches.assign(steps[0].bank.patches)
        steps[1].step.assign(steps[0].step)
        steps[0].bank.step_sizes.assign(steps[1].bank.step_sizes)
        attacks = [tf.function(step.attack, autograph=False)(*batch) for step in steps]
        for one, other in zip(*attacks, strict=True):
            np.testing.assert_array_equal(one, other)
        plain = create_step(configs[0].replace(n_patches=0), create_model(configs[0]), None)
        plain.model.set_weights(steps[0].model.get_weights())
        steps[0].optimizer.learning_rate.assign(0.01)
        steps[0].bank.step_sizes.assign(tf.zeros(7))  # so that it trains on selected patches, which rounding does not change
        patched = tf.function(steps[0].attack, autograph=False)(*batch)[0]
        loss, accuracy = steps[0].train_on_batch(*batch)
        np.testing.assert_allclose([loss, accuracy], plain.train_on_batch(patched, batch[1]), rtol=1e-6)


def test_saved_networks_have_no_twin():
    with pytest.raises(UserError, match=r"attack_precision: bfloat16 has no effect on network: .net.keras.* Set attack_precision: same"):
        PatchTrainingConfig(network="net.keras", attack_precision="bfloat16")
