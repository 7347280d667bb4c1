"""The converter: its records, and its command."""

import resource

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data.convert import convert, main
from mat.data.metadata import read_metadata
from mat.data.records import BOX, FORMAT, IMAGE, LABEL, SPLITS, WNID, staged
from mat.data.splits import class_names, fingerprint, read_splits
from mat.data.tiny_imagenet import load_dataset
from tests.test_archives import FILES, PIXELS, archive, folder

WNIDS = ["n03", "n01", "n02"]  # not in alphabetical order: labels are line numbers


def jpeg(value, channels=3):
    return tf.io.encode_jpeg(np.full((64, 64, channels), value, np.uint8)).numpy()


@pytest.fixture(scope="module")
def official():
    """Files in the official layout: three classes with four training and two validation images each, one of them grayscale."""
    files = {"wnids.txt": "\n".join(WNIDS).encode() + b"\n", "words.txt": b"n01\tone\nn02\ttwo\nn03\tthree\n"}
    annotations = ""
    for label, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = "".join(f"{wnid}_{i}.JPEG\t{i}\t10\t{i + 20}\t63\n" for i in range(4)).encode()
        files |= {f"train/{wnid}/images/{wnid}_{i}.JPEG": jpeg(60 * label + i, channels=1 if i == 0 else 3) for i in range(4)}
        for i in range(2):
            files[f"val/images/val_{2 * label + i}.JPEG"] = jpeg(60 * label + 10 + i)
            annotations += f"val_{2 * label + i}.JPEG\t{wnid}\t1\t2\t3\t4\n"
    files["val/val_annotations.txt"] = annotations.encode()
    return files | {"test/images/test_10.JPEG": jpeg(10), "test/images/test_9.PNG": tf.io.encode_png(PIXELS).numpy()}


def read(path):
    return [dict(tf.train.Example.FromString(record.numpy()).features.feature) for record in tf.data.TFRecordDataset(str(path))]


def test_records_carry_images_labels_and_boxes(official, tmp_path):
    out = tmp_path / "out"
    assert convert(folder(tmp_path / "source", official), out) == {"train": 12, "validation": 6, "test": 2}
    train, validation, test = (read(out / f"{split}.tfrecord") for split in SPLITS)
    names = []
    for record in train:
        assert set(record) == {IMAGE, FORMAT, WNID, LABEL, *BOX}
        wnid, label = record[WNID].bytes_list.value[0].decode(), record[LABEL].int64_list.value[0]
        assert label == WNIDS.index(wnid)
        (name,) = (name for name, content in official.items() if content == record[IMAGE].bytes_list.value[0])
        names.append(name)
        assert name.startswith(f"train/{wnid}/images/")
        i = int(name[-len("0.JPEG")])
        assert [record[key].int64_list.value[0] for key in BOX] == [i, 10, i + 20, 63]
        assert record[FORMAT].bytes_list.value[0] == b"jpeg"
    assert len(set(names)) == 12
    assert names != sorted(names)
    assert [record[LABEL].int64_list.value[0] for record in validation] == [0, 0, 1, 1, 2, 2]
    assert [validation[0][key].int64_list.value[0] for key in BOX] == [1, 2, 3, 4]
    assert [set(record) for record in test] == [{IMAGE, FORMAT}] * 2
    assert [record[IMAGE].bytes_list.value[0] for record in test] == [official["test/images/test_9.PNG"], jpeg(10)]
    assert [record[FORMAT].bytes_list.value[0] for record in test] == [b"png", b"jpeg"]
    for name in ("wnids.txt", "words.txt"):
        assert (out / name).read_bytes() == official[name]
    files = ["dataset.json", "test.tfrecord", "train.tfrecord", "validation.tfrecord", "wnids.txt", "words.txt"]
    assert sorted(f.name for f in out.iterdir()) == files
    metadata = read_metadata(out)
    assert (metadata.image_size, metadata.classes, metadata.layout) == (64, WNIDS, "Tiny ImageNet in its official layout")
    assert (metadata.images, metadata.reencoded, metadata.validation_share) == ({"train": 12, "validation": 6, "test": 2}, 0, None)


def test_archive_and_folder_give_the_same_bytes_and_the_seed_the_order(official, tmp_path):
    root, path = folder(tmp_path / "source", official), archive(tmp_path / "a.zip", {f"tiny/{name}": official[name] for name in official})
    for out, source, seed in (("a", root, 3), ("b", path, 3), ("c", path, 4)):
        convert(source, tmp_path / out, seed=seed)
    for split in SPLITS:
        a, b, c = ((tmp_path / out / f"{split}.tfrecord").read_bytes() for out in "abc")
        assert a == b
        assert (a == c) == (split != "train")


def test_converted_records_feed_the_pipeline(official, tmp_path):
    convert(archive(tmp_path / "a.zip", official), tmp_path / "out")
    images, labels = next(iter(load_dataset(tmp_path / "out", "validation", batch_size=6, n_classes=3)))
    np.testing.assert_allclose(np.mean(images, axis=(1, 2, 3)) * 255, [10, 11, 70, 71, 130, 131], atol=1)
    np.testing.assert_array_equal(np.argmax(labels, axis=1), [0, 0, 1, 1, 2, 2])


