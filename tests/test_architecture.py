"""How the house is built: who imports whom, what is documented, what may not be written down."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from .conftest import ROOT

PACKAGES = ("detseg", "heads")
HEADS_MAY_IMPORT = {f"detseg.{name}" for name in ("interfaces", "structures", "layers", "ops")}
FLOORS = (
    ("__main__",),
    ("commands", "completion"),
    ("api", "average", "benchmark", "compare", "demo", "evaluated", "openmmlab", "run_report", "train"),
    ("analysis", "browse", "distillation", "engine", "evaluate", "export", "network_view", "quantization", "recipes",
     "run_folder", "training_step", "validation", "weights"),
    ("checkpoint", "config", "fine_tuning", "predict", "views"),
    ("bootstrap", "comparison", "fingerprint", "from_data", "metrics", "report"),
    ("model", "optim", "tasks"),
    ("backbones", "data", "inference", "necks", "split_execution"),
    ("layers",),
    ("ops",),
    ("interfaces",),
    ("resize",),
    ("atomic", "cache", "choices", "cli", "config_files", "config_module", "cost", "launch", "memory", "prefetch",
     "settings", "structures", "video"),
)
"""The rooms of detseg from the top down; a room imports from floors below its own, or from beside it."""
NO_ROOMS = {"utils", "util", "common", "helpers", "misc"}


class Import(NamedTuple):
    """A module that a file imports."""

    file: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def _files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


def _imports(folder: str) -> Iterator[Import]:
    """Every import of a folder, also those inside functions. Of `from package import name` both are given, because
    `name` may be a module."""
    for file in _files(folder):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (Import(file, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
                assert node.module is not None
                yield Import(file, node.lineno, node.module)
                yield from (Import(file, node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _inside(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_the_parser_sees_imports() -> None:
    found = {str(one) for one in _imports("heads")}
    assert any(text.endswith("imports detseg.ops.anchors.CellAnchors") for text in found), found
    assert any(text.endswith("imports torch") for text in found), found


def test_heads_import_only_the_parts_they_are_made_of() -> None:
    wrong = [str(one) for one in _imports("heads")
             if _inside(one.module, {"detseg", "heads", "configs", "tools", "tests"}) and one.module != "detseg"
             and not _inside(one.module, HEADS_MAY_IMPORT)]
    assert not wrong, "\n".join(wrong)


def test_detseg_knows_nothing_of_heads_configs_and_tools() -> None:
    wrong = [str(one) for one in _imports("detseg") if _inside(one.module, {"heads", "configs", "tools", "tests"})]
    assert not wrong, "\n".join(wrong)


def _rooms() -> set[tuple[str, str]]:
    """Which first-level room of detseg imports which."""
    edges = set()
    for one in _imports("detseg"):
        parts = one.module.split(".")
        here = one.file.relative_to(ROOT / "detseg").with_suffix("").parts[0]
        if parts[0] == "detseg" and len(parts) > 1 and parts[1] != here and here != "__init__":
            edges.add((here, parts[1]))
    known = {path.stem for path in (ROOT / "detseg").iterdir()}
    return {(here, there) for here, there in edges if there in known}


def test_every_room_stands_on_a_floor() -> None:
    named = [room for floor in FLOORS for room in floor]
    there = {path.stem for path in (ROOT / "detseg").iterdir()
             if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert sorted(named) == sorted(there - {"__init__"})


def test_imports_go_down() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    edges = _rooms()
    assert len(edges) > 50
    wrong = [f"{here} imports {there}" for here, there in sorted(edges) if floor[here] > floor[there]]
    assert not wrong, "\n".join(wrong)


def test_no_rooms_import_each_other_in_a_circle() -> None:
    sorter = TopologicalSorter[str]()
    for here, there in _rooms():
        sorter.add(here, there)
    sorter.prepare()  # a CycleError names the circle


def test_the_first_page_is_a_page() -> None:
    """Contracts alone: no colours, no terminal, no image library."""
    text = (ROOT / "detseg" / "interfaces.py").read_text("utf-8")
    assert len(text.splitlines()) <= 245
    imported = {one.module.split(".")[0] for one in _imports("detseg") if one.file.name == "interfaces.py"}
    assert imported <= {"__future__", "abc", "collections", "dataclasses", "typing", "torch", "detseg"}


def test_fit_reads_downward() -> None:
    module = ast.parse((ROOT / "detseg" / "train.py").read_bytes())
    (fit,) = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "fit"]
    assert fit.end_lineno is not None
    assert fit.end_lineno - fit.lineno < 100

    def depth(node: ast.AST) -> int:
        deeper = max((depth(child) for child in ast.iter_child_nodes(node)), default=0)
        return deeper + isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try)

    assert max(depth(node) for node in fit.body) <= 4


def test_nobody_imports_configs_tools_or_tests() -> None:
    wrong = [str(one) for folder in (*PACKAGES, "configs", "tools") for one in _imports(folder)
             if _inside(one.module, {"configs", "tools", "tests"})]
    assert not wrong, "\n".join(wrong)


def test_only_the_augmentations_import_albumentations() -> None:
    users = {one.file.relative_to(ROOT).as_posix() for folder in (*PACKAGES, "configs", "tools")
             for one in _imports(folder) if _inside(one.module, {"albumentations"})}
    assert users == {"detseg/data/augment.py"}


def test_no_room_is_a_lumber_room() -> None:
    wrong = [path for folder in (*PACKAGES, "configs", "tools") for path in (ROOT / folder).rglob("*")
             if path.stem.strip("_") in NO_ROOMS]
    assert not wrong, wrong


def test_no_tool_hides_a_standard_module() -> None:
    """`python tools/x.py` puts tools/ first on the path. `test.py` hides only CPython's own tests."""
    import sys

    wrong = [path.name for path in _files("tools") if path.stem in sys.stdlib_module_names - {"test"}]
    assert not wrong


