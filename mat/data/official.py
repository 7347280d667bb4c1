"""The official layout of Tiny ImageNet, also with validation images that were sorted into folders of their classes."""

import pathlib
import random
import re
from collections.abc import Callable, Sequence

from mat.cli.errors import UserError
from mat.cli.text import single_line
from mat.data.class_choice import choose_classes, layout_suffix
from mat.data.metadata import class_list
from mat.data.sources import Layout, Source, SourceImage, by_number, first, fold, has_image_ending

_LISTS = ("wnids.txt", "words.txt")
_ANNOTATIONS = "val/val_annotations.txt"

_Classes = dict[str, tuple[str, int]]  # by the folded names of classes: the names in wnids.txt and the labels


def is_official(files: Source) -> bool:
    """Whether a source has the official layout, be it with lists that are missing."""
    if files.find(_ANNOTATIONS):
        return True
    return files.find("wnids.txt") is not None and any(fold(name).split("/")[2:3] == ["images"] for name in files.names("train"))


def official_layout(files: Source, *, seed: int, names: Sequence[str] | None = None) -> Layout:
    """The classes and the images of each split. A label is the line number of the class in wnids.txt, from 0.

    Training images are shuffled once, from `seed`; validation images are in the order of their list, or in that of their numbers,
    without boxes, where they lie in folders of their classes and the list is missing. `names` choose classes, see `choose_classes`: the
    result is that of a source with these alone, listed in this order, and without test images, as these have no labels.

    Raises:
        UserError: the lists and the images do not agree, or as of `choose_classes`.
    """
    for name in _LISTS:
        files.read_text(name)  # refuses what is no text
    wnids = class_list(files.read("wnids.txt"))
    classes: _Classes = {fold(wnid): (wnid, label) for label, wnid in enumerate(wnids)}
    if not wnids or len(classes) < len(wnids):
        raise UserError(f"{files.path}: wnids.txt must list each class once, one a line; letter case makes no difference")
    folders = {name.split("/")[1] for name in files.names("train") if name.count("/") > 1}
    if unlisted := sorted(f"train/{folder}" for folder in folders if fold(folder) not in classes):
        raise UserError(f"{files.path}: wnids.txt does not list {first(unlisted)}. Add it, or remove the folder")
    chosen = choose_classes(files, wnids, names)
    by_class: dict[str, list[SourceImage]] = {}
    for wnid in wnids:
        present = files.names(f"train/{wnid}/images")
        images = _listed_images(files, f"train/{wnid}/{wnid}_boxes.txt", classes, present, lambda wnid: [f"train/{wnid}/images"], wnid)
        by_class[wnid] = sorted(images, key=lambda image: (by_number(image.name), image.name))
    validation = _validation_images(files, classes)
    test = [SourceImage(name) for name in files.names("test/images")]
    used = {image.name for images in (*by_class.values(), validation, test) for image in images}
    below = [name for folder in ("train", "val", "test") for name in files.names(folder)]
    if stray := [name for name in below if has_image_ending(name) and name not in used]:
        where = "train/CLASS/images, val/images or test/images"
        raise UserError(f"{files.path}: {first(stray)} lies where no images are read. Move it into {where}, or remove it")
    read = used | {files.find(name) for name in (*_LISTS, _ANNOTATIONS)}
    others = [name for name in files.names() if name not in read and not fold(name).endswith("_boxes.txt")]
    labels = {wnid: label for label, wnid in enumerate(chosen)}
    train = [image._replace(label=label) for wnid, label in labels.items() for image in by_class[wnid]]
    random.Random(seed).shuffle(train)
    validation = [image._replace(label=labels[image.class_name]) for image in validation if image.class_name in labels]
    if not validation:
        raise UserError(f"{files.path}: no validation image is of the classes of --classes. Choose others, or add images")
    splits, lists = {"train": train, "validation": validation, "test": test}, {name: files.read(name) for name in _LISTS}
    if names is not None:
        del splits["test"]
        lists["wnids.txt"] = "".join(f"{wnid}\n" for wnid in chosen).encode()
    return Layout(f"Tiny ImageNet in its official layout{layout_suffix(chosen, wnids)}", chosen, splits, lists, others)


