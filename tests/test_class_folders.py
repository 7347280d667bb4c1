"""Sources of images by class: folders as people have them, what is refused, what the directory of the records says, a training on it."""

import json
import os
import signal
import unicodedata
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mat import train
from mat.cli.errors import UserError
from mat.config import PatchTrainingConfig
from mat.data.convert import convert, main
from mat.data.metadata import read_metadata
from mat.data.reading import read_records
from mat.data.records import BOX, IMAGE, LABEL, WNID
from mat.data.splits import class_names
from tests.test_archives import JPEG, PNG, archive, folder, refusal
from tests.test_convert import WNIDS, official, read  # noqa: F401
from tests.test_own_images import save


def picture(name):
    """A PNG of 8x8 pixels that no other name has."""
    return save(np.broadcast_to(np.frombuffer(zlib.crc32(name.encode()).to_bytes(4, "big")[:3], np.uint8), (8, 8, 3)), "PNG")


def tree(*folders, n=3):
    """Files of `n` images in each of some folders."""
    return {name: picture(name) for folder in folders for i in range(n) for name in [f"{folder}/{i}.png"]}


def records(out, split):
    """(class, label, image) of each record."""
    features = [
        dict(tf.train.Example.FromString(record.numpy()).features.feature) for record in tf.data.TFRecordDataset(f"{out}/{split}.tfrecord")
    ]
    return [(f[WNID].bytes_list.value[0].decode(), f[LABEL].int64_list.value[0], f[IMAGE].bytes_list.value[0]) for f in features]


CLASSES = ["café au lait", "sea lion, bull", "Übermut", "日本"]
BOTH = tree(*(f"train/{name}" for name in CLASSES)) | tree(*(f"val/{name}" for name in CLASSES), n=1)
ACCEPTED = {  # the files, and the numbers of training and validation images
    "train and val": (BOTH, 12, 4),
    "train and validation": ({name.replace("val", "validation"): content for name, content in BOTH.items()}, 12, 4),
    "train and valid": ({name.replace("val", "valid"): content for name, content in BOTH.items()}, 12, 4),
    "train and test": ({name.replace("val", "test"): content for name, content in BOTH.items()}, 12, 4),
    "test beside val": (BOTH | tree("test/others"), 12, 4),
    "letter case": ({name.replace("train", "Train").replace("val", "VAL"): content for name, content in BOTH.items()}, 12, 4),
    "letter case of validation": (
        {f"val/{name.upper()}/1.png": picture("other") for name in CLASSES} | tree(*(f"train/{name}" for name in CLASSES)),
        12,
        4,
    ),
    "one folder": (tree(*CLASSES, n=10), 36, 4),
    "one folder, few images": (tree(*CLASSES, n=2), 4, 4),
    "train alone": (tree(*(f"train/{name}" for name in CLASSES)), 8, 4),
    "flat test": (tree(*(f"train/{name}" for name in CLASSES)) | tree("test"), 8, 4),
    "a folder around": ({f"data set/new/{name}": content for name, content in BOTH.items()}, 12, 4),
    "folders below": (tree(*(f"{name}/{part}" for name in CLASSES for part in "ab"), n=5), 36, 4),
    "records of another conversion": (BOTH | {"records/wnids.txt": b"a\nb\n", "records/train.tfrecord": b""}, 12, 4),
    "junk": (
        BOTH | {"train/.DS_Store": b"", "__MACOSX/train/x/._1.png": b"", f"train/{CLASSES[0]}/Thumbs.db": b"", "train/.git/x.png": PNG},
        12,
        4,
    ),
    "other files": (BOTH | {"labels.csv": b"a,b\n", f"train/{CLASSES[0]}/README": b"hello", "train/list.txt": b"x", "x.png": PNG}, 12, 4),
    "no endings": ({name.removesuffix(".png"): content for name, content in BOTH.items()}, 12, 4),
    "Unicode forms": (
        {unicodedata.normalize("NFD", name) if name.startswith("val") else name: content for name, content in BOTH.items()},
        12,
        4,
    ),
}


