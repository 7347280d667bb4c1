"""Patches of a run or an evaluation as PNG files: what is written and what is refused."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from mat.config import PatchTrainingConfig
from mat.robustness.patch_pictures import decode_patch
from mat.tools.export_patches import main

PATCHES = np.random.default_rng(0).random((11, 6, 4, 3), np.float32)
NAMES = ["white_box-untargeted-random-step0.05-0", "gradient_free-target3-random-0", "../odd name"]


@pytest.fixture
def bank(tmp_path):
    """The directory of a training run: config, bank, and the names of its classes; beside it one with nothing in it."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "data").mkdir()
    (run / "classes.txt").write_text("red panda\nn1\nÉclair\n", "utf-8")
    PatchTrainingConfig(n_classes=3, unique_name="run").to_yaml(run / "config.yaml")
    np.savez(run / "patches.npz", patches=PATCHES, targets=np.arange(11) % 3, step_sizes=np.full(11, 0.25, np.float32))
    return run


@pytest.fixture
def evaluation(tmp_path):
    """The directory of an evaluation with three fitted patches, one of which the report does not know."""
    directory = tmp_path / "evaluation"
    directory.mkdir()
    grid = [{"name": NAMES[0], "target": None, "target_name": None, "step_size": 0.05}]
    search = [{"name": NAMES[1], "target": 3, "target_name": "n02, x", "step_size": None}]
    (directory / "report.json").write_text(json.dumps({"headline": {}, "subject": {}, "grid": grid, "gradient_free": search}))
    np.savez(directory / "universal_patches.npz", patches=PATCHES[:3], names=NAMES, accuracies=[0.125, 0.5, 1])
    return directory


def rows_of(directory):
    """The table that was written."""
    return list(csv.DictReader((directory / "patches.csv").read_text("utf-8").splitlines()))


def test_a_bank_is_exported_with_the_names_of_its_target_classes(bank, capsys):
    assert main([str(bank)]) == 0
    directory = bank / "patches_exported"
    assert "11 patches of 6x4, each 16.93 x 25.4 mm at 300 dpi" in capsys.readouterr().out
    rows = rows_of(directory)
    assert {path.name for path in directory.iterdir()} == {"contact_sheet.png", "patches.csv", *(row["file"] for row in rows)}
    row = {"file": "patch_00.png", "name": "00", "target_class": "0", "class_name": "red panda", "step_size": "0.25", "accuracy": ""}
    assert rows[0] == row
    assert [row["class_name"] for row in rows[:4]] == ["red panda", "n1", "Éclair", "red panda"]
    for row, patch in zip(rows, PATCHES, strict=True):
        with Image.open(directory / row["file"]) as picture:
            assert (picture.size, picture.mode) == ((200, 300), "RGB")
            cells = np.asarray(picture).reshape(6, 50, 4, 50, 3)
        np.testing.assert_array_equal(cells, np.broadcast_to(np.round(255 * patch)[:, None, :, None], cells.shape))
        np.testing.assert_array_equal(decode_patch(directory / row["file"])[0], patch)


def test_an_untargeted_bank_has_no_target_classes(bank):
    config = PatchTrainingConfig.from_yaml(bank / "config.yaml", ["optimizer.targeted_attack=false"])
    config.to_yaml(bank / "config.yaml")
    assert main([str(bank)]) == 0
    rows = rows_of(bank / "patches_exported")
    assert {(row["target_class"], row["class_name"]) for row in rows} == {("untargeted", "")}


def test_fitted_patches_are_exported_with_what_the_report_says(evaluation, tmp_path):
    output = tmp_path / "new" / "patches"
    assert main([str(evaluation / "universal_patches.npz"), "--size", "60", "--dpi", "72", "--output", str(output)]) == 0
    rows = rows_of(output)
    assert [row["file"] for row in rows] == [f"0_{NAMES[0]}.png", f"1_{NAMES[1]}.png", "2_.._odd_name.png"]
    assert [row["name"] for row in rows] == NAMES
    columns = ("target_class", "class_name", "step_size", "accuracy")
    expected = [("untargeted", "", "0.05", "0.125"), ("3", "n02, x", "", "0.5"), ("", "", "", "1")]
    assert [tuple(row[column] for column in columns) for row in rows] == expected


def test_the_contact_sheet_shows_every_patch_over_its_number(evaluation, tmp_path):
    main([str(evaluation), "--output", str(tmp_path / "out")])
    sheet = np.asarray(Image.open(tmp_path / "out" / "contact_sheet.png").convert("RGB")).astype(int)
    for patch in PATCHES[:3]:
        found = [np.all(sheet == np.round(255 * cell), axis=-1).sum() for cell in patch.reshape(-1, 3)]
        assert min(found) >= 16**2  # cells of 16 pixels
    text = np.all(sheet < 90, axis=-1).any(axis=1).nonzero()[0]
    assert len(text) > 10
    assert text.max() > 96 + 8  # below the patches


def test_a_bank_alone_has_numbers_for_classes(tmp_path):
    np.savez(tmp_path / "patches.npz", patches=PATCHES[:1], targets=[7])
    assert main([str(tmp_path / "patches.npz")]) == 0
    assert list(rows_of(tmp_path / "patches_exported")[0].values()) == ["patch_0.png", "0", "7", "", "", ""]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--output", "run"], "run: exists already and is no empty directory. Choose another --output"),
        (["run", "--output", "run/config.yaml"], "run/config.yaml: exists already"),
        (["run", "--output", "run/config.yaml/x"], "run/config.yaml is not a directory. Choose another --output"),
        (["run", "--size", "5"], "patches of 6x4 cannot be shown by --size 5. Set --size 6 or more"),
        (["data"], "data: has neither patches.npz nor universal_patches.npz. Give the directory of a training run"),
        (["none.npz"], "none.npz: not patches of this program (No such file or directory). Give the patches.npz"),
        (["run/config.yaml"], "run/config.yaml: not patches of this program"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_written(bank, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(bank.parent)
    before = set(bank.parent.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert set(bank.parent.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--size", "0"], ["--size", "4097"], ["--dpi", "0"]])
def test_sizes_out_of_bounds_are_refused(bank, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(bank), *arguments])
    assert ended.value.code == 2
    assert f"{arguments[0]} must be" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_behind(bank, monkeypatch, capsys):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mat.tools.export_patches.contact_sheet", full)
    before = set(bank.rglob("*"))
    assert main([str(bank)]) == 2
    assert "patches_exported: cannot be written: No space left on device" in capsys.readouterr().err
    assert set(bank.rglob("*")) == before
    (bank / "patches_exported").mkdir()  # an empty directory serves
    monkeypatch.undo()
    assert main([str(bank)]) == 0
    assert len(list((bank / "patches_exported").iterdir())) == 13
