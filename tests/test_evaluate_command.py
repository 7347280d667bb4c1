"""The evaluation's command line: statuses, messages, what is written where, and stopping."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mat.config import PatchTrainingConfig
from mat.evaluate import main, parse_arguments, read_config
from mat.models import create_model, save_weights

ROOT = pathlib.Path(__file__).parent.parent
FAST = ["--quick", "--iterations", "2", "--max-images", "20", "--set", "evaluation.n_targets=1"]


@pytest.fixture
def case(tmp_path, undefended, monkeypatch):
    """A directory with the undefended network's config and weights, `plain.yaml` and `plain.h5`; it is the working directory."""
    config, weights = undefended
    config.to_yaml(tmp_path / "plain.yaml")
    shutil.copy(weights, tmp_path / "plain.h5")
    monkeypatch.chdir(tmp_path)
    return config


def command(capsys, *arguments):
    """(exit status, standard error, standard output) of `mat-evaluate plain.yaml --weights plain.h5` and more arguments."""
    status = main(["plain.yaml", "--weights", "plain.h5", *map(str, arguments)])
    output, errors = capsys.readouterr()
    return status, errors, output


def test_a_quick_evaluation_writes_its_report_beside_the_weights(case, capsys):
    status, errors, output = command(capsys, *FAST)
    assert (status, errors) == (0, "")
    report = json.loads(pathlib.Path("plain_quick_evaluation/report.json").read_text())
    for words in (
        "plain.h5: evaluating into plain_quick_evaluation",
        "forward passes of one image",
        "clean accuracy",
        "under the worst of 9 universal patches (white-box)",
    ):
        assert words in output
    headline = report["headline"]
    assert f"{headline['robust']['accuracy']:.1%} ({headline['robust']['low']:.1%} to {headline['robust']['high']:.1%})" in output
    assert headline["clean"]["n_images"] == 20
    assert len(pathlib.Path("plain_quick_evaluation/examples.csv").read_text().splitlines()) == 21
    assert "WARNING" in output  # 20 images are too few
    before = pathlib.Path("plain_quick_evaluation/report.json").read_bytes()
    status, errors, _ = command(capsys, *FAST)
    assert status == 2
    assert "plain_quick_evaluation: exists already" in errors
    status, _, _ = command(capsys, *FAST, "--resume")
    assert status == 0
    again = json.loads(pathlib.Path("plain_quick_evaluation/report.json").read_text())
    assert {**again, "run": None} == {**json.loads(before), "run": None}


def test_keras_weights_are_evaluated_too(case, capsys):
    model = create_model(case)
    model.save_weights("model.weights.h5")
    assert main(["plain.yaml", "--weights", "model.weights.h5", *FAST, "--iterations", "1"]) == 0
    assert pathlib.Path("model_quick_evaluation/report.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attacks", "white_box,magic"], "evaluation.attacks[1] must be one of 'white_box', 'gradient_free'. Received: 'magic'"),
        (["--max-images", "0"], "evaluation.max_images must be in [1"),
        (["--iterations", "many"], "evaluation.iterations must be a whole number"),
        (["--set", "patch_shape=[33, 33, 3]"], "at most [32, 32, 3]. Received: [33, 33, 3]"),
        (["--set", "data_dir=nowhere"], "nowhere/train.tfrecord: no such file"),
        (["--set", "width=2"], "plain.h5: these weights are not of this network: conv2d has the shapes"),
        (["--weights", "none.h5"], "none.h5: no such weights file"),
        (["--weights", "."], ".: no such weights file"),
        (["--output", "x" * 300], "cannot be used: File name too long"),
        (["--patches-from", "x" * 300], "cannot be read (--patches-from): File name too long"),
        (["--bank", "plain.yaml", "--set", "evaluation.starts=[bank]"], "plain.yaml: not a bank"),
        (["--set", "evaluation.starts=[bank]"], "starts attacks from a bank, and there is none"),
        (["--weights", "plain.yaml"], "plain.yaml: not a weights file"),
        (["--weights", "nan.h5"], "logits are NaN or infinite"),
        (["--bank", "none.npz"], "none.npz: no such bank"),
        (["--patches-from", "nowhere"], "nowhere: no patches to transfer"),
        (["--output", "plain.yaml/report"], "plain.yaml is not a directory"),
        (["--output", "."], ".: exists already. Choose another --output"),
        (["--output", ".", "--resume"], ".: holds no evaluation to continue"),
    ],
)
def test_faulty_input_ends_with_status_2_one_message_and_no_report(case, capsys, arguments, words):
    if "nan.h5" in arguments:
        model = create_model(case)
        model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
        save_weights(model, "nan.h5")
    before = {path.name for path in pathlib.Path().iterdir()}
    status, errors, _ = command(capsys, *FAST, *arguments)
    assert status == 2
    assert errors.startswith("mat-evaluate: ")
    assert errors.count("\n") == 1
    assert words in errors
    written = {path.name for path in pathlib.Path().iterdir()} - before
    assert not [path for name in written for path in pathlib.Path(name).glob("report.*")]


