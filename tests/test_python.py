"""The functions of `mat` from Python: every example of the documentation, and what stays as it was around a call."""

import doctest
import importlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import mat
from mat import api
from mat.api import arrays, session
from mat.cli.console import console
from mat.cli.errors import StoppedError, UserError
from mat.cli.progress import WorkProgress
from mat.cli.signals import noted_signals
from mat.config import PatchTrainingConfig
from mat.data.metadata import DATASET_FILE, Metadata
from mat.data.tiny_imagenet import load_dataset
from mat.tools.notebook import notebook_of, python_blocks
from mat.trainer import Trainer
from tests.conftest import GOLDEN, load_golden_model

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text("utf-8")
MODULES = ("running", "loading", "measuring", "fitting")  # those later use what the first left


def linear(size, activation=None):
    """A classifier of three classes."""
    return keras.Sequential([keras.Input((size, size, 3)), keras.layers.Flatten(), keras.layers.Dense(3, activation=activation)])


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working directory that looks like a checkout, with nothing on the console."""
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "quiet", True)
    return tmp_path


def test_examples_of_docstrings(checkout):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    tests = [test for name in MODULES for test in doctest.DocTestFinder().find(importlib.import_module(f"mat.api.{name}")) if test.examples]
    assert {test.name.rpartition(".")[2] for test in tests} == set(api.__all__)
    for test in tests:
        assert runner.run(test).failed == 0


def test_examples_of_the_page(checkout, capsys):
    names = {}
    for block in python_blocks(PAGE):
        exec(compile(block, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out.split("\n")
    assert printed[0] == "rings"
    without, fitted = map(float, printed[2:4])
    assert fitted < without
    image = names["image"][np.newaxis]
    logits = names["model"].predict(image, verbose=0)
    np.testing.assert_allclose(keras.models.load_model("robust.keras").predict(image, verbose=0), logits, rtol=1e-5)
    saved = tf.saved_model.load("robust_saved_model")
    np.testing.assert_allclose(saved.serve(image), logits, rtol=1e-4)


def test_the_notebook_is_the_page():
    assert (ROOT / "docs" / "python.ipynb").read_text("utf-8") == notebook_of(PAGE)


def test_import_is_lazy():
    code = """
import sys, mat
assert {"load", "train", "evaluate", "fit_patch", "apply_patches", "read_image"} <= set(dir(mat))
print([name for name in ("tensorflow", "keras", "numpy", "mat.api") if name in sys.modules])
print(mat.api.train is mat.api.running.train)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\nTrue\n"
    with pytest.raises(AttributeError, match="no attribute 'loads'"):
        _ = mat.loads


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_commands_are_modules_that_can_be_called(name, monkeypatch):
    monkeypatch.setattr(api, name, lambda *args, **keys: (args, keys))
    module = getattr(mat, name)
    assert isinstance(module, types.ModuleType) and module.main
    assert module(1, resume=True) == ((1,), {"resume": True})


def test_settings_are_set_back():
    from tensorflow.python.framework import config

    before = config.is_op_determinism_enabled(), tf.config.experimental.tensor_float_32_execution_enabled()
    config.disable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(True)
    try:
        with session.session():
            tf.config.experimental.enable_op_determinism()
            tf.config.experimental.enable_tensor_float_32_execution(False)
        assert not config.is_op_determinism_enabled()
        assert tf.config.experimental.tensor_float_32_execution_enabled()
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before[1])
        if before[0]:
            tf.config.experimental.enable_op_determinism()


def test_random_draws_after_loading_a_network_are_those_without_it(tmp_path):
    linear(8).save(tmp_path / "some.keras")
    keras.utils.set_random_seed(3)
    expected = random.random(), np.random.random(), float(tf.random.uniform([]))  # noqa: NPY002
    keras.utils.set_random_seed(3)
    mat.load(tmp_path / "some.keras")
    assert (random.random(), np.random.random(), float(tf.random.uniform([]))) == expected  # noqa: NPY002


