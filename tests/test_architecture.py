"""How the house is built: who imports whom, what is documented, what may not be written down."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .conftest import ROOT

PACKAGES = ("detseg", "heads")
HEADS_MAY_IMPORT = {f"detseg.{name}" for name in (
    "interfaces", "boxes", "anchors", "matching", "losses", "layers", "roi_align", "suppression")}
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
    assert any(text.endswith("imports detseg.anchors.SSDAnchors") for text in found), found
    assert any(text.endswith("imports torch") for text in found), found


def test_heads_import_only_the_parts_they_are_made_of() -> None:
    wrong = [str(one) for one in _imports("heads")
             if _inside(one.module, {"detseg", "heads", "configs", "tools", "tests"}) and one.module != "detseg"
             and not _inside(one.module, HEADS_MAY_IMPORT)]
    assert not wrong, "\n".join(wrong)


def test_detseg_knows_nothing_of_heads_configs_and_tools() -> None:
    wrong = [str(one) for one in _imports("detseg") if _inside(one.module, {"heads", "configs", "tools", "tests"})]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_configs_tools_or_tests() -> None:
    wrong = [str(one) for folder in (*PACKAGES, "configs", "tools") for one in _imports(folder)
             if _inside(one.module, {"configs", "tools", "tests"})]
    assert not wrong, "\n".join(wrong)


def test_only_the_transforms_import_albumentations() -> None:
    users = {one.file.relative_to(ROOT).as_posix() for folder in (*PACKAGES, "configs", "tools")
             for one in _imports(folder) if _inside(one.module, {"albumentations"})}
    assert users == {"detseg/data/transforms.py"}


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
