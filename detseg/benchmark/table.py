"""The table of what each backbone costs and gives."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from detseg.backbones import Builder, spec_of
from detseg.cost import count_macs, count_parameters, threads, time_alternating
from detseg.inference import fold
from detseg.interfaces import Backbone, FeatureSpec
from detseg.structures import Size

SIZE: Size = (224, 224)
TAPS = ("c2", "c3", "c4", "c4.expansion", "c5.bottleneck", "c5")
"""Those that the table tells."""

START, END = "<!-- detseg backbone-table -->", "<!-- end of the table -->"
"""What stands around the table in a document."""


class Row(NamedTuple):
    """A network up to c5, without classifier."""

    name: str
    parameters: int
    macs: int
    """Multiply-adds of an image of SIZE."""
    specs: dict[str, FeatureSpec]
    """Of those of TAPS that it has."""


def row(name: str, build: Builder) -> Row:
    """What a network costs and gives."""
    with torch.device("meta"):
        network = build(taps=("c5",))
    specs = {tap: spec for tap in TAPS if (spec := spec_of(build, tap)) is not None}
    return Row(name, count_parameters(network), count_macs(network, torch.empty(1, 3, *SIZE)), specs)


def ready(backbone: Backbone) -> Backbone:
    """A copy for inference, as `Predictor.ready` makes it: folded."""
    copied = copy.deepcopy(backbone)
    fold(copied)
    return copied


def latencies(networks: Mapping[str, Builder], *, seconds: float, num_threads: int = 1) -> dict[str, float]:
    """Milliseconds of each network for one image of SIZE on this CPU: medians of about `seconds` for each, in turns."""
    images = torch.randn(1, 3, *SIZE).to(memory_format=torch.channels_last)
    with threads(num_threads), torch.inference_mode():
        calls = {name: partial(ready(build(taps=("c5",))), images) for name, build in networks.items()}
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
