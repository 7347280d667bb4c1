"""The classes that a conversion is limited to: as the user names them, and as the source does."""

import difflib
import os
import pathlib
from collections.abc import Sequence

from mat.cli.errors import UserError
from mat.cli.text import single_line
from mat.data.metadata import class_list, class_words
from mat.data.sources import Source, first, fold

_SHOWN = 3  # nearest names in a message


def read_class_names(text: str) -> list[str]:
    """The names of `--classes`: those that a text file lists, one a line, or those in the text itself, with commas between them.

    Raises:
        UserError: the file cannot be read, or there are no names.
    """
    try:
        names = class_list(pathlib.Path(text).read_bytes()) if os.path.isfile(text) else [name.strip() for name in text.split(",")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text}: cannot be read (--classes): {single_line(str(error))}. Give a text file with a class a line") from None
    if not any(names):
        raise UserError(f"--classes names no class. Give a text file with a class a line, or NAME,NAME,... Received: {text!r}")
    return list(filter(None, names))


def choose_classes(files: Source, classes: list[str], names: Sequence[str] | None) -> list[str]:
    """The classes of a source that are meant by some names, in the order of these.

    Args:
        files: the source, whose `words.txt` is looked at if it has one.
        classes: all of its classes, as wnids.txt or their folders name them.
        names: such names, or the first ones that words.txt has for them; letter case makes no difference. None for all classes.

    Raises:
        UserError: a name means no class or several, a class is meant twice, or there are fewer than two names.
    """
    if names is None:
        return classes
    words = class_words(files.read_text("words.txt")) if files.find("words.txt") else {}
    meant: dict[str, list[str]] = {fold(name): [name] for name in classes}  # a class's own name counts before another's word
    own, shown = set(meant), {fold(name): name for name in classes}
    for name in classes:
        if (word := fold(words.get(name, ""))) and word not in own:
            meant.setdefault(word, []).append(name)
            shown[word] = words[name]
    if unknown := [name for name in names if fold(name) not in meant]:
        nearest = [shown[word] for word in difflib.get_close_matches(fold(unknown[0]), shown, _SHOWN, cutoff=0)]
        remedy = f"The nearest are: {single_line('; '.join(nearest))}. Names that have commas go into a file, one a line"
        raise UserError(f"--classes: {first(unknown)}: neither a file nor a class of {files.path}. {remedy}")
    chosen: list[str] = []
    for name in names:
        if len(found := meant[fold(name)]) > 1:
            raise UserError(f"--classes: {single_line(name)} means several classes of {files.path}. Give one of {', '.join(found)} instead")
        if found[0] in chosen:
            raise UserError(f"--classes names the class {single_line(found[0])} twice, the second time as {single_line(name)}. Remove one")
        chosen += found
    if len(chosen) < 2:
        raise UserError(f"--classes: a classifier needs two classes or more. Received: {single_line(', '.join(chosen)) or 'none'}")
    return chosen


def layout_suffix(chosen: Sequence[str], classes: Sequence[str]) -> str:
    """What is added to the name of a layout of which only some classes were chosen."""
    return "" if len(chosen) == len(classes) else f", {len(chosen)} of its {len(classes)} classes"
