"""Reading YAML files of plain values: safely, strictly, and with the two tags that the original's config files carry."""

import re
from dataclasses import dataclass

import yaml

from mat.cli.errors import UserError
from mat.cli.text import decode_text, format_value, single_line

MAX_BYTES = 1 << 18  # of a config file
MAX_NODES = 10_000  # values of a config, aliases written out
MAX_NUMBER = 100  # characters of a number; Python's own conversions take quadratic time, or refuse, from some thousand on

ORIGINAL_TAGS = ("config.PatchTrainingConfig", "config.OptimizerConfig")
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
SECTION = re.compile(r"\{(.*:\s.*)?\}", re.DOTALL)  # in braces; `{date}` is a placeholder
UNQUOTED_TAGS = (*NUMBER_TAGS, "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null", "tag:yaml.org,2002:timestamp")


@dataclass(frozen=True)
class Unquoted:
    """A value that YAML 1.1 does not take for text: a number, true or false, null or a date.

    What was meant depends on the key: `no` may be a word, and `010` is 10 to a person and 8 to YAML 1.1.

    Attributes:
        text: as it was written.
        value: what YAML reads.
    """

    text: str
    value: object

    def __repr__(self):
        return single_line(self.text) or "null"


class _ConfigLoader(yaml.SafeLoader):
    """A safe loader with YAML 1.2 floats (`1e-4` is a number), the original's two tags, no duplicate keys, and values of bounded size."""

    def __init__(self, text):
        super().__init__(text)
        self.n_nodes = 0  # composed so far, aliases written out

    def compose_node(self, parent, index):
        """A node. PyYAML shares what aliases name, but whatever compares or prints it goes through it once for each alias."""
        is_alias, mark, n_before = self.check_event(yaml.AliasEvent), self.peek_event().start_mark, self.n_nodes
        node = super().compose_node(parent, index)
        if not is_alias:
            self.n_nodes += 1
            node.n_nodes = self.n_nodes - n_before
        elif hasattr(node, "n_nodes"):
            self.n_nodes += node.n_nodes
        else:
            raise yaml.composer.ComposerError(None, None, "the alias stands for a value that it is itself a part of", mark)
        if self.n_nodes > MAX_NODES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_NODES} values, with the aliases written out", mark)
        return node

    def compose_mapping_node(self, anchor):
        """A mapping without duplicate keys; what merge keys bring in may be given again."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node.value, str) else None
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {format_value(key)} is given twice", key_node.start_mark)
            seen.add(key)
        return node

    def construct_mapping(self, node, deep=False):
        """A mapping, as it is."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "a section must be a mapping of keys to values", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_object(self, node, deep=False):
        """A value; PyYAML's constructors fail in their own ways on a scalar that its explicit tag does not fit."""
        if node.tag in NUMBER_TAGS and len(node.value) > MAX_NUMBER:
            raise yaml.constructor.ConstructorError(None, None, f"a number of more than {MAX_NUMBER} characters", node.start_mark)
        try:
            value = super().construct_object(node, deep)
        except (TypeError, LookupError, AttributeError, ValueError, ArithmeticError) as error:
            problem = f"the value does not fit its tag {node.tag.replace('tag:yaml.org,2002:', '!!')} ({error}). Put text in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
        return Unquoted(node.value, value) if node.tag in UNQUOTED_TAGS and isinstance(node, yaml.ScalarNode) else value

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
    """The mapping that a YAML file holds.

    Args:
        path: the file, of text in UTF-8, or in UTF-16 with a byte-order mark.

    Returns:
        dict of text, `Unquoted`, lists and dicts.

    Raises:
        UserError: the file cannot be read, is too large, or is not the YAML of a mapping of plain values.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(
                f"{path}: more than {MAX_BYTES:,} bytes, so not a config. Give the path of a YAML file, such as configs/mat.yaml"
            )
        values = _load(decode_text(content))
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file. Give the path of a YAML file, such as configs/mat.yaml") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}. Give the path of a YAML file, such as configs/mat.yaml") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a config: {error.reason} at byte {error.start}. Save it as UTF-8") from None
    except ValueError as error:
        raise UserError(f"{path}: not a valid config: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values (key: value). Received: {format_value(values)}")
    return values


def _load(text, *, override=False):
    """The value that YAML text holds; a ValueError in words if it is not that of plain values.

    An `override` that is no list, section or text in quotes is one scalar, whatever characters it has: it was quoted for the shell
    already.
    """
    try:
        loader = _ConfigLoader(text)
        if not override or text.startswith(("[", "'", '"')) or SECTION.fullmatch(text):
            return loader.get_single_data()
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        return loader.construct_document(yaml.ScalarNode(tag, text)) if text and tag in UNQUOTED_TAGS else text
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # of escapes such as "\UFFFFFFFF"
        raise ValueError(_one_line(error)) from None


def _one_line(error):
    """What a YAML error says, in one line with its position."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return single_line(str(error))
    return f"line {mark.line + 1}, column {mark.column + 1}: {single_line(str(problem))}"


def apply_override(values, override):
    """Put `key=value` (nested: `section.key=value`) into the mapping.

    Args:
        values: the mapping, changed in place.
        override: the value is text, a number, true or false or null as it stands, but YAML if it begins with a square bracket or a quote,
            or has a `key: value` in braces.

    Raises:
        UserError: the override has no key, its value is not valid YAML, or its section is none.
    """
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--set takes key=value, such as --set optimizer.n_iterations=3. Received: {format_value(override)}")
    try:
        value = _load(text.strip(), override=True)
    except ValueError as error:
        raise UserError(f"--set {single_line(override)}: the value is not valid YAML: {error}") from None
    *sections, key = name.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {single_line(override)}: {single_line(section)} is not a section of the config")
    values[key] = value
