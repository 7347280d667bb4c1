"""The converter, from folder and zip."""

import pathlib
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data.convert import convert, main
from mat.data.records import BOX, FORMAT, IMAGE, LABEL, WNID
from mat.data.tiny_imagenet import load_dataset

WNIDS = ["n03", "n01", "n02"]  # not in alphabetical order: labels are line numbers
SHARED_DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"


def jpeg(value, channels=3):
    return tf.io.encode_jpeg(np.full((64, 64, channels), value, np.uint8)).numpy()


@pytest.fixture
def official(tmp_path):
    """A folder in the official layout: three classes with four training and two validation images each, one of them grayscale."""
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text("n01\tone\nn02\ttwo\nn03\tthree\n")
    annotations = []
    for label, wnid in enumerate(WNIDS):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        for i in range(4):
            (images / f"{wnid}_{i}.JPEG").write_bytes(jpeg(60 * label + i, channels=1 if i == 0 else 3))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(f"{wnid}_{i}.JPEG\t{i}\t10\t{i + 20}\t63\n" for i in range(4)))
        for i in range(2):
            name = f"val_{2 * label + i}.JPEG"
            (root / "val" / "images" / name).write_bytes(jpeg(60 * label + 10 + i))
            annotations.append(f"{name}\t{wnid}\t1\t2\t3\t4\n")
    (root / "val" / "val_annotations.txt").write_text("".join(annotations))
    for i in (10, 9):
        (root / "test" / "images" / f"test_{i}.JPEG").write_bytes(jpeg(i))
    return root


@pytest.fixture
def archive(official, tmp_path):
    """The same as a zip archive, below a directory as in the official one."""
    path = tmp_path / "official.zip"
    with zipfile.ZipFile(path, "w") as file:
        for member in sorted(official.rglob("*")):
            file.write(member, member.relative_to(official.parent).as_posix())
    return path


def read(path):
    return [dict(tf.train.Example.FromString(record.numpy()).features.feature) for record in tf.data.TFRecordDataset(str(path))]


def test_records_carry_images_labels_and_boxes(official, tmp_path):
    out = tmp_path / "out"
    assert convert(official, out) == {"train": 12, "validation": 6, "test": 2}
    train = read(out / "train.tfrecord")
    for record in train:
        assert set(record) == {IMAGE, FORMAT, WNID, LABEL, *BOX}
        wnid, label = record[WNID].bytes_list.value[0].decode(), record[LABEL].int64_list.value[0]
        assert label == WNIDS.index(wnid)
        (name,) = (f for f in (official / "train" / wnid / "images").iterdir() if f.read_bytes() == record[IMAGE].bytes_list.value[0])
        i = int(name.stem[-1])
        assert [record[key].int64_list.value[0] for key in BOX] == [i, 10, i + 20, 63]
        assert record[FORMAT].bytes_list.value[0] == b"jpeg"
    assert len({record[IMAGE].bytes_list.value[0] for record in train}) == 12
    labels = [record[LABEL].int64_list.value[0] for record in train]
    assert labels != sorted(labels)
    validation = read(out / "validation.tfrecord")
    assert [record[LABEL].int64_list.value[0] for record in validation] == [0, 0, 1, 1, 2, 2]
    assert [record[key].int64_list.value[0] for record in validation[:1] for key in BOX] == [1, 2, 3, 4]
    test = read(out / "test.tfrecord")
    assert [set(record) for record in test] == [{IMAGE, FORMAT}] * 2
    assert [record[IMAGE].bytes_list.value[0] for record in test] == [jpeg(9), jpeg(10)]
    for name in ("wnids.txt", "words.txt"):
        assert (out / name).read_bytes() == (official / name).read_bytes()
    assert sorted(f.name for f in out.iterdir()) == ["test.tfrecord", "train.tfrecord", "validation.tfrecord", "wnids.txt", "words.txt"]


