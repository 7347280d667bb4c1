"""The files beside the records that say what they are: `dataset.json`, and `wnids.txt` with the classes."""

import codecs
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Annotated, Any

import pydantic

from mat.cli.errors import UserError
from mat.cli.paths import expand_path
from mat.cli.text import decode_text, single_line

DATASET_FILE = "dataset.json"
CLASSES_FILE = "classes.txt"  # of a run: the names of its classes, one a line, in the order of their labels


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What `dataset.json` says of the records beside it."""

    image_size: Annotated[int, pydantic.Field(ge=8, le=4096)]  # height and width that a network gets the images in, pixels, as in a config
    classes: Annotated[list[str], pydantic.Field(min_length=2)]  # names, in the order of the labels
    image_size_is_free: bool = False  # neither the images nor the user gave it: configs may have another
    images: dict[str, int] = dataclasses.field(default_factory=dict)  # numbers by split
    images_by_class: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # numbers by class and split
    width: tuple[int, int] = (0, 0)  # of the narrowest and the widest image, pixels
    height: tuple[int, int] = (0, 0)
    source: str = ""  # name of the folder or archive
    layout: str = ""  # in words
    seed: int = 0
    validation_share: float | None = None  # None where the source has validation images of its own
    reencoded: int = 0  # images whose bytes are not the source's
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)  # images that were left out, with the reasons

    def to_json(self) -> bytes:
        """The content of the file; what is not UTF-8 in a name becomes a question mark."""
        return (json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2) + "\n").encode(errors="replace")


def read_metadata(data_dir: str | os.PathLike) -> Metadata | None:
    """What `dataset.json` says of the data in a directory; None where there is no such file.

    Raises:
        UserError: the file cannot be read, or is not one of `mat.data.convert`.
    """
    path = pathlib.Path(data_dir) / DATASET_FILE
    try:
        return pydantic.TypeAdapter(Metadata).validate_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except pydantic.ValidationError as failure:
        first = failure.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except OSError as error:
        reason = str(error.strerror)
    remedy = "Convert the data again, or remove the file and give image_size and n_classes in the config"
    raise UserError(f"{path}: cannot be read ({single_line(reason)}). {remedy}")


def class_list(content: bytes) -> list[str]:
    """The classes that the bytes of a wnids.txt list, one a line: their order is that of the labels."""
    return [line.strip() for line in decode_text(content).splitlines() if line.strip()]


def class_words(text: str) -> dict[str, str]:
    """The first of the names that a words.txt has for each class, by the class's name in wnids.txt."""
    pairs = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {wnid: names.split(",")[0].strip() for wnid, names in pairs}


def trained_classes(file: str | os.PathLike) -> list[str]:
    """The names of the classes that the run was trained on which wrote a file, in the order of their labels; none where it left no list."""
    path = pathlib.Path(file).with_name(CLASSES_FILE)
    return class_list(path.read_bytes()) if path.is_file() else []


def add_metadata(values: dict[str, Any], default_data_dir: str) -> dict[str, Any]:
    """The values of a config with the `image_size` and the `n_classes` of its data, where it gives none and `dataset.json` does.

    Raises:
        UserError: the config gives others, or as of `read_metadata`.
    """
    data_dir = values.get("data_dir", default_data_dir)
    if values.get("dataset") == "demo" or not isinstance(data_dir, str):
        return values
    with contextlib.suppress(UserError):  # the config's own check tells what is wrong with the path
        data_dir = expand_path(data_dir)
    metadata = read_metadata(data_dir)
    if metadata is None:
        return values
    path, n_classes = pathlib.Path(data_dir) / DATASET_FILE, len(metadata.classes)
    if type(given := values.get("n_classes")) is int and given != n_classes:
        remedy = f"Leave it out, set n_classes: {n_classes}, or set data_dir to the data that is meant"
        raise UserError(f"n_classes is {given}, and {path} lists {n_classes} classes. {remedy}")
    size = metadata.image_size
    if type(given := values.get("image_size")) is int and given != size and not metadata.image_size_is_free:
        remedy = f'Leave it out, set image_size: {size}, or allow every size by "image_size_is_free": true in {path}'
        raise UserError(f"image_size is {given}, and {path} says {size}. {remedy}")
    return {"image_size": size, "n_classes": n_classes} | values
