"""Images in folders of their classes, with validation images of their own or without."""

import hashlib
import random
import re
from collections.abc import Sequence

from mat.cli.errors import UserError
from mat.cli.text import single_line
from mat.data.class_choice import choose_classes, layout_suffix
from mat.data.metadata import class_list
from mat.data.sources import Layout, Source, SourceImage, first, fold

_VALIDATION = ("val", "validation", "valid", "test")  # folders of validation images; the first that is there counts
_SPLITS = {"train": "train", "training": "train"} | dict.fromkeys((*_VALIDATION, "testing"), "validation")  # what words in names mean
_UNFIT = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029\ud800-\udfff]")  # ends a line of wnids.txt, or is not UTF-8
_EXPECTED = "Give a folder or zip with train/CLASS/... and val/CLASS/..., one with CLASS/..., or the official Tiny ImageNet"

_ByClass = dict[str, list[str]]  # the names of the images of each class


def class_folder_layout(files: Source, *, seed: int, validation_share: float, names: Sequence[str] | None = None) -> Layout:
    """The classes and the images of `train/CLASS` and `val/CLASS`, or of one folder of classes, of which a share becomes validation.

    A class's images may lie in folders below its own. Labels are in the order of `sorted` names of the classes, or in that of a wnids.txt
    beside the folders that lists exactly these. A single folder around everything is passed through.

    Args:
        files: the source; files that are no images are passed over.
        seed: of the order of the training images, and of the choice of validation images, which is made for each class by itself.
        validation_share: of the images of each class that has more than one; at least one image, and not all.
        names: choose classes, and the order of their labels, see `choose_classes`.

    Raises:
        UserError: there are no such folders, they leave open what is meant, validation images are of other classes, or as of
            `choose_classes`.
    """
    images = [name for name in files.names() if files.is_image(name)]
    root = _root(files, images)
    train_folder, validation_folder = f"{root}train/", None
    if _has_classes(images, train_folder):
        folders = [f"{root}{name}/" for name in _VALIDATION]
        validation_folder = next((folder for folder in folders if _has_classes(images, folder)), None)
    else:
        train_folder = root
    train = _by_class(files, images, train_folder)
    meant = {name: {_SPLITS[word] for word in re.split("[^a-z]+", fold(name)) if word in _SPLITS} for name in train}
    if set(map(fold, train)) <= set(_SPLITS) or len(set().union(*meant.values())) > 1:
        named = first(sorted(name for name in train if meant[name]))
        raise UserError(
            f"{files.path}: {named} is no class, and there is no folder train with classes in it. Rename the folders. {_EXPECTED}"
        )
    if len(train) < 2:
        raise UserError(f"{files.path}: all images are of one class, {single_line(*train)}; a classifier needs two or more. {_EXPECTED}")
    if validation_folder:
        validation = _of_the_classes(files, _by_class(files, images, validation_folder), set(train), validation_folder)
    else:
        validation = {name: _share(members, validation_share, seed, len(train_folder)) for name, members in train.items()}
        chosen = {image for members in validation.values() for image in members}
        train = {name: [image for image in members if image not in chosen] for name, members in train.items()}
    everything = _class_order(files, train)
    classes = choose_classes(files, everything, names)
    splits = {"train": _labeled(train, classes), "validation": _labeled(validation, classes)}
    if not splits["validation"]:
        if names is not None:
            raise UserError(f"{files.path}: no validation image is of the classes of --classes. Choose others, or add images")
        raise UserError(f"{files.path}: no image is left to validate on, as no class has two. Add images")
    random.Random(seed).shuffle(splits["train"])
    lists = {"wnids.txt": "".join(f"{name}\n" for name in classes).encode()}
    if files.find("words.txt"):
        lists["words.txt"] = files.read("words.txt")
    read: set[str | None] = {image for by_class in (train, validation) for members in by_class.values() for image in members}
    read |= {files.find(name) for name in lists}
    shown = " and ".join(f"{folder}CLASS" for folder in (train_folder, validation_folder) if folder is not None)
    share = None if validation_folder else validation_share
    others = [name for name in files.names() if name not in read]
    return Layout(f"{shown}{layout_suffix(classes, everything)}", classes, splits, lists, others, share)


