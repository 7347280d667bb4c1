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

PROGRAM = [sys.executable, str(pathlib.Path(__file__).parent.parent / "mat" / "evaluate.py")]
FAST = ["--quick", "--iterations", "2", "--max-images", "20", "--set", "evaluation.n_targets=1"]
REPORT = pathlib.Path("plain_quick_evaluation")


@pytest.fixture
def command(tmp_path, undefended, monkeypatch, capsys):
    """A function from more arguments to (exit status, standard error, standard output) of `mat-evaluate plain.yaml --weights plain.h5`.

    These are the undefended network's config and weights, in the working directory.
    """
    config, weights = undefended
    config.to_yaml(tmp_path / "plain.yaml")
    shutil.copy(weights, tmp_path / "plain.h5")
    shutil.copytree(config.data_dir, tmp_path / "data", ignore=shutil.ignore_patterns("run*"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main(["plain.yaml", "--weights", "plain.h5", *FAST, *map(str, arguments)])
        return status, *reversed(capsys.readouterr())

    run.config = config
    return run


def test_weights_that_were_trained_on_other_classes_are_warned_of(command):
    names = [str(label) for label in range(10)]
    pathlib.Path("classes.txt").write_text("".join(f"{name}\n" for name in names))
    assert "trained on other classes" not in command("--output", "same")[2]
    pathlib.Path("classes.txt").write_text("".join(f"{name}\n" for name in ["cat", *names[1:]]))
    status, errors, output = command("--output", "other")
    assert (status, errors) == (0, "")
    assert "WARNING: plain.h5: these weights were trained on other classes: cat where the data has 0" in output


def test_a_quick_evaluation_writes_its_report_beside_the_weights(command):
    status, errors, output = command()
    assert (status, errors) == (0, "")
    content = (REPORT / "report.json").read_bytes()
    clean, robust = (json.loads(content)["headline"][key] for key in ("clean", "robust"))
    for words in (
        "plain.h5: evaluating into plain_quick_evaluation",
        "20 to score on, 960 training images to fit patches on",
        "2 white-box patches x 2 iterations; 12x12 pixels, 16 images each time",
        "forward passes of one image",
        "clean accuracy",
        f"{robust['accuracy']:.1%} ({robust['low']:.1%} to {robust['high']:.1%}) under the worst of 9 universal patches (white-box)",
        "WARNING: failed check: the interval is at most 7.0% wide",  # 20 images are too few
    ):
        assert words in output
    assert clean["n_images"] == len((REPORT / "examples.csv").read_text().splitlines()) - 1 == 20
    status, errors, _ = command()
    assert status == 2
    assert "plain_quick_evaluation: exists already" in errors
    status, _, output = command("--resume", "--set", "data_dir=data")  # the same data elsewhere
    assert status == 0
    assert "was finished before" in output
    assert (REPORT / "report.json").read_bytes() == content
    shutil.copy("data/validation.tfrecord", "data/train.tfrecord")
    for arguments, words in (
        (["--set", "seed=1"], "seed: 0, and this one has seed: 1"),
        (["--iterations", "3"], "evaluation.iterations: 2, and this one has evaluation.iterations: 3"),
        (["--set", "data_dir=data"], "data_sha256"),
    ):
        status, errors, _ = command("--resume", *arguments)
        assert status == 2
        assert f"the evaluation in it has {words}" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attacks", "white_box,magic"], "evaluation.attacks[1] must be one of 'white_box', 'gradient_free'. Received: 'magic'"),
        (["--iterations", "many"], "evaluation.iterations must be a whole number"),
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
        (["--bank", "none.npz"], "none.npz: not a bank for 10 classes (No such file or directory)"),
        (["--patches-from", "nowhere"], "nowhere: no patches to transfer"),
        (["--patches", "none.png"], "none.png: cannot be read (--patches): No such file or directory. Give a PNG"),
        (["--patches", "data"], "data: cannot be read (--patches): Is a directory. Name the files in it"),
        (["--patches", "plain.h5", "--patches", "plain.yaml"], "plain.h5: no patches (--patches)"),
        (["--output", "plain.yaml/report"], "plain.yaml is not a directory"),
        (["--output", "."], ".: exists already. Choose another --output"),
        (["--output", ".", "--resume"], ".: holds no evaluation to continue"),
    ],
)
def test_faulty_input_ends_with_status_2_one_message_and_no_report(command, arguments, words):
    if "nan.h5" in arguments:
        model = create_model(command.config)
        model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
        save_weights(model, "nan.h5")
    before = set(pathlib.Path().rglob("*"))
    status, errors, _ = command(*arguments)
    assert status == 2
    assert errors.startswith("mat-evaluate: ")
    assert errors.count("\n") == 1
    assert words in errors
    assert set(pathlib.Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (["--iterations", "700", "--restarts", "3", "--attacks", "white_box,gradient_free"], {"iterations": 700, "restarts": 3}),
        (["--set", "evaluation.iterations=700", "--set", "evaluation.curves=true"], {"iterations": 700, "curves": True}),
    ],
)
def test_what_is_named_wins_over_quick(command, arguments, changes):
    def protocol(*arguments):
        return read_config(parse_arguments(["plain.yaml", "--weights", "plain.h5", *arguments])).evaluation

    full = PatchTrainingConfig().evaluation
    changes |= {"attacks": full.attacks} if "--attacks" in arguments else {}
    assert protocol() == full
    assert protocol(*arguments) == full.replace(**changes)
    assert protocol("--quick", *arguments) == full.quick().replace(**changes)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_the_evaluation_and_keep_what_was_fitted(command, number, status):
    endless = [*FAST, "--restarts", "500", "--set", "evaluation.images_at_once=16", "--set", "evaluation.images_per_iteration=16"]
    arguments = [*PROGRAM, "plain.yaml", "--weights", "plain.h5", *endless]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list(REPORT.glob("restarts/*.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors.splitlines()[-1] == "mat-evaluate: Stopped; what was fitted is kept: run the same command with --resume"
    assert "Traceback" not in errors
    assert not [*REPORT.glob("report.*"), *REPORT.glob("restarts/*.part")]


def test_help_and_config_errors_come_without_tensorflow(tmp_path):
    (tmp_path / "config.yaml").write_text("evaluation: {iteration: 3}\n")
    for arguments, words in ((["--help"], "evaluation.n_fit_images"), (["config.yaml", "--weights", "x.h5"], "Did you mean")):
        code = [PROGRAM[0], "-X", "importtime", PROGRAM[1], *arguments]
        process = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert words in process.stdout + process.stderr
        assert "tensorflow" not in process.stderr
