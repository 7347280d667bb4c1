"""The benchmark command: what it prints, and that its counts are those of the network."""

import dataclasses
import json
import math

import pytest
import tensorflow as tf

from mat.config import OptimizerConfig, PatchTrainingConfig
from mat.models import create_model
from mat.models.resnet import forward_flops
from mat.tools import growth, timing
from mat.tools.benchmark import main
from mat.tools.conv_bound import Convolutions
from tests.conftest import SMALL

SETTINGS = {**SMALL, "batch_size": 4, "n_patches": 5, "n_patch_trials": 2, "patch_shape": [4, 4, 3], "deterministic": False}


@pytest.fixture
def synthetic(monkeypatch):
    """Few records and short timing."""
    monkeypatch.setattr(timing, "N_SYNTHETIC", {"n_train": 60, "n_validation": 5})
    monkeypatch.setattr(timing, "PIPELINE_SECONDS", 0.05)


def run(tmp_path, capsys, *flags, **keys):
    """The benchmark's exit status, its output and the JSON object at its end."""
    (tmp_path / "config.yaml").write_text("\n".join(f"{key}: {value}" for key, value in SETTINGS.items()))
    settings = [word for key, value in {"data_dir": tmp_path / "none", **keys}.items() for word in ("--set", f"{key}={value}")]
    status = main([str(tmp_path / "config.yaml"), *settings, *flags])
    output, errors = capsys.readouterr()
    return status, output, errors, json.loads(output.splitlines()[-1]) if status == 0 else None


def test_benchmark_measures_step_pipeline_and_bank_without_data(tmp_path, capsys, synthetic):
    status, output, _, result = run(tmp_path, capsys, "--repeats", "2", "--breakdown", "--profile", str(tmp_path / "profile"))
    assert status == 0
    assert "60 synthetic ones" in output
    measured = [key for key in result if key.endswith(("_seconds", "_per_second", "_gflops", "_bytes")) and not key.startswith("all_")]
    assert len(measured) == 15
    assert all(result[key] > 0 for key in measured)
    layers = result["convolutions"]
    assert result["conv_bound_seconds"] == pytest.approx(sum(layer["seconds"] * layer["forward_equivalents"] for layer in layers))
    assert result["fraction_of_conv_bound"] == pytest.approx(result["conv_bound_seconds"] / result["step_seconds"])
    assert sorted(result["breakdown"]) == ["I-FGSM", "OPT", "REPTILE", "SELECT"]
    assert result["config"]["patch_shape"] == [4, 4, 3]
    assert len(result["all_step_seconds"]) == 2
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_the_work_of_a_step_is_counted_in_forward_passes():
    config = PatchTrainingConfig(**SETTINGS)
    model = create_model(config)
    convolutions = Convolutions(model, 4, "float32")
    counts = convolutions.equivalents(5, 5)
    assert counts == [17] + [18] * (len(counts) - 1)
    assert convolutions.equivalents(1, 0)[1] == 3  # SELECT with one trial evaluates nothing
    assert convolutions.equivalents(0, 0) == [2] + [3] * (len(counts) - 1)
    dense = 2 * math.prod(model.get_layer("dense").kernel.shape)
    assert convolutions.gflop([1] * len(counts)) == pytest.approx(4 * 1e-9 * (forward_flops(model) - dense))


def test_one_part_alone_and_plain_training(tmp_path, capsys, synthetic):
    _, _, _, result = run(tmp_path, capsys, "--only", "step", "--repeats", "1", n_patches=0)
    assert "sample_bank_seconds" not in result
    assert all(layer["forward_equivalents"] == 3 - (i == 0) for i, layer in enumerate(result["convolutions"]))
    _, _, _, result = run(tmp_path, capsys, "--only", "bank")
    assert "step_seconds" not in result
    assert result["sample_bank_seconds"] > 0


def test_growth_prints_a_row_a_value_with_its_exponent(monkeypatch, capsys):
    def measure(_, key, value):
        assert key == "width"
        return {"step_seconds": 0.5 * value, "step_gflops": 4.0 * value, "plain_step_seconds": 0.1, "peak_memory_bytes": 2**30}

    monkeypatch.setattr(growth, "measure", measure)
    assert growth.main(["config.yaml", "--keys", "width"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows[0] == ["`width`", "1", "0.500", "", "2", "", "0.100", "1.00"]
    assert rows[1] == ["`width`", "2", "1.000", "1.00", "8", "2.00", "0.100", "1.00"]
    assert len(rows) == 3


def test_faults_are_told_in_one_message(tmp_path, capsys):
    status, _, errors, _ = run(tmp_path, capsys, width=0)
    assert status == 2
    assert "width" in errors
    assert len(errors.splitlines()) == 1
    status, _, errors, _ = run(tmp_path, capsys, "--only", "bank", "--breakdown")
    assert status == 2
    assert "--only bank" in errors
    (tmp_path / "file").write_text("")
    status, _, errors, _ = run(tmp_path, capsys, "--only", "step", "--profile", str(tmp_path / "file" / "profile"))
    assert status == 2
    assert "--profile" in errors
    with pytest.raises(SystemExit):
        run(tmp_path, capsys, "--repeats", "0")


def test_steps_on_noise_stay_finite():
    """A step that is not finite updates nothing, so that less than a step would be timed."""
    config = dataclasses.replace(PatchTrainingConfig(**SETTINGS), optimizer=OptimizerConfig(n_iterations=1))
    step = timing.create_step(config, create_model(config), timing.random_bank(config))
    step.optimizer.learning_rate.assign(timing.LEARNING_RATE)
    batch = timing.noise_batch(config, config.batch_size)
    for _ in range(5):
        loss, _ = step.train_on_batch(*batch)
    assert int(step.failed_step) == -1
    assert tf.math.is_finite(loss)
    assert int(step.step) == 5