def _validation_images(files: Source, classes: _Classes) -> list[SourceImage]:
    """Those in val/images, and those in folders of their classes, where the common scripts that sort them leave them."""
    sorted_images: list[SourceImage] = []
    for wnid, label in classes.values():
        names = [name for folder in (f"val/{wnid}", f"val/images/{wnid}") for name in files.names(folder) if files.is_image(name)]
        sorted_images += [SourceImage(name, wnid, label) for name in names]
    present = list(dict.fromkeys(files.names("val/images") + [image.name for image in sorted_images]))
    if sorted_images and len(present) == len(sorted_images) and not files.find(_ANNOTATIONS):
        return sorted(sorted_images, key=lambda image: (by_number(image.name.rpartition("/")[2]), image.name))

    def folders(wnid: str) -> list[str]:
        return ["val/images", f"val/{wnid}", f"val/{wnid}/images", f"val/images/{wnid}"]

    return _listed_images(files, _ANNOTATIONS, classes, present, folders)


def _listed_images(
    files: Source, list_name: str, classes: _Classes, present: list[str], folders: Callable[[str], list[str]], wnid: str | None = None
) -> list[SourceImage]:
    """The images that are `present` in the order of their list, each in the first of the folders of its class that has it.

    A line is `image xmin ymin xmax ymax` in the list of the class `wnid`, and `image wnid xmin ymin xmax ymax` in a list of all classes;
    boxes are in pixels. Names may have spaces: where there are two, they are divided at a tab, or else at the last space.

    Raises:
        UserError: the list is empty, has other lines, or does not name exactly the images that are present, each once.
    """
    images: dict[str, SourceImage] = {}
    missing, shown = [], f"{files.path}: {single_line(list_name)}"
    for number, line in enumerate(files.read_text(list_name).splitlines(), start=1):
        if not line.strip():
            continue
        text, *box = line.strip().rsplit(maxsplit=4)
        names = [text, wnid] if wnid else re.split(r"\s*\t\s*", text) if "\t" in text else text.rsplit(maxsplit=1)
        if len(names) != 2 or len(box) != 4 or not all(re.fullmatch(r"\d{1,9}", value) for value in box):
            expected = f"image {'' if wnid else 'wnid '}xmin ymin xmax ymax"
            raise UserError(f"{shown}, line {number}: not `{expected}`. Received: {line[:80]!r}")
        image, label = names[0], classes.get(fold(names[1]))
        if label is None:
            what = f"gives {single_line(image)} the class {single_line(names[1])}, which is not in wnids.txt"
            raise UserError(f"{shown} {what}. Correct one of them; names with spaces need tabs between them")
        places = [f"{folder}/{image}" for folder in folders(label[0])]
        name = next(filter(None, map(files.find, places)), None)
        if name in images:
            raise UserError(f"{shown} lists {single_line(image)} twice, or in different letter case. Remove one of the lines")
        if name is None:
            missing.append(places[0])
        else:
            images[name] = SourceImage(name, *label, [int(value) for value in box])
    if missing:
        near = [name for name in present if fold(pathlib.PurePosixPath(name).stem) == fold(pathlib.PurePosixPath(missing[0]).stem)]
        add = "Add it, or remove its line; hidden files and what systems leave in folders are passed over"
        remedy = f"There is {single_line(near[-1])}: correct the one or the other" if near else add
        raise UserError(f"{files.path}: {first(missing)} is missing, and {single_line(list_name)} lists it. {remedy}")
    if unlisted := [name for name in present if name not in images]:
        raise UserError(f"{shown} has no box of {first(unlisted)}. Add its line, or remove the file")
    if not images:
        raise UserError(f"{shown} lists no images; every class needs some to train on, and a run some to validate on. Add them")
    return list(images.values())
