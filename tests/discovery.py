"""Finds every backbone, head and config by itself: a new file is tested without being named anywhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import heads
from detseg import config
from detseg.backbones import builders
from detseg.config import Config
from detseg.interfaces import Backbone, Head
from detseg.structures import Classes
from detseg.tasks.detection import Detection

from .conftest import ROOT

OWN = Classes(names=("nut", "bolt", "washer"), source_ids=(2, 5, 40))
"""Classes that no config has."""

_SMALL = ("model.size=96", "model.width=0.35", "model.proposals=20", "batch_size=4", "accumulate=1",
          "validate_every=2", "workers=0", "log_every=1", "report=false")


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


def one_config_a_head() -> dict[str, str]:
    """The name of the first config of every head, by the head's file, as the configs' imports say."""
    found = {}
    for path in reversed(configs()):
        imported = re.search(r"^from heads\.(\w+) import", path.read_text("utf-8"), re.MULTILINE)
        assert imported, f"{path} builds no head"
        found[imported[1]] = path.stem
    return found


def config_of_head(head: str) -> Path:
    """The first config of a head, by the head's file name."""
    return ROOT / "configs" / f"{one_config_a_head()[head]}.py"


def small_config(path: Path, *, sample: bool = False) -> Config:
    """A config made small; where it has no such setting it goes without. Its detections are few, for exporting takes
    its time for each candidate."""
    known = config.load(path, sample=sample).entries()
    small = config.load(path, [text for text in _SMALL if text.partition("=")[0] in known], sample=sample)
    task = small.experiment.task
    if isinstance(task, Detection):
        task = replace(task, max_detections=30, candidates=40)
    return replace(small, experiment=small.experiment.changed("task", task))