@pytest.mark.parametrize("write", [folder, archive])
@pytest.mark.parametrize("name", ACCEPTED)
def test_folders_of_classes_are_read(tmp_path, write, name):
    files, n_train, n_validation = ACCEPTED[name]
    out = tmp_path / "out"
    assert convert(write(tmp_path / "source", files), out) == {"train": n_train, "validation": n_validation}
    assert [len(records(out, split)) for split in ("train", "validation")] == [n_train, n_validation]
    assert class_names(out, 4) == CLASSES  # sorted
    folders = {content: name for name, content in files.items()}
    for split in ("train", "validation"):
        for class_name, label, image in records(out, split):
            assert CLASSES[label] == class_name
            assert unicodedata.normalize("NFC", folders[image]).casefold().count(class_name.casefold()) or image == picture("other")
    train_records, validation_records = (read_records(out, split, n_classes=4) for split in ("train", "validation"))
    assert set(train_records.labels) == set(validation_records.labels) == {0, 1, 2, 3}
    assert not set(train_records.images.numpy()) & set(validation_records.images.numpy())


REFUSED = {
    "nothing": ({"a/b.txt": b""}, "no images in it. Give a folder or zip with train/CLASS/... and val/CLASS/..."),
    "one class": (tree("train/cat"), "all images are of one class, cat; a classifier needs two or more"),
    "images alone": ({"a.png": PNG, "b.png": PNG}, "a.png (and 1 more) lies in no folder of a class. Move it into one, or remove it"),
    "an image beside the classes": (BOTH | {"train/x.JPG": PNG}, "train/x.JPG lies in no folder of a class"),
    "an image in val": (BOTH | {"val/x": PNG}, "val/x lies in no folder of a class"),
    "no train": (tree("val/a", "val/b", "test/a", "test/b"), "test (and 1 more) is no class, and there is no folder train with classes"),
    "splits of a Kaggle archive": (
        tree("seg_train/seg_train/cat", "seg_train/seg_train/dog", "seg_test/seg_test/cat", "seg_test/seg_test/dog", "seg_pred/seg_pred"),
        "seg_test (and 1 more) is no class, and there is no folder train with classes in it. Rename the folders. Give a folder or zip",
    ),
    "splits and more": (tree("Training/cat", "Training/dog", "Test/cat", "Test/dog", "papers"), "Test (and 1 more) is no class"),
    "another class in val": (BOTH | tree("val/dog", "val/fox"), "val/dog (and 1 more) has images, and no training image is of that class"),
    "letter case": (tree("cat", "Cat"), "Cat and cat are not told apart. Rename one, or join the two"),
    "spaces": (tree("cat", "cat "), "are not told apart"),
    "line break": (tree("cat", "do\ng"), r"the name 'do\ng' of a folder cannot be that of a class. Rename the folder"),
    "one image a class": (tree("cat", "dog", n=1), "no image is left to validate on, as no class has two. Add images"),
}


@pytest.mark.parametrize("write", [folder, archive])
@pytest.mark.parametrize(("files", "words"), REFUSED.values(), ids=REFUSED)
def test_folders_that_leave_open_what_is_meant_are_refused(tmp_path, write, files, words):
    assert words in refusal(write(tmp_path / "source", files), tmp_path / "out")


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    root = folder(tmp_path / "source", tree("cat", "dog"))
    os.rename(os.fsencode(root / "dog"), os.fsencode(root) + b"/d\xff")
    assert r"the name 'd\udcff' of a folder cannot be that of a class" in refusal(root, tmp_path / "out")


def test_labels_follow_a_list_of_exactly_these_classes(tmp_path):
    words = b"n2\ttwo, zwei\n"
    for listed, expected in (("n2\nn3\nn1\n", ["two", "n3", "n1"]), ("n2\nn3\n", ["n1", "two", "n3"])):
        out, source = tmp_path / f"out{len(listed)}", tmp_path / f"source{len(listed)}"
        convert(folder(source, tree("train/n1", "train/n2", "train/n3") | {"wnids.txt": listed.encode(), "words.txt": words}), out)
        assert class_names(out, 3) == expected


