"""Reading YAML files of plain values: safely, strictly, and with the two tags that the original's config files carry."""

import re

import yaml

from mat.errors import UserError

ORIGINAL_TAGS = ("config.PatchTrainingConfig", "config.OptimizerConfig")


class _ConfigLoader(yaml.SafeLoader):
    """A safe loader with YAML 1.2 floats (`1e-4` is a number), the original's two tags, and no duplicate keys."""

    def construct_mapping(self, node, deep=False):
        """A mapping without duplicate keys."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "a section must be a mapping of keys to values", node.start_mark)
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node.value, str) else None
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node, deep=False):
        """A value; PyYAML's constructors fail in their own ways on a scalar that its explicit tag does not fit."""
        try:
            return super().construct_object(node, deep)
        except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
            problem = f"the value does not fit its tag {node.tag.replace('tag:yaml.org,2002:', '!!')} ({error})"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def refuse_tag(self, node):
        """Constructor of every tag that YAML's core schema does not define."""
        raise yaml.constructor.ConstructorError(
            None, None, f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is not allowed; only plain values are", node.start_mark
        )


_ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
for _name in ORIGINAL_TAGS:
    _ConfigLoader.add_constructor(
        f"tag:yaml.org,2002:python/object:{_name}", lambda loader, node: loader.construct_mapping(node, deep=True)
    )
_ConfigLoader.add_constructor(None, _ConfigLoader.refuse_tag)


def read_mapping(path):
    """The mapping that a YAML file holds."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, Loader=_ConfigLoader)  # noqa: S506 -- a subclass of SafeLoader
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file. Give the path of a YAML file, such as configs/mat.yaml") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}. Give the path of a YAML file, such as configs/mat.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not a valid config: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values (key: value). Received: {shown(values)}")
    return values


def _one_line(error):
    """What a YAML error says, in one line with its position."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def apply_override(values, override):
    """Put `key=value` (nested: `section.key=value`) into the mapping."""
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--set takes key=value, such as --set optimizer.n_iterations=3. Received: {override!r}")
    try:
        value = yaml.load(text, Loader=_ConfigLoader)  # noqa: S506 -- a subclass of SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"--set {override}: the value is not valid YAML: {_one_line(error)}") from None
    *sections, key = name.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: {section} is not a section of the config")
    values[key] = value


def shown(value):
    """A value as a message shows it: short, and in YAML's words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except ValueError:  # Python prints no integers of thousands of digits
        return "a very large number"
    return text if len(text) <= 80 else text[:77] + "..."
