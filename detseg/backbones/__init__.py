"""MobileNets and MnasNets with named taps: one family a file; a builder added here is found by itself."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias, get_type_hints

import torch

from detseg.interfaces import Backbone, FeatureSpec

Builder: TypeAlias = Callable[..., Backbone]


def builders() -> dict[str, Builder]:
    """Builder functions by name: the public functions of detseg.backbones' modules that are annotated to give a
    Backbone and take everything by keyword with a default.

    A builder with an argument `minimalistic` makes two networks and is listed twice.
    """
    found: dict[str, Builder] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"detseg.backbones.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ != module.__name__ or name.startswith("_"):
                continue
            given, arguments = get_type_hints(function).get("return"), inspect.signature(function).parameters
            if (inspect.isclass(given) and issubclass(given, Backbone)
                    and all(argument.default is not argument.empty for argument in arguments.values())):
                found[name] = function
                if "minimalistic" in arguments:
                    found[f"{name}_minimalistic"] = partial(function, minimalistic=True)
    return found


def chosen(names: Sequence[str]) -> dict[str, Builder]:
    """The builders of these names, all of them for no name; a ValueError for one that does not exist."""
    known = builders()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"there is no backbone {name!r}" + (f"; did you mean {near[0]}?" if near else "")
                             + f"\nthese exist: {', '.join(known)}")
    return {name: known[name] for name in names or known}


def spec_of(build: Builder, tap: str) -> FeatureSpec | None:
    """The channels and the stride of a tap, None where the network has no such tap."""
    try:
        with torch.device("meta"):
            return build(taps=(tap,)).specs[tap]
    except ValueError:
        return None
