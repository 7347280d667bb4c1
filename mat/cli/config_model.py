"""What the sections of a config have in common: pydantic models with messages in words, and the types of their keys."""

import difflib
import re
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from typing_extensions import Self

from mat.cli.errors import UserError
from mat.cli.paths import expand_path
from mat.cli.text import format_value, single_line

_YES_NO = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}  # of YAML 1.1
_CHANGEABLE = "may change when a run or an evaluation is resumed"
_KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a string", "array": "a list"}
_WITHOUT_QUOTES = {int: "a number", float: "a number", bool: "true or false", type(None): "no value"}


def key(default: Any, meaning: str, **rules: Any) -> Any:
    """A config key: its default, its meaning, and pydantic's rules for it, such as `ge=1`."""
    return Field(default, description=meaning, **rules)


def _read_yes_no(value: Any) -> Any:
    return _YES_NO.get(value.lower(), value) if isinstance(value, str) else value


def _expand(path: str, info: ValidationInfo) -> str:
    if path.lower() == "none":
        raise ValueError("must be a path. Write null for none")
    try:
        return expand_path(path)
    except UserError as error:
        raise UserError(f"{info.field_name}: {error}") from None


def _refuse_doubles(items: tuple) -> tuple:
    if len(set(items)) < len(items):
        raise ValueError("must not name an item twice")
    return items


_T = TypeVar("_T")
Changeable = Annotated[_T, _CHANGEABLE]
YesNo = Annotated[bool, BeforeValidator(_read_yes_no)]
Name = Annotated[str, Field(pattern=r"\S")]
Path = Annotated[Name, AfterValidator(_expand)]
Several = Annotated[tuple[_T, ...], Field(min_length=1, strict=False), AfterValidator(_refuse_doubles)]


class Section(BaseModel):
    """Keys with their values, immutable, and checked: a `UserError` tells of an unknown key, a wrong value, or values that do not fit."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    prefix: ClassVar[str] = ""  # of the keys' full names, such as `optimizer.`

    def __init__(self, **values: Any) -> None:
        if unknown := [name for name in values if name not in type(self).model_fields]:
            raise UserError(_unknown_key(self.prefix, unknown[0]))
        try:
            super().__init__(**values)
        except ValidationError as failure:
            raise UserError(_wrong_value(type(self), failure.errors(include_url=False)[0])) from None
        self._check()

    def _check(self) -> None:
        """Refuse values that do not fit together."""

    def replace(self, **values: Any) -> Self:
        """The same with other values of some keys, checked."""
        return type(self)(**dict(self) | values)

    def to_values(self) -> dict[str, Any]:
        """Every key with its value as a dict of plain values, sections as dicts in it."""
        return self.model_dump(mode="json")

    @classmethod
    def changeable(cls) -> set[str]:
        """The keys that may change when a run or an evaluation is resumed: no result depends on them."""
        return {name for name, field in cls.model_fields.items() if _CHANGEABLE in field.metadata}

    def fixed_values(self) -> dict[str, Any]:
        """The values that results depend on, by the keys' full names."""
        return {self.prefix + name: value for name, value in self.to_values().items() if name not in self.changeable()}

    def differences(self, other: Self) -> list[tuple[str, Any, Any]]:
        """Where two configs differ in keys that may not change on resume: (key, value of this one, value of the other)."""
        found = []
        for name, value in self:
            if isinstance(value, Section):
                found += value.differences(getattr(other, name))
            elif value != getattr(other, name) and name not in self.changeable():
                found.append((self.prefix + name, value, getattr(other, name)))
        return found

    @classmethod
    def key_table(cls) -> list[tuple[str, str, str]]:
        """(key, default as YAML writes it, meaning) of each key, those of sections in place of the sections."""
        rows = []
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Section):
                rows += field.default.key_table()
            else:
                default = list(field.default) if isinstance(field.default, tuple) else field.default
                text = yaml.safe_dump(default, default_flow_style=True, width=1000).splitlines()[0]
                rows.append((cls.prefix + name, text, str(field.description)))
        return rows

    @classmethod
    def key_list(cls) -> str:
        """The keys with their defaults and meanings, a line each, for `--help`."""
        rows = [f"  {key:<31} {text:<28} {meaning}" for key, text, meaning in cls.key_table()]
        return "\n".join(["keys of CONFIG, with their defaults:", *rows])


def _wrong_value(model: type[Section], error: Any) -> str:
    """The message on one of the `errors()` of a ValidationError: key, what is allowed, what was received, what was probably meant."""
    name, *rest = error["loc"]
    key, rules, received = model.prefix + name, model.model_json_schema()["properties"][name], error["input"]
    if index := [part for part in rest if isinstance(part, int)]:
        key, rules = f"{key}[{index[0]}]", rules["items"]
    if error["type"] == "value_error":
        return f"{key} {error['ctx']['error']}. Received: {format_value(received)}"
    allowed, hint = _allowed(rules), ""
    if error["type"] == "string_unicode":
        allowed = "text without bytes that are not UTF-8"
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


def _unknown_key(section: str, name: str) -> str:
    """The message on an unknown key in the section of this prefix: which key is probably meant, and where it belongs."""
    keys = [model.prefix + key for model in Section.__subclasses__() for key in model.model_fields]
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
