"""What a network says of picture files: the probabilities, which patch is pasted where, the picture that is saved, and what is refused."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from mat.config import PatchTrainingConfig
from mat.models import create_model, save_weights
from mat.models.weights import git_blob
from mat.robustness.patch_pictures import encode_patch
from mat.tools.classify import main

GAIN = 20
RED, GREEN, BLUE = np.eye(3, dtype=np.float32)
PICTURE = np.array([128, 115, 102], np.uint8)  # the color of the picture, a dull red
NAMES = ["white_box-target2-random-step0.05-0", "white_box-target1-random-step0.05-0"]


def filled(color, side=6):
    return np.broadcast_to(color, (side, side, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The file of a network of three classes, the shares of red, green and blue in the image, which is 16x16."""
    path = tmp_path_factory.mktemp("network") / "network.keras"
    images = keras.Input((16, 16, 3))
    model = keras.Model(images, keras.layers.Dense(3, use_bias=False)(keras.layers.GlobalAveragePooling2D()(images)))
    model.set_weights([GAIN * np.eye(3)])
    model.save(path)
    return path


@pytest.fixture
def run(tmp_path, network, monkeypatch):
    """The directory of a run with that network, beside a picture; it is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    config = PatchTrainingConfig(network=str(network), image_size=16, n_classes=3, patch_shape=[6, 6, 3], data_dir="nowhere")
    config.to_yaml(tmp_path / "run" / "config.yaml")
    for epoch in range(2):
        save_weights(create_model(config), tmp_path / "run" / f"network_00{epoch}.weights.h5")
    (tmp_path / "run" / "classes.txt").write_text("red\ngreen\nblue\n")
    Image.fromarray(np.broadcast_to(PICTURE, (16, 16, 3))).save(tmp_path / "a.png")
    Image.fromarray(np.broadcast_to(PICTURE, (40, 90, 3))).save(tmp_path / "wide.bmp")
    return tmp_path / "run"


def evaluation(directory, colors=(BLUE, GREEN), accuracies=(0.5, 0.25), report=True, weights=None, finished="2026-01-02"):
    """Write what an evaluation leaves, of `weights` that are there."""
    directory.mkdir(exist_ok=True)
    np.savez(directory / "universal_patches.npz", names=NAMES, patches=[filled(color) for color in colors], accuracies=accuracies)
    if report:
        grid = [
            {"name": name, "target": target, "target_name": ["blue", "green"][i]}
            for i, (name, target) in enumerate(zip(NAMES, (2, 1), strict=True))
        ]
        subject, run = {"weights_git_blob": weights and git_blob(weights)}, {"finished": finished}
        content = {"headline": {}, "subject": subject, "grid": grid, "gradient_free": [], "run": run}
        (directory / "report.json").write_text(json.dumps(content))


def probabilities(patch=None):
    """What the network makes of the picture with a patch of one color."""
    share = 0 if patch is None else 36 / 256
    logits = GAIN * ((1 - share) * PICTURE / 255 + (0 if patch is None else share * patch))
    return np.exp(logits) / np.exp(logits).sum()


def shown(label, patch=None):
    return f"{probabilities(patch)[label]:.1%}"


def told(arguments, capsys):
    """The lines of a call that ends well, without margins."""
    assert main(arguments) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_classes_are_told_without_and_with_the_strongest_patch_of_the_newest_evaluation(run, capsys):
    weights, weak = run / "network_001.weights.h5", {"accuracies": (0.1, 0.9), "finished": "2026-01-03"}
    evaluation(run / "network_001_quick_evaluation", weights=weights)
    evaluation(run / "network_001_evaluation", accuracies=(0.1, 0.9), weights=weights, finished="2026-01-01")
    evaluation(run / "network_001_evaluation_2", weights=run / "classes.txt", **weak)  # of weights that were replaced
    evaluation(run / "network_001_evaluation_3", weights=weights, report=False, **weak)  # not finished
    evaluation(run / "network_000_evaluation", weights=weights, **weak)  # of other weights by its name
    evaluation(run / "network_0011_evaluation", weights=weights, **weak)
    assert told(["run", "a.png", "wide.bmp"], capsys) == [
        "run/network_001.weights.h5",
        "classes knows only these 3: red, green, blue",
        f"patch {NAMES[1]}, target class green, validation accuracy 25.0% of the network that it was fitted to",
        "from run/network_001_quick_evaluation/universal_patches.npz, in it 2 of 6x6; the strongest is taken",
        *(
            line
            for picture in ("a.png", "wide.bmp")
            for line in (
                picture,
                "without a patch with the patch",
                f"red {shown(0)} green {shown(1, GREEN)}",
                f"green {shown(1)} red {shown(0, GREEN)}",
                f"blue {shown(2)} blue {shown(2, GREEN)}",
                "The patch changes the prediction from red to green",
            )
        ),
    ]


def test_the_patches_beside_published_weights_are_taken(run, capsys):
    evaluation(run, colors=(RED, RED), report=False)
    evaluation(run / "network_001_evaluation")
    lines = told(["run/network_000.weights.h5", "a.png", "--top", "1"], capsys)
    assert lines[2:] == [
        f"patch {NAMES[1]}, validation accuracy 25.0% of the network that it was fitted to",
        "from run/universal_patches.npz, in it 2 of 6x6; the strongest is taken",
        "a.png",
        "without a patch with the patch",
        f"red {shown(0)} red {shown(0, RED)}",
    ]


def test_without_an_evaluation_it_is_told_how_to_get_a_patch(network, run, capsys):
    for model, names in (("run", ["red", "green", "blue"]), (str(network), ["0", "1", "2"])):
        lines = told([model, "a.png"], capsys)
        assert lines[2] == (
            "patch none, as no finished evaluation of these weights is beside them. Make one with mat/evaluate.py, or give --patch FILE"
        )
        assert lines[3:] == ["a.png", *(f"{name} {shown(label)}" for label, name in enumerate(names))]


def test_an_offset_without_a_patch_is_refused(run, capsys):
    assert main(["run", "a.png", "--offset", "0", "0"]) == 2
    assert "--offset: no patch to put there: none, as no finished evaluation" in capsys.readouterr().err


def test_patches_are_given_as_files(run, capsys):
    evaluation(run / "network_001_evaluation")
    np.savez("patches.npz", patches=[filled(GREEN), filled(BLUE)], targets=[1, 2])
    np.save("large.npy", filled(GREEN, 12))
    (run / "exported.png").write_bytes(encode_patch(filled(GREEN), size=60, dpi=300))
    for file, first, second in (
        ("patches.npz", "patches-0, target class 1", "2 of 6x6; the first is taken"),
        ("large.npy", "large", "1 of 12x12 taken back to its 6x6 cells"),
        ("run/exported.png", "exported", "1 of 6x6 as exported"),
        ("run/network_001_evaluation/universal_patches.npz", f"{NAMES[1]}, target class green, valid", "2 of 6x6; the strongest is taken"),
    ):
        lines = told(["run", "a.png", "--patch", file], capsys)
        assert lines[2].startswith(f"patch {first}")
        assert lines[3] == f"from {file}, in it {second}"
        assert lines[6] == f"red {shown(0)} green {shown(1, GREEN)}"


@pytest.mark.parametrize(("offset", "corner"), [((), (5, 5)), (("10", "0"), (10, 0)), (("0", "10"), (0, 10))])
def test_the_saved_picture_shows_what_the_network_saw(run, capsys, offset, corner):
    evaluation(run)
    assert told(["run", "a.png", "--save", "seen.png", *(("--offset", *offset) if offset else ())], capsys)[-1].startswith("seen.png: ")
    with Image.open("seen.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    of_picture, of_patch = (np.argwhere(np.all(pixels == color, axis=-1)) for color in (PICTURE, 255 * GREEN))
    right = of_picture[of_picture[:, 1] > pixels.shape[1] // 2]
    (top, left), (bottom, _) = np.minimum(right.min(axis=0), of_patch.min(axis=0)), np.maximum(right.max(axis=0), of_patch.max(axis=0))
    cell = (bottom + 1 - top) / 16
    np.testing.assert_allclose((of_patch.min(axis=0) - (top, left)) / cell, corner, atol=0.2)
    assert len(of_patch) == pytest.approx((6 * cell) ** 2, rel=0.1)
    assert np.any(np.all(pixels == (0xC0, 0x39, 0x2B), axis=-1))  # the changed prediction, in red


REFUSED = {
    "no model": (["nothing", "a.png"], "nothing: no such file. Give the result directory of a run, a weights file or a .keras file"),
    "no file": (["run", "a.png", "b.png"], "b.png: no picture: cannot be read (No such file or directory). Give a JPEG, PNG or another"),
    "no picture": (["run", "run/classes.txt"], "run/classes.txt: no picture: text. Give a JPEG, PNG or another picture file"),
    "no patch": (["run", "a.png", "--patch", "x.png"], "x.png: cannot be read (--patch): No such file or directory. Give a PNG or"),
    "proportions": (["run", "a.png", "--patch", "wide.bmp"], "wide.bmp: of 40x90 pixels (--patch), which are not the proportions of patch"),
    "contact sheet": (["run", "a.png", "--patch", "contact_sheet.png"], "contact_sheet.png: shows all patches of a source (--patch). Give"),
    "offset": (["run", "a.png", "--offset", "3", "11"], "--offset must be in 0..10 and 0..10, as the patch has 6x6 pixels and the network"),
    "negative offset": (["run", "a.png", "--offset", "-1", "0"], "--offset must be in 0..10 and 0..10"),
    "no directory": (["run", "a.png", "--save", "none/x.png"], "none/x.png: cannot be written: No such file or directory"),
    "key": (["run", "a.png", "--set", "patch=1"], "run/config.yaml: unknown key patch. Did you mean patch_lr?"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_by_name_and_nothing_written(run, capsys, arguments, words):
    evaluation(run)
    before = set(run.parent.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mat.tools.classify: {words}")
    assert error.count("\n") == 1
    assert set(run.parent.rglob("*")) == before


def test_a_picture_cannot_be_saved_without_matplotlib(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["run", "a.png", "--save", "seen.png"]) == 2
    out, error = capsys.readouterr()
    assert (out, error) == ("", "mat.tools.classify: --save needs matplotlib, which is not installed. Install it: pip install matplotlib\n")


@pytest.mark.parametrize(
    "arguments",
    ["run", "run a.png --top 0", "run a.png --save a.jpg", "run wide.bmp --save ./a.png", "run a.png --save a.png", "run a.png --offset 1"],
)
def test_wrong_usage_is_refused_and_no_file_replaced(run, arguments):
    before = (run.parent / "a.png").read_bytes()
    with pytest.raises(SystemExit) as usage:
        main(arguments.split())
    assert usage.value.code == 2
    assert (run.parent / "a.png").read_bytes() == before


@pytest.mark.parametrize("tool", ["classify", "export_patches", "plot", "results"])
def test_tools_check_their_arguments_before_tensorflow_greets(tool):
    code = f"import sys, mat.tools.{tool}; print('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
