"""Names of result directories: the placeholders and variables of the config key `unique_name`."""

import datetime
import os
import pathlib
import uuid
from typing import Any

from mat.cli.errors import UserError
from mat.cli.files import expand_variables
from mat.cli.text import format_value

_MAX_BYTES = 255  # of a directory's name


def literal_name(name: str) -> str:
    """The `unique_name` that gives this name, whatever braces it has."""
    return name.replace("{", "{{").replace("}", "}}")


def fill_in(template: str, values: dict[str, Any], *, resume: bool = False) -> str:
    """The name that a `unique_name` with $VARIABLES and {placeholders} gives; `/` in values becomes `_`, and `_` joins lists.

    Args:
        template: the `unique_name`.
        values: all keys of the config with their values, sections as dicts.
        resume: refuse {date} and {id}, which give another name each time.

    Raises:
        UserError: a variable that is not set, an unknown placeholder, or a name that leads out of `base_result_dir`.
    """
    try:
        expanded = expand_variables(template, lambda value: literal_name(value.replace(os.sep, "_")))
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


def check_result_path(key: str, path: str) -> None:
    """Refuse what no file system takes, and brackets: TensorFlow does not find checkpoints again whose path looks like a pattern."""
    if set(path) & set("[]\\") or max(len(part.encode()) for part in path.split(os.sep)) > _MAX_BYTES:
        allowed = f"a path without brackets and backslashes, each part of at most {_MAX_BYTES} bytes"
        raise UserError(f"{key} must be {allowed}. Received: {format_value(path)}")


def _as_text(value: Any) -> Any:
    """A value as a name shows it."""
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return "_".join(map(str, value))
    return value.replace(os.sep, "_") if isinstance(value, str) else value
