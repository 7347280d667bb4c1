"""Evaluations of a small undefended network: that the attacks are strong, that the numbers repeat, and what is written."""

import csv
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from mat import __version__
from mat.cli.errors import UserError
from mat.config import EvaluationConfig
from mat.data.splits import read_splits
from mat.models import create_model, load_weights
from mat.robustness.inputs import read_transferred
from mat.robustness.measure import measure_robustness
from mat.tools.export_patches import export_patches

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
WHITE_BOX_ONLY = SMALL_PROTOCOL.replace(attacks=("white_box",), n_targets=1, iterations=30, curves=False)
FAST = WHITE_BOX_ONLY.replace(n_targets=0, iterations=1, max_images=30)


@pytest.fixture(scope="module")
def run(undefended, tmp_path_factory):
    """A function from a protocol to (report, directory) of an evaluation of the undefended network."""
    config, weights = undefended
    model = create_model(config)
    load_weights(model, weights)
    splits = read_splits(config.dataset, config.data_dir, n_classes=config.n_classes)

    def evaluated(protocol, directory=None, splits=splits, **arguments):
        directory = directory or tmp_path_factory.mktemp("evaluation") / "report"
        return measure_robustness(config.replace(evaluation=protocol), model, splits, directory, weights=weights, **arguments), directory

    evaluated.splits = splits
    return evaluated


@pytest.fixture(scope="module")
def whole(run):
    """(report, directory) of an evaluation with everything but transferred patches."""
    return run(SMALL_PROTOCOL)


def without_run(report):
    """A report but for when and where it was made."""
    return {key: value for key, value in report.items() if key != "run"}


def test_white_box_beats_everything_else_by_a_wide_margin(whole):
    report, _ = whole
    robust = report["headline"]["robust"]["accuracy"]
    noise = [row["accuracy"] for row in report["controls"] if row["name"].startswith("noise")]
    found = [row["accuracy"] for row in report["gradient_free"]]
    assert report["headline"]["clean"]["accuracy"] > 0.7
    assert robust < 0.4
    assert min(row["accuracy"] for row in report["controls"]) > robust + 0.2
    assert robust + 0.1 < min(found) < min(noise)  # with as many queries as gradient steps
    assert {item["status"] for item in report["checklist"]} == {"passed", "not checked"}  # nothing was transferred


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


def test_evaluations_repeat_and_chunks_change_hardly_an_accuracy(run):
    (one, directory), (two, again), (small, _) = (run(WHITE_BOX_ONLY.replace(images_at_once=n)) for n in (128, 128, 16))
    assert without_run(one) == without_run(two)
    for name in ("examples.csv", "report.md", "universal_patches.npz"):
        assert (directory / name).read_bytes() == (again / name).read_bytes()
    for row, large in zip(small["grid"], one["grid"], strict=True):
        assert row["name"] == large["name"]
        assert abs(row["accuracy"] - large["accuracy"]) <= 0.005
        np.testing.assert_allclose(row["first_loss"], large["first_loss"], rtol=1e-3)  # of the same images and positions
    assert small["controls"] == one["controls"]


def test_examples_file_holds_what_the_report_counts(whole):
    report, directory = whole
    rows = list(csv.DictReader((directory / "examples.csv").read_text().splitlines()))
    columns = {name: np.array([int(row[name]) for row in rows]) for name in rows[0]}
    labels = columns["label"]
    tried = (*report["grid"], *report["gradient_free"], *report["controls"])
    assert len(rows) == report["headline"]["clean"]["n_images"] == 200
    assert columns["record"].tolist() == list(range(200))
    assert np.sum(columns["clean"] == labels) == report["headline"]["clean"]["n_correct"]
    for entry in tried:
        predictions, target = columns[entry["name"]], entry.get("target")
        assert np.sum(predictions == labels) == entry["n_correct"]
        assert target is None or np.mean(predictions[labels != target] == target) == entry["success"]
    worst_of_all = np.all([columns[entry["name"]] == labels for entry in tried], axis=0).sum()
    assert worst_of_all == report["headline"]["every_image_under_its_worst_patch"]["n_correct"]


