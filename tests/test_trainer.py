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
from mat.results.events import read_values
from mat.results.run_directory import patch_grid
from mat.results.summary import print_plan
from mat.run import build_run
from tests.conftest import trainer_of


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
    trainer = trainer_of(config)
    before = trainer.run.bank.patches.numpy()
    assert not config.result_dir.exists()  # nothing is written before training
    accuracies = trainer.fit().accuracies
    assert {path.name for path in config.result_dir.iterdir()} == {
        "config.yaml",
        "log.csv",
        "tiny_imagenet_weights_000.h5",
        "tiny_imagenet_weights_001.h5",
        "patches.npz",
        "classes.txt",
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
    np.testing.assert_array_equal(model.get_weights()[0], trainer.run.model.get_weights()[0])
    picture = tf.io.decode_png((config.result_dir / "patches.png").read_bytes())
    np.testing.assert_array_equal(picture, patch_grid(bank["patches"]))
    output = capsys.readouterr().out
    for words in ("32 training and 12 validation images", "parameters", "2 epochs x 4 steps", "First step", "clean validation accuracy"):
        assert words in output
    (events,) = (config.result_dir / "events").iterdir()
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(events)) for value in event.summary.value}
    assert {"train/loss", "train/accuracy", "validation/accuracy", "learning_rate", "images_per_second", "patches"} <= tags


def test_values_of_single_steps_go_to_tensorboard_and_change_nothing(tiny_config):
    losses, states = {}, []
    for name, every in (("often", 3), ("never", 100)):
        config = tiny_config(unique_name=name, n_stacks=1, log_every_steps=every)
        trainer = trainer_of(config)
        train_on_batch = trainer.run.step.train_on_batch

        def train(images, labels, step=trainer.run.step, train_on_batch=train_on_batch):
            loss, accuracy = train_on_batch(images, labels)
            losses[int(step.step)] = loss
            return loss, accuracy

        trainer.run.step.train_on_batch = train
        trainer.fit()
        found = {tag: read_values(config.result_dir / "events", f"step/{tag}") for tag in ("loss", "accuracy")}
        assert found["loss"] == {step: float(loss) for step, loss in losses.items() if step % every == 0}
        assert found["accuracy"].keys() == found["loss"].keys() == ({3, 6} if name == "often" else set())
        assert all(8 * accuracy in range(9) for accuracy in found["accuracy"].values())
        states.append(final_state(config))
    assert_equal_states(*states)