def test_interruption_leaves_the_process_usable_and_the_run_resumable(tiny_config, monkeypatch):
    config, interrupted, handler = tiny_config(n_epochs=1), [], signal.getsignal(signal.SIGINT)
    save_or_stop = Trainer._save_or_stop

    def interrupt(trainer, **keys):
        if not interrupted:
            interrupted.append(int(trainer.run.step.step))
            os.kill(os.getpid(), signal.SIGINT)
        save_or_stop(trainer, **keys)

    monkeypatch.setattr(Trainer, "_save_or_stop", interrupt)
    with pytest.raises(KeyboardInterrupt, match="step 1 of 4; all of it is saved"):
        mat.train(config)
    assert signal.getsignal(signal.SIGINT) is handler
    result = mat.train(config, resume=True)
    assert len(result.accuracies) == 1
    assert result.directory == config.result_dir
    loaded = mat.load(result.directory)
    assert loaded.class_names == result.model.class_names == ["0", "1", "2", "3"]
    for one, other in zip(loaded.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_second_interruption_ends_what_does_not_stop():
    with pytest.raises(KeyboardInterrupt), noted_signals() as request:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert request.received == signal.SIGINT


def test_signals_are_answered_however_long_sockets_may_wait_in_this_process(capsys):
    socket.setdefaulttimeout(0.05)
    try:
        with noted_signals():
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        socket.setdefaulttimeout(None)
    assert "SIGTERM: stopping after this step" in capsys.readouterr().out


def test_other_signals_stay_what_they_are():
    with pytest.raises(StoppedError), session.session():
        raise StoppedError("stopped", signal.SIGTERM)


def test_progress_in_a_notebook_is_replaced_in_place(monkeypatch, capsys):
    shown = []
    handle = types.SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    display = types.ModuleType("IPython.display")
    display.display = lambda data, raw, display_id: handle
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with WorkProgress(100) as work:
        work.advance(25, "patches")
        work.advance(25, "curves")
    assert [text.split("  ")[:2] for text in shown] == [["25%", "patches"], ["50%", "curves"], [""]]
    assert capsys.readouterr().out == ""


def test_a_model_in_memory_has_the_accuracies_of_its_weights_file(undefended, tmp_path):
    config, weights = undefended
    protocol = {"quick": True, "iterations": 5, "n_targets": 1, "max_images": 50}
    of_file = mat.evaluate(weights, **protocol)
    model = mat.load(weights)
    of_model = mat.evaluate(model, config.data_dir, patch_shape=(12, 12, 3), output=tmp_path / "report", **protocol)
    assert {row["name"]: row["n_correct"] for row in of_model["grid"]} == {row["name"]: row["n_correct"] for row in of_file["grid"]}
    assert of_model["headline"] == of_file["headline"]
    assert of_model.directory == tmp_path / "report"
    assert not of_file.directory.exists()
    assert set(of_file.pictures) == {"patches.png", "examples.png"}
    assert f"{of_file['headline']['robust']['accuracy']:.1%}" in of_file._repr_html_()
    assert "data:image/png;base64" in of_file._repr_html_()
    strongest = min(of_file["grid"], key=lambda row: row["accuracy"])["name"]
    np.testing.assert_array_equal(of_file.strongest, of_file.patches[strongest])
    with pytest.raises(UserError, match="exists already"):
        mat.evaluate(model, config.data_dir, patch_shape=(12, 12, 3), output=tmp_path / "report", **protocol)


def test_what_is_named_wins_over_quick(undefended):
    config, weights = undefended
    protocol = {"iterations": 3, "n_targets": 0, "max_images": 10}
    keys = {"quick": True, "n_controls": 1, "evaluation": protocol | {"restarts": 2, "iterations": 2}}
    report = mat.evaluate(weights, **keys, iterations=3)
    assert report["subject"]["protocol"] | protocol | {"restarts": 2, "n_controls": 1} == report["subject"]["protocol"]
    assert len(report["grid"]) == 2


def test_the_whole_network_of_a_run_takes_what_the_run_gave_it(tiny_config):
    """`network.keras` takes 0..255 here, which only the run's config says."""
    config = tiny_config(network="tests.networks:small", input_range="0..255", n_epochs=1)
    run = mat.train(config)
    images = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
    of_file, of_run = mat.load(config.result_dir / "network.keras"), mat.load(config.result_dir)
    for model in (of_file, of_run):
        np.testing.assert_array_equal(model.predict(images, verbose=0), run.model.predict(images, verbose=0))
    assert of_file.class_names == ["0", "1", "2", "3"]


def test_arrays_have_no_names_of_classes_to_warn_of(tiny_config, capsys):
    config = tiny_config(n_epochs=1, n_patches=0)
    run = mat.train(config)
    (run.directory / "classes.txt").write_text("cat\ndog\neel\nfox\n")
    pair = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8), np.arange(8) % 4
    keys = {"quick": True, "iterations": 1, "n_targets": 0, "n_controls": 1}
    capsys.readouterr()
    mat.evaluate(run.directory, (pair, pair), **keys)
    assert "other classes" not in capsys.readouterr().out
    mat.evaluate(run.directory, **keys)
    assert "trained on other classes: cat where the data has 0" in capsys.readouterr().out


