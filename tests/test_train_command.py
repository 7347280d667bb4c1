"""The command line: exit statuses, messages, and that nothing is written where the input is at fault."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import yaml

from mat.config import PatchTrainingConfig
from mat.models import create_model, save_weights
from mat.train import main
from tests.conftest import TINY, write_tiny_split

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path, tiny_data, capsys, monkeypatch):
    """A function from config keys to (exit status, standard error, standard output) of `mat-train`; keys of None are left out."""
    monkeypatch.chdir(tmp_path)

    def command(arguments=(), **keys):
        config = {**TINY, "data_dir": str(tiny_data), "base_result_dir": "results", **keys}
        pathlib.Path("config.yaml").write_text(yaml.safe_dump(config))
        status = main(["config.yaml", *arguments])
        return status, *reversed(capsys.readouterr())

    return command


def test_a_run_ends_with_status_0_and_its_directory_is_not_overwritten(run):
    status, errors, output = run(["--set", "n_epochs=1"])
    assert (status, errors) == (0, "")
    assert "config.yaml: training into results/run" in output.splitlines()[0]
    log = pathlib.Path("results/run/log.csv").read_bytes()
    status, errors, _ = run(["--set", "n_epochs=1"])
    assert status == 2
    assert "results/run: this result directory exists already" in errors
    assert pathlib.Path("results/run/log.csv").read_bytes() == log


def test_a_plain_baseline_ends_with_a_table_of_both(run):
    evaluation = {"iterations": 1, "n_targets": 0, "n_controls": 1}
    status, errors, output = run(n_epochs=1, plain_baseline=True, robust_evaluation="quick", evaluation=evaluation)
    assert (status, errors) == (0, "")
    title, header, *rows = output.splitlines()[-4:]
    assert title.startswith("Accuracy on 12 validation images")
    assert header.split("   ")[-1].strip() == "under the worst universal patch"
    for row, name, directory in zip(rows, ("meta adversarial training", "plain training"), ("run", "run_plain"), strict=True):
        report = json.loads(pathlib.Path(f"results/{directory}/tiny_imagenet_weights_000_quick_evaluation/report.json").read_text())
        clean, robust = (report["headline"][kind]["accuracy"] for kind in ("clean", "robust"))
        assert row.startswith(f"  {name}")
        assert re.findall(r"([\d.]+%) \(", row) == [f"{clean:.1%}", f"{robust:.1%}"]
    assert not pathlib.Path("results/run_plain/patches.npz").exists()
    status, errors, output = run(["--resume"], n_epochs=1, plain_baseline=True, robust_evaluation="quick", evaluation=evaluation)
    assert (status, errors) == (0, "")
    assert output.splitlines()[-4:] == [title, header, *rows]
    pathlib.Path("results/run").rename("results/moved")
    status, errors, _ = run(n_epochs=1, plain_baseline=True, robust_evaluation="quick", evaluation=evaluation)
    assert status == 2
    assert "results/run_plain: this result directory exists already" in errors
    assert "python mat/train.py results/run_plain/config.yaml --resume" in errors  # there is no results/run/config.yaml


def damage(data_dir, split="train", **example):
    write_tiny_split(data_dir, split, np.arange(32) % 4, **example)


def truncate(data_dir):
    path = data_dir / "train.tfrecord"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage_data", "keys", "words"),
    [
        (None, {"n_epochs": 0}, "n_epochs must be a whole number of at least 1. Received: 0"),
        (None, {"patch_lr": -1}, "patch_lr must be a number in [0, 1]. Received: -1"),
        (None, {"data_dir": "nowhere"}, "python -m mat.data.convert SOURCE nowhere"),
        (lambda d: damage(d, wnid=None), {}, "train.tfrecord: record 0 has no label"),
        (lambda d: damage(d, label=4), {}, "train.tfrecord: record 0 has the label 4"),
        (lambda d: damage(d, "validation", jpeg=b"\xff\xd8\xff no image"), {}, "validation.tfrecord: record 0 has an image that cannot"),
        (truncate, {}, "train.tfrecord: truncated or corrupt after 31 intact records"),
        (lambda d: write_tiny_split(d, "train", [0, 1, 3] * 4), {}, "no image of class 2"),
        (lambda d: write_tiny_split(d, "train", [0, 1, 2, 3]), {}, "4 training images do not fill one batch of batch_size: 8"),
        (None, {"initial_weights": "wide.h5"}, "wide.h5: these weights are not of this network: conv2d has the shapes"),
        (None, {"initial_weights": "config.yaml"}, "config.yaml: not a weights file"),
        (None, {"initial_weights": "none.h5"}, "none.h5: no such weights file"),
        (None, {"base_result_dir": "config.yaml/results"}, "config.yaml is not a directory"),
        (None, {"image_size": 14}, "too small for n_stacks: 2"),
    ],
)
def test_faulty_input_ends_with_status_2_one_message_and_nothing_written(run, tiny_data, damage_data, keys, words):
    if keys.get("initial_weights") == "wide.h5":
        wide = {key: value for key, value in TINY.items() if key != "unique_name"} | {"width": 2}
        save_weights(create_model(PatchTrainingConfig(**wide)), "wide.h5")
    if damage_data:
        damage_data(tiny_data)
    status, errors, _ = run(**keys)
    assert status == 2
    assert errors.startswith("mat-train: ")
    assert errors.count("\n") == 1
    assert words in errors
    assert not pathlib.Path("results").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such config file"),
        ("n_epoch: 3\n", "Did you mean n_epochs?"),
        ("seed: !!python/object/apply:os.system ['touch pwned']\n", "could not determine a constructor"),
        ("patch_shape: [65, 65, 3]\n", "at most [64, 64, 3]"),
    ],
)
def test_faulty_configs_end_with_status_2_and_one_message(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        pathlib.Path("config.yaml").write_text(text)
    assert main(["config.yaml"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("mat-train: config.yaml: ")
    assert errors.count("\n") == 1
    assert words in errors
    assert {path.name for path in tmp_path.iterdir()} <= {"config.yaml"}


def test_brackets_in_names_are_no_markup(run, tiny_data):
    pathlib.Path("[").mkdir()
    tiny_data.rename("[/red]data")
    status, errors, output = run(["--set", "n_epochs=1"], data_dir="[/red]data")
    assert (status, errors) == (0, "")
    assert "[/red]data: 32 training" in output


def test_a_moved_run_is_resumed_where_it_lies_or_not_at_all(run):
    assert run(n_epochs=1, n_patches=0)[0] == 0
    pathlib.Path("results/run").rename("results/old run")
    status = main(["results/old run/config.yaml", "--resume"])
    assert status == 2
    assert not pathlib.Path("results/run").exists()
    pathlib.Path("checkpoints").mkdir()  # beside a config that is not of a run
    places = [f"base_result_dir={pathlib.Path('results').absolute()}", "unique_name=old run"]
    assert main(["results/old run/config.yaml", "--resume", "--set", places[0], "--set", places[1]]) == 0


def test_bad_records_stop_the_run_or_are_passed_over(run, tiny_data):
    write_tiny_split(tiny_data, "train", np.arange(33) % 4, jpeg=b"no image")
    status, errors, _ = run(n_epochs=1, n_patches=0)
    assert status == 2
    assert "train.tfrecord: record 0 has an image that cannot be decoded" in errors
    status, errors, output = run(["--set", "bad_records=skip"], n_epochs=1, n_patches=0)
    assert (status, errors) == (0, "")
    assert "train.tfrecord: passing over 1 bad of 33 records: record 0" in output
    assert "32 training and 12 validation images" in output


def test_a_loss_that_is_not_finite_ends_with_status_3(run):
    status, errors, _ = run(initial_lr=1000.0, normalization="none", weight_decay=1000.0)
    assert status == 3
    assert "Try a lower initial_lr" in errors


@pytest.mark.parametrize("command", [["mat/train.py"], ["-m", "mat.train"]])
def test_help_shows_everything_without_tensorflow(command):
    code = [sys.executable, "-X", "importtime", *command, "--help"]
    process = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    for words in ("CONFIG", "--set KEY=VALUE", "--resume", "--extend N", "--dry-run", "exit status", "optimizer.n_iterations", "[24, 24"):
        assert words in process.stdout
    assert "tensorflow" not in process.stderr


def test_config_errors_come_without_tensorflow(tmp_path):
    (tmp_path / "config.yaml").write_text("n_epoch: 3\n")
    command = [sys.executable, "-X", "importtime", str(ROOT / "mat" / "train.py"), "config.yaml"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 2
    assert "Did you mean n_epochs?" in process.stderr
    assert "tensorflow" not in process.stderr


def test_a_terminal_that_is_gone_ends_the_run_after_a_step_with_its_status_and_the_way_to_go_on(tmp_path, tiny_data):
    """SIGHUP, and nobody reads the output; Ctrl-C and SIGTERM are among the interruptions of tests/test_resume.py."""
    config = {**TINY, "data_dir": str(tiny_data), "base_result_dir": str(tmp_path / "results"), "n_epochs": 100_000}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, str(ROOT / "mat" / "train.py"), str(tmp_path / "config.yaml")]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the process inherits it, and under nohup it would be ignored
    reader, writer = os.pipe()
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGHUP, before)
    os.close(writer)
    log, deadline = tmp_path / "results" / "run" / "log.csv", time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.close(reader)
    process.send_signal(signal.SIGHUP)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 129
    assert errors.splitlines()[-1].startswith("mat-train: Stopped after epoch")
    assert f"{tmp_path}/results/run/config.yaml --resume" in errors
    assert "Traceback" not in errors
    assert tf.train.latest_checkpoint(str(tmp_path / "results" / "run" / "checkpoints"))
