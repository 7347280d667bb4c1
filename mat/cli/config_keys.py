"""Config keys: what a key declares of itself, and making a config dataclass of a mapping, with its values checked and normalized."""

import difflib
import os
import re
from dataclasses import field, fields, is_dataclass

import yaml

from mat.cli.errors import UserError
from mat.cli.files import expand_path
from mat.cli.text import format_value, single_line
from mat.cli.yaml_reader import Unquoted

MAX_NAME = 255  # bytes of a file's or directory's name
MAX_PATH = 4096  # bytes of a path

SIMILAR = 0.6  # least likeness of a misspelled key and the one that is meant, up to 1
IN_PLACE = 0.1  # added to the likeness of keys of the section that the misspelled one is written in
LEADING_ZEROS = re.compile(r"[-+]?0[0-9_]{1,99}")

_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", tuple: "a list"}
_UNQUOTED_NAMES = {int: "a number", float: "a number", bool: "true or false", type(None): "no value"}


def key(default, kind, meaning, *, item=None, minimum=None, above=None, maximum=None, choices=None, path=False, free=False):
    """A config key: its default, its kind (a type, or the dataclass of a section), its meaning and the values it allows.

    Bounds and choices are of the value, or with `item`, the kind of a list's items, of each item; such a list is never empty.
    In a `path`, `~` and $VARIABLES are replaced by what they stand for.
    `free` keys may change when a run or an evaluation is resumed: no result depends on them.
    """
    rule = {"kind": kind, "meaning": meaning, "item": item, "minimum": minimum, "above": above, "maximum": maximum, "choices": choices}
    return field(default=default, metadata=rule | {"path": path, "free": free, "optional": default is None})


def from_mapping(cls, values, *, root=None, section=""):
    """A config of a mapping of keys to values, of sections too.

    Args:
        cls: the dataclass of `key`s.
        values: the mapping; keys that it leaves out have their defaults.
        root: the dataclass of the whole config, if `cls` is that of a section.
        section: the prefix of the section's keys, such as `optimizer.`.

    Raises:
        UserError: an unknown key, or a wrong value.
    """
    root, kinds, arguments = root or cls, {f.name: f.metadata["kind"] for f in fields(cls)}, {}
    for name, value in values.items():
        if name not in kinds:
            name = single_line(str(name))
            raise UserError(f"unknown key {section}{name}. {_advice(root, section, name)}")
        if is_dataclass(kinds[name]):
            if not isinstance(value, dict):
                raise UserError(f"{name} must be a section of keys. Received: {format_value(value)}")
            value = from_mapping(kinds[name], value, root=root, section=f"{name}.")
        arguments[name] = value
    return cls(**arguments)


def _advice(root, section, name):
    """What may be meant by an unknown key, and where it belongs."""
    sections = {"": root} | {f"{f.name}.": f.metadata["kind"] for f in fields(root) if is_dataclass(f.default)}
    above, last = (["", ""] + re.findall(r"\w+", f"{section}{name}".lower()))[-2:]  # of optimizer.n_iterations or optimizer[n_iterations]
    meant = next(iter(difflib.get_close_matches(f"{above}.", sections, n=1)), "")
    matcher, likeness = difflib.SequenceMatcher(b=last), {}
    for prefix, key in ((prefix, f.name) for prefix, cls in sections.items() for f in fields(cls)):
        ratios = [matcher.set_seq1(text) or matcher.ratio() for text in {key, f"{prefix}{key}".replace(".", "_")}]
        likeness[prefix, key] = max(ratios) + IN_PLACE * (prefix == meant)
    near = sorted(likeness, key=likeness.get, reverse=True)[:2]
    if likeness[near[0]] < SIMILAR:
        return f"The keys are: {', '.join(meant + f.name for f in fields(sections[meant]))}"
    return " Or: ".join(
        f"Did you mean {prefix}{key}?" if prefix == section and name.isidentifier() else _place(prefix, key)
        for prefix, key in near
        if likeness[prefix, key] > likeness[near[0]] - IN_PLACE / 2
    )


