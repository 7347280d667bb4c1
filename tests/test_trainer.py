"""Whole training runs on tiny data: what they leave, that they repeat, resume and stop."""

import json
import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import NonFiniteLossError, StoppedError, UserError
from mat.config import EvaluationConfig, PatchTrainingConfig
from mat.models import create_model, load_weights
from mat.results.run_directory import ResultDirectory, patch_grid
from mat.results.summary import print_plan
from mat.trainer import Trainer


def final_state(config):
    """The last weights file's bytes, the bank and the log of a finished run."""
    weights = (config.result_dir / f"tiny_imagenet_weights_{config.n_epochs - 1:03d}.h5").read_bytes()
    bank = dict(np.load(config.result_dir / "patches.npz"))
    return weights, bank, (config.result_dir / "log.csv").read_bytes()


def assert_equal_states(one, two):
    assert one[0] == two[0]
    assert one[1].keys() == two[1].keys()
    for key, array in one[1].items():
        np.testing.assert_array_equal(array, two[1][key])
    assert one[2] == two[2]


def test_a_run_leaves_every_file(tiny_config, capsys):
    config = tiny_config(unique_name="whole")
    trainer = Trainer(config)
    before = trainer.bank.patches.numpy()
    assert not config.result_dir.exists()  # nothing is written before training
    accuracies = trainer.fit()
    assert {path.name for path in config.result_dir.iterdir()} == {
        "config.yaml",
        "log.csv",
        "tiny_imagenet_weights_000.h5",
        "tiny_imagenet_weights_001.h5",
        "patches.npz",
        "patches.png",
        "checkpoints",
        "events",
    }
    assert PatchTrainingConfig.from_yaml(config.result_dir / "config.yaml") == config
    header, *rows, end = (config.result_dir / "log.csv").read_bytes().split(b"\r\n")
    assert (header, end) == (b"Epoch;Train Loss;Train Accuracy;Valid Accuracy", b"")
    values = np.array([[float(value) for value in row.split(b";")] for row in rows])
    np.testing.assert_array_equal(values[:, 0], [0, 1])
    np.testing.assert_allclose(values[:, 3], accuracies, atol=5e-4)
    assert rows[0].startswith(b"0.000;")
    bank = np.load(config.result_dir / "patches.npz")
    assert bank["patches"].shape == (6, 6, 6, 3)
    assert np.any(bank["patches"] != before)
    assert 0 <= bank["patches"].min() <= bank["patches"].max() <= 1
    np.testing.assert_array_equal(bank["targets"], [0, 1, 2, 3, 0, 1])
    assert bank["step_sizes"].shape == (6,)
    model = create_model(config)
    load_weights(model, config.result_dir / "tiny_imagenet_weights_001.h5")
    np.testing.assert_array_equal(model.get_weights()[0], trainer.model.get_weights()[0])
    picture = tf.io.decode_png((config.result_dir / "patches.png").read_bytes())
    np.testing.assert_array_equal(picture, patch_grid(bank["patches"]))
    output = capsys.readouterr().out
    for words in ("32 training and 12 validation images", "parameters", "2 epochs x 4 steps", "First step", "clean validation accuracy"):
        assert words in output
    (events,) = (config.result_dir / "events").iterdir()
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(events)) for value in event.summary.value}
    assert {"train/loss", "train/accuracy", "validation/accuracy", "learning_rate", "images_per_second", "patches"} <= tags


def test_two_runs_of_one_config_are_identical(tiny_config):
    states = []
    for name in ("one", "two"):
        config = tiny_config(unique_name=name)
        Trainer(config).fit()
        states.append(final_state(config))
    assert_equal_states(*states)


def test_training_without_patches_leaves_no_bank(tiny_config, capsys):
    config = tiny_config(n_patches=0, n_epochs=1)
    Trainer(config).fit()
    names = {path.name for path in config.result_dir.iterdir()}
    assert "tiny_imagenet_weights_000.h5" in names
    assert not names & {"patches.npz", "patches.png"}
    assert "plain training" in capsys.readouterr().out


QUICK = EvaluationConfig(iterations=2, n_targets=1, n_controls=1)


