"""Reading YAML files of plain values: YAML 1.2's core schema, and the two tags that the original's config files carry."""

import os
import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from mat.cli.errors import UserError
from mat.cli.text import decode_text, format_value, single_line

_TAG = "tag:yaml.org,2002:"
_MAPPINGS = ("map", "python/object:config.PatchTrainingConfig", "python/object:config.OptimizerConfig")
_SCALARS = {  # what is no text without quotes; YAML 1.1 has also octal numbers (010), base 60 (1:30), dates, and yes and no
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Loader(yaml.SafeLoader):
    """A safe loader that resolves scalars as YAML 1.2 does."""

    yaml_implicit_resolvers: dict = {}


def _mapping(loader: yaml.SafeLoader, node: yaml.Node) -> dict[str, Any]:
    """A mapping without keys that are given twice; its keys are text as it is written."""
    if not isinstance(node, yaml.MappingNode):
        raise ConstructorError(None, None, "a section must be a mapping of keys to values", node.start_mark)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if key_node.value in values:
            raise ConstructorError(None, None, f"the key {format_value(key_node.value)} is given twice", key_node.start_mark)
        values[str(key_node.value)] = loader.construct_object(value_node, deep=True)
    return values


for _name, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), None)
for _name in _MAPPINGS:
    _Loader.add_constructor(_TAG + _name, _mapping)


def read_mapping(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping that a YAML file in UTF-8, or in UTF-16 with a byte-order mark, holds, else a `UserError`."""
    try:
        with open(path, "rb") as file:
            values = _load(decode_text(file.read()))
    except OSError as error:
        problem = "no such config file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise UserError(f"{path}: {problem}. Give the path of a YAML file, such as configs/mat.yaml") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a config: {error.reason} at byte {error.start}. Save it as UTF-8") from None
    except ValueError as error:
        raise UserError(f"{path}: not a valid config: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values (key: value). Received: {format_value(values)}")
    return values


def _load(text: str, *, scalar: bool = False) -> Any:
    """The value that YAML text holds, or that of a `scalar`, whatever characters it has, else a ValueError in words."""
    try:
        if not scalar:
            return _Loader(text).get_single_data()
        loader = _Loader("")
        return loader.construct_document(yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text))
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:  # of values that do not fit their tags
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(place + single_line(str(problem))) from None


def apply_override(values: dict[str, Any], override: str) -> None:
    """Put `key=value` (nested: `section.key=value`) into the mapping, which is changed in place, else a `UserError`.

    The value is text, a number, true, false or null as it stands, but YAML if it begins with a square bracket or a quote, or has a
    `key: value` in braces.
    """
    name, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not name:
        raise UserError(f"--set takes key=value, such as --set optimizer.n_iterations=3. Received: {format_value(override)}")
    is_yaml = text.startswith(("[", "'", '"')) or re.fullmatch(r"\{(.*:\s.*)?\}", text, re.DOTALL)  # `{date}` is a placeholder
    try:
        value = _load(text, scalar=not is_yaml) if text else ""
    except ValueError as error:
        raise UserError(f"--set {single_line(override)}: the value is not valid YAML: {error}") from None
    *sections, key = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {single_line(override)}: {single_line(section)} is not a section of the config")
    values[key] = value
