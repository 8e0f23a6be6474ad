"""Configs by name, and what their docstrings say of them: without running them, so without torch.

A config that comes with detseg says two things in lines of a fixed form, which `detseg configs` and the README show:

    Source: torchvision; 21.3 AP on val2017.
    Cost: 3,440,060 parameters, 583,171,904 multiply-adds at 320 x 320.

The score is the published one of the source, "none published", or "see benchmarks.md". What a second stage costs stands
after the size: ", and 14,359,552 for each region".
"""

from __future__ import annotations

import ast
import difflib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["detector", "segmenter", "classifier"]

BUILT_IN = next(folder for folder in (Path(__file__).with_name("configs"), Path(__file__).parents[1] / "configs")
                if folder.is_dir())
"""The folder of the configs that come with detseg: in an installed one inside the package, in a checkout beside it."""

CONFIG_HELP = "a config file of your own, or the name of one that comes with detseg (detseg configs)"

_SOURCE = re.compile(r"^Source: (?P<source>[^;]+); (?P<score>.+)\.$", re.MULTILINE)
_COST = re.compile(r"^Cost: (?P<parameters>[\d,]+) parameters, (?P<macs>[\d,]+) multiply-adds at "
                   r"(?P<height>\d+) x (?P<width>\d+)(, and (?P<region>[\d,]+) for each region)?\.$", re.MULTILINE)
_TASK = re.compile(r"^from detseg\.tasks\.(detection|segmentation|classification) import", re.MULTILINE)
_KINDS: Mapping[str, Kind] = {"detection": "detector", "segmentation": "segmenter", "classification": "classifier"}


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """What a config that comes with detseg says of itself."""

    name: str
    path: Path
    title: str
    """The docstring's first line."""
    kind: Kind
    parameters: int
    macs: int
    """Multiply-adds of an image of `size`, of two stages those of the first."""
    region_macs: int | None
    """Of the second stage, for each region."""
    size: tuple[int, int]
    """(height, width) of the input."""
    source: str
    """Whose wiring it is."""
    score: str
    """What the source reaches, with metric and data."""


def built_in_configs() -> dict[str, Path]:
    """The configs that come with detseg, by name."""
    return {path.stem: path for path in sorted(BUILT_IN.glob("*.py"))}


def find_config(path: Path) -> Path:
    """A file as it is; otherwise the config of this name that comes with detseg.

    FileNotFoundError with the nearest where there is neither.
    """
    if path.is_file():
        return path
    known = built_in_configs()
    if (name := str(path)) in known:
        return known[name]
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder and no config; name a .py file, or one of detseg configs")
    if not path.suffix and path.name != name:
        raise FileNotFoundError(f"there is no config {path}, and no folder of a run")
    beside = {other.stem: str(other) for other in sorted(path.parent.glob("*.py"))} if path.parent.is_dir() else {}
    names = {each: each for each in known} | beside
    near = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.5)
    hint = (f"; did you mean {names[near[0]]}?" if near else
            "" if path.suffix else "; detseg configs lists those there are")
    raise FileNotFoundError(f"there is no config {path}{hint}")


def describe_config(path: Path) -> ConfigFile:
    """What a config's docstring says. ValueError where the two lines are not as they should be."""
    text = path.read_text("utf-8")
    doc = ast.get_docstring(ast.parse(text)) or ""
    source, cost, task = _SOURCE.search(doc), _COST.search(doc), _TASK.search(text)
    if source is None or cost is None or task is None:
        missing = "a line 'Source: ...; ...'" if source is None else "a line 'Cost: ...'" if cost is None else "a task"
        raise ValueError(f"{path}: it lacks {missing}, as detseg/config_files.py explains it")
    region = cost["region"]
    return ConfigFile(
        name=path.stem, path=path, title=doc.partition("\n")[0],
        kind=_KINDS[task[1]], parameters=_number(cost["parameters"]),
        macs=_number(cost["macs"]), region_macs=None if region is None else _number(region),
        size=(int(cost["height"]), int(cost["width"])), source=source["source"], score=source["score"])


def copy_config(name: str, to: Path | None = None) -> Path:
    """Copies a config that comes with detseg, to be edited, and gives the new file.

    Args:
        name: of the config.
        to: a new file, or a folder that is there; None is the current folder.

    FileNotFoundError with the nearest name where there is none of this; ValueError where a file is there already.
    """
    known = built_in_configs()
    if name not in known:
        near = difflib.get_close_matches(Path(name).stem, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; detseg configs lists them"
        raise FileNotFoundError(f"no config that comes with detseg is called {name}{hint}")
    target = Path(f"{name}.py") if to is None else to / f"{name}.py" if to.is_dir() else to
    if target.suffix != ".py":
        raise ValueError(f"a config is a .py file, got {target}: take {target.with_name(target.name + '.py')}, or a "
                         "folder that exists")
    if target.exists():
        raise ValueError(f"{target} is there already; it is not replaced: name another file behind {name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(known[name], target)
    return target


def _number(text: str) -> int:
    return int(text.replace(",", ""))
