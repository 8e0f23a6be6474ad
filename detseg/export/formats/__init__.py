"""The formats: one file each, found by its `FORMAT`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detseg.export.format import Format


def format_names() -> tuple[str, ...]:
    """What the formats are called, which is what their files are, without importing them."""
    return tuple(sorted(info.name for info in pkgutil.iter_modules(__path__)))


@cache
def formats() -> dict[str, Format]:
    """Every format by name."""
    found = (importlib.import_module(f"{__name__}.{info.name}").FORMAT for info in pkgutil.iter_modules(__path__))
    return {one.name: one for one in sorted(found, key=lambda one: str(one.name))}


def format_named(name: str) -> Format:
    """ValueError with the nearest name where there is none."""
    if name not in formats():
        near = difflib.get_close_matches(name, formats(), n=1)
        raise ValueError(f"there is no format {name!r}{f'; did you mean {near[0]}?' if near else ''} "
                         f"(formats: {', '.join(formats())})")
    return formats()[name]


def format_of(path: Path) -> Format | None:
    """The format of a file, by its name's ending."""
    return next((one for one in formats().values() if path.name.endswith(one.suffix)), None)