def test_a_corrupt_data_set_is_named(case, capsys, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(case.data_dir, data, ignore=shutil.ignore_patterns("run*"))
    (data / "validation.tfrecord").write_bytes(b"")
    status, errors, _ = command(capsys, *FAST, "--set", f"data_dir={data}")
    assert status == 2
    assert f"{data}/validation.tfrecord: no records" in errors


def test_another_protocol_is_not_continued(case, capsys):
    assert command(capsys, *FAST)[0] == 0
    status, errors, _ = command(capsys, *FAST, "--resume", "--set", "seed=1")
    assert status == 2
    assert "the evaluation in it has seed: 0, and this one has seed: 1" in errors
    shutil.copytree(case.data_dir, "data", ignore=shutil.ignore_patterns("run*"))
    assert command(capsys, *FAST, "--resume", "--set", "data_dir=data")[0] == 0  # the same data elsewhere
    shutil.copy("data/validation.tfrecord", "data/train.tfrecord")
    status, errors, _ = command(capsys, *FAST, "--resume", "--set", "data_dir=data")
    assert status == 2
    assert "the evaluation in it has data_sha256" in errors
    status, errors, _ = command(capsys, *FAST, "--resume", "--iterations", "3")
    assert "evaluation.iterations: 2, and this one has evaluation.iterations: 3" in errors


def test_arguments_become_the_protocol(case):
    def protocol(*arguments):
        return read_config(parse_arguments(["plain.yaml", "--weights", "plain.h5", *arguments])).evaluation

    assert protocol() == PatchTrainingConfig().evaluation
    assert protocol("--quick") == PatchTrainingConfig().evaluation.quick()
    named = protocol("--quick", "--iterations", "700", "--restarts", "3", "--attacks", "white_box,gradient_free")
    assert (named.iterations, named.restarts, named.attacks, named.starts) == (700, 3, ("white_box", "gradient_free"), ("random",))
    named = protocol("--quick", "--set", "evaluation.iterations=700", "--set", "evaluation.curves=true")
    assert (named.iterations, named.curves, named.step_sizes) == (700, True, (0.05,))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_the_evaluation_and_keep_what_was_fitted(case, capsys, tmp_path, number, status):
    endless = [*FAST, "--restarts", "500", "--set", "evaluation.images_at_once=16", "--set", "evaluation.images_per_iteration=16"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "mat" / "evaluate.py"), "plain.yaml", "--weights", "plain.h5", *endless],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    kept, deadline = pathlib.Path("plain_quick_evaluation/restarts"), time.monotonic() + 60
    while process.poll() is None and not (kept.is_dir() and len(list(kept.glob("*.npz"))) >= 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors.splitlines()[-1] == "mat-evaluate: Stopped; what was fitted is kept: run the same command with --resume"
    assert "Traceback" not in errors
    assert not list(pathlib.Path("plain_quick_evaluation").glob("report.*"))
    assert not list(kept.glob("*.part"))


def test_help_and_config_errors_come_without_tensorflow(tmp_path):
    (tmp_path / "config.yaml").write_text("evaluation: {iteration: 3}\n")
    for arguments, words in ((["--help"], "evaluation.n_fit_images"), (["config.yaml", "--weights", "x.h5"], "Did you mean")):
        code = [sys.executable, "-X", "importtime", str(ROOT / "mat" / "evaluate.py"), *arguments]
        process = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert words in process.stdout + process.stderr
        assert "tensorflow" not in process.stderr