def test_report_directory_holds_every_file(whole):
    report, directory = whole
    pictures = {"patches.png", "examples.png", "curves.png"}
    tables = {"report.json", "report.md", "examples.csv", "universal_patches.npz", "protocol.json", "restarts"}
    assert {path.name for path in directory.iterdir()} == pictures | tables
    assert json.loads((directory / "report.json").read_text()) == json.loads(json.dumps(report))
    for picture in pictures:
        assert min(tf.io.decode_png((directory / picture).read_bytes()).shape[:2]) > 200
    text = (directory / "report.md").read_text()
    for words in ("| clean |", "## Can it be trusted?", "## Controls", "### Gradient-free", "iterations", "patch shape", "tensorflow"):
        assert words in text
    patches = read_transferred([directory / "universal_patches.npz"])
    assert [name for name, _ in patches] == [row["name"] for row in (*report["grid"], *report["gradient_free"])]
    assert all(patch.shape == (12, 12, 3) and 0 <= patch.min() <= patch.max() <= 1 for _, patch in patches)
    protocol = json.loads((directory / "protocol.json").read_text())
    assert (protocol["mat"], protocol["tensorflow"], protocol["bank_git_blob"]) == (__version__, tf.__version__, None)
    assert {"seed", "patch_shape", "data_sha256", "weights_git_blob", "evaluation.iterations"} < protocol.keys()
    assert "evaluation.images_at_once" not in protocol  # no result depends on it


def test_tables_come_without_matplotlib(run, monkeypatch, capsys):
    def missing(*_):
        raise ImportError("matplotlib")

    monkeypatch.setattr("mat.robustness.measure.report_pictures", missing)
    _, directory = run(FAST)
    tables = {"report.json", "report.md", "examples.csv", "universal_patches.npz", "protocol.json"}
    assert {path.name for path in directory.glob("*.*")} == tables
    assert "they need matplotlib" in capsys.readouterr().out


def test_class_names_are_no_formulas_and_examples_are_numbered_as_their_records_are(run, monkeypatch):
    monkeypatch.setattr("mat.robustness.measure.class_names", lambda *_: ["$\\foo$", "$x_{$", "US$ | A$", "", *"abcdef"])
    train, validation = run.splits
    kept = np.delete(np.arange(200), [0, 7, 150])  # as if these records had been bad
    _, directory = run(FAST.replace(max_images=None, n_targets=10), splits=(train, validation.take(kept)))
    assert "US$ \\| A$ (2)" in (directory / "report.md").read_text()
    rows = list(csv.DictReader((directory / "examples.csv").read_text().splitlines()))
    assert [int(row["record"]) for row in rows] == kept.tolist()
    assert [int(row["label"]) for row in rows] == [record % 10 for record in kept]


def test_a_report_of_another_evaluation_does_not_count(run, tmp_path, capsys):
    def report_of(protocol):
        return run(protocol, tmp_path / "report", resume=True, numbered=True)[0]

    weak, strong = report_of(FAST), report_of(FAST.replace(iterations=2))
    assert [report["grid"][0]["iterations"] for report in (weak, strong)] == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "report_2"]
    capsys.readouterr()
    assert (report_of(FAST), report_of(FAST.replace(iterations=2))) == (weak, strong)  # with their times, so none was made again
    assert capsys.readouterr().out.count("was finished before") == 2


@pytest.mark.parametrize("size", [300, 25])  # cells of 25 pixels; cells of two and of three
def test_exported_patches_that_are_given_back_have_the_same_accuracies(run, whole, tmp_path, capsys, size):
    fitted = {row["name"]: row for row in (*whole[0]["grid"], *whole[0]["gradient_free"])}
    exported = export_patches(whole[1], size=size, dpi=300, output=tmp_path / "exported")
    pictures = sorted(exported.glob("[0-9]*.png"))
    report, directory = run(FAST.replace(max_images=None), patches=[*pictures, whole[1] / "universal_patches.npz"])
    names = [f"given-{path.stem}" for path in pictures] + [f"given-{name}" for name in fitted]
    assert [row["name"] for row in report["given"]] == names
    assert [row["n_correct"] for row in report["given"]] == 2 * [row["n_correct"] for row in fitted.values()]
    assert report["headline"]["robust"]["attack"] == "given"  # fitted for longer than by this protocol
    assert report["headline"]["robust"]["n_correct"] == whole[0]["headline"]["robust"]["n_correct"]
    assert report["headline"]["n_patches"] == sum(len(report[rows]) for rows in ("grid", "given", "controls"))
    check = next(item for item in report["checklist"] if item["check"].startswith("given"))
    assert check["status"] == "warning"
    assert f"given patches  {len(fitted)} of 12x12 as exported, {len(fitted)} of 12x12" in capsys.readouterr().out
    assert set(names) < set((directory / "examples.csv").read_text().splitlines()[0].split(","))
    assert f"| `{names[0]}` |" in (directory / "report.md").read_text().split("### Patches that were given")[1].split("##")[0]


