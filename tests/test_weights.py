"""Weights files: the original's layout both ways, Keras 3's, and the released file's download."""

import io
import pickle
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.config import PatchTrainingConfig
from mat.models import create_model, load_weights, save_weights
from mat.models.weights import RELEASED, RELEASED_BLOB, download_released, git_blob, main
from tests.conftest import GOLDEN, SMALL


def file_layout(path):
    """Attributes, names, shapes and dtypes of everything in an HDF5 file."""
    layout = {}

    def visit(name, item):
        data = (item.shape, item.dtype.str) if isinstance(item, h5py.Dataset) else None
        layout[name] = (data, {key: (np.asarray(value).tolist(), item.attrs.get_id(key).dtype) for key, value in item.attrs.items()})

    with h5py.File(path) as file:
        visit("/", file)
        file.visititems(visit)
    return layout


def test_written_files_have_the_layout_of_the_original(tmp_path, golden_model):
    save_weights(golden_model, tmp_path / "weights.h5")
    assert file_layout(tmp_path / "weights.h5") == file_layout(GOLDEN / "original_w1.h5")
    with h5py.File(GOLDEN / "original_w1.h5") as theirs, h5py.File(tmp_path / "weights.h5") as ours:
        np.testing.assert_array_equal(ours["conv2d_7/conv2d_7/kernel:0"], theirs["conv2d_7/conv2d_7/kernel:0"])


def test_layers_are_matched_by_order_whatever_their_numbers(tmp_path):
    """A process that had made another model before numbers its layers on from there, past 9 to 10 within a kind."""
    model, other = (create_model(PatchTrainingConfig(**SMALL, seed=seed)) for seed in (0, 1))
    save_weights(model, tmp_path / "weights.h5")
    with h5py.File(tmp_path / "weights.h5", "r") as old, h5py.File(tmp_path / "renumbered.h5", "w") as new:
        renamed = []
        for name in (n.decode() for n in old.attrs["layer_names"]):
            kind, _, number = name.rpartition("_") if name[-1].isdigit() else (name, "", "0")
            renamed.append(f"{kind}_{int(number) + 7}")
            group = new.create_group(renamed[-1])
            group.attrs["weight_names"] = np.array([f"w{i}".encode() for i in range(len(old[name].attrs["weight_names"]))])
            for i, weight in enumerate(old[name].attrs["weight_names"]):
                group[f"w{i}"] = old[name][weight][()]
        new.attrs["layer_names"] = np.array([name.encode() for name in renamed])
    load_weights(other, tmp_path / "renumbered.h5")
    images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(other(images), model(images))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"width": 2}, "has the shapes"),
        ({"n_classes": 7}, "dense has the shapes"),
        ({"depth": 14}, "conv2d_3 has the shapes"),
        ({"normalization": "group"}, "channel_group_normalization"),
    ],
)
def test_weights_of_another_network_change_nothing(tmp_path, keys, words):
    save_weights(create_model(PatchTrainingConfig(**SMALL)), tmp_path / "weights.h5")
    model = create_model(PatchTrainingConfig(**SMALL | keys))
    before = model.get_weights()
    with pytest.raises(UserError, match=words):
        load_weights(model, tmp_path / "weights.h5")
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_files_that_are_no_weights_are_refused(tmp_path):
    model = create_model(PatchTrainingConfig(**SMALL))
    (tmp_path / "text.h5").write_text("no weights")
    h5py.File(tmp_path / "empty.h5", "w").close()
    (tmp_path / "cut.h5").write_bytes((GOLDEN / "original_w1.h5").read_bytes()[:5000])
    for name in ("text.h5", "empty.h5", "cut.h5"):
        with pytest.raises(UserError, match=rf"{name}: not a weights file"):
            load_weights(model, tmp_path / name)
    with pytest.raises(UserError, match=r"none\.h5: no such weights file"):
        load_weights(model, tmp_path / "none.h5")


