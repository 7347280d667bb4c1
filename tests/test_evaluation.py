"""Evaluations of a small undefended network: that the attacks are strong, that the numbers repeat, and what the report says of them."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from mat import __version__
from mat.cli.errors import StoppedError, UserError
from mat.cli.progress import WorkProgress
from mat.config import EvaluationConfig
from mat.data.splits import read_splits
from mat.models import create_model, load_weights
from mat.robustness.fit import Evaluation
from mat.robustness.measure import evaluate
from mat.robustness.store import ReportDirectory, find_patches, read_bank, read_patches

SMALL_PROTOCOL = EvaluationConfig(
    n_fit_images=300,
    n_targets=2,
    starts=("random", "bank"),
    step_sizes=(0.05,),
    iterations=75,
    search_iterations=75,
    images_per_iteration=16,
    n_controls=3,
    patch_scales=(0.5, 1.5),
    interval_width=0.2,
)
WHITE_BOX_ONLY = dataclasses.replace(SMALL_PROTOCOL, attacks=("white_box",), n_targets=1, iterations=30, curves=False)


@pytest.fixture(scope="module")
def subject(undefended):
    """(config, model, splits, weights file) of the undefended network."""
    config, weights = undefended
    model = create_model(config)
    load_weights(model, weights)
    return config, model, read_splits(config.dataset, config.data_dir, n_classes=config.n_classes), weights


@pytest.fixture(scope="module")
def run(subject, tmp_path_factory):
    """A function from a protocol to (report, directory) of an evaluation of the undefended network."""
    config, model, splits, weights = subject

    def evaluated(protocol, directory=None, **arguments):
        directory = directory or tmp_path_factory.mktemp("evaluation") / "report"
        changed = dataclasses.replace(config, evaluation=protocol)
        return evaluate(changed, model, splits, directory, weights=weights, **arguments), directory

    return evaluated


@pytest.fixture(scope="module")
def whole(run):
    """(report, directory) of an evaluation with everything but transferred patches."""
    return run(SMALL_PROTOCOL)


def without_run(report):
    """A report but for when and where it was made."""
    return {key: value for key, value in report.items() if key != "run"}


# What the attacks do to an undefended network.


def test_white_box_beats_everything_else_by_a_wide_margin(whole):
    report, _ = whole
    robust = report["headline"]["robust"]["accuracy"]
    assert report["headline"]["clean"]["accuracy"] > 0.7
    assert robust < 0.4
    assert min(row["accuracy"] for row in report["controls"]) > robust + 0.2
    assert min(row["accuracy"] for row in report["gradient_free"]) > robust + 0.1  # with as many queries as gradient steps
    assert {item["status"] for item in report["checklist"]} == {"passed", "not checked"}  # nothing was transferred


def test_gradient_free_attack_attacks_too(whole):
    report, _ = whole
    found, noise = report["gradient_free"], [row for row in report["controls"] if row["name"].startswith("noise")]
    assert min(row["accuracy"] for row in found) < min(row["accuracy"] for row in noise)
    assert all(np.isfinite([row["first_loss"], row["last_loss"]]).all() for row in found)


def test_neither_iterations_nor_size_help_the_defender(whole):
    curves = whole[0]["curves"]
    assert [point["iterations"] for point in curves["iterations"]] == [9, 19, 38, 75, 150]
    assert [point["patch_shape"] for point in curves["patch_size"]] == [[6, 6, 3], [12, 12, 3], [18, 18, 3]]
    for points in curves.values():
        accuracies = [point["accuracy"] for point in points]
        assert np.all(np.diff(accuracies) <= 0.05)  # a standard error of 200 images is 0.035
        assert accuracies[-1] < accuracies[0] - 0.05
    assert curves["iterations"][3]["accuracy"] == curves["patch_size"][1]["accuracy"]  # of the same patches
    assert len({point["n_patches"] for points in curves.values() for point in points}) == 1


# That the numbers can be trusted.


def test_evaluations_repeat(run):
    one, directory = run(WHITE_BOX_ONLY)
    two, again = run(WHITE_BOX_ONLY)
    assert without_run(one) == without_run(two)
    for name in ("examples.csv", "report.md", "universal_patches.npz"):
        assert (directory / name).read_bytes() == (again / name).read_bytes()


def test_the_seed_matters(subject):
    config, model, splits, _ = subject
    protocol = dataclasses.replace(WHITE_BOX_ONLY, max_images=100)
    zero, same, one = (Evaluation(dataclasses.replace(config, seed=s, evaluation=protocol), model, splits, None) for s in (0, 0, 1))
    for name in ("fit_images", "images", "records"):
        np.testing.assert_array_equal(getattr(zero, name), getattr(same, name))
        assert np.any(np.asarray(getattr(zero, name)) != np.asarray(getattr(one, name)))


def test_chunks_change_no_draw_and_hardly_an_accuracy(run):
    small, large = (run(dataclasses.replace(WHITE_BOX_ONLY, images_at_once=n))[0] for n in (16, 128))
    for one, two in zip(small["grid"], large["grid"], strict=True):
        assert one["name"] == two["name"]
        assert abs(one["accuracy"] - two["accuracy"]) <= 0.005
        np.testing.assert_allclose(one["first_loss"], two["first_loss"], rtol=1e-3)  # of the same images and positions
    assert small["controls"] == large["controls"]


def test_an_interrupted_evaluation_leaves_no_report_and_goes_on(run, tmp_path, monkeypatch):
    protocol = dataclasses.replace(SMALL_PROTOCOL, iterations=25, search_iterations=25, images_at_once=32, max_images=50, curves=False)
    expected, _ = run(protocol)
    saved, directory = [], tmp_path / "broken"

    def save(self, name, **arrays):
        if len(saved) == 4:  # in the third chunk
            raise StoppedError("stop", 15)
        saved.append(name)
        keep(self, name, **arrays)

    keep = ReportDirectory.save
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(ReportDirectory, "save", save)
        run(protocol, directory)
    assert {path.name for path in directory.iterdir()} == {"protocol.json", "restarts"}
    times = {name: (directory / "restarts" / f"{name}.npz").stat().st_mtime_ns for name in saved}
    report, _ = run(protocol, directory, resume=True)
    assert without_run(report) == without_run(expected)
    kept = [name for name, time in times.items() if (directory / "restarts" / f"{name}.npz").stat().st_mtime_ns == time]
    assert kept == saved[:3]
    (directory / "restarts" / f"{saved[0]}.npz").write_bytes(b"cut")  # is made again
    assert without_run(run(protocol, directory, resume=True)[0]) == without_run(expected)


def test_examples_file_holds_what_the_report_counts(whole):
    report, directory = whole
    rows = list(csv.DictReader((directory / "examples.csv").read_text().splitlines()))
    assert len(rows) == report["headline"]["clean"]["n_images"] == 200
    labels = [row["label"] for row in rows]
    assert [row["record"] for row in rows] == [str(i) for i in range(200)]
    assert np.mean([row["clean"] == row["label"] for row in rows]) == report["headline"]["clean"]["accuracy"]
    for entry in (*report["controls"], *report["grid"], *report["gradient_free"]):
        predictions = [row[entry["name"]] for row in rows]
        assert sum(p == label for p, label in zip(predictions, labels, strict=True)) == entry["n_correct"]
        if entry.get("target") is not None:
            others = [p == str(entry["target"]) for p, label in zip(predictions, labels, strict=True) if label != str(entry["target"])]
            assert np.mean(others) == entry["success"]
    tried = (*report["grid"], *report["gradient_free"], *report["controls"])
    worst_of_all = sum(all(row[e["name"]] == row["label"] for e in tried) for row in rows)
    assert worst_of_all == report["headline"]["every_image_under_its_worst_patch"]["n_correct"]


def test_report_directory_holds_every_file(whole):
    report, directory = whole
    pictures = {"patches.png", "examples.png", "curves.png"}
    tables = {"report.json", "report.md", "examples.csv", "universal_patches.npz", "protocol.json", "restarts"}
    assert {path.name for path in directory.iterdir()} == pictures | tables
    assert json.loads((directory / "report.json").read_text()) == json.loads(json.dumps(report))
    for picture in pictures:
        shape = tf.io.decode_png((directory / picture).read_bytes()).shape
        assert min(shape[:2]) > 200
    text = (directory / "report.md").read_text()
    for words in ("| clean |", "## Can it be trusted?", "## Controls", "### Gradient-free", "iterations", "patch shape", "tensorflow"):
        assert words in text
    patches = read_patches(directory / "universal_patches.npz")
    assert [name for name, _ in patches] == [row["name"] for row in (*report["grid"], *report["gradient_free"])]
    assert all(patch.shape == (12, 12, 3) and 0 <= patch.min() <= patch.max() <= 1 for _, patch in patches)


def test_tables_come_without_matplotlib(run, monkeypatch, capsys):
    def missing(*_):
        raise ImportError("matplotlib")

    monkeypatch.setattr("mat.robustness.measure.report_pictures", missing)
    _, directory = run(dataclasses.replace(WHITE_BOX_ONLY, n_targets=0, iterations=1, max_images=30))
    assert {path.name for path in directory.glob("*.*")} == {
        "report.json",
        "report.md",
        "examples.csv",
        "universal_patches.npz",
        "protocol.json",
    }
    assert "they need matplotlib" in capsys.readouterr().out


def test_class_names_are_no_formulas(run, subject, tmp_path, monkeypatch):
    config, *_ = subject
    monkeypatch.setattr("mat.robustness.measure.class_names", lambda *_: ["$\\foo$", "$x_{$", "US$ | A$", "", *"abcdef"])
    _, directory = run(dataclasses.replace(WHITE_BOX_ONLY, n_targets=10, iterations=1, max_images=30))
    assert (directory / "report.json").is_file()
    assert "US$ \\| A$ (2)" in (directory / "report.md").read_text()


def test_logits_that_overflow_under_a_patch_end_the_evaluation(subject, monkeypatch):
    config, model, splits, _ = subject

    def overflowing(images, training):
        grey = tf.reduce_any(tf.reduce_all(images == 0.5, axis=-1), axis=[1, 2])
        return tf.where(grey[:, tf.newaxis], np.inf, model(images, training=training))

    evaluation = Evaluation(dataclasses.replace(config, evaluation=WHITE_BOX_ONLY), overflowing, splits, None)
    with pytest.raises(UserError, match="NaN or infinite on 200 of 200 validation images under the patch grey"):
        evaluation.run()


def test_gradients_are_compared_over_positions(subject):
    """A network that does not look at the right half of an image: no patch that lies there gets a gradient."""
    config, model, splits, _ = subject

    def left_half(images, training):
        return model(tf.concat([images[:, :, :16], tf.zeros_like(images[:, :, 16:])], axis=2), training=training)

    def gradients(network):
        evaluation = Evaluation(dataclasses.replace(config, evaluation=WHITE_BOX_ONLY), network, splits, None)
        evaluation._progress = WorkProgress(1)
        return evaluation._position_gradients()

    whole, half = gradients(model), gradients(left_half)
    assert list(whole) == list(half) == [(row, column) for row in (0, 10, 20) for column in (0, 10, 20)]
    np.testing.assert_allclose([np.mean(list(values.values())) for values in (whole, half)], 1, rtol=1e-6)
    assert min(whole.values()) > 0.5
    assert [half[row, 20] for row in (0, 10, 20)] == [0, 0, 0]
    assert min(half[row, 0] for row in (0, 10, 20)) > 1


def test_examples_are_numbered_as_their_records_are(run, subject, tmp_path):
    config, model, (train, validation), weights = subject
    kept = np.delete(np.arange(200), [0, 7, 150])  # as if these records had been bad
    splits = train, validation.take(kept)
    protocol = dataclasses.replace(WHITE_BOX_ONLY, n_targets=0, iterations=1)
    evaluate(dataclasses.replace(config, evaluation=protocol), model, splits, tmp_path / "report", weights=weights)
    rows = list(csv.DictReader((tmp_path / "report" / "examples.csv").open()))
    assert [int(row["record"]) for row in rows] == kept.tolist()
    assert [int(row["label"]) for row in rows] == [record % 10 for record in kept]


def test_a_report_of_another_evaluation_does_not_count(run, subject, tmp_path, capsys):
    protocol = dataclasses.replace(WHITE_BOX_ONLY, n_targets=0, iterations=1, max_images=30)
    stronger = dataclasses.replace(protocol, iterations=2)
    weak, _ = run(protocol, tmp_path / "report")
    capsys.readouterr()
    again, _ = run(protocol, tmp_path / "report", resume=True, or_next=True)
    assert again == weak  # with its time, so it was not made again
    assert "was finished before" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"evaluation.iterations: 1, and this one has evaluation.iterations: 2"):
        run(stronger, tmp_path / "report", resume=True)
    strong, _ = run(stronger, tmp_path / "report", resume=True, or_next=True)
    assert strong["grid"][0]["iterations"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "report_2"]
    assert run(stronger, tmp_path / "report", resume=True, or_next=True)[0] == strong
    assert run(protocol, tmp_path / "report", resume=True, or_next=True)[0] == weak


@pytest.mark.parametrize(
    ("name", "value"),
    [("mat", "0.0.0"), ("tensorflow", "2.17.0"), ("data_sha256", "0" * 64), ("weights_git_blob", "0" * 40), ("bank_git_blob", "0" * 40)],
)
def test_reports_count_for_the_same_version_data_weights_and_bank_only(tmp_path, name, value):
    protocol = {"mat": __version__, "tensorflow": tf.__version__, "data_sha256": "d", "weights_git_blob": "w", "bank_git_blob": None}
    directory = ReportDirectory(tmp_path / "report", protocol | {name: value})
    directory.create()
    directory.write({"report.json": json.dumps({"headline": {}, "subject": protocol | {name: value}}).encode()})
    assert ReportDirectory(tmp_path / "report", protocol | {name: value}, resume=True).finished()
    with pytest.raises(UserError, match=f"the evaluation in it has {name}: {value}"):
        ReportDirectory(tmp_path / "report", protocol, resume=True)
    other = ReportDirectory(tmp_path / "report", protocol, resume=True, or_next=True)
    assert (other.path.name, other.finished()) == ("report_2", None)


def test_attacks_need_a_start(subject):
    config, model, splits, _ = subject
    protocol = dataclasses.replace(WHITE_BOX_ONLY, starts=("bank",))
    with pytest.raises(UserError, match=r"starts: \[bank\] starts attacks from a bank, and there is none"):
        Evaluation(dataclasses.replace(config, evaluation=protocol), model, splits, None)


# Banks and transferred patches.


def test_attacks_start_from_the_bank_and_foreign_patches_are_tried(run, whole, subject, tmp_path):
    config, model, splits, _ = subject
    bank = np.stack([np.full((6, 6, 3), value, np.float32) for value in np.arange(10) / 10]), np.arange(10)
    np.savez(tmp_path / "patches.npz", patches=bank[0], targets=bank[1])
    _, fitted = whole
    protocol = dataclasses.replace(WHITE_BOX_ONLY, n_targets=10, iterations=1, max_images=50)
    another = json.loads((fitted / "report.json").read_text())
    another["subject"]["weights_git_blob"] = "0" * 40
    shutil.copytree(fitted, tmp_path / "another_evaluation")
    (tmp_path / "another_evaluation" / "report.json").write_text(json.dumps(another))
    report, directory = run(protocol, bank=tmp_path / "patches.npz", patches_from=tmp_path)
    assert {row["start"] for row in report["grid"]} == {"random", "bank"}
    for row in report["grid"]:
        if row["start"] == "bank" and row["target"] is not None:  # one step away from the bank's patch of that target, resized
            patch = dict(read_patches(directory / "universal_patches.npz"))[row["name"]]
            assert np.abs(patch - row["target"] / 10).max() <= 0.0501
    assert [row["name"] for row in report["transfer"]] == [
        f"transfer-{row['name']}" for attack in ("grid", "gradient_free") for row in whole[0][attack]
    ]
    check = next(item for item in report["checklist"] if item["check"].startswith("transferred"))
    assert check["status"] == "warning"  # patches fitted for longer on the same network
    with pytest.raises(UserError, match=r"shape \[12, 12, 3\], and patch_shape: \[8, 8, 3\]"):
        Evaluation(
            dataclasses.replace(config, patch_shape=(8, 8, 3)),
            model,
            splits,
            None,
            transferred=read_patches(fitted / "universal_patches.npz"),
        )
    with pytest.raises(UserError, match="fitted on the very weights"):
        run(protocol, patches_from=fitted)
    shutil.copytree(tmp_path / "another_evaluation", tmp_path / "third_evaluation")
    with pytest.raises(UserError, match="several evaluations to take patches from"):
        run(protocol, patches_from=tmp_path)
    (tmp_path / "third_evaluation" / "report.json").unlink()  # not finished
    assert find_patches(tmp_path, but_not=tmp_path) == tmp_path / "another_evaluation" / "universal_patches.npz"
    with pytest.raises(UserError, match="no finished evaluation"):
        find_patches(tmp_path / "another_evaluation", but_not=tmp_path / "another_evaluation")


@pytest.mark.parametrize(
    "arrays",
    [
        {"patches": np.zeros((2, 4, 4, 3))},
        {"patches": np.zeros((2, 4, 4, 3)), "targets": [0, 4]},
        {"patches": np.full((2, 4, 4, 3), 7.0), "targets": [0, 1]},
        {"patches": np.zeros((0, 4, 4, 3)), "targets": []},
        {"patches": np.zeros((2, 4, 4)), "targets": [0, 1]},
    ],
)
def test_files_that_are_no_bank_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "bank.npz", **arrays)
    with pytest.raises(UserError, match=r"bank\.npz: not a bank"):
        read_bank(tmp_path / "bank.npz", 4)
