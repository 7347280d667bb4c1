"""Weights files: the original's layout both ways, Keras 3's, damaged and other files, and the released file's download."""

import io
import pickle
import random
import re
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.config import PatchTrainingConfig
from mat.models import create_model, load_weights, save_weights, weights
from tests.conftest import GOLDEN, SMALL


def small_model(**keys):
    return create_model(PatchTrainingConfig(**SMALL | keys))


def save(model, path):
    """Save weights in the layout that the file's name stands for."""
    (model.save_weights if path.name.endswith(".weights.h5") else lambda path: save_weights(model, path))(path)
    return path


def assert_equal_weights(one, other):
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)


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


def test_layers_are_matched_by_order_whatever_their_numbers_and_precision(tmp_path):
    """A process that had made another model before numbers its layers on from there, past 9 to 10 within a kind."""
    model, other = small_model(seed=0), small_model(seed=1)
    save_weights(model, tmp_path / "weights.h5")
    with h5py.File(tmp_path / "weights.h5", "r") as old, h5py.File(tmp_path / "renumbered.h5", "w") as new:
        renamed = []
        for name in (n.decode() for n in old.attrs["layer_names"]):
            kind, _, number = name.rpartition("_") if name[-1].isdigit() else (name, "", "0")
            renamed.append(f"{kind}_{int(number) + 7}")
            group = new.create_group(renamed[-1])
            group.attrs["weight_names"] = np.array([f"w{i}".encode() for i in range(len(old[name].attrs["weight_names"]))])
            for i, weight in enumerate(old[name].attrs["weight_names"]):
                group[f"w{i}"] = old[name][weight][()].astype(">f8")
        new.attrs["layer_names"] = np.array([name.encode() for name in renamed])
    load_weights(other, tmp_path / "renumbered.h5")
    assert_equal_weights(other.get_weights(), model.get_weights())


@pytest.mark.parametrize("name", ["original.h5", "keras_3.weights.h5"])
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"width": 2}, r"conv2d has the shapes \[\(\d.*\] in the network and \[\(\d.*\] in the file .'conv2d'."),
        ({"n_classes": 7}, "dense has the shapes"),
        ({"depth": 14}, "conv2d(_3)? has the shapes"),
        ({"normalization": "group"}, "a layer .*group_normalization where the file has"),
        ({"normalization": "none"}, "the network has 7 layers with weights, the file 12"),
    ],
)
def test_weights_of_another_network_change_nothing(tmp_path, keys, words, name):
    file_model, model = small_model(), small_model(**keys)
    before = model.get_weights()
    with pytest.raises(UserError, match=rf"{name}: these weights are not of this network: .*{words}.*\. Give the config the depth, width"):
        load_weights(model, save(file_model, tmp_path / name))
    assert_equal_weights(before, model.get_weights())


def test_a_weights_file_may_have_any_name(tmp_path):
    model = small_model()
    for name in ("ckpt-1.index", "weights.keras", "a"):
        load_weights(model, save(model, tmp_path / name))


# Damaged files.


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.attrs.pop("layer_names"), "layer_names"),
        (lambda file: file.attrs.create("layer_names", 1.5), "iter"),
        (lambda file: file.attrs.create("layer_names", np.array([b"\xff\n"])), "can't decode"),
        (lambda file: file["conv2d"].attrs.pop("weight_names"), "weight_names"),
        (lambda file: file.pop("conv2d"), "conv2d"),
        (lambda file: file.pop("conv2d/conv2d/kernel:0"), "kernel:0"),
    ],
)
def test_incomplete_files_are_refused_and_change_nothing(tmp_path, damage, words):
    model, other = small_model(seed=0), small_model(seed=1)
    before = other.get_weights()
    with h5py.File(save(model, tmp_path / "weights.h5"), "r+") as file:
        damage(file)
    with pytest.raises(UserError, match=rf"weights\.h5: not a weights file in the .*{words}.*Give a file that save_weights wrote"):
        load_weights(other, tmp_path / "weights.h5")
    assert_equal_weights(before, other.get_weights())


