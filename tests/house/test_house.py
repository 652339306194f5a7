"""The house keeps its shape: rooms, layers, sizes, private names, plain words. Each limit is in docs/architecture.md."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for package in ("epochmeter", "profiler", "exporters") for path in (ROOT / package).rglob("*.py"))
MAX_CLASS, MAX_MODULE, MAX_P95 = 300, 450, 23
MAX_WHAT = 1.0  # in 1,000 words of docstring
BESIDE_THE_ROOMS = {"__init__.py", "errors.py", "testing.py", "py.typed"}
NAMED_TUPLE = {"_replace", "_asdict", "_fields"}  # public methods of the standard library, in spite of their names
OF_TORCH = {"_schema"}  # of an operator; a class of ours has a field of that name, too


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def functions(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(module) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def length(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def layers() -> list[str]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    (found,) = [contract["layers"] for contract in contracts if contract["name"].startswith("the profiler's layers")]
    return list(found)


def test_no_module_stands_beside_the_rooms() -> None:
    files = {path.name for path in (ROOT / "profiler").iterdir() if path.is_file()}
    assert files == BESIDE_THE_ROOMS


def test_seven_layers_name_every_room() -> None:
    found = layers()
    assert len(found) == 7
    named = {name.removeprefix("profiler.") for layer in found for name in layer.split(" | ")}
    rooms = {path.name for path in (ROOT / "profiler").iterdir() if (path / "__init__.py").exists()}
    assert named - {"testing"} == rooms


def test_contributing_shows_the_layers() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    shown = text.partition("<!-- layers -->\n```text\n")[2].partition("```")[0].splitlines()
    assert shown == [layer.replace("profiler.", "") for layer in layers()]


def test_classes_and_modules_are_small() -> None:
    for path in SOURCES:
        assert path.read_text("utf-8").count("\n") <= MAX_MODULE, path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                assert length(node) <= MAX_CLASS, f"{path}: {node.name} has {length(node)} lines"


def test_functions_are_short() -> None:
    lengths = sorted(length(node) for path in SOURCES for node in functions(tree(path)))
    assert lengths[int(0.95 * len(lengths))] <= MAX_P95


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def own_privates(module: ast.Module) -> set[str]:
    """Private names that a file defines: functions, classes, attributes that it sets, and slots."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = {node.name for node in ast.walk(module) if isinstance(node, kinds)}
    found |= {node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    found |= {node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    found |= {node.value for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {name for name in found if re.fullmatch(r"_[a-z]\w*", name)}


def test_no_file_uses_private_names_of_another() -> None:
    modules = {path: tree(path) for path in SOURCES}
    defined = set().union(*map(own_privates, modules.values())) - NAMED_TUPLE - OF_TORCH
    found = []
    for path, module in modules.items():
        foreign = defined - own_privates(module)
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and node.attr in foreign:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("profiler", "exporters"):
                found += [f"{path.relative_to(ROOT)}:{node.lineno} {a.name}" for a in node.names if is_private(a.name)]
    assert not found, "\n".join(found)


def docstrings() -> Iterator[str]:
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
                yield ast.get_docstring(node) or ""


def test_docstrings_name_the_thing() -> None:
    words = [word.lower().strip(".,;:'\"`()") for text in docstrings() for word in text.split()]
    assert 1000 * sum(word in ("what", "whatever") for word in words) / len(words) < MAX_WHAT


def test_public_functions_have_a_docstring() -> None:
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and ast.get_docstring(node) is None
    ]
    assert not missing, "\n".join(missing)


def test_test_names_have_eight_words_at_most() -> None:
    for path in [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "examples").rglob("test_*.py")]:
        for node in functions(tree(path)):
            assert not node.name.startswith("test_") or len(node.name.split("_")) <= 9, f"{path}: {node.name}"


@pytest.mark.parametrize("room", ["measure", "adapters", "embedding"])
def test_what_a_signal_raises_goes_on(room: str) -> None:
    """The program's handler of a signal may raise while our code runs in its thread; no handler of ours may keep that."""
    broad = [
        (path, node)
        for path in sorted((ROOT / "profiler" / room).rglob("*.py"))
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "Exception"
    ]
    assert broad
    swallowing = [f"{path.name}:{node.lineno}" for path, node in broad if "is_of_a_signal" not in ast.dump(node.body[0])]
    assert not swallowing