def archive(name):
    """The bytes of a zip archive whose first file has that name."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(name, "first")
        file.writestr("second", "second")
    return content.getvalue()


def npz():
    """The bytes of a file of NumPy arrays."""
    content = io.BytesIO()
    np.savez(content, patches=np.zeros(3))
    return content.getvalue()


WHOLE = 'a whole Keras model. Save its weights alone with model.save_weights("NAME.weights.h5")'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty. Fetch the file itself, or copy it again"),
        (archive("config.json"), WHOLE),
        (archive("archive/data.pkl"), "a PyTorch file"),
        (archive("model/.format_version"), "a PyTorch file"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), "a PyTorch file"),
        (pickle.dumps({}, protocol=5), "a PyTorch file or another pickle"),
        (npz(), "a file of NumPy arrays"),
        (b"\x93NUMPY\x01\x00", "a file of NumPy arrays"),
        (archive("weights/tiny_imagenet_weights_074.h5"), "a zip archive. Unpack it first"),
        (b"\x1f\x8b\x08\x00", "a gzip archive. Unpack it first"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a Git LFS pointer, not the file itself. Fetch the file itself with git lfs pull",
        ),
        (b"\n\n<!DOCTYPE html>\n<html>", "an HTML page"),
        (b"\xef\xbb\xbf<HTML>", "an HTML page"),
        (b"<?xml version='1.0'?><Error/>", "an HTML page"),
        (b'model_checkpoint_path: "ckpt-1"\n', "a TensorFlow checkpoint"),
    ],
)
def test_other_files_are_told_what_they_are(tmp_path, content, words):
    (tmp_path / "weights.h5").write_bytes(content)
    model = create_model(PatchTrainingConfig(**SMALL))
    with pytest.raises(UserError) as refusal:
        load_weights(model, tmp_path / "weights.h5")
    assert f"weights.h5: not a weights file, but {words}" in str(refusal.value)


def test_whole_models_and_checkpoints_are_told_what_they_are(tmp_path):
    model = create_model(PatchTrainingConfig(**SMALL))
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
    model.export(str(tmp_path / "saved"))
    tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
    (tmp_path / "directory").mkdir()
    for name, words in {
        "model.keras": f"not a weights file, but {WHOLE}",
        "model.h5": f"not a weights file, but {WHOLE}",
        "saved": "not a weights file, but a SavedModel",
        "ckpt-1": "not a weights file, but a TensorFlow checkpoint",
        "ckpt-1.index": "not a weights file, but a TensorFlow checkpoint",
        "ckpt-1.data-00000-of-00001": "not a weights file, but a TensorFlow checkpoint",
        "directory": "no such weights file, but a directory",
    }.items():
        with pytest.raises(UserError) as refusal:
            load_weights(model, tmp_path / name)
        assert f"{name}: {words}" in str(refusal.value)


def test_a_weights_file_may_have_any_name(tmp_path):
    model = create_model(PatchTrainingConfig(**SMALL))
    for name in ("ckpt-1.index", "weights.keras", "a"):
        save_weights(model, tmp_path / name)
        load_weights(model, tmp_path / name)


def test_names_that_lead_round_in_circles_are_refused(tmp_path):
    """Each part of a name is a step through the file, and a group may hold itself."""
    with h5py.File(tmp_path / "circle.h5", "w") as file:
        group = file.create_group("a")
        group["s"] = group
        group["w"] = np.zeros(3, np.float32)
        group.attrs["weight_names"] = np.array([b"s/" * 1000 + b"w"])
        file.attrs["layer_names"] = np.array([b"a"])
    with pytest.raises(UserError, match=r"circle\.h5: not a weights file .*a name of too many parts"):
        load_weights(create_model(PatchTrainingConfig(**SMALL)), tmp_path / "circle.h5")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("normalization", ["strip", "batch", "group"])
def test_keras_3_files_give_the_same_logits(tmp_path, normalization, named):
    """Files of older versions of Keras 3 do not note the layers' own names."""
    keys = SMALL | {"normalization": normalization}
    model, other = (create_model(PatchTrainingConfig(**keys, seed=seed)) for seed in (0, 1))
    model.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
        for group in file["layers"].values():
            if not named:
                group["vars"].attrs.pop("name", None)
    load_weights(other, tmp_path / "model.weights.h5")
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"width": 2}, "has the shapes"), ({"depth": 14}, "the network has|has the shapes"), ({"normalization": "group"}, "normalization")],
)
def test_keras_3_files_of_another_network_change_nothing(tmp_path, keys, words):
    create_model(PatchTrainingConfig(**SMALL)).save_weights(tmp_path / "model.weights.h5")
    model = create_model(PatchTrainingConfig(**SMALL | keys))
    before = model.get_weights()
    with pytest.raises(UserError, match=words):
        load_weights(model, tmp_path / "model.weights.h5")
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


# The released file.


def test_git_blob_is_what_git_says(tmp_path):
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert git_blob(tmp_path / "hello") == "ce013625030ba8dba906f756967f9e9ca394464a"  # echo hello | git hash-object --stdin


def test_a_right_download_is_kept_and_checked_again(server, tmp_path):
    address, state = server
    (tmp_path / "expected").write_bytes(state["content"])
    blob = git_blob(tmp_path / "expected")
    for _ in range(2):
        path = download_released(tmp_path / "weights", address, blob)
        assert path.read_bytes() == state["content"]
    assert state["requests"] == [None]
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match=rf"{RELEASED}: not the released file"):
        download_released(tmp_path / "weights", address, blob)
    assert path.read_bytes() == b"something else"


def test_a_wrong_download_is_refused_and_removed(server, tmp_path, capsys):
    assert main(["--download", str(tmp_path / "weights"), "--url", server[0]]) == 2
    errors = capsys.readouterr().err
    assert "not the released file" in errors
    assert RELEASED_BLOB in errors
    assert list((tmp_path / "weights").iterdir()) == []