def test_the_share_is_stratified_and_a_matter_of_the_seed_and_of_each_class_by_itself(tmp_path):
    files = tree("cat", "dog", n=40) | tree("eel", n=5) | tree("fox", n=1)

    def chosen(name, files, write=folder, **options):
        convert(write(tmp_path / f"{name} source", files), tmp_path / name, **options)
        assert sorted(image for split in ("train", "validation") for *_, image in records(tmp_path / name, split)) == sorted(files.values())
        return {(name, image) for name, _, image in records(tmp_path / name, "validation")}

    first = chosen("a", files)
    assert [sum(name == each for name, _ in first) for each in ("cat", "dog", "eel", "fox")] == [4, 4, 1, 0]
    assert chosen("b", {f"around/{name}": content for name, content in files.items()}, archive) == first
    assert chosen("c", files, seed=1) != first
    others = {name: content for name, content in files.items() if not name.startswith("dog")} | tree("ant", "gnu")
    assert {each for each in chosen("d", others) if each[0] == "cat"} == {each for each in first if each[0] == "cat"}
    half = chosen("e", files, validation_share=0.5)
    assert [sum(name == each for name, _ in half) for each in ("cat", "dog", "eel", "fox")] == [20, 20, 2, 0]
    assert len(chosen("f", files, validation_share=0.99)) == 39 + 39 + 4