def test_training_ends_with_the_robust_accuracy_beside_the_clean_one(tiny_config, capsys):
    config = tiny_config(robust_evaluation="quick", evaluation=QUICK)
    trainer = Trainer(config)
    accuracies = trainer.fit()
    robust = trainer.report["headline"]["robust"]
    assert trainer.report["headline"]["clean"]["accuracy"] == accuracies[-1]
    header, first, last = (config.result_dir / "log.csv").read_text().splitlines()
    assert header == "Epoch;Train Loss;Train Accuracy;Valid Accuracy;Robust Accuracy"
    assert first.endswith(";")
    assert last.endswith(f"{accuracies[-1]:.3f};{robust['accuracy']:.3f}")
    output = capsys.readouterr().out
    assert f"robust validation accuracy  {robust['accuracy']:.1%}" in output
    report = config.result_dir / "tiny_imagenet_weights_001_quick_evaluation" / "report.json"
    assert json.loads(report.read_text())["headline"]["robust"] == robust
    events = [str(path) for path in (config.result_dir / "events").iterdir()]
    tags = {value.tag for path in events for event in tf.compat.v1.train.summary_iterator(path) for value in event.summary.value}
    assert "validation/robust_accuracy" in tags


def test_an_interrupted_evaluation_is_made_up_for_by_resuming(tiny_config, monkeypatch, capsys):
    config = tiny_config(n_epochs=1, robust_evaluation="quick", evaluation=QUICK)
    trainer = Trainer(config)

    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(StoppedError, match=r"the training is saved.*run/config.yaml --resume"):
        patched.setattr("mat.trainer.evaluate", interrupt)
        trainer.fit()
    assert (config.result_dir / "log.csv").read_text().endswith(";\n")
    resumed = Trainer(config, resume=True)
    assert resumed.fit() == []
    assert resumed.report["headline"]["clean"]["n_images"] == 12
    log = (config.result_dir / "log.csv").read_text()
    assert log.endswith(f";{resumed.report['headline']['robust']['accuracy']:.3f}\n")
    capsys.readouterr()
    path = config.result_dir / "log.csv"
    path.write_bytes(b"".join(line.rpartition(b";")[0] + b"\r\n" for line in path.read_bytes().splitlines()))  # begun without the column
    (config.result_dir / "tiny_imagenet_weights_000.h5").unlink()
    again = Trainer(config, resume=True)
    again.fit()
    assert again.report == resumed.report
    assert path.read_text() == log
    assert "Evaluated" not in capsys.readouterr().out


def test_a_weaker_evaluation_does_not_raise_the_logged_robust_accuracy(tiny_config, monkeypatch, capsys):
    config = tiny_config(n_epochs=1, robust_evaluation="quick", evaluation=QUICK)
    Trainer(config).fit()
    path = config.result_dir / "log.csv"
    for accuracy, logged in ((0.05, "0.050"), (0.5, "0.050"), (0.01, "0.010")):
        report = {"headline": {"robust": {"accuracy": accuracy}}}
        monkeypatch.setattr("mat.trainer.evaluate", lambda *_, report=report, **__: report)
        capsys.readouterr()
        Trainer(config, resume=True).fit()
        assert path.read_text().splitlines()[-1].endswith(f";{logged}")
        assert ("The log keeps the robust accuracy of 5.0%" in capsys.readouterr().out) == (accuracy == 0.5)


@pytest.mark.parametrize(
    ("robust_evaluation", "measured", "header", "row"),
    [
        ("none", {}, "", ""),
        ("quick", {}, ";Robust Accuracy", ";"),
        ("none", {"robust_accuracy": 0.125}, ";Robust Accuracy", ";0.125"),  # measured before, and not wanted again
    ],
)
def test_the_log_has_the_column_of_robustness_where_it_is_wanted_or_known(tiny_config, robust_evaluation, measured, header, row):
    results = ResultDirectory(tiny_config(robust_evaluation=robust_evaluation))
    results.path.mkdir(parents=True)
    results.write_log([{"epoch": 0, "loss": 1.5, "accuracy": 0.25, "validation_accuracy": 0.5} | measured])
    text = f"Epoch;Train Loss;Train Accuracy;Valid Accuracy{header}\r\n0.000;1.500;0.250;0.500{row}\r\n"
    assert (results.path / "log.csv").read_bytes() == text.encode()


@pytest.mark.parametrize(
    "keys",
    [
        {"patch_initialization": "random", "optimizer": {"targeted_attack": False}},
        {"optimizer": {"targeted_attack": False, "n_iterations": 0}, "n_patch_trials": 1, "normalization": "batch", "label_smoothing": 0.1},
        {"precision": "mixed_bfloat16", "patch_shape": [16, 16, 3], "jit_compile": True},
    ],
)
def test_other_choices_train_too(tiny_config, tmp_path, keys):
    keys["optimizer"] = type(tiny_config().optimizer)(**keys.get("optimizer", {}))
    assert len(Trainer(tiny_config(n_epochs=1, **keys)).fit()) == 1


