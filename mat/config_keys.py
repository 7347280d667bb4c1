"""Config keys: what a key declares of itself, and checking and normalizing the values of a config dataclass."""

import os
from dataclasses import field, fields, is_dataclass

import yaml

from mat.errors import UserError
from mat.text import shown

MAX_NAME = 255  # bytes of a file's or directory's name
MAX_PATH = 4096  # bytes of a path

_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", tuple: "a list"}


def key(default, kind, meaning, *, item=None, minimum=None, above=None, maximum=None, choices=None, free=False):
    """A config key: its default, its kind (a type, or the dataclass of a section), its meaning and the values it allows.

    Bounds and choices are of the value, or with `item`, the kind of a list's items, of each item; such a list is never empty.
    `free` keys may change when a run or an evaluation is resumed: no result depends on them.
    """
    rule = {"kind": kind, "meaning": meaning, "item": item, "minimum": minimum, "above": above, "maximum": maximum, "choices": choices}
    return field(default=default, metadata=rule | {"free": free})


def differences(one, other, prefix=""):
    """Where two configs of one dataclass differ in keys that are not free: a list of (key, value of one, value of the other)."""
    found = []
    for f in fields(one):
        values = getattr(one, f.name), getattr(other, f.name)
        if is_dataclass(f.default):
            found += differences(*values, f"{prefix}{f.name}.")
        elif values[0] != values[1] and not f.metadata["free"]:
            found.append((prefix + f.name, *values))
    return found


def normalize_and_check(config, prefix):
    """Bring numbers and lists to their declared types, and refuse what a key does not allow.

    Args:
        config: an instance of a frozen dataclass of `key`s; changed in place.
        prefix: of the keys' names in messages, such as `optimizer.`.

    Raises:
        UserError: a value of the wrong type or out of its range; the message names key, value and what is allowed.
    """
    for f in fields(config):
        name, rule, value = prefix + f.name, f.metadata, getattr(config, f.name)
        if value is None and f.default is None:
            continue
        if isinstance(value, list) and rule["kind"] is tuple:
            value = tuple(value)
        if rule["item"]:
            if not isinstance(value, tuple) or not value:
                raise UserError(f"{name} must be a list of at least one item. Received: {shown(value)}")
            item_rule = {**rule, "kind": rule["item"]}
            value = tuple(_checked(f"{name}[{i}]", item, item_rule) for i, item in enumerate(value))
            if len(set(value)) < len(value):
                raise UserError(f"{name} must not name an item twice. Received: {shown(list(value))}")
        else:
            value = _checked(name, value, rule)
        object.__setattr__(config, f.name, value)


def key_list(cls, prefix=""):
    """The keys of a config dataclass with their defaults and meanings, a line each, for `--help`."""
    lines = ["keys of CONFIG, with their defaults:"]
    for f in fields(cls):
        if is_dataclass(f.default):
            lines += key_list(type(f.default), f"{f.name}.").splitlines()[1:]
            continue
        default = yaml.safe_dump(plain_values(f.default), default_flow_style=True, width=1000)
        lines.append(f"  {prefix + f.name:<31} {default.splitlines()[0]:<28} {f.metadata['meaning']}")
    return "\n".join(lines)


def plain_values(value):
    """A config's values as YAML and JSON write them: tuples become lists."""
    if isinstance(value, dict):
        return {name: plain_values(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _checked(name, value, rule):
    """The value, an integer made a float where the key wants one; refused if the rule does not allow it."""
    if rule["kind"] is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = float(value)
    if rule["choices"]:
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in rule["choices"]):
            allowed = ", ".join(shown(choice) for choice in rule["choices"])
            raise UserError(f"{name} must be one of {allowed}. Received: {shown(value)}")
        return value
    if not isinstance(value, rule["kind"]) or (isinstance(value, bool) and rule["kind"] is not bool):
        raise UserError(f"{name} must be {_KIND_NAMES.get(rule['kind'], 'a section of keys')}{_allowed(rule)}. Received: {shown(value)}")
    if isinstance(value, str):
        _check_path_text(name, value)
    if not _in_range(value, rule):
        raise UserError(f"{name} must be {_allowed(rule).removeprefix(' ')}. Received: {shown(value)}")
    return value


def _check_path_text(name, value):
    """All free strings name files: refuse what no file system takes."""
    try:
        usable = (
            "\0" not in value and len(value.encode()) <= MAX_PATH and all(len(part.encode()) <= MAX_NAME for part in value.split(os.sep))
        )
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise UserError(f"{name} must be a path of printable text, each part of at most {MAX_NAME} bytes. Received: {shown(value)}")


def _in_range(value, rule):
    """Whether a value lies within its key's bounds; NaN lies in no range."""
    return (
        (rule["minimum"] is None or value >= rule["minimum"])
        and (rule["above"] is None or value > rule["above"])
        and (rule["maximum"] is None or value <= rule["maximum"])
    )


def _allowed(rule):
    """The range of a key in words, such as ` in (0, 1]`."""
    if rule["minimum"] is None and rule["above"] is None:
        return ""
    low = f"[{rule['minimum']}" if rule["above"] is None else f"({rule['above']}"
    return f" in {low}, {rule['maximum']}]"