@pytest.mark.parametrize("place", ["val/{}/{}", "val/{}/images/{}", "val/images/{}/{}"])
@pytest.mark.parametrize("with_list", [False, True])
def test_the_official_layout_with_sorted_validation_images_gives_the_same_labels(official, tmp_path, place, with_list):  # noqa: F811
    def sort(name):
        image = name.removeprefix("val/images/")
        return place.format(WNIDS[int(image[4:-5]) // 2], image) if image != name else name

    files = {sort(name): content for name, content in official.items() if with_list or name != "val/val_annotations.txt"}
    assert convert(folder(tmp_path / "a", official), tmp_path / "out a") == convert(folder(tmp_path / "b", files), tmp_path / "out b")
    for split in ("train", "validation", "test"):
        a, b = (read(tmp_path / out / f"{split}.tfrecord") for out in ("out a", "out b"))
        if split == "validation" and not with_list:
            a = [{name: value for name, value in record.items() if name not in BOX} for record in a]
        assert a == b


def test_a_flattened_official_folder_gives_the_same_labels(official, tmp_path):  # noqa: F811
    files = {name.replace("images/", ""): content for name, content in official.items() if name.startswith("train") and "images" in name}
    convert(folder(tmp_path / "a", official), tmp_path / "out a")
    convert(folder(tmp_path / "b", files | {"wnids.txt": official["wnids.txt"]}), tmp_path / "out b")
    labels = {image: label for _, label, image in records(tmp_path / "out a", "train")}
    for split in ("train", "validation"):
        assert all(labels[image] == label for _, label, image in records(tmp_path / "out b", split))


def test_links_to_folders_are_followed_once(tmp_path):
    root = folder(tmp_path / "source", tree("cat", "dog"))
    (root / "cat" / "more").symlink_to(folder(tmp_path / "elsewhere", tree(".", n=2)))
    (root / "cat" / "back").symlink_to(root)
    (root / "dog" / "self").symlink_to(root / "dog")
    assert sum(convert(root, tmp_path / "out").values()) == 8


BAD = {"cat/cut.jpg": JPEG[:-30], "cat/page.PNG": b"<!DOCTYPE html>", "dog/old.gif": b"GIF89a"}
LINES = "\n  cat/cut.jpg: a JPEG image, damaged or cut short\n  cat/page.PNG: an HTML page\n  dog/old.gif: a GIF image, damaged or"


def test_images_that_cannot_be_read_are_named_or_skipped(tmp_path, capsys):
    source = folder(tmp_path / "source", tree("cat", "dog", n=9) | BAD)
    with pytest.raises(UserError) as error:
        convert(source, tmp_path / "out")
    assert "3 of 21 images cannot be read." in str(error.value)
    assert "leave them out with --skip-bad" in str(error.value)
    assert LINES in str(error.value)
    assert not (tmp_path / "out").exists()
    assert main([str(source), str(tmp_path / "out"), "--skip-bad"]) == 0
    assert f"Left out as they cannot be read: 3 images{LINES}" in capsys.readouterr().out
    assert sum(read_metadata(tmp_path / "out").images.values()) == 18
    assert list(read_metadata(tmp_path / "out").skipped) == list(BAD)


def test_a_directory_is_not_converted_into_itself(tmp_path):
    source = folder(tmp_path / "source", tree("cat", "dog") | {"wnids.txt": b"dog\ncat\n"})
    before = sorted(path.name for path in source.iterdir())
    with pytest.raises(UserError, match="is the source, too"):
        convert(source, source)
    assert sorted(path.name for path in source.iterdir()) == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_conversion_leaves_nothing(tmp_path, monkeypatch, capsys, number, status):
    source = folder(tmp_path / "source", tree("cat", "dog", n=9))
    monkeypatch.setattr("mat.data.convert._report", lambda *_: None)
    monkeypatch.setattr("mat.data.convert._check_faults", lambda *_, **__: os.kill(os.getpid(), number))
    assert main([str(source), str(tmp_path / "out")]) == status
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_opened_are_named_or_skipped_too(tmp_path):
    source = folder(tmp_path / "source", tree("cat", "dog", n=9))
    (source / "cat" / "0.png").unlink()
    (source / "cat" / "0.png").symlink_to("nowhere")
    path = archive(tmp_path / "a.zip", tree("cat", "dog", n=9))
    path.write_bytes(path.read_bytes().replace(b"cat/0.png", b"cat/0.pnG", 1))  # the two names of an entry differ
    for each, reason in (
        (source, "No such file or directory"),
        (path, "File name in directory 'cat/0.png' and header b'cat/0.pnG' differ."),
    ):
        with pytest.raises(UserError) as error:
            convert(each, tmp_path / "out")
        assert "1 of 18 images cannot be read. Replace each" in str(error.value)
        assert str(error.value).endswith(f"--skip-bad:\n  cat/0.png: cannot be read ({reason})")
        assert sum(convert(each, tmp_path / f"{each.name} out", skip_bad=True).values()) == 17


def test_records_without_images_to_validate_on_are_refused(tmp_path):
    source = folder(tmp_path / "source", tree("train/cat", "train/dog") | {"val/cat/1.jpg": b"", "val/dog/1.jpg": b""})
    with pytest.raises(
        UserError, match="2 of 8 images cannot be read, which leaves no validation image. Replace or remove them:\n  val/cat"
    ):
        convert(source, tmp_path / "out", skip_bad=True)


def test_a_destination_that_no_file_system_takes_is_told_so(tmp_path):
    with pytest.raises(UserError, match="cannot be written: File name too long. Choose another destination"):
        convert(folder(tmp_path / "source", tree("a", "b")), tmp_path / ("x" * 300))


def test_names_of_files_need_not_be_utf_8(tmp_path):
    root = folder(tmp_path / "source", tree("cat", "dog") | {"cat/bad.jpg": b""})
    os.rename(root / "cat" / "bad.jpg", os.fsencode(root) + b"/cat/\xff.jpg")
    os.rename(root / "cat" / "0.png", os.fsencode(root) + b"/cat/\xfe.png")
    assert sum(convert(root, tmp_path / "out", skip_bad=True).values()) == 6
    assert read_metadata(tmp_path / "out").skipped == {"cat/?.jpg": "empty"}


def test_a_class_of_which_no_image_can_be_read_is_refused(tmp_path):
    source = folder(tmp_path / "source", tree("cat", "dog") | {"eel/1.jpg": b"", "eel/2.jpg": b""})
    with pytest.raises(
        UserError, match="2 of 8 images cannot be read, which leaves no training image of eel. Replace or remove them:\n  eel/1"
    ):
        convert(source, tmp_path / "out", skip_bad=True)


def test_the_directory_says_what_it_holds(tmp_path, capsys):
    files = tree("train/b", "train/a") | {"val/a/wide.bmp": save(np.zeros((5, 30, 3), np.uint8), "BMP"), "labels.csv": b"", "x/y": b""}
    assert main([str(folder(tmp_path / "my images", files)), str(tmp_path / "out"), "--seed", "3"]) == 0
    assert json.loads((tmp_path / "out" / "dataset.json").read_text("utf-8")) == {
        "image_size": 64,
        "image_size_is_free": True,
        "classes": ["a", "b"],
        "images": {"train": 6, "validation": 1},
        "images_by_class": {"a": {"train": 3, "validation": 1}, "b": {"train": 3, "validation": 0}},
        "width": [8, 30],
        "height": [5, 8],
        "source": "my images",
        "layout": "train/CLASS and val/CLASS",
        "seed": 3,
        "validation_share": None,
        "reencoded": 1,
        "skipped": {},
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json",
        "train.tfrecord",
        "validation.tfrecord",
        "wnids.txt",
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4] == "train/CLASS and val/CLASS: 2 classes (a, b)"
    assert lines[-3].startswith("Re-encoded as PNG: 1 images that are not")
    assert lines[-2] == "Other files are passed over: labels.csv (and 1 more)"
    assert lines[-1] == f"{tmp_path}/out: 6 train, 1 validation images"


def test_images_that_are_passed_over_are_counted(tmp_path, capsys):
    source = folder(tmp_path / "source", tree("train/cat", "train/dog") | {"val/1.png": PNG, "val/2.png": PNG, "labels.csv": b""})
    assert main([str(source), str(tmp_path / "out")]) == 0
    words = "Other files are passed over, 2 of them images that lie where none are read: val/1.png (and 2 more)"
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sizes", "option", "expected"),
    [((32, 32), None, (32, False)), ((32, 40), None, (64, True)), ((32, 40), 48, (48, False)), ((32, 32), 48, (48, False))],
)
def test_the_image_size_is_the_option_or_that_of_the_images(tmp_path, sizes, option, expected):
    pictures = [save(np.zeros((side, side, 3), np.uint8), "PNG") for side in sizes]
    files = {f"{name}/{i}.png": content for name in "ab" for i, content in enumerate(pictures)}
    convert(folder(tmp_path / "source", files), tmp_path / "out", image_size=option)
    metadata = read_metadata(tmp_path / "out")
    assert (metadata.image_size, metadata.image_size_is_free) == expected


@pytest.mark.parametrize("arguments", ["--validation-share 0", "--validation-share 1", "--image-size 7", "--image-size 5000"])
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["SOURCE", "OUT", *arguments.split()])
    assert f"Received: {arguments.split()[1]}" in capsys.readouterr().err


