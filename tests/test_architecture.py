"""The structure of the package: which part imports which, and how large its parts may be."""

import ast
import collections
import graphlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted((ROOT / "mat").rglob("*.py"))
TREES = {path: ast.parse(path.read_text("utf-8")) for path in SOURCES}

# A part (a package, or a module of the top level) imports from the lines below its own, and from itself.
LAYERS = [
    {"tools"},
    {"api"},
    {"train", "evaluate"},
    {"trainer"},
    {"run"},
    {"robustness", "results"},
    {"step"},
    {"patch", "attack", "config"},
    {"data", "models"},
    {"distribution"},
    {"seeds", "cli"},
]
WITHOUT_CONFIG = {"step", "patch", "attack", "distribution", "seeds", "data", "models", "cli"}
MAX_TOP_LEVEL, MAX_FILE_LINES, MAX_FUNCTION_LINES = 10, 300, 60


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """The modules of the package that a file imports, anywhere in it."""
    modules = {module_name(source) for source in SOURCES}
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (names & modules) or ({node.module} & modules)


GRAPH = {module_name(path): set(imports(path)) for path in SOURCES}


def part_of(module):
    return module.split(".")[1] if "." in module else ""


def test_the_document_shows_the_layers():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert [set(line.split()) for line in text.split("## What may import what")[1].split("```")[1].strip().splitlines()] == LAYERS


def test_imports_point_one_way():
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    edges = [(one, other) for one, others in GRAPH.items() for other in others if "" not in (part_of(one), part_of(other))]
    assert len(edges) > 100
    assert {part_of(module) for module in GRAPH} - {""} == set(level)
    assert [(one, other) for one, other in edges if part_of(one) != part_of(other) and level[part_of(one)] >= level[part_of(other)]] == []
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises a CycleError


def test_leaves_do_not_know_the_config():
    assert [module for module, others in GRAPH.items() if part_of(module) in WITHOUT_CONFIG and "mat.config" in others] == []


def test_nobody_imports_the_tools():
    assert [
        module for module, others in GRAPH.items() if part_of(module) != "tools" and any(part_of(other) == "tools" for other in others)
    ] == []


def test_module_names_are_told_apart():
    stems = [path.stem for path in SOURCES if path.stem != "__init__"]
    assert sorted(stems) == sorted(set(stems))
    assert set(stems) & set(sys.stdlib_module_names) == set()
    assert len(list((ROOT / "mat").glob("*.py"))) <= MAX_TOP_LEVEL


def test_a_constant_name_has_one_meaning():
    places = collections.defaultdict(set)
    for path, tree in TREES.items():
        for node in tree.body:
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                if isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith("_"):
                    places[target.id].add(module_name(path))
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_and_functions_can_be_read_in_one_sitting(path):
    assert len(path.read_text("utf-8").splitlines()) <= MAX_FILE_LINES
    functions = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if node.end_lineno - node.lineno >= MAX_FUNCTION_LINES] == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_public_functions_and_classes_are_documented_and_typed(path):
    tree = TREES[path]
    assert ast.get_docstring(tree), "no docstring"
    for scope in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
        for node in scope.body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            inherited = node.name in ("build", "call", "compute_output_shape", "get_config")  # of Keras layers
            assert inherited or ast.get_docstring(node), f"{node.name} has no docstring"
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
                assert untyped == [] and node.returns is not None, f"{node.name} lacks type hints: {untyped}"
