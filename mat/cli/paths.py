"""Paths as users write them: `~`, the environment's variables, and the placeholders of the config key `unique_name`."""

import datetime
import os
import pathlib
import re
import uuid
from collections.abc import Callable
from typing import Any

from mat.cli.errors import UserError
from mat.cli.text import format_value, single_line

_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^{}]*)\})")
_MAX_BYTES = 255  # of a directory's name


def expand_path(text: str) -> str:
    """A path with `~` and the environment's variables replaced, else a `UserError`; an expanded path stays as it is."""
    path = os.path.expanduser(_expand_variables(text))
    if path.startswith("~"):
        home = single_line(path.partition(os.sep)[0])
        raise UserError(f"{single_line(text)}: no home directory {home} is known. Write it out, or ./{home} for a name that begins with ~")
    if not path:
        raise UserError(f"the path {text!r} is empty. Write it out")
    return path


def _expand_variables(text: str, change: Callable[[str], str] = str) -> str:
    """Text with `$NAME` and `${NAME}` replaced by what `change` makes of the variable's value, else a `UserError`."""
    values = {name: change(value) for name, value in os.environ.items()}
    expanded = _VARIABLE.sub(lambda match: values.get(match[1] or match[2], match[0]), text)
    if left := _VARIABLE.search(expanded):
        reason = f"the variable {single_line(left[0])} is not set, or in another's value"
        raise UserError(f"{single_line(text)}: {reason}. Set it, or write out what is meant")
    return expanded


def expand_unique_name(template: str, values: dict[str, Any], *, resume: bool = False) -> str:
    """The name that a `unique_name` with $VARIABLES and {placeholders} gives, else a `UserError`.

    `values` are those of all keys, sections as dicts; `/` in them becomes `_`, and `_` joins lists. With `resume`, {date} and {id} are
    refused, which give another name each time.
    """
    try:
        expanded = _expand_variables(template, lambda value: literal_name(value.replace(os.sep, "_")))
    except UserError as error:
        raise UserError(f"unique_name: {error}") from None
    changing = {"id": uuid.uuid4().hex[:8], "date": datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")}
    try:
        name = expanded.format(**_as_text(values), **({} if resume else changing))
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        if resume and isinstance(error, KeyError) and error.args[0] in changing:
            raise UserError(
                "unique_name has {date} or {id}, so this file names a new directory each time. To resume a run, give the config.yaml "
                f"of its own result directory, such as {values['base_result_dir']}/RUN/config.yaml. Received: {template!r}"
            ) from None
        raise UserError(
            "unique_name may use {date}, {id} and config keys such as {seed} or {optimizer[n_iterations]}. "
            f"Received: {format_value(template)} ({error})"
        ) from None
    parts = pathlib.PurePath(name).parts
    if not parts or os.path.isabs(name) or {"..", "~"} & set(parts):
        raise UserError(f"unique_name must name a directory below base_result_dir. Received: {format_value(name)}")
    check_result_path("unique_name", name)
    return name


def _as_text(value: Any) -> Any:
    """A value as a name shows it."""
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return "_".join(map(str, value))
    return value.replace(os.sep, "_") if isinstance(value, str) else value


def literal_name(name: str) -> str:
    """The `unique_name` that gives this name, whatever braces it has."""
    return name.replace("{", "{{").replace("}", "}}")


def check_result_path(key: str, path: str) -> None:
    """Refuse what no file system takes, and brackets: TensorFlow does not find checkpoints again whose path looks like a pattern."""
    if set(path) & set("[]\\") or max(len(part.encode()) for part in path.split(os.sep)) > _MAX_BYTES:
        allowed = f"a path without brackets and backslashes, each part of at most {_MAX_BYTES} bytes"
        raise UserError(f"{key} must be {allowed}. Received: {format_value(path)}")
