"""What the sections of a config have in common: pydantic models with messages in words, and the types of their keys."""

from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from typing_extensions import Self

from mat.cli.config_errors import unknown_key, wrong_value
from mat.cli.errors import UserError
from mat.cli.files import expand_path

_YES_NO = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}  # of YAML 1.1
_CHANGEABLE = "may change when a run or an evaluation is resumed"


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
    """Keys with their values, checked and immutable.

    Raises:
        UserError: an unknown key, a value of the wrong type or out of its range, or values that do not fit together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    prefix: ClassVar[str] = ""  # of the keys' full names, such as `optimizer.`

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as failure:
            errors = failure.errors(include_url=False)
            if unknown := [error["loc"][0] for error in errors if error["type"] == "extra_forbidden"]:
                known = [model.prefix + name for model in Section.__subclasses__() for name in model.model_fields]
                raise UserError(unknown_key(self.prefix, str(unknown[0]), known)) from None
            raise UserError(wrong_value(errors[0], self.model_json_schema(), self.prefix)) from None
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


def key_table(model: type[Section]) -> list[tuple[str, str, str]]:
    """(key, default as YAML writes it, meaning) of each key, those of sections in place of the sections."""
    rows = []
    for name, field in model.model_fields.items():
        if isinstance(field.default, Section):
            rows += key_table(type(field.default))
        else:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            text = yaml.safe_dump(default, default_flow_style=True, width=1000).splitlines()[0]
            rows.append((model.prefix + name, text, str(field.description)))
    return rows


def key_list(model: type[Section]) -> str:
    """The keys of a config with their defaults and meanings, a line each, for `--help`."""
    rows = [f"  {key:<31} {text:<28} {meaning}" for key, text, meaning in key_table(model)]
    return "\n".join(["keys of CONFIG, with their defaults:", *rows])


def differences(one: Section, other: Section) -> list[tuple[str, Any, Any]]:
    """Where two configs differ in keys that may not change on resume: (key, value of one, value of the other)."""
    found = []
    for name, value in one:
        if isinstance(value, Section):
            found += differences(value, getattr(other, name))
        elif value != getattr(other, name) and name not in one.changeable():
            found.append((one.prefix + name, value, getattr(other, name)))
    return found