def _place(prefix, key):
    """Where a key is written."""
    section = prefix.removesuffix(".")
    where = (
        f"in the section {section}: write it indented, below a line {section}:" if section else "outside of sections: write it unindented"
    )
    return f"{key} belongs {where} (on the command line --set {prefix}{key}=...)"


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
        name, written = prefix + f.name, getattr(config, f.name)
        if _read(written) is None and f.metadata["optional"]:
            value = None
        else:
            value = (_checked_list if f.metadata["kind"] is tuple else _checked)(name, written, f.metadata)
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


def _read(written):
    """What YAML reads where a value is as it was written."""
    return written.value if isinstance(written, Unquoted) else written


def _checked_list(name, written, rule):
    """A list as a tuple of checked items."""
    values = tuple(written) if isinstance(written, list) else written
    if not rule["item"]:  # items that are numbers, if they are right
        whole = {**rule, "kind": int}
        items = enumerate(_checked(name, values, rule))
        return tuple(_checked(f"{name}[{i}]", item, whole) if isinstance(item, Unquoted) else item for i, item in items)
    if not isinstance(values, tuple) or not values:
        raise UserError(f"{name} must be a list of at least one item. Received: {format_value(values)}")
    values = tuple(_checked(f"{name}[{i}]", item, {**rule, "kind": rule["item"]}) for i, item in enumerate(values))
    if len(set(values)) < len(values):
        raise UserError(f"{name} must not name an item twice. Received: {format_value(list(values))}")
    return values


def _checked(name, written, rule):
    """The value, an integer made a float where the key wants one; refused if the rule does not allow it."""
    value, kind = _read(written), rule["kind"]
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = float(value)
    if rule["choices"]:
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in rule["choices"]):
            allowed = ", ".join(format_value(choice) for choice in rule["choices"])
            raise UserError(f"{name} must be one of {allowed}. Received: {format_value(written)}{_unlike(written)}")
        return value
    hint = _hint(name, written, kind)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or (hint and kind in (int, float)):
        kind_name = _KIND_NAMES.get(kind, "a section of keys")
        raise UserError(f"{name} must be {kind_name}{_allowed(rule)}. Received: {format_value(written)}{hint}")
    if isinstance(value, str):
        value = _checked_text(name, value, rule)
    if not _in_range(value, rule):
        raise UserError(f"{name} must be {_allowed(rule).removeprefix(' ')}. Received: {format_value(value)}")
    return value


def _unlike(written):
    """In words, what a value is that was meant for text, if YAML takes it for something else."""
    if not isinstance(written, Unquoted) or not written.text:
        return ""  # no text was meant
    return f", which without quotes is {_UNQUOTED_NAMES.get(type(written.value), 'a date')}"


def _hint(name, written, kind):
    """How to write what was meant where YAML 1.1 takes it for something else; empty where it does not."""
    text = written.text if isinstance(written, Unquoted) else written
    if kind is str and _unlike(written):
        quoted = f'"{single_line(text)}"'
        return f"{_unlike(written)}. Put it in quotes: {name}: {quoted} (on the command line --set '{name}={quoted}')"
    if kind not in (int, float) or not isinstance(text, str):
        return ""
    if LEADING_ZEROS.fullmatch(text):
        return f". Numbers are decimal, without leading zeros: write {int(text.replace('_', ''))}"
    if ":" in text and isinstance(_read(written), (int, float)):
        return f". With a colon YAML takes it for {_read(written):g}, of base 60: write a decimal number"
    return ""


def _checked_text(name, value, rule):
    """All free strings name files: refuse what no file system takes, and replace what stands for other text."""
    none = " Write null for none." if rule["optional"] else ""
    if not value.strip():
        raise UserError(f"{name} must not be empty.{none} Received: {format_value(value)}")
    if none and value.lower() == "none":
        raise UserError(f"{name} must be a path.{none} Received: {format_value(value)}")
    _check_path_text(name, value)
    if rule["path"]:
        try:
            value = expand_path(value)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        _check_path_text(name, value)
    return value


def _check_path_text(name, value):
    """Refuse a path that no file system takes."""
    try:
        usable = (
            "\0" not in value and len(value.encode()) <= MAX_PATH and all(len(part.encode()) <= MAX_NAME for part in value.split(os.sep))
        )
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise UserError(f"{name} must be a path of printable text, each part of at most {MAX_NAME} bytes. Received: {format_value(value)}")


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