def test_a_folder_of_mixed_formats_is_converted_trained_on_and_evaluated(tmp_path, capsys):
    """Three classes with 40 images each, of all formats."""
    files = {}
    rng = np.random.default_rng(0)
    kinds = [("jpg", "JPEG", "RGB"), ("PNG", "PNG", "RGBA"), ("bmp", "BMP", "P"), ("webp", "WEBP", "RGB"), ("gif", "GIF", "P")]
    kinds += [("tif", "TIFF", "CMYK"), ("jpeg", "JPEG", "L"), ("png", "PNG", "LA")]
    for label, name in enumerate(("chien loup", "hibou", "éléphant")):
        for i in range(40):
            height, width = rng.integers(24, 60, 2)
            pixels = rng.integers(0, 60, (height, width, 3)) + np.eye(3, dtype=int)[label] * 190
            ending, kind, mode = kinds[i % len(kinds)]
            files[f"{name}/{i}.{ending}"] = save(Image.fromarray(pixels.astype(np.uint8)).convert(mode), kind)
    assert main([str(folder(tmp_path / "mine", files)), str(tmp_path / "data"), "--image-size", "16"]) == 0
    text = f"""\
data_dir: {tmp_path}/data
base_result_dir: {tmp_path}/results
n_epochs: 1
batch_size: 12
depth: 8
n_stacks: 2
"""
    (tmp_path / "config.yaml").write_text(text)
    options = ["width=1", "n_patches=6", "patch_shape=[4, 4, 3]", "n_patch_trials=1", "optimizer.n_iterations=1", "evaluation.iterations=2"]
    options += ["evaluation.n_fit_images=16", "evaluation.n_targets=1", "evaluation.n_controls=1"]
    arguments = [argument for option in options for argument in ("--set", option)]
    assert train.main([str(tmp_path / "config.yaml"), *arguments]) == 0
    saved = PatchTrainingConfig.from_yaml(tmp_path / "results" / "mat" / "config.yaml")
    assert (saved.image_size, saved.n_classes) == (16, 3)
    report = json.loads((tmp_path / "results" / "mat" / "tiny_imagenet_weights_000_quick_evaluation" / "report.json").read_text("utf-8"))
    assert report["headline"]["clean"]["n_images"] == 12
    assert "108 training and 12 validation images" in capsys.readouterr().out