def test_an_evaluation_goes_on_with_the_same_given_patches_only(run, tmp_path):
    for name in ("one, two", "other"):
        np.save(tmp_path / f"{name}.npy", np.full((12, 12, 3), len(name) / 10))
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "one, two.npy", tmp_path / "copy")
    report, directory = run(FAST, patches=[tmp_path / "one, two.npy"])
    assert list(csv.DictReader((directory / "examples.csv").read_text().splitlines()))[0]["given-one, two"].isdigit()
    assert report["subject"]["patches"] == [str(tmp_path / "one, two.npy")]
    again, _ = run(FAST, directory, patches=[tmp_path / "copy" / "one, two.npy"], resume=True)
    assert again["run"] == report["run"]
    with pytest.raises(UserError, match=r"the evaluation in it has patches_git_blob: \['[0-9a-f]{40}'\], and this one has"):
        run(FAST, directory, patches=[tmp_path / "other.npy"], resume=True)  # what was tried must stay
    fitted = {path: path.stat().st_mtime_ns for path in (directory / "restarts").iterdir()}
    more, _ = run(FAST, directory, patches=[tmp_path / "one, two.npy", tmp_path / "other.npy"], resume=True)
    assert [row["name"] for row in more["given"]] == ["given-one, two", "given-other"]
    assert more["grid"] == report["grid"]
    assert fitted == {path: path.stat().st_mtime_ns for path in (directory / "restarts").iterdir()}


def test_attacks_and_curves_can_be_added_later(run):
    report, directory = run(FAST)
    fitted = {path: path.stat().st_mtime_ns for path in (directory / "restarts").iterdir()}
    whole = FAST.replace(attacks=("white_box", "gradient_free"), curves=True)
    grown, _ = run(whole, directory, resume=True)
    assert fitted.items() < {path: path.stat().st_mtime_ns for path in (directory / "restarts").iterdir()}.items()
    at_once, _ = run(whole)
    assert {key: value for key, value in grown.items() if key != "run"} == {key: value for key, value in at_once.items() if key != "run"}
    assert grown["curves"]["iterations"] and not report["curves"]["iterations"]
    assert run(FAST, directory, resume=True)[0]["run"] == grown["run"]  # which has all of it
    (directory / "report.json").unlink()
    again, _ = run(FAST, directory, resume=True)  # without a report that has them they are left out again
    assert {key: value for key, value in again.items() if key != "run"} == {key: value for key, value in report.items() if key != "run"}


def test_attacks_start_from_the_bank_and_foreign_patches_are_tried(run, whole, tmp_path):
    patches = np.stack([np.full((6, 6, 3), value, np.float32) for value in np.arange(10) / 10])
    np.savez(tmp_path / "patches.npz", patches=patches, targets=np.arange(10))
    report, fitted = whole
    another = report | {"subject": report["subject"] | {"weights_git_blob": "0" * 40}}
    shutil.copytree(fitted, tmp_path / "another_evaluation")
    (tmp_path / "another_evaluation" / "report.json").write_text(json.dumps(another))
    protocol = WHITE_BOX_ONLY.replace(n_targets=10, iterations=1, max_images=50)
    report, directory = run(protocol, bank=tmp_path / "patches.npz", patches_from=[tmp_path])
    assert {row["start"] for row in report["grid"]} == {"random", "bank"}
    fitted_patches = dict(read_transferred([directory / "universal_patches.npz"]))
    for row in report["grid"]:
        if row["start"] == "bank" and row["target"] is not None:  # one step away from the bank's patch of that target, resized
            assert np.abs(fitted_patches[row["name"]] - row["target"] / 10).max() <= 0.0501
    tried = [f"transfer-{row['name']}" for attack in ("grid", "gradient_free") for row in whole[0][attack]]
    assert [row["name"] for row in report["transfer"]] == tried
    check = next(item for item in report["checklist"] if item["check"].startswith("transferred"))
    assert check["status"] == "warning"  # patches fitted for longer on the same network
    with pytest.raises(UserError, match="fitted on the very weights"):
        run(protocol, patches_from=[fitted])
