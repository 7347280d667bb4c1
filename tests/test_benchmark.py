"""The benchmark command: what it measures and prints, and that its counts are those of the network."""

import json
import math

import pytest
import tensorflow as tf

from mat.config import PatchTrainingConfig
from mat.models import create_model
from mat.models.kernels import forward_flops
from mat.tools import file_timing
from mat.tools.benchmark import main
from mat.tools.step_timing import bare_convolutions, noise_bank, noise_batch, noise_step, passes
from tests.conftest import SMALL

SETTINGS = {**SMALL, "batch_size": 4, "n_patches": 5, "n_patch_trials": 2, "patch_shape": [4, 4, 3], "deterministic": False}


@pytest.fixture
def benchmark(tmp_path, capsys, monkeypatch):
    """A function from flags and replaced keys to the benchmark's exit status, its output, and the JSON object or the message at its end."""
    monkeypatch.setattr(file_timing, "N_SYNTHETIC", {"n_train": 60, "n_validation": 5})
    monkeypatch.setattr(file_timing, "PIPELINE_SECONDS", 0.05)

    def run(*flags, **keys):
        (tmp_path / "config.yaml").write_text(json.dumps(SETTINGS | {"data_dir": str(tmp_path / "none")} | keys))
        status = main([str(tmp_path / "config.yaml"), *flags])
        output, errors = capsys.readouterr()
        return status, output, errors if status else json.loads(output.splitlines()[-1])

    return run


def test_all_parts_are_measured_without_data(tmp_path, benchmark):
    status, output, result = benchmark("--repeats", "2", "--breakdown", "--profile", str(tmp_path / "profile"), attack_precision="bfloat16")
    assert status == 0
    assert "60 synthetic ones" in output
    measured = [key for key in result if key.endswith(("_seconds", "_per_second", "_gflops", "_bytes")) and not key.startswith("all_")]
    assert len(measured) == 15
    assert all(result[key] > 0 for key in measured)
    layers, n = result["convolutions"], result["config"]["n_patch_trials"] + 2 * result["config"]["optimizer"]["n_iterations"]  # of attacks
    seconds = [n * layer["attack_seconds"] + (layer["forward_equivalents"] - n) * layer["seconds"] for layer in layers]
    assert all(layer["attack_seconds"] != layer["seconds"] for layer in layers)  # as they are in another precision
    assert result["conv_bound_seconds"] == pytest.approx(sum(seconds))
    assert result["fraction_of_conv_bound"] == pytest.approx(result["conv_bound_seconds"] / result["step_seconds"])
    assert sorted(result["breakdown"]) == ["I-FGSM", "OPT", "REPTILE", "SELECT"]
    assert result["config"]["patch_shape"] == [4, 4, 3]
    assert len(result["all_step_seconds"]) == 2
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_one_part_alone_and_plain_training(benchmark):
    _, _, result = benchmark("--only", "step", "--repeats", "1", n_patches=0)
    assert "sample_bank_seconds" not in result
    assert [layer["forward_equivalents"] for layer in result["convolutions"]][:3] == [2, 3, 3]
    _, _, result = benchmark("--only", "bank")
    assert "step_seconds" not in result
    assert result["sample_bank_seconds"] > 0


def test_the_work_of_a_step_is_counted_in_forward_passes():
    model = create_model(PatchTrainingConfig(**SETTINGS))
    convolutions = bare_convolutions(model, 4, "float32")
    assert passes(3, 5, 5) == [(15, 2), (15, 3), (15, 3)]
    assert passes(3, 1, 0) == passes(3, 0, 0) == [(0, 2), (0, 3), (0, 3)]  # one trial: nothing to evaluate
    dense = 2 * math.prod(model.get_layer("dense").kernel.shape)
    assert sum(gflop for _, gflop, _ in convolutions) == pytest.approx(4 * 1e-9 * (forward_flops(model) - dense))


def test_steps_on_noise_stay_finite():
    """A step that is not finite updates nothing, so that less than a step would be timed."""
    config = PatchTrainingConfig(**SETTINGS)
    step = noise_step(config, create_model(config), noise_bank(config))
    for _ in range(5):
        loss, _ = step.train_on_batch(*noise_batch(config, config.batch_size))
    assert (int(step.failed_step), int(step.step)) == (-1, 5)
    assert tf.math.is_finite(loss)


def test_faults_are_told_in_one_message(tmp_path, benchmark):
    (tmp_path / "file").write_text("")
    profile = str(tmp_path / "file" / "profile")
    for flags, keys, words in [
        ([], {"width": 0}, "width"),
        (["--only", "bank", "--breakdown"], {}, "--only bank"),
        (["--only", "step", "--profile", profile], {}, "--profile"),
    ]:
        status, _, errors = benchmark(*flags, **keys)
        assert status == 2
        assert words in errors
        assert len(errors.splitlines()) == 1
    with pytest.raises(SystemExit):
        benchmark("--repeats", "0")