def test_destinations_that_are_taken_or_cannot_be_written_are_refused(tmp_path):
    source = archive(tmp_path / "a.zip", FILES)
    with pytest.raises(UserError, match="cannot be written: Not a directory. Choose another destination"):
        convert(source, source / "out")
    convert(source, tmp_path / "out")
    with pytest.raises(UserError, match="out/train.tfrecord: exists already"):
        convert(source, tmp_path / "out")


def test_a_full_disk_is_told_and_leaves_nothing(official, tmp_path):
    source, (soft, hard) = archive(tmp_path / "a.zip", official), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # bytes of a file
    try:
        with pytest.raises(UserError, match="cannot be written: .*Choose another destination"):
            convert(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()


def test_paths_of_the_command_may_begin_with_home_or_a_variable(tmp_path, monkeypatch, capsys):
    folder(tmp_path / "source", FILES)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert main(["~/source", "$OUT/records"]) == 0
    assert f"{tmp_path}/out/records: 1 train, 1 validation, 1 test images" in capsys.readouterr().out
    assert (tmp_path / "out" / "records" / "train.tfrecord").exists()


def test_faults_of_the_source_are_one_line_and_status_2(tmp_path, capsys):
    assert main([str(folder(tmp_path / "source", FILES | {"wnids.txt": b""})), str(tmp_path / "out")]) == 2
    message = f"mat.data.convert: {tmp_path}/source: wnids.txt must list each class once, one a line; letter case makes no difference\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("arguments", ["OUT", "--download SOURCE OUT", "--download OUT --sha256 abc", f"SOURCE OUT --sha256 {'0' * 64}"])
def test_wrong_usage(arguments):
    with pytest.raises(SystemExit) as usage:
        main(arguments.split())
    assert usage.value.code == 2


CHOSEN = ["n02", "n01"]  # neither the source's order nor all of its classes


def only(official, wnids):
    """The files of `official` that are of these classes, and their list."""
    annotations = [line for line in official["val/val_annotations.txt"].decode().splitlines(keepends=True) if line.split("\t")[1] in wnids]
    images = {f"val/images/{line.partition(chr(9))[0]}" for line in annotations}
    files = {
        name: content
        for name, content in official.items()
        if name in images or name.split("/")[1:2] in [[wnid] for wnid in wnids] or not name.startswith(("train/", "val/images/"))
    }
    return files | {"wnids.txt": "".join(f"{wnid}\n" for wnid in wnids).encode(), "val/val_annotations.txt": "".join(annotations).encode()}


def assert_same_records(out, other):
    for name in ("train.tfrecord", "validation.tfrecord", "wnids.txt"):
        assert (out / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("listed", ["n02\nn01\n", "Two\r\n\r\n N01 \r\n", None])
def test_chosen_classes_give_the_records_of_a_source_that_has_no_others(official, tmp_path, capsys, listed):
    (tmp_path / "classes.txt").write_text(listed or "")
    classes = "two,one" if listed is None else str(tmp_path / "classes.txt")
    source, out = folder(tmp_path / "source", official), tmp_path / "out"
    assert main([str(source), str(out), "--seed", "3", "--classes", classes]) == 0
    convert(archive(tmp_path / "a.zip", only(official, CHOSEN)), tmp_path / "other", seed=3)
    assert_same_records(out, tmp_path / "other")
    assert (out / "words.txt").read_bytes() == official["words.txt"]
    splits = [read_splits("tiny_imagenet", data_dir, n_classes=2) for data_dir in (out, tmp_path / "other")]
    assert fingerprint(splits[0]) == fingerprint(splits[1])
    assert class_names(out, 2) == ["two", "one"]
    assert not (out / "test.tfrecord").exists()
    metadata = read_metadata(out)
    assert (metadata.classes, metadata.images) == (CHOSEN, {"train": 8, "validation": 4})
    assert metadata.layout == "Tiny ImageNet in its official layout, 2 of its 3 classes"
    assert f"{metadata.layout}: 2 classes (n02, n01)\n{out}: 8 train, 4 validation images\n" in capsys.readouterr().out


def test_chosen_classes_of_an_archive_that_is_fetched(official, tmp_path, server):
    address, state = server
    state["content"] = archive(tmp_path / "a.zip", official).read_bytes()
    assert main(["--download", "--url", address, str(tmp_path / "out"), "--classes", "n02,n01"]) == 0
    convert(archive(tmp_path / "b.zip", only(official, CHOSEN)), tmp_path / "other")
    assert_same_records(tmp_path / "out", tmp_path / "other")


WORDS = {"words.txt": b"n01\tcrane, bird\nn02\tcrane, machine\nn03\tn01\n"}
WRONG_CLASSES = {
    "neither": ("tow,three,fuor", "--classes: tow (and 1 more): neither a file nor a class of SOURCE. The nearest are: two; one; three."),
    "synonym": ("one,three,drei", "--classes: drei: neither a file nor a class of SOURCE"),
    "twice": ("n02,n03,two", "--classes names the class n02 twice, the second time as two. Remove one"),
    "one": ("two", "--classes: a classifier needs two classes or more. Received: n02"),
    "none": (" , ", "--classes names no class. Give a text file with a class a line, or NAME,NAME,... Received: ' , '"),
    "empty": ("", "the path '' is empty. Write it out"),
    "empty file": ("EMPTY", "--classes names no class. Give a text file with a class a line"),
    "no text": ("BINARY", "BINARY: cannot be read (--classes): 'utf-8' codec can't decode byte 0xff"),
}


@pytest.mark.parametrize(("classes", "words"), WRONG_CLASSES.values(), ids=WRONG_CLASSES)
def test_classes_that_are_not_told_apart_or_not_there_are_refused(official, tmp_path, monkeypatch, capsys, classes, words):
    monkeypatch.chdir(folder(tmp_path, {"EMPTY": b"\n \n", "BINARY": b"n02\n\xff\n"}))
    folder(tmp_path / "SOURCE", official)
    assert main(["SOURCE", "out", "--classes", classes]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mat.data.convert: {words}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_name_of_several_classes_is_refused_and_a_class_s_own_name_counts_first(official, tmp_path):
    source = folder(tmp_path / "source", official | WORDS)
    with pytest.raises(UserError, match="--classes: crane means several classes of .*source. Give one of n01, n02 instead"):
        convert(source, tmp_path / "out", classes=["n03", "crane"])
    convert(source, tmp_path / "out", classes=["n01", "n03"])
    assert read_metadata(tmp_path / "out").classes == ["n01", "n03"]


def test_chosen_classes_without_validation_images_are_refused(official, tmp_path):
    annotations = b"".join(line for line in official["val/val_annotations.txt"].splitlines(keepends=True) if b"n03" in line)
    images = {name: content for name, content in official.items() if not name.startswith("val/images/") or name[-6:-5] in "01"}
    with pytest.raises(UserError, match="no validation image is of the classes of --classes. Choose others, or add images"):
        convert(folder(tmp_path / "source", images | {"val/val_annotations.txt": annotations}), tmp_path / "out", classes=CHOSEN)


@pytest.mark.parametrize("validation", ["val/c/0.jpg", "c/1.jpg"])
def test_chosen_class_folders_without_validation_images_are_refused(tmp_path, validation):
    train = "train/" if validation.startswith("val") else ""
    source = folder(tmp_path / "source", {validation: jpeg(1)} | {f"{train}{name}/0.jpg": jpeg(2) for name in "abc"})
    with pytest.raises(UserError, match="no validation image is of the classes of --classes. Choose others, or add images"):
        convert(source, tmp_path / "out", classes=["a", "b"])


@pytest.mark.parametrize("place", ["{}/{}.jpg", "train/{}/{}.jpg"])
def test_chosen_class_folders_give_the_records_of_a_source_that_has_no_others(tmp_path, capsys, place):
    names = ["eel", "sea lion, bull", "ant", "cat"]
    files = {place.format(name, i): jpeg(60 * label + i) for label, name in enumerate(names) for i in range(4)}
    if place.startswith("train"):
        files |= {f"val/{name}/1.jpg": jpeg(60 * label + 10) for label, name in enumerate(names)}
    chosen = [names[1], names[0]]  # not in the order of names
    listed = "".join(f"{name}\n" for name in chosen).encode()
    only = {name: content for name, content in files.items() if any(f"{each}/" in name for each in chosen)} | {"wnids.txt": listed}
    (tmp_path / "classes.txt").write_bytes(listed.upper())
    source, out = folder(tmp_path / "source", files), tmp_path / "out"
    assert main([str(source), str(out), "--classes", str(tmp_path / "classes.txt")]) == 0
    assert "passed over" not in capsys.readouterr().out
    convert(folder(tmp_path / "other source", only), tmp_path / "other")
    assert_same_records(out, tmp_path / "other")
    metadata = read_metadata(out)
    assert (metadata.classes, metadata.images) == (chosen, {"train": 8 if "val" in str(files) else 6, "validation": 2})
    assert metadata.layout.endswith("CLASS, 2 of its 4 classes")
    assert main([str(source), str(tmp_path / "none"), "--classes", ",".join(chosen)]) == 2
    words = "sea lion (and 1 more): neither a file nor a class of {}. The nearest are: sea lion, bull; eel; "
    assert words.format(source) in (error := capsys.readouterr().err)
    assert error.endswith("Names that have commas go into a file, one a line\n")


def test_where_a_description_is_the_data_is_whole(tmp_path, monkeypatch):
    moved = []
    with staged(tmp_path / "data") as stage:
        for name in ("dataset.json", "train.tfrecord", "wnids.txt"):
            (stage / name).write_bytes(b"")
        monkeypatch.setattr("mat.data.records.os.replace", lambda file, place: moved.append(place.name))
    assert moved == ["train.tfrecord", "wnids.txt", "dataset.json"]