def _undocumented(node: ast.Module | ast.ClassDef, where: str) -> Iterator[str]:
    """Public classes, functions and methods without a docstring; a stub of an overload or `...` needs none."""
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        if ast.get_docstring(child) is None:
            yield f"{where}:{child.lineno} {child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _undocumented(child, where)


@pytest.mark.parametrize("folder", [*PACKAGES, "configs", "tools"])
def test_everything_public_is_documented(folder: str) -> None:
    missing = []
    for file in _files(folder):
        module, where = ast.parse(file.read_bytes()), file.relative_to(ROOT).as_posix()
        if ast.get_docstring(module) is None:
            missing.append(f"{where}: the module")
        missing += _undocumented(module, where)
    assert not missing, "\n".join(missing)


def test_public_functions_take_no_nameless_keywords() -> None:
    """A misspelt argument must be an error: nothing public has **kwargs, but for what another library calls."""
    wrong = []
    for folder in (*PACKAGES, "configs"):
        for file in _files(folder):
            module = ast.parse(file.read_bytes())
            private = {id(node) for outer in ast.walk(module) if isinstance(outer, ast.ClassDef)
                       and outer.name.startswith("_") for node in ast.walk(outer)}
            wrong += [f"{file.relative_to(ROOT)}:{node.lineno} {node.name}" for node in ast.walk(module)
                      if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None
                      and not node.name.startswith("_") and id(node) not in private]
    assert not wrong, "\n".join(wrong)


def _tracked() -> list[Path]:
    """The files under version control; the test is skipped in a copy without it."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this copy is not under version control")
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    place = re.compile(rb"(?<![\w./-])/(?:home|root|work|tmp|Users|mnt|opt|scratch)/\w+")
    wrong = [f"{path.relative_to(ROOT)}: {found.group().decode()}" for path in _tracked()
             for found in place.finditer(path.read_bytes())]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_a_binary_or_a_lump() -> None:
    wrong = [str(path.relative_to(ROOT)) for path in _tracked()
             if path.suffix in {".pt", ".pth", ".safetensors", ".onnx"} or path.stat().st_size > 1_000_000]
    assert not wrong
