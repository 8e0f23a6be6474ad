"""Every backbone, found by itself, and the table of what each costs and gives."""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, get_type_hints

import torch

import detseg.backbones
from detseg.cost import count_macs, count_parameters, threads, time_alternating
from detseg.fused import can_fuse, fold, fuse
from detseg.interfaces import Backbone, FeatureSpec, Size

Builder: TypeAlias = Callable[..., Backbone]

SIZE: Size = (224, 224)
TAPS = ("c2", "c3", "c4", "c4.expansion", "c5.bottleneck", "c5")
"""Those that the table tells."""

START, END = "<!-- python tools/backbone_table.py -->", "<!-- end of the table -->"
"""What stands around the table in a document."""


class Row(NamedTuple):
    """A network up to c5, without classifier."""

    name: str
    parameters: int
    macs: int
    """Multiply-adds of an image of SIZE."""
    specs: dict[str, FeatureSpec]
    """Of those of TAPS that it has."""


def builders() -> dict[str, Builder]:
    """Builder functions by name: the public functions of detseg.backbones' modules that are annotated to give a
    Backbone and take everything by keyword with a default.

    A builder with an argument `minimalistic` makes two networks and is listed twice.
    """
    found: dict[str, Builder] = {}
    for info in pkgutil.iter_modules(detseg.backbones.__path__):
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


def row(name: str, build: Builder) -> Row:
    """What a network costs and gives."""
    with torch.device("meta"):
        network = build(taps=("c5",))
    specs = {tap: spec for tap in TAPS if (spec := spec_of(build, tap)) is not None}
    return Row(name, count_parameters(network), count_macs(network, torch.empty(1, 3, *SIZE)), specs)


def ready(backbone: Backbone, size: Size) -> Backbone:
    """A copy for inference on images of `size`, as `Predictor.ready` makes it: folded, on a CPU fused."""
    copied = copy.deepcopy(backbone)
    fold(copied)
    if can_fuse(torch.device("cpu")):
        fuse(copied, torch.zeros(1, 3, *size).to(memory_format=torch.channels_last))
    return copied


def latencies(networks: Mapping[str, Builder], *, seconds: float, num_threads: int = 1) -> dict[str, float]:
    """Milliseconds of each network for one image of SIZE on this CPU: medians of about `seconds` for each, in turns."""
    images = torch.randn(1, 3, *SIZE).to(memory_format=torch.channels_last)
    with threads(num_threads), torch.inference_mode():
        calls = {name: partial(ready(build(taps=("c5",)), SIZE), images) for name, build in networks.items()}
        timings = time_alternating(calls, seconds=seconds * len(calls))
    return {name: timing.median for name, timing in timings.items()}


def markdown(rows: Sequence[Row], latency: Mapping[str, float]) -> str:
    """The table between START and END; "-" stands for a tap that a network does not have."""
    strides: dict[str, int] = {}
    for each in rows:
        for tap, (_, stride) in each.specs.items():
            assert strides.setdefault(tap, stride) == stride, "a tap's name tells its stride"
    titles = ["backbone", "parameters", "multiply-adds",
              *(f"`{tap}` (/{strides[tap]})" for tap in TAPS if tap in strides), "ms"]
    lines = [titles, ["--"] * len(titles)]
    for each in rows:
        channels = [str(each.specs[tap].channels) if tap in each.specs else "-" for tap in TAPS if tap in strides]
        lines.append([f"`{each.name}`", f"{each.parameters:,}", f"{each.macs:,}", *channels,
                      f"{latency[each.name]:.1f}"])
    return "\n".join([START, *(f"| {' | '.join(cells)} |" for cells in lines), END])