def test_archive_and_folder_give_the_same_bytes_and_the_seed_the_order(official, archive, tmp_path):
    convert(official, tmp_path / "a", seed=3)
    convert(archive, tmp_path / "b", seed=3)
    convert(archive, tmp_path / "c", seed=4)
    for name in ("train.tfrecord", "validation.tfrecord", "test.tfrecord"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "train.tfrecord").read_bytes() != (tmp_path / "c" / "train.tfrecord").read_bytes()


def test_converted_records_feed_the_pipeline(archive, tmp_path):
    convert(archive, tmp_path / "out")
    images, labels = next(iter(load_dataset(tmp_path / "out", "validation", batch_size=6, n_classes=3)))
    np.testing.assert_allclose(np.mean(images, axis=(1, 2, 3)) * 255, [10, 11, 70, 71, 130, 131], atol=1)
    np.testing.assert_array_equal(np.argmax(labels, axis=1), [0, 0, 1, 1, 2, 2])
    images, labels = next(iter(load_dataset(tmp_path / "out", "train", batch_size=12, n_classes=3)))
    assert (images.shape, labels.shape) == ((12, 64, 64, 3), (12, 3))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "wnids.txt").unlink(), "no wnids.txt"),
        (lambda root: (root / "words.txt").unlink(), "words.txt is missing"),
        (lambda root: (root / "wnids.txt").write_text("n01\nn02\nn03\nn04\n"), "n04_boxes.txt is missing"),
        (lambda root: (root / "wnids.txt").write_text("n01\nn02\n"), "wnids.txt does not list train/n03. Add it"),
        (lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG n04 1 2 3 4\n"), "gives val_0.JPEG the class n04"),
        (lambda root: (root / "train/n02/n02_boxes.txt").write_text("n02_0.JPEG 1 2 3\n"), "n02_boxes.txt, line 1"),
        (lambda root: (root / "train/n02/n02_boxes.txt").write_text("n02_0.JPEG 1 2 3 4\n"), "no box of train/n02/images/n02_1.JPEG"),
        (lambda root: (root / "val/images/val_3.JPEG").unlink(), "val/images/val_3.JPEG is missing"),
        (lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG 1 2 3 4\n"), "not `image wnid xmin ymin xmax ymax`"),
        (lambda root: (root / "wnids.txt").write_bytes(b"\xff\n"), "wnids.txt is not UTF-8"),
        (lambda root: (root / "wnids.txt").write_text(""), "list each class once"),
        (lambda root: (root / "wnids.txt").write_text("n01\nn01\n"), "list each class once"),
    ],
)
def test_incomplete_sources_are_refused_and_leave_no_half_file(official, tmp_path, capsys, damage, words):
    damage(official)
    assert main([str(official), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_wrong_sources_and_taken_destinations_are_refused(official, tmp_path):
    (tmp_path / "file.zip").write_text("no archive")
    with pytest.raises(UserError, match="not a readable zip archive"):
        convert(tmp_path / "file.zip", tmp_path / "out")
    with pytest.raises(UserError, match="no such folder or archive"):
        convert(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(UserError, match="cannot be written"):
        convert(official, tmp_path / "file.zip" / "out")
    convert(official, tmp_path / "out")
    with pytest.raises(UserError, match="exists already"):
        convert(official, tmp_path / "out")


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the real images, which are not part of the project")
def test_real_images_of_all_classes_convert(tmp_path):
    assert convert(SHARED_DATA / "tiny-imagenet-200-mini.zip", tmp_path) == {"train": 1600, "validation": 400, "test": 20}
    labels = np.concatenate([np.argmax(y, axis=1) for _, y in load_dataset(tmp_path, "validation", batch_size=100)])
    np.testing.assert_array_equal(np.bincount(labels), np.full(200, 2))


def test_paths_of_the_command_may_begin_with_home_or_a_variable(official, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(official.parent))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert main([f"~/{official.name}", "$OUT/records"]) == 0
    assert (tmp_path / "out" / "records" / "train.tfrecord").exists()


def test_command_wants_a_source_or_a_download(tmp_path):
    for arguments in ([str(tmp_path)], ["--download", str(tmp_path), str(tmp_path)]):
        with pytest.raises(SystemExit) as usage:
            main(arguments)
        assert usage.value.code == 2
