"""Messages on wrong config values and unknown keys."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from mat.cli.text import format_value, single_line

_KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a string", "array": "a list"}
_WITHOUT_QUOTES = {int: "a number", float: "a number", bool: "true or false", type(None): "no value"}


def wrong_value(error: Any, schema: dict[str, Any], section: str) -> str:
    """The message on a wrong value: its key, what is allowed, what was received, and how to write what was probably meant.

    Args:
        error: an item of the `errors()` of pydantic's ValidationError; its `loc` is a key, then perhaps the index of an item of a list.
        schema: the JSON schema of the model.
        section: the prefix of the model's keys, such as `optimizer.`.
    """
    name, *rest = error["loc"]
    key, rules, received = section + name, schema["properties"][name], error["input"]
    if index := [part for part in rest if isinstance(part, int)]:
        key, rules = f"{key}[{index[0]}]", rules["items"]
    if error["type"] == "value_error":
        return f"{key} {error['ctx']['error']}. Received: {format_value(received)}"
    allowed, hint = _allowed(rules), ""
    if error["type"] == "finite_number":
        allowed = allowed.replace("a number", "a finite number")
    if allowed.startswith("a string") and type(received) in _WITHOUT_QUOTES:
        text = f'"{received}"' if type(received) is int else '"..."'
        hint = f", which without quotes is {_WITHOUT_QUOTES[type(received)]}. Put it in quotes: {key}: {text} (--set '{key}={text}')"
    if "number" in allowed and isinstance(received, str) and re.fullmatch(r"[-+]?0[0-9]+", received):
        hint = f". Numbers are decimal, without leading zeros: write {int(received)}"
    return f"{key} must be {allowed}. Received: {format_value(received)}{hint}"


def _allowed(rules: dict[str, Any]) -> str:
    """The values that a JSON schema allows, in words, such as `a number in (0, 1]`."""
    options = rules.get("anyOf", [rules])
    choices = [choice for option in options for choice in option.get("enum", [option["const"]] if "const" in option else [])]
    if choices:
        return f"one of {', '.join(map(format_value, choices + [True, False] * (options[0]['type'] == 'boolean')))}"
    rules = options[0]
    kind = _KINDS.get(rules.get("type", ""), "a section of keys")
    least, above, most = (f"{rules[name]:.10g}" if name in rules else "" for name in ("minimum", "exclusiveMinimum", "maximum"))
    if most:
        kind += f" in [{least}, {most}]" if least else f" in ({above}, {most}]"
    elif least or above:
        kind += f" of at least {least}" if least else f" above {above}"
    kind += " that is not empty" if "pattern" in rules or "minItems" in rules else ""
    return kind + ", or null" * ({"type": "null"} in options)


def unknown_key(section: str, name: str, keys: Sequence[str]) -> str:
    """The message on an unknown key: which one is probably meant, and where it belongs.

    Args:
        section: the prefix of the section that it is written in, such as `optimizer.`, or empty.
        name: as it is written.
        keys: all keys, with the prefixes of their sections; the sections themselves are among them.
    """
    written = ".".join(re.findall(r"\w+", f"{section}{name}".lower()))  # also of optimizer[n_iterations]
    place, _, last = written.rpartition(".")
    full_names = {key.rpartition(".")[2]: key for key in keys}
    near = difflib.get_close_matches(written, keys, 1, 0.9) or difflib.get_close_matches(last, full_names, 1, 0.7)
    message = f"unknown key {section}{single_line(name)}. "
    if not near:
        return f"{message}The keys are: {', '.join([key for key in keys if key.rpartition('.')[0] == place] or keys)}"
    meant = full_names.get(near[0], near[0])
    place, _, key = meant.rpartition(".")
    if place == section.removesuffix(".") and name.isidentifier():
        return f"{message}Did you mean {meant}?"
    where = f"in the section {place}: write it indented, below a line {place}:" if place else "outside of sections: write it unindented"
    return f"{message}{key} belongs {where} (on the command line --set {meant}=...)"
