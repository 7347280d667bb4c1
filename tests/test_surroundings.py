"""Commands under what shells, notebooks and users' settings do to them, and TensorFlow's start without its GPU."""

import json
import os
import pathlib
import runpy
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

from mat import evaluate, train
from mat.cli import command as commands
from mat.data import convert
from mat.models import prepared, weights
from mat.models.resnet import create_resnet
from mat.tools import benchmark, interruptions
from tests.conftest import SMALL, TINY

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = {
    train: ["CONFIG"],
    evaluate: ["CONFIG", "--weights", "FILE"],
    convert: ["SOURCE", "DESTINATION"],
    weights: ["--download", "DIRECTORY"],
    benchmark: ["CONFIG"],
    interruptions: [],
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What commands set in the environment is as before afterwards."""
    for name in ("MPLBACKEND", "KERAS_HOME", "KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda module: module.__name__)
def test_every_command_refuses_another_keras_backend(command, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert command.main(COMMANDS[command]) == 2
    errors = capsys.readouterr().err
    assert "KERAS_BACKEND=jax: Keras must run on TensorFlow here" in errors
    assert errors.count("\n") == 1


def test_other_backends_and_windows_are_refused_at_import(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="Keras runs on jax"):
        runpy.run_path(prepared.__file__)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ImportError, match="WSL"):
        runpy.run_path(str(ROOT / "mat" / "__init__.py"))


def run(*command, cwd=ROOT, **environment):
    """A finished process, with what it wrote in ASCII."""
    options = {"cwd": cwd, "env": os.environ | environment, "capture_output": True, "encoding": "ascii", "timeout": 120}
    return subprocess.run(command, check=False, **options)


STREAMS = """
import sys
from mat.cli.command import prepare_process
prepare_process()
with open("probe", "w") as file:
    number = file.fileno()
print("to standard output \\xe9 \\udcff \\u2501")
print("to standard error \\xe9 \\udcff", file=sys.stderr)
sys.exit(10 + number)
"""


@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_and_narrow_encodings_stop_nothing(tmp_path, closed):
    command = ["bash", "-c", f'"$@" {closed}', "bash", sys.executable, "-c", STREAMS]
    process = run(*command, cwd=tmp_path, PYTHONIOENCODING="ascii", PYTHONPATH=str(ROOT))
    assert process.returncode == 13  # the file that was opened got no number of a stream
    assert process.stdout == ("" if " >&-" in f" {closed}" else "to standard output \\xe9 \\udcff \\u2501\n")
    assert process.stderr == ("" if "2>&-" in closed else "to standard error \\xe9 \\udcff\n")


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["d\udcf6nn\u00e9es.yaml"], 2)])
def test_messages_are_printed_in_any_locale(arguments, status):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "0"}
    process = run(sys.executable, "mat/train.py", *map(os.fsencode, arguments), **locale)
    assert process.returncode == status
    assert "Traceback" not in process.stderr
    assert process.stdout if status == 0 else process.stderr


def test_a_run_in_a_notebooks_environment_is_as_any_other(tmp_path, tiny_data):
    data, home = tiny_data.rename(tmp_path / "d\u00f6nn\u00e9es"), tmp_path / "home" / ".keras"
    config = {**TINY, "data_dir": str(data), "base_result_dir": str(tmp_path / "results"), "n_epochs": 1, "n_patches": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    home.mkdir(parents=True)
    (home / "keras.json").write_text(json.dumps({"backend": "jax", "floatx": "bfloat16", "image_data_format": "channels_first"}))
    odd = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "FORCE_COLOR": "1", "COLUMNS": "0", "PYTHONIOENCODING": "ascii"}
    command = f'exec "{sys.executable}" "{ROOT}/mat/train.py" config.yaml <&- 2>&-'
    process = run("bash", "-c", command, cwd=tmp_path, HOME=str(home.parent), **odd)
    assert process.returncode == 0
    assert f"{tmp_path}/d\\xf6nn\\xe9es: 32 training" in process.stdout
    assert "\x1b" not in process.stdout
    assert (tmp_path / "results" / "run" / "log.csv").is_file()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("image_data_format", "channels_first"), ("floatx", "float64"), ("epsilon", 0.1), ("dtype_policy", "mixed_float16")],
)
def test_keras_settings_do_not_change_the_network(setting, value):
    images = tf.constant(np.random.default_rng(0).uniform(size=[2, 16, 16, 3]), tf.float32)
    shape = {key: SMALL[key] for key in ("image_size", "n_classes", "depth", "width", "n_stacks")}

    def logits():
        return [create_resnet(**shape, normalization=kind)(images, training=True).numpy() for kind in ("strip", "group", "batch")]

    expected, before = logits(), getattr(keras.config, setting)()
    getattr(keras.config, f"set_{setting}")(value)
    try:
        found = logits()
    finally:
        getattr(keras.config, f"set_{setting}")(before)
    np.testing.assert_array_equal(found, expected, strict=True)


LOG = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795594201.525113    5880 port.cc:153] oneDNN custom operations are on.
I0000 00:00:1795594201.525850    5880 cudart_stub.cc:31] Could not find cuda drivers, GPU will not be used.
E0000 00:00:1795594202.222893    5880 cuda_platform.cc:52] failed call to cuInit
2026-01-01 12:00:00.123456: W tensorflow/core/gpu/gpu_device.cc:2343] Cannot dlopen some libraries.
2026-01-01 12:00:00.123457: W tensorflow/core/gpu/gpu_device.cc:2343] Cannot dlopen some libraries.
Traceback of something else
"""
REASONS = ["Could not find cuda drivers, GPU will not be used.", "failed call to cuInit", "Cannot dlopen some libraries."]
NOTHING = ["nothing; it may be built for CPUs only"]


@pytest.mark.parametrize(
    ("environment", "driver", "gpus", "log", "reasons"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1", "NVIDIA_VISIBLE_DEVICES": "all"}, True, [], LOG, REASONS),
        ({}, True, [], None, NOTHING),
        ({"CUDA_VISIBLE_DEVICES": "-1,0"}, True, [], LOG, []),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, True, [], LOG, []),
        ({}, False, [], LOG, []),
        ({}, True, ["a GPU"], LOG, []),
    ],
)
def test_a_gpu_that_tensorflow_does_not_find_is_told_with_the_reason(monkeypatch, capsys, environment, driver, gpus, log, reasons):
    def process(command, *, env, **_):
        assert env["TF_CPP_MIN_LOG_LEVEL"] == "0"
        if log is None:
            raise subprocess.TimeoutExpired(command, 1)
        return subprocess.CompletedProcess(command, 0, b"", log.encode())

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(commands, "DRIVER_PATHS", ("/none", "/" if driver else "/none"))
    monkeypatch.setattr(commands.subprocess, "run", process)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: gpus)
    commands.load_tensorflow()
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines[1:-1]] == reasons
    assert len(lines) == (len(reasons) + 2 if reasons else 0)
    assert not lines or lines[0].startswith("WARNING: this machine has an NVIDIA driver, and TensorFlow finds no GPU")
    assert not lines or 'pip install "tensorflow[and-cuda]"' in lines[-1]