def _root(files: Source, images: list[str]) -> str:
    """The folder around the images, with a `/` behind it: that of the classes, or of the folder train; empty for the source itself.

    Raises:
        UserError: there are no images, or the source is a part of the official layout.
    """
    if not files.find("wnids.txt") and (files.path.absolute().parent / "wnids.txt").is_file():
        remedy = f"Give the folder around it: {files.path.absolute().parent}"
        raise UserError(f"{files.path}: no wnids.txt in it, so not Tiny ImageNet in its official layout. {remedy}")
    if not images:
        zips = sorted(
            (name for name in files.names() if name.lower().endswith(".zip")), key=lambda name: "tiny-imagenet" not in name.lower()
        )
        remedy = _EXPECTED
        if zips:
            remedy = f"Give the zip in it: {files.path / zips[0]}" if files.path.is_dir() else f"Unpack it and give {single_line(zips[0])}"
        raise UserError(f"{files.path}: no images in it. {remedy}")
    root = ""
    while any(name.count("/", len(root)) > 1 for name in images):
        tops = {name[len(root) :].partition("/")[0] for name in images}
        if len(tops) > 1:
            break
        root += f"{tops.pop()}/"
    return root


def _below(images: list[str], folder: str) -> list[str]:
    """The images below a folder, whatever the letter case of its name."""
    return [name for name in images if fold(name[: len(folder)]) == fold(folder)]


def _has_classes(images: list[str], folder: str) -> bool:
    """Whether a folder has folders with images in them."""
    return any("/" in name[len(folder) :] for name in _below(images, folder))


def _by_class(files: Source, images: list[str], folder: str) -> _ByClass:
    """The images below each folder in a folder."""
    classes: _ByClass = {}
    stray = []
    for name in _below(images, folder):
        class_name, slash, _ = name[len(folder) :].partition("/")
        if slash:
            classes.setdefault(class_name, []).append(name)
        else:
            stray.append(name)
    if stray:
        raise UserError(f"{files.path}: {first(stray)} lies in no folder of a class. Move it into one, or remove it")
    by_folded: dict[str, str] = {}
    for name in sorted(classes):
        if _UNFIT.search(name):
            raise UserError(f"{files.path}: the name {ascii(name)} of a folder cannot be that of a class. Rename the folder")
        if (other := by_folded.setdefault(fold(name.strip()), name)) != name:
            raise UserError(f"{files.path}: {single_line(other)} and {single_line(name)} are not told apart. Rename one, or join the two")
    return classes


def _of_the_classes(files: Source, by_class: _ByClass, classes: set[str], folder: str) -> _ByClass:
    """Validation images by the names of the training classes, from which those of their folders may differ in letter case."""
    names = {fold(name): name for name in classes}
    if unknown := sorted(f"{folder}{name}" for name in by_class if fold(name) not in names):
        remedy = f"Add training images of it, remove it, or rename {folder} so that a share of the training images is taken instead"
        raise UserError(f"{files.path}: {first(unknown)} has images, and no training image is of that class. {remedy}")
    return {names[fold(name)]: images for name, images in by_class.items()}


def _share(images: list[str], share: float, seed: int, start: int) -> list[str]:
    """The images of a class that are chosen for validation, by the seed and by nothing but their own names from `start` on."""
    n = min(max(round(share * len(images)), 1), len(images) - 1)

    def draw(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{fold(name[start:])}".encode(errors="surrogateescape")).digest()

    chosen = set(sorted(images, key=draw)[:n])
    return [name for name in images if name in chosen]


def _class_order(files: Source, classes: _ByClass) -> list[str]:
    """The names of the classes in the order of their labels."""
    by_folded = {fold(name): name for name in sorted(classes)}
    if files.find("wnids.txt"):
        files.read_text("wnids.txt")  # refuses what is no text
        listed = [fold(wnid) for wnid in class_list(files.read("wnids.txt"))]
        if sorted(listed) == sorted(by_folded):
            return [by_folded[name] for name in listed]
    return sorted(classes)


def _labeled(by_class: _ByClass, classes: list[str]) -> list[SourceImage]:
    """The images of all classes, one class after the other."""
    return [SourceImage(image, name, label) for label, name in enumerate(classes) for image in by_class.get(name, [])]