@pytest.mark.parametrize("name", ["original.h5", "keras_3.weights.h5"])
def test_files_with_a_flipped_bit_or_cut_off_are_read_or_refused(tmp_path, name):
    """HDF5's library is native code. Bits are flipped where a wrong one is no wrong number, but a wrong structure."""
    model, rng, refusals = small_model(), random.Random(0), []
    content = save(model, tmp_path / name).read_bytes()
    numbers = set()

    def find_numbers(_, item):
        if isinstance(item, h5py.Dataset):
            numbers.update(range(item.id.get_offset(), item.id.get_offset() + item.id.get_storage_size()))

    with h5py.File(tmp_path / name) as file:
        file.visititems(find_numbers)
    for position in rng.choices(sorted(set(range(len(content))) - numbers), k=50):
        flipped = bytes([content[position] ^ 1 << rng.randrange(8)])
        for damaged in (content[:position] + flipped + content[position + 1 :], content[:position]):
            (tmp_path / name).write_bytes(damaged)
            try:
                load_weights(model, tmp_path / name)
            except UserError as error:
                refusals.append(str(error))
    assert 50 < len(refusals) < 100
    assert all(refusal.isprintable() and len(refusal) < 1000 for refusal in refusals)


# Other files.


def archive(name):
    """The bytes of a zip archive whose first file has that name."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(name, "first")
        file.writestr("second", "second")
    return content.getvalue()


WHOLE = 'a whole Keras model. Save its weights alone with model.save_weights("NAME.weights.h5")'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty. Fetch the file itself, or copy it again"),
        (archive("config.json"), WHOLE),
        (archive("archive/data.pkl"), "a PyTorch file"),
        (archive("model/.format_version"), "a PyTorch file"),
        (pickle.dumps({}, protocol=5), "a PyTorch file or another pickle"),
        (archive("patches.npy"), "a file of NumPy arrays"),
        (b"\x93NUMPY\x01\x00", "a file of NumPy arrays"),
        (archive("weights/tiny_imagenet_weights_074.h5"), "a zip archive. Unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself. Fetch the file itself with git lfs"),
        (b"\n\n<!DOCTYPE html>\n<html>", "an HTML page. Fetch the file itself"),
        (b'model_checkpoint_path: "ckpt-1"\n', "a TensorFlow checkpoint"),
    ],
)
def test_other_files_are_told_what_they_are(tmp_path, content, words):
    (tmp_path / "weights.h5").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"weights.h5: not a weights file, but {words}")):
        load_weights(small_model(), tmp_path / "weights.h5")


def test_whole_models_checkpoints_and_directories_are_told_what_they_are(tmp_path):
    model = small_model()
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
    model.export(str(tmp_path / "saved"))
    tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
    for name, words in {
        "model.keras": f"not a weights file, but {WHOLE}",
        "model.h5": f"not a weights file, but {WHOLE}",
        "saved": "not a weights file, but a SavedModel",
        "ckpt-1": "not a weights file, but a TensorFlow checkpoint",
        "ckpt-1.index": "not a weights file, but a TensorFlow checkpoint",
        "ckpt-1.data-00000-of-00001": "not a weights file, but a TensorFlow checkpoint",
        "saved/variables": "no such weights file, but a directory. Give the path of an .h5 file",
        "none.h5": "no such weights file. Give the path of an .h5 file",
    }.items():
        with pytest.raises(UserError, match=re.escape(f"{name}: {words}")):
            load_weights(model, tmp_path / name)


# The released file.

BLOB = "f4e52af7c3bcfb694703d38c47dfde5b76cc6881"  # of what the server has


def test_git_blob_is_what_git_says(tmp_path):
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert weights.git_blob(tmp_path / "hello") == "ce013625030ba8dba906f756967f9e9ca394464a"  # echo hello | git hash-object --stdin


def test_the_released_file_is_fetched_and_checked(server, tmp_path, capsys, monkeypatch):
    address, state = server
    path = tmp_path / "weights" / weights.RELEASED
    command = ["--download", str(path.parent), "--url", address]
    assert weights.main(command) == 2
    assert f"not the released file: its git blob hash is {BLOB}, not {weights.RELEASED_BLOB}" in capsys.readouterr().err
    assert not any(path.parent.iterdir())
    monkeypatch.setattr(weights, "RELEASED_BLOB", BLOB)
    for _ in range(2):
        assert weights.main(command) == 0
    assert path.read_bytes() == state["content"]
    assert state["n_requests"] == 2
    path.write_bytes(b"something else")
    assert weights.main(command) == 2
    assert f"{path}: not the released file" in capsys.readouterr().err
    assert path.read_bytes() == b"something else"
