"""Plots of runs: what they show, where they go, what is left out and what is refused."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mat.config import PatchTrainingConfig
from mat.results.events import Events, read_values
from mat.results.run_directory import patch_grid
from mat.robustness.figures import picture_style
from mat.tools.plot import main
from mat.tools.plot_figures import bank_strips, confusion, learning_curves, robustness, run_styles
from mat.tools.plot_runs import read_confusion, read_runs

CLASSES = ["red panda", "n1", "Éclair"]
LABELS, CLEAN, ROBUST = [0, 0, 1, 1], [0, 1, 1, 1], [2, 2, 1, 2]  # no image of the last class
WORST = "given-odd, name"


@pytest.fixture(autouse=True)
def style():
    """The figures of these tests are drawn as those of the command."""
    with picture_style():
        yield


def estimate(accuracy):
    return {"accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.1}


def write_evaluation(
    directory, *, accuracy=0.25, weights="x/tiny_imagenet_weights_001.h5", iterations=100, curves=(), n_classes=3, **subject
):
    """An evaluation, as far as it is drawn; returns its directory."""
    directory.mkdir(parents=True)
    report = {
        "headline": {
            "clean": estimate(0.75) | {"n_images": 4},
            "robust": estimate(accuracy) | {"name": WORST},
            "every_image_under_its_worst_patch": estimate(0.125),
            "n_patches": 18,
        },
        "grid": [{"target": None, "target_name": None}, {"target": 1, "target_name": "one"}],
        "grid_summary": {"mean": 0.5},
        "controls": [estimate(0.7), estimate(0.625)],
        "curves": {
            "iterations": [estimate(accuracy) | {"iterations": number} for number, accuracy in curves],
            "patch_size": [estimate(accuracy) | {"patch_shape": [number, 2, 3]} for number, accuracy in curves],
        },
        "subject": {"n_classes": n_classes, "weights": weights, "protocol": {"iterations": iterations}} | subject,
    }
    (directory / "report.json").write_text(json.dumps(report))
    with (directory / "examples.csv").open("w") as file:
        rows = zip(range(4), LABELS, CLEAN, ROBUST, CLEAN, strict=True)
        csv.writer(file).writerows([["record", "label", "clean", WORST, "grey"], *rows])
    return directory


def write_run(path, *, n_epochs=2, n_patches=5, robust=None, **config):
    """A training run; its bank after epoch e is `bank(n_patches, e)`, written by two processes. Returns its directory."""
    path.mkdir(parents=True)
    PatchTrainingConfig(**{"n_epochs": max(1, n_epochs)} | config).to_yaml(path / "config.yaml")
    (path / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), "utf-8")
    header = "Epoch;Train Loss;Train Accuracy;Valid Accuracy" + ("" if robust is None else ";Robust Accuracy")
    rows = [
        f"{e}.000;{2 - e / 10:.3f};{e / 10:.3f};{e / 20:.3f}" + ("" if robust is None else f";{robust.get(e, '')}") for e in range(n_epochs)
    ]
    (path / "log.csv").write_text("".join(f"{row}\r\n" for row in (header, *rows)), newline="")
    if n_patches:
        for first in (0, n_epochs // 2):
            events = Events(path / "events")
            for epoch in range(first, n_epochs):
                events.write(epoch, {"train/loss": 1.0}, {"patches": patch_grid(bank(n_patches, epoch)[:64])})
        np.savez(path / "patches.npz", patches=bank(n_patches, n_epochs - 1), step_sizes=np.arange(n_patches) % 16)
    return path


def bank(n_patches, epoch):
    """float32 [P, 6, 4, 3]."""
    return np.random.default_rng(epoch).random((n_patches, 6, 4, 3), np.float32)


def xy(line):
    return np.asarray(line.get_xydata())


def texts(axes):
    return [text.get_text() for text in axes.texts]


def dpi_of(path):
    with Image.open(path) as picture:
        return round(picture.info["dpi"][0])


def test_a_run_is_drawn_into_its_directory_again_and_again(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    write_evaluation(run / "tiny_imagenet_weights_001_quick_evaluation", curves=[(1, 0.5), (2, 0.25)])
    names = ["curves.png", "robustness.png", "bank_run.png", "confusion_run.png"]
    assert main([str(run), "--dpi", "50"]) == 0
    assert capsys.readouterr().out == f"{run / 'plots'}: {', '.join(names)}\n"
    first = {path.name: path.read_bytes() for path in (run / "plots").iterdir()}
    assert set(first) == set(names)
    (run / "plots" / "curves.png").write_text("of an earlier call")
    assert main([str(run), "--dpi", "50"]) == 0
    assert {path.name: path.read_bytes() for path in (run / "plots").iterdir()} == first
    assert dpi_of(run / "plots" / "curves.png") == 50


def test_several_runs_go_into_the_current_directory_under_names_that_differ(tmp_path, monkeypatch):
    runs = [write_run(tmp_path / parent / name) for parent, name in (("a", "mat"), ("b", "mat"), ("a", "other"))]
    monkeypatch.chdir(tmp_path)
    assert main(["a/mat", "b/mat", "a/other", "b/mat/."]) == 0
    names = {"curves.png", "bank_a_mat.png", "bank_b_mat.png", "bank_other.png"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == names
    assert dpi_of(tmp_path / "plots" / "curves.png") == 150
    assert [run.name for run in read_runs([*runs, runs[0]])] == ["a/mat", "b/mat", "other"]


def test_curves_show_the_logs_and_what_was_measured_of_robustness(tmp_path):
    one = write_run(tmp_path / "one", n_epochs=4, n_patches=0, robust={2: "0.125", 3: "0.5"})
    for epoch, accuracy in ((1, 0.25), (3, 0.5)):
        name = f"tiny_imagenet_weights_00{epoch}"
        write_evaluation(one / f"{name}_evaluation", accuracy=accuracy, weights=f"x/{name}.h5")
    write_evaluation(one / "quick_evaluation", accuracy=0.75, weights="tiny_imagenet_weights_003.h5", iterations=10)
    write_evaluation(one / "others_evaluation", accuracy=0.875, weights="others.h5")
    other = write_run(tmp_path / "other", n_epochs=2, n_patches=0)
    loss, accuracy, validation, robust = learning_curves(read_runs([one, other])).axes
    for axes, column in ((loss, lambda e: 2 - e / 10), (accuracy, lambda e: e / 10), (validation, lambda e: e / 20)):
        for line, n_epochs in zip(axes.lines, (4, 2), strict=True):
            epochs = np.arange(n_epochs)
            np.testing.assert_allclose(xy(line), np.stack([epochs, column(epochs)], axis=1), atol=1e-9)
    lines = [(np.round(line[0].get_xdata()).tolist(), line[0].get_ydata().tolist()) for line in robust.containers]
    # One line for each protocol, and the log's value where there is no report.
    assert sorted(lines) == [([1, 3], [0.25, 0.5]), ([2], [0.125]), ([3], [0.75])]
    ((left, low), (right, high)) = robust.containers[0].lines[2][0].get_segments()[0]
    assert left == right and (low, high) == pytest.approx((0.2, 0.35))


def test_runs_that_differ_in_their_seed_share_a_color(tmp_path):
    paths = [write_run(tmp_path / f"run{i}", n_patches=0, **keys) for i, keys in enumerate([{"seed": 1}, {"seed": 2}, {"width": 1}])]
    first, second, third = run_styles(read_runs(paths))
    assert first["color"] == second["color"] != third["color"]
    assert first["linestyle"] == third["linestyle"] != second["linestyle"]


def test_robustness_is_that_of_the_newest_weights_under_the_strongest_evaluation(tmp_path):
    run = write_run(tmp_path / "run", n_patches=0)
    for i, (weights, accuracy) in enumerate([("_000.h5", 0.1), ("_001.h5", 0.3), ("_001.weights.h5", 0.2), ("other.h5", 0.05)]):
        write_evaluation(run / f"{i}_evaluation", weights=f"network{weights}", accuracy=accuracy, curves=[(8, 0.5), (2, 0.75)])
    plain = write_evaluation(tmp_path / "plain", accuracy=0)
    accuracies, iterations, sizes = robustness(read_runs([run, plain])).axes
    assert texts(accuracies) == ["75.0%", "62.5%", "50.0%", "20.0%", "12.5%", "75.0%", "62.5%", "50.0%", "0.0%", "12.5%"]
    labels = [label.get_text().splitlines() for label in accuracies.get_yticklabels()]
    assert labels == [["run", "epoch 1; 18 patches,", "4 images"], ["plain", "epoch 1; 18 patches,", "4 images"]]
    assert [xy(container[0]).tolist() for container in iterations.containers] == [[[8, 0.5], [2, 0.75]]]
    assert [xy(container[0]).tolist() for container in sizes.containers] == [[[16, 0.5], [4, 0.75]]]
    assert len(robustness(read_runs([plain])).axes) == 1  # no evaluation has curves


def test_an_own_network_as_a_whole_is_that_of_the_last_epoch_unless_the_run_is_or_was_extended(tmp_path):
    def epochs():
        return [one.epoch for one in read_runs([run])[0].evaluations]

    run = write_run(tmp_path / "run", n_epochs=3, n_patches=0)
    (run / "network.keras").write_bytes(b"hello\n")
    blob = "ce013625030ba8dba906f756967f9e9ca394464a"  # echo hello | git hash-object --stdin
    write_evaluation(run / "network_evaluation", weights="results/run/network.keras", weights_git_blob=blob)
    assert epochs() == [2]
    PatchTrainingConfig(n_epochs=4).to_yaml(run / "config.yaml")
    assert epochs() == [None]
    (run / "log.csv").write_text((run / "log.csv").read_text() + "3.000;1.0;0.5;0.5\n")
    assert epochs() == [3]
    (run / "network.keras").write_bytes(b"that of epoch 3")
    assert epochs() == [None]
    (run / "network.keras").unlink()
    assert epochs() == [None]


@pytest.mark.parametrize(("n_patches", "shown"), [(5, range(5)), (70, [*range(12, 16), *range(28, 32), *range(44, 48), *range(60, 64)])])
def test_strips_show_the_patches_that_move_most_at_evenly_spread_epochs(tmp_path, n_patches, shown):
    (run,) = read_runs([write_run(tmp_path / "run", n_epochs=31, n_patches=n_patches)])
    (axes,) = bank_strips(run).axes
    epochs = [int(label.get_text()) for label in axes.get_yticklabels()]
    assert epochs[0] == 0 and epochs[-1] == 30 and len(epochs) == 15 and set(np.diff(epochs)) == {2, 3}
    assert [label.get_text() for label in axes.get_xticklabels()] == list(map(str, shown))
    picture = np.asarray(axes.images[0].get_array())
    for row, epoch in enumerate(epochs):
        for column, patch in enumerate(bank(n_patches, epoch)[list(shown)]):
            cell = picture[7 * row : 7 * row + 6, 5 * column : 5 * column + 4]
            np.testing.assert_array_equal(cell, np.round(255 * patch))
    assert picture.shape == (15 * 7, len(shown) * 5, 3)


def test_pictures_of_events_are_read_from_all_files_up_to_a_damage(tmp_path):
    for epochs in (range(2), range(4)):
        events = Events(tmp_path)
        for epoch in epochs:
            events.write(epoch, {"loss": 1.0}, {"other": np.zeros([1, 1, 3], np.uint8), "patches": np.full([4, 5, 3], epoch, np.uint8)})
    pictures = read_values(tmp_path, "patches")
    assert list(pictures) == [0, 1, 2, 3]
    assert all(png.startswith(b"\x89PNG") for _, _, png in pictures.values())
    newest = max(tmp_path.glob("*tfevents*"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-7])
    assert [*read_values(tmp_path, "patches"), *read_values(tmp_path, "missing")] == [0, 1, 2]


def test_confusion_is_counted_without_and_under_the_worst_patch(tmp_path):
    run = write_run(tmp_path / "run", n_patches=0)
    write_evaluation(run / "x_evaluation")
    (read,) = read_runs([run])
    counts = read_confusion(read.evaluations[-1])
    assert {name: matrix.tolist() for name, matrix in counts.items()} == {
        "clean": [[1, 1, 0], [0, 2, 0], [0, 0, 0]],
        "robust": [[0, 0, 2], [0, 1, 1], [0, 0, 0]],
    }
    figure = confusion(read, counts)
    clean, robust = figure.axes[:2]
    nan = np.nan
    np.testing.assert_array_equal(np.ma.filled(robust.images[0].get_array(), nan), [[0, 0, 1], [0, 0.5, 0.5], [nan, nan, nan]])
    assert (texts(clean), texts(robust)) == (["50", "50", "100"], ["100", "50", "50"])
    assert [label.get_text() for label in clean.get_yticklabels()] == CLASSES
    assert (clean.get_title(), robust.get_title()) == ("without a patch: 75.0% right", "under the worst patch: 25.0% right")
    assert WORST in figure.get_suptitle()


def test_many_classes_are_drawn_with_few_names_which_the_report_may_tell(tmp_path):
    (run,) = read_runs([write_evaluation(tmp_path / "evaluation", n_classes=200)])
    figure = confusion(run, read_confusion(run.evaluations[-1]))
    clean = figure.axes[0]
    assert clean.images[0].get_array().shape == (200, 200) and texts(clean) == []
    assert [label.get_text() for label in clean.get_xticklabels()] == [str(label) for label in range(0, 200, 8)]
    (few,) = read_runs([write_evaluation(tmp_path / "few")])
    names = [label.get_text() for label in confusion(few, read_confusion(few.evaluations[-1])).axes[0].get_xticklabels()]
    assert names == ["0", "one", "2"]


def test_what_a_run_lacks_is_left_out_and_told(tmp_path, capsys):
    begun = write_run(tmp_path / "begun", n_epochs=0, n_patches=0)
    (begun / "tiny_imagenet_weights_000_evaluation").mkdir()
    saved = write_run(tmp_path / "saved", n_epochs=1)  # stopped between its bank and its log
    (saved / "log.csv").write_text((begun / "log.csv").read_text())
    short = write_run(tmp_path / "short")
    (short / "log.csv").write_text((short / "log.csv").read_text() + "2.000;1.0;0.5;0.5\n")
    alone = write_evaluation(tmp_path / "alone")
    (alone / "examples.csv").unlink()
    assert main([*map(str, (begun, saved, short, alone)), "--output", str(tmp_path / "out" / "new")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "begun: tiny_imagenet_weights_000_evaluation has no report.json: not finished, left out",
        "begun: no epoch in log.csv: no learning curves",
        "begun: no bank in events: no strips of it",
        "begun: no evaluation: no robust accuracy, no confusion",
        "saved: no epoch in log.csv: no learning curves",
        "saved: no evaluation: no robust accuracy, no confusion",
        "short: no bank in events of 1 of the 3 epochs in log.csv: left out",
        "short: no evaluation: no robust accuracy, no confusion",
        "alone: an evaluation alone: no learning curves, no bank",
        f"alone: no examples.csv in {alone}: no confusion",
        f"{tmp_path / 'out' / 'new'}: curves.png, robustness.png, bank_saved.png, bank_short.png",
    ]


def test_an_evaluation_alone_needs_no_tensorflow(tmp_path):
    write_evaluation(tmp_path / "evaluation", curves=[(1, 0.5)])
    code = "import sys; from mat.tools.plot import main; print(main(['evaluation']), 'tensorflow' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "0 False"


def report_without(key):
    """Damage to a report: a key of its headline is gone."""

    def damage(path):
        report = json.loads(path.read_text())
        del report["headline"][key]
        path.write_text(json.dumps(report))

    return damage


def replaced(old, new):
    """Damage to a file's text."""
    return lambda path: path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("log.csv", replaced("Train Loss", "Loss"), "log.csv: not a log of this program (KeyError: 'Train Loss')"),
        (
            "log.csv",
            replaced("1.900", "1,900"),
            "log.csv: not a log of this program (ValueError: could not convert string to float: '1,900')",
        ),
        ("log.csv", replaced("1.000;1.900", ";1.900"), "log.csv: not a log of this program (ValueError: an epoch is missing)"),
        ("log.csv", lambda path: path.write_bytes(b"\xff"), "log.csv: not a log of this program"),
        ("config.yaml", replaced("seed: 0", "seed: ["), "config.yaml: not a valid config"),
        ("classes.txt", lambda path: path.write_bytes(b"\xff"), "classes.txt cannot be read"),
        ("x_evaluation/report.json", replaced("{", "["), "report.json: not a report of this program (JSONDecodeError: "),
        (
            "x_evaluation/report.json",
            report_without("robust"),
            "report.json: not a report of this program (KeyError: 'robust')",
        ),
        (
            "x_evaluation/examples.csv",
            replaced("odd", "even"),
            f"examples.csv: not the examples of the report beside it (KeyError: '{WORST}')",
        ),
        ("x_evaluation/examples.csv", replaced("3,1,1,2", "3,1,1,3"), "a class beyond 0..2"),
        (
            "patches.npz",
            lambda path: np.savez(path, patches=np.zeros([5, 5, 4, 3]), step_sizes=np.zeros(5)),
            "patches.npz: not the bank that",
        ),
        ("patches.npz", lambda path: path.write_bytes(b"PK"), "patches.npz: not the bank that"),
    ],
)
def test_damaged_files_are_refused_by_name_and_nothing_is_written(tmp_path, capsys, file, damage, words):
    run = write_run(tmp_path / "run")
    write_evaluation(run / "x_evaluation")
    damage(run / file)
    assert main([str(run)]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("mat.tools.plot: ") and words in error and len(error.splitlines()) == 1
    assert out == "" and not (run / "plots").exists()


def test_nothing_to_draw_and_places_that_cannot_be_used_are_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2
    assert f"{tmp_path / 'empty'}: nothing to draw. Give " in capsys.readouterr().err
    assert main([str(tmp_path / "gone")]) == 2
    assert f"{tmp_path / 'gone'}: no such directory. Give " in capsys.readouterr().err
    evaluation = write_evaluation(tmp_path / "evaluation")
    (tmp_path / "file").write_text("mine")
    assert main([str(evaluation), "--output", str(tmp_path / "file")]) == 2
    assert "is not a directory. Choose another --output" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(evaluation), "--dpi", "5"])
    assert "--dpi must be in 20 to 1200. Received: 5" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([str(evaluation)]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not (evaluation / "plots").exists()