def test_another_model_in_memory_does_not_continue_the_evaluation(undefended, tmp_path):
    config, weights = undefended
    keys = {"output": tmp_path / "report", "quick": True, "iterations": 5, "n_targets": 0, "max_images": 10, "patch_shape": (6, 6, 3)}
    model = mat.load(weights)
    mat.evaluate(model, config.data_dir, **keys)
    assert mat.evaluate(model, config.data_dir, resume=True, **keys)["headline"]
    model.layers[1].bias.assign(1.0 + model.layers[1].bias)
    with pytest.raises(UserError, match="weights_sha256"):
        mat.evaluate(model, config.data_dir, resume=True, **keys)


def test_a_fitted_patch_drives_images_to_its_target(undefended):
    config, weights = undefended
    model = mat.load(weights)
    images, labels = next(iter(load_dataset(config.data_dir, "validation", batch_size=200, n_classes=10, image_size=32)))
    keys = {"patch_shape": (12, 12, 3), "iterations": 30}
    before = model.get_weights()
    patch = mat.fit_patch(model, images, None, target=3, **keys)
    assert patch.shape == (12, 12, 3) and patch.dtype == np.float32 and patch.min() >= 0 and patch.max() <= 1
    seen = model.predict(mat.apply_patches(images, patch), verbose=0).argmax(axis=1)
    clean = model.predict(images, verbose=0).argmax(axis=1)
    assert np.mean(seen == 3) > 0.2 + np.mean(clean == 3)
    np.testing.assert_array_equal(mat.fit_patch(model, np.asarray(images), labels, target=3, **keys), patch)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_patches_are_pasted_in_one_or_many_images():
    images, patch = np.zeros((2, 8, 8, 3), np.float32), np.ones((2, 4, 3), np.float32)
    middle = mat.apply_patches(images, patch).numpy()
    assert middle.sum() == 2 * 2 * 4 * 3
    assert middle[:, 3:5, 2:6].min() == 1
    one = mat.apply_patches(images[0], patch, (6, 4)).numpy()
    assert one.shape == (8, 8, 3)
    assert one[6:, 4:].min() == 1
    each = mat.apply_patches(images, np.stack([patch, patch / 2]), [(0, 0), (6, 4)]).numpy()
    assert each[1, 7, 7, 0] == 0.5
    with pytest.raises(UserError, match=r"within 0..6 and 0..4. Received: .*7"):
        mat.apply_patches(images, patch, (7, 0))
    for offsets in ((0.5, 0), [(0, 0)] * 3, 3, "middle"):
        with pytest.raises(UserError, match=r"offsets must be whole numbers \[2\] or \[2, 2\]"):
            mat.apply_patches(images, patch, offsets)
    with pytest.raises(UserError, match=r"patch.*\[h, w, 3\]"):
        mat.apply_patches(images, np.ones((9, 4, 3)))
    bytes_ = mat.apply_patches(images, np.full((2, 4, 3), 51, np.uint8)).numpy()
    assert bytes_.max() == np.float32(0.2)
    with pytest.raises(UserError, match="patches must be uint8, or float in"):
        mat.apply_patches(images, 255 * patch)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), r"\[2, 8, 8\]"),
        (np.zeros((2, 8, 6, 3), np.uint8), r"\[2, 8, 6, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"\[0, 8, 8, 3\]"),
        (np.full((1, 8, 8, 3), 255.0), "from 255.0 to 255.0, not from 0 to 1. Divide by 255"),
        (np.full((1, 8, 8, 3), np.nan), "from nan to nan"),
        (np.zeros((1, 8, 8, 3), np.int64), "int64"),
    ],
)
def test_what_is_no_array_of_images_is_told(images, message):
    with pytest.raises(UserError, match=message):
        arrays.float_images(images)


def test_labels_in_each_form():
    np.testing.assert_array_equal(arrays.integer_labels([2, 0], 2), [2, 0])
    np.testing.assert_array_equal(arrays.integer_labels(np.array([[2], [0]]), 2), [2, 0])
    np.testing.assert_array_equal(arrays.integer_labels(np.eye(3)[[2, 0]], 2), [2, 0])
    for wrong in ([0.5, 1], [-1, 0], [0], ["cat", "dog"], [np.nan, 0], np.eye(3)[[2, 0]] - np.eye(3)[2], None):
        with pytest.raises(UserError, match="labels must be 2 whole numbers"):
            arrays.integer_labels(wrong, 2)