def test_several_steps_in_one_call_are_the_same_steps(tiny_config):
    """Three of the four steps of an epoch in a call, then the last; every other step is logged."""
    runs = {}
    for n in (1, 3):
        trainer = trainer_of(tiny_config(unique_name=f"calls_{n}", n_stacks=1, log_every_steps=2, steps_per_call=n))
        model = trainer.fit().model
        results = trainer.run.results
        values = {
            f"{tag}/{step}": value
            for tag in ("step/loss", "step/accuracy")
            for step, value in read_values(results.path / "events", tag).items()
        }
        runs[n] = values, (results.path / "log.csv").read_text("utf-8"), model.get_weights(), trainer.run.bank.patches.numpy()
    assert list(runs[1][0]) == [f"{tag}/{step}" for tag in ("step/loss", "step/accuracy") for step in (2, 4, 6, 8)]
    for one, other in zip(tf.nest.flatten(runs[1]), tf.nest.flatten(runs[3]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("n_epochs", "key", "expected"), [(2, None, 1), (750, None, 3), (750, 7, 7)])
def test_about_a_thousand_steps_of_a_run_are_logged(tiny_config, n_epochs, key, expected):
    config = tiny_config(n_epochs=n_epochs, log_every_steps=key, n_patches=0, n_stacks=1)
    assert build_run(config).log_every_steps == expected


def test_two_runs_of_one_config_are_identical(tiny_config):
    states = []
    for name in ("one", "two"):
        config = tiny_config(unique_name=name)
        trainer_of(config).fit()
        states.append(final_state(config))
    assert_equal_states(*states)


def test_training_without_patches_leaves_no_bank(tiny_config, capsys):
    config = tiny_config(n_patches=0, n_epochs=1)
    trainer_of(config).fit()
    names = {path.name for path in config.result_dir.iterdir()}
    assert "tiny_imagenet_weights_000.h5" in names
    assert not names & {"patches.npz", "patches.png"}
    assert "plain training" in capsys.readouterr().out


QUICK = EvaluationConfig(iterations=2, n_targets=1, n_controls=1)


def test_training_ends_with_the_robust_accuracy_beside_the_clean_one(tiny_config, capsys):
    config = tiny_config(robust_evaluation="quick", evaluation=QUICK)
    trainer = trainer_of(config)
    result = trainer.fit()
    accuracies, robust = result.accuracies, result.report["headline"]["robust"]
    assert result.report["headline"]["clean"]["accuracy"] == accuracies[-1]
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
    trainer = trainer_of(config)

    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(StoppedError, match=r"the training is saved.*run/config.yaml --resume"):
        patched.setattr("mat.trainer.measure_robustness", interrupt)
        trainer.fit()
    assert (config.result_dir / "log.csv").read_text().endswith(";\n")
    resumed = trainer_of(config, resume=True).fit()
    assert resumed.accuracies == []
    assert resumed.report["headline"]["clean"]["n_images"] == 12
    log = (config.result_dir / "log.csv").read_text()
    assert log.endswith(f";{resumed.report['headline']['robust']['accuracy']:.3f}\n")
    capsys.readouterr()
    path = config.result_dir / "log.csv"
    path.write_bytes(b"".join(line.rpartition(b";")[0] + b"\r\n" for line in path.read_bytes().splitlines()))  # begun without the column
    (config.result_dir / "tiny_imagenet_weights_000.h5").unlink()
    assert trainer_of(config, resume=True).fit().report == resumed.report
    assert path.read_text() == log
    assert "Evaluated" not in capsys.readouterr().out


def test_a_weaker_evaluation_does_not_raise_the_logged_robust_accuracy(tiny_config, monkeypatch, capsys):
    config = tiny_config(n_epochs=1, robust_evaluation="quick", evaluation=QUICK)
    trainer_of(config).fit()
    path = config.result_dir / "log.csv"
    for accuracy, logged in ((0.05, "0.050"), (0.5, "0.050"), (0.01, "0.010")):
        report = {"headline": {"robust": {"accuracy": accuracy}}}
        monkeypatch.setattr("mat.trainer.measure_robustness", lambda *_, report=report, **__: report)
        capsys.readouterr()
        trainer_of(config, resume=True).fit()
        assert path.read_text().splitlines()[-1].endswith(f";{logged}")
        assert ("The log keeps the robust accuracy of 5.0%" in capsys.readouterr().out) == (accuracy == 0.5)


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
    assert len(trainer_of(tiny_config(n_epochs=1, **keys)).fit().accuracies) == 1


def test_loss_falls_and_weights_can_be_taken_over(tiny_config):
    config = tiny_config(n_epochs=8, n_patches=0, initial_lr=0.01, unique_name="first")
    trainer_of(config).fit()
    losses = [float(row.split(";")[1]) for row in (config.result_dir / "log.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.8 * losses[0]
    weights = config.result_dir / "tiny_imagenet_weights_007.h5"
    second = trainer_of(tiny_config(initial_weights=str(weights), unique_name="second"))
    first = create_model(config)
    load_weights(first, weights)
    for one, two in zip(first.get_weights(), second.run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_validation_counts_every_image_once(tiny_config):
    trainer = trainer_of(tiny_config(batch_size=5))
    labels = trainer.run.validation_records.labels
    for correct in (0, 1, 2, 3):  # a model that always says `correct`
        trainer.run.model.get_layer("dense").set_weights([np.zeros((32, 4)), np.eye(4)[correct]])
        assert trainer.validate() == np.mean(labels == correct)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tiny_config):
    trainer = trainer_of(tiny_config(initial_lr=1000.0, n_epochs=3, normalization="none", weight_decay=1000.0))
    with pytest.raises(NonFiniteLossError, match=r"at step \d+ \(epoch \d, step \d\).*lower initial_lr \(now 1000"):
        trainer.fit()
    assert all(np.all(np.isfinite(weight)) for weight in trainer.run.model.get_weights())


@pytest.mark.parametrize("found", [[], ["lost+found", ".DS_Store"], ["train.log", "slurm-17.out", "slurm-17.ERR", "log.txt", ".gitkeep"]])
def test_a_directory_without_a_run_is_used(tiny_config, found):
    config = tiny_config(n_epochs=1)
    config.result_dir.mkdir(parents=True)
    for name in found:
        (config.result_dir / name).touch()
    assert len(trainer_of(config).fit().accuracies) == 1
    assert {*found, "config.yaml", "log.csv"} < {path.name for path in config.result_dir.iterdir()}
    with pytest.raises(UserError, match="exists already"):
        trainer_of(config)


@pytest.mark.parametrize("found", ["log.csv", "notes.md", "tiny_imagenet_weights_000.h5", "logs"])
def test_a_directory_with_anything_else_is_refused(tiny_config, found):
    config = tiny_config()
    config.result_dir.mkdir(parents=True)
    (config.result_dir / found).touch()
    with pytest.raises(UserError, match="this result directory exists already"):
        trainer_of(config)


@pytest.fixture
def plan(tiny_config, capsys):
    """A function from config keys to what `print_plan` says of the run."""

    def printed(**keys):
        run = build_run(tiny_config(**keys))
        capsys.readouterr()
        splits = run.train_records, run.validation_records
        print_plan(run.config, splits, n_parameters=1, steps_per_epoch=run.steps_per_epoch, n_steps_done=0, n_bytes=run.bytes_to_write)
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize(("batch_size", "told"), [(8, False), (10, False), (20, True)])
def test_the_plan_says_how_many_images_a_batch_size_leaves_out(plan, batch_size, told):
    assert (f"WARNING: batch_size: {batch_size} leaves {32 % batch_size} images out of each epoch" in plan(batch_size=batch_size)) == told


@pytest.mark.parametrize("fast", [True, False, None])
@pytest.mark.parametrize(("precision", "name"), [("mixed_bfloat16", "bfloat16"), ("tensorfloat32", "tensorfloat32")])
def test_the_plan_says_where_a_precision_does_not_help(plan, monkeypatch, precision, name, fast):
    monkeypatch.setattr(f"mat.results.summary.{name}_is_fast", lambda: fast)
    assert (f"{precision} will not help" in plan(precision=precision)) == (fast is False)


def test_the_plan_says_what_changes_the_precision(plan, monkeypatch):
    assert "WARNING: the environment" not in plan()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert "WARNING: the environment changes it: NVIDIA_TF32_OVERRIDE=1" in plan()


def test_float32_and_tensorfloat32_are_told_apart(tiny_config):
    """On the CPU both compute in float32; on GPUs from Ampere on, TensorFlow itself would take TensorFloat-32 for both."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    for precision, expected in (("float32", False), ("tensorfloat32", True), ("mixed_bfloat16", False)):
        trainer = trainer_of(tiny_config(precision=precision, unique_name=precision))
        assert (enabled(), trainer.run.record.config["precision"]) == (expected, precision)
        assert trainer.run.model.layers[1].dtype_policy.name == ("mixed_bfloat16" if precision == "mixed_bfloat16" else "float32")
    trainer_of(tiny_config())
