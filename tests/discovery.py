"""Finds every backbone, head and config by itself: a new file is tested without being named anywhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import heads
from detseg.backbone_table import builders
from detseg.interfaces import Backbone, Head

from .conftest import ROOT


def backbones() -> dict[str, Callable[..., Backbone]]:
    """Every builder of a backbone by name."""
    found = builders()
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
