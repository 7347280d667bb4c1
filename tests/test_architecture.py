"""The structure: imports point one way, leaves know no config, and the README tells what the code does."""

import ast
import dataclasses
import pathlib
import re

import pytest
import yaml

from mat.config import EvaluationConfig, OptimizerConfig, PatchTrainingConfig

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted((ROOT / "mat").rglob("*.py"))

# Each layer imports from the layers below it only, and modules of one layer do not import each other, but for packages' own parts.
LAYERS = [
    ["train", "evaluate", "tools.benchmark", "tools.growth", "tools.interruptions"],
    ["tools.measurements"],
    ["trainer"],
    ["plan"],
    ["evaluator", "results", "step", "data.convert", "tools.synthetic", "tools.convolutions"],
    ["evaluation", "report", "pictures", "data.splits", "checkpoints", "events"],
    ["universal", "data.demo", "data.tiny_imagenet"],
    ["patch", "attack", "models", "grid", "report_directory"],
    ["models.resnet", "models.weights", "data.reading", "statistics"],
    ["models.convolutional", "models.groupnormalization", "commands", "data.sources"],
    ["models.prepared", "data.records", "config", "download", "devices", "signals", "surroundings"],
    ["seeds", "terminal", "config_keys"],
    ["yaml_reader", "files", "models.other_files"],
    ["errors", "text", "models.pooling", "file_kinds"],
]
WITHOUT_CONFIG = (
    "checkpoints",
    "events",
    "patch",
    "attack",
    "universal",
    "evaluation",
    "grid",
    "report",
    "pictures",
    "step",
    "seeds",
    "models.",
    "data.",
)


def module_name(path):
    return ".".join(path.relative_to(ROOT / "mat").with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """The modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges():
    modules = {module_name(path) for path in SOURCES}
    for path in SOURCES:
        for name in imports(path):
            if name.startswith("mat.") and name.removeprefix("mat.") in modules - {"data", "tools", "__init__"}:
                yield module_name(path), name.removeprefix("mat.")


def test_every_module_has_its_layer():
    listed = [module for layer in LAYERS for module in layer]
    assert sorted(listed) == sorted(module_name(path) for path in SOURCES if module_name(path) not in ("__init__", "data", "tools"))


def test_imports_point_one_way():
    level = {module: i for i, layer in enumerate(LAYERS) for module in layer}
    found = list(edges())
    assert len(found) > 20
    assert [(one, other) for one, other in found if level[one] >= level[other]] == []


def test_leaves_do_not_know_the_config():
    assert [edge for edge in edges() if edge[0].startswith(WITHOUT_CONFIG) and edge[1] == "config"] == []


def test_public_functions_and_classes_are_documented():
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for node in [node for scope in (tree, *classes) for node in scope.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]:
            inherited = node.name in ("build", "call", "compute_output_shape", "get_config")  # of Keras layers
            assert node.name.startswith("_") or inherited or ast.get_docstring(node), f"{path.name}: {node.name}"


@pytest.mark.parametrize(
    ("cls", "prefix", "document"),
    [
        (PatchTrainingConfig, "", "README.md"),
        (OptimizerConfig, "optimizer.", "README.md"),
        (EvaluationConfig, "evaluation.", "docs/evaluation.md"),
    ],
)
def test_documents_list_every_key_with_its_default(cls, prefix, document):
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (ROOT / document).read_text(), re.MULTILINE))
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(f.default):
            continue
        assert prefix + f.name in rows, f"{document} does not list {prefix}{f.name}"
        documented = yaml.safe_load(rows[prefix + f.name])
        expected = list(f.default) if isinstance(f.default, tuple) else f.default
        assert (float(documented) if isinstance(expected, float) else documented) == expected
