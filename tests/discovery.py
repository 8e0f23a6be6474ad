"""Finds every backbone, head and config by itself: a new file is tested without being named anywhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import detseg.backbones
import heads
from detseg.interfaces import Backbone, Head

from .conftest import ROOT


def backbones() -> dict[str, Callable[..., Backbone]]:
    """Builder functions by name: public functions of detseg.backbones' modules that are annotated to give a Backbone
    and take everything by keyword with a default."""
    found: dict[str, Callable[..., Backbone]] = {}
    for info in pkgutil.iter_modules(detseg.backbones.__path__):
        module = importlib.import_module(f"detseg.backbones.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ != module.__name__ or name.startswith("_"):
                continue
            given = get_type_hints(function).get("return")
            parameters = inspect.signature(function).parameters.values()
            if (inspect.isclass(given) and issubclass(given, Backbone)
                    and all(p.default is not inspect.Parameter.empty for p in parameters)):
                found[name] = function
    assert len(found) >= 3, found
    return found


def head_classes() -> dict[str, type[Head[Any, Any, Any]]]:
    """Every head class by file name; each file of heads/ holds one."""
    found = {}
    for info in pkgutil.iter_modules(heads.__path__):
        module = importlib.import_module(f"heads.{info.name}")
        own = [member for _, member in inspect.getmembers(module, inspect.isclass)
               if issubclass(member, Head) and member.__module__ == module.__name__]
        assert own, f"heads/{info.name}.py defines no Head"
        found[info.name] = own[0]
    assert found
    return found


def configs() -> list[Path]:
    """Every config file."""
    found = sorted((ROOT / "configs").glob("*.py"))
    assert len(found) >= 3, found
    return found