def test_arrays_become_records_without_loss():
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    records = arrays.as_records(images, [1, 0], "training")
    np.testing.assert_array_equal([tf.io.decode_png(png) for png in records.images], images)


def test_weights_without_a_config_beside_them_are_loaded_with_one():
    model = mat.load(GOLDEN / "original_w1.h5", {"width": 1})
    assert model.class_names == [str(label) for label in range(200)]
    for one, other in zip(model.get_weights(), load_golden_model().get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_faults_of_the_user_are_told(tmp_path, tiny_config):
    with pytest.raises(UserError, match="no weights of a run"):
        mat.load(tmp_path)
    weights = tmp_path / "some.h5"
    weights.write_bytes(b"")
    with pytest.raises(UserError, match="no config.yaml beside it"):
        mat.load(weights)
    with pytest.raises(UserError, match="missing.png: no picture"):
        mat.read_image(tmp_path / "missing.png", 32)
    with pytest.raises(UserError, match="unknown key"):
        mat.train(tiny_config(), n_epoch=1)
    with pytest.raises(UserError, match="labels"):
        mat.fit_patch(linear(8), np.zeros((1, 8, 8, 3)), None, patch_shape=(4, 4, 3))
    with pytest.raises(UserError, match="missing: no such file"):
        mat.load(tmp_path / "missing")
    for function in (mat.load, mat.evaluate):
        with pytest.raises(UserError, match="a network is a keras.Model .* or the path of one. Received: a builtins.function"):
            function(linear)
    with pytest.raises(UserError, match="is no Keras model, but builtins.str"):
        mat.fit_patch("results", np.zeros((1, 8, 8, 3)), [0], patch_shape=(4, 4, 3))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"iterations": 0}, "iterations must be a whole number of at least 1"),
        ({"images_per_iteration": 0}, "images_per_iteration must be"),
        ({"step_size": -1}, "step_sizes"),
        ({"seed": -1}, "seed must be"),
        ({"patch_shape": (0, 4, 3)}, "patch_shape must be"),
        ({"patch_shape": (9, 4, 3)}, "patch_shape must fit into the image"),
        ({"start": "bank"}, "start must be one of random, data, grey"),
        ({"input_range": "bytes"}, "input_range must be one of"),
        ({"target": 3}, r"labels and target must be in 0..2, the model's classes. Received: \[3\]"),
    ],
)
def test_arguments_of_fit_patch_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        mat.fit_patch(linear(8), np.zeros((1, 8, 8, 3)), [0], **{"patch_shape": (4, 4, 3), "iterations": 1} | keys)


def test_a_model_that_is_built_by_its_first_call_gets_a_patch():
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    assert mat.fit_patch(model, np.zeros((1, 8, 8, 3)), [0], patch_shape=(4, 4, 3), iterations=1).shape == (4, 4, 3)


def test_no_attribute_of_a_model_keeps_it_from_being_checked():
    model = linear(8, activation="softmax")
    model.class_names = ["a", "b", "c"]
    with pytest.raises(UserError, match="gives probabilities"):
        mat.fit_patch(model, np.zeros((1, 8, 8, 3)), [0], patch_shape=(4, 4, 3), iterations=1)


def test_a_whole_model_is_not_of_the_data_that_happens_to_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / PatchTrainingConfig().data_dir
    data.mkdir(parents=True)
    (data / DATASET_FILE).write_bytes(Metadata(image_size=64, classes=["a", "b", "c", "d"]).to_json())
    (data / "wnids.txt").write_text("a\nb\nc\nd\n")
    linear(8).save("some.keras")
    assert mat.load("some.keras").class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("size", "label", "message"),
    [(16, 0, r"images must have one size in both pairs of arrays. Received: \[8, 16\] pixels"), (8, 3, "labels must be in 0..2")],
)
def test_arrays_that_do_not_fit_the_model_are_refused(size, label, message):
    pairs = (np.zeros((2, 8, 8, 3)), [0, 1]), (np.zeros((2, size, size, 3)), [0, label])
    with pytest.raises(UserError, match=message):
        mat.evaluate(linear(8), pairs, quick=True)