def test_loss_falls_and_weights_can_be_taken_over(tiny_config):
    config = tiny_config(n_epochs=8, n_patches=0, initial_lr=0.01, unique_name="first")
    Trainer(config).fit()
    losses = [float(row.split(";")[1]) for row in (config.result_dir / "log.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.8 * losses[0]
    weights = config.result_dir / "tiny_imagenet_weights_007.h5"
    second = Trainer(tiny_config(initial_weights=str(weights), unique_name="second"))
    first = create_model(config)
    load_weights(first, weights)
    for one, two in zip(first.get_weights(), second.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_validation_counts_every_image_once(tiny_config):
    trainer = Trainer(tiny_config(batch_size=5))
    labels = trainer.validation_records.labels
    for correct in (0, 1, 2, 3):  # a model that always says `correct`
        trainer.model.get_layer("dense").set_weights([np.zeros((32, 4)), np.eye(4)[correct]])
        assert trainer.validate() == np.mean(labels == correct)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tiny_config):
    trainer = Trainer(tiny_config(initial_lr=1000.0, n_epochs=3, normalization="none", weight_decay=1000.0))
    with pytest.raises(NonFiniteLossError, match=r"at step \d+ \(epoch \d, step \d\).*lower initial_lr \(now 1000"):
        trainer.fit()
    assert all(np.all(np.isfinite(weight)) for weight in trainer.model.get_weights())


def test_patch_grid_shows_every_patch_in_its_place():
    patches = np.linspace(0, 1, 5, dtype=np.float32).reshape(5, 1, 1, 1) * np.ones((5, 12, 12, 3), np.float32)
    grid = patch_grid(patches)
    cell = 4 * 12 + 2
    assert grid.shape == (2 * cell, 3 * cell, 3)
    centers = grid[cell // 2 :: cell, cell // 2 :: cell, 0]
    np.testing.assert_array_equal(centers, [[0, 64, 128], [191, 255, 255]])


@pytest.mark.parametrize("found", [[], ["lost+found", ".DS_Store"], ["train.log", "slurm-17.out", "slurm-17.ERR", "log.txt", ".gitkeep"]])
def test_a_directory_without_a_run_is_used(tiny_config, found):
    config = tiny_config(n_epochs=1)
    config.result_dir.mkdir(parents=True)
    for name in found:
        (config.result_dir / name).touch()
    assert len(Trainer(config).fit()) == 1
    assert {*found, "config.yaml", "log.csv"} < {path.name for path in config.result_dir.iterdir()}
    with pytest.raises(UserError, match="exists already"):
        Trainer(config)


@pytest.mark.parametrize("found", ["log.csv", "notes.md", "tiny_imagenet_weights_000.h5", "logs"])
def test_a_directory_with_anything_else_is_refused(tiny_config, found):
    config = tiny_config()
    config.result_dir.mkdir(parents=True)
    (config.result_dir / found).touch()
    with pytest.raises(UserError, match="this result directory exists already"):
        Trainer(config)


@pytest.mark.parametrize(("batch_size", "told"), [(8, False), (10, False), (20, True)])
def test_the_plan_says_how_many_images_a_batch_size_leaves_out(tiny_config, capsys, batch_size, told):
    print_plan(Trainer(tiny_config(batch_size=batch_size)))
    assert (f"WARNING: batch_size: {batch_size} leaves {32 % batch_size} images out of each epoch" in capsys.readouterr().out) == told


@pytest.mark.parametrize("fast", [True, False, None])
@pytest.mark.parametrize(("precision", "name"), [("mixed_bfloat16", "bfloat16"), ("tensorfloat32", "tensorfloat32")])
def test_the_plan_says_where_a_precision_does_not_help(tiny_config, monkeypatch, capsys, precision, name, fast):
    monkeypatch.setattr(f"mat.results.summary.{name}_is_fast", lambda: fast)
    print_plan(Trainer(tiny_config(precision=precision)))
    assert (f"{precision} will not help" in capsys.readouterr().out) == (fast is False)


def test_the_plan_says_what_changes_the_precision(tiny_config, monkeypatch, capsys):
    print_plan(Trainer(tiny_config()))
    assert "WARNING: the environment" not in capsys.readouterr().out
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    print_plan(Trainer(tiny_config()))
    assert "WARNING: the environment changes it: NVIDIA_TF32_OVERRIDE=1" in capsys.readouterr().out


def test_float32_and_tensorfloat32_are_told_apart(tiny_config):
    """On the CPU both compute in float32; on GPUs from Ampere on, TensorFlow itself would take TensorFloat-32 for both."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    for precision, expected in (("float32", False), ("tensorfloat32", True), ("mixed_bfloat16", False)):
        trainer = Trainer(tiny_config(precision=precision, unique_name=precision))
        assert (enabled(), trainer.record.config["precision"]) == (expected, precision)
        assert trainer.model.layers[1].dtype_policy.name == ("mixed_bfloat16" if precision == "mixed_bfloat16" else "float32")
    Trainer(tiny_config())
