"""Predicted latency on hardware that one does not have: the roofline model of MobileNetV4's paper.

Qin et al. 2024, arXiv 2404.10518, section 3. A layer takes as long as the slower of its multiply-adds and its memory
traffic, max(MACs / PeakMACs, bytes / PeakMemBW), where bytes are its weights and the activations that it reads and
writes; a network takes the sum. In units of 1 / PeakMACs that is the sum of max(MACs, ridge point x bytes), and the
ridge point PeakMACs / PeakMemBW, in multiply-adds a byte, is all that is asked of the hardware: 0 counts multiply-adds
alone, and at infinity bytes alone count. Networks are compared at ridge points of 0 to 500, as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from detseg import config as configs
from detseg.backbones import builders
from detseg.benchmark.predictor import Setup, built
from detseg.benchmark.table import SIZE
from detseg.choices import Precision
from detseg.config_files import find_config
from detseg.cost import NetworkCost, Operator, network_cost
from detseg.inference import fold
from detseg.report.charts import Panel
from detseg.structures import Size

MOST = 500.0
"""The largest ridge point, MAC/byte."""
RIDGE_POINTS = (0.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, MOST)
"""Those of the table."""
FITTED = {"Pixel 6 CPU": 31.2, "Galaxy S23 CPU": 39.7, "Pixel 4 DSP": 347.3, "Pixel 8 EdgeTPU": 433.8}
"""Ridge points that the paper fitted to latencies of int8 networks (Table 16)."""
REGIONS, LAYERS = 100, 10
"""Of a second stage, and in the table of layers, unless told otherwise."""


class Network(NamedTuple):
    """What is compared."""

    name: str
    size: Size
    """(height, width) of its input."""
    cost: NetworkCost
    """Up to the raw outputs, ready for inference; of two stages with the second, at the end."""
    regions: int | None = None
    """How many the second stage classifies; None where there is none."""

    def layers(self, *, unfused: bool = False) -> tuple[Operator, ...]:
        """Those that the model counts: convolutions and products, all other operators being computed along with them;
        unfused: every operator."""
        return tuple(each for each in self.cost.operators if unfused or each.macs)


def network(name: str, module: nn.Module, size: Size) -> Network:
    """Any network of images [1, 3, H, W] that is ready for inference."""
    return Network(name, size, network_cost(module, torch.empty(1, 3, *size, device="meta")))


def networks(
    names: Sequence[Path], overrides: Sequence[str] = (), *, size: Size | None = None, regions: int | None = None
) -> list[Network]:
    """Configs, changed by texts as of `--set`, and backbones by name, such as mobilenet_v3_large@0.75 for width 0.75.

    size: (height, width) of all inputs; None takes the config's, and 224 x 224 for backbones, which go up to c5.
    regions: that a second stage classifies, 100 unless given.

    FileNotFoundError for what is neither; ValueError for two of one name, and for settings that nothing takes.
    """
    if regions is not None and regions < 1:
        raise ValueError(f"regions must be at least 1, got {regions}")
    setup = Setup(size=size)
    of_configs = {name: path for name in names if (path := _config(name)) is not None}
    if overrides and not of_configs:
        raise ValueError("--set changes configs, and these are backbones; their width stands behind an @, as in "
                         f"{str(names[0]).partition('@')[0]}@0.75")
    stems = [path.stem for path in of_configs.values()]
    found = [
        _of_backbone(str(name), setup) if (path := of_configs.get(name)) is None
        else _of_config(path.stem if stems.count(path.stem) == 1 else str(path), path, overrides, setup, regions)
        for name in names]
    for position, one in enumerate(found):
        if any(one.name == other.name for other in found[:position]):
            raise ValueError(f"{one.name} is named twice; a network is compared with others")
    if regions is not None and all(one.regions is None for one in found):
        raise ValueError(f"--regions is for a second stage, and {', '.join(one.name for one in found)} has none")
    return found


def predicted(layers: Sequence[Operator], ridge: float, precision: Precision) -> float:
    """The predicted latency, in the time of one multiply-add at the hardware's peak."""
    return float(_curve(layers, np.array([ridge]), precision)[0])


def crossings(
    one: Sequence[Operator], other: Sequence[Operator], precision: Precision, *, most: float = MOST
) -> list[float]:
    """The ridge points up to `most` at which two networks change their order, exactly.

    Both latencies are straight between the ridge points at which a layer of theirs becomes memory bound.
    """
    bends = {layer.intensity(precision) for layer in (*one, *other)}
    ridges = np.array(sorted({0.0, most, *(bend for bend in bends if bend < most)}))
    difference = _curve(one, ridges, precision) - _curve(other, ridges, precision)
    unequal = np.flatnonzero(difference)
    found = []
    for before, after in pairwise(unequal.tolist()):
        if difference[before] * difference[after] < 0:
            # Where they are equal at bends in between, the first of these is the place.
            end = before + 1
            share = difference[before] / (difference[before] - difference[end])
            found.append(float(ridges[before] + (ridges[end] - ridges[before]) * share))
    return found


class Ranking(NamedTuple):
    """From the fastest to the slowest."""

    start: float
    """The ridge points from here to the end."""
    end: float
    names: tuple[str, ...]


class Roofline(NamedTuple):
    """Networks compared.

    ridge: the ridge point for which layers are listed, the heaviest `num_layers` of each network.
    """

    networks: tuple[Network, ...]
    precisions: tuple[Precision, ...] = ("int8",)
    unfused: bool = False
    ridge: float | None = None
    num_layers: int = LAYERS

    def check(self) -> None:
        """ValueError for numbers that make no sense."""
        if self.ridge is not None and not 0 <= self.ridge < float("inf"):
            raise ValueError(f"a ridge point is at least 0 MAC/byte, got {self.ridge}; CPUs have some tens, "
                             "accelerators some hundreds")
        if self.num_layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.num_layers}")

    def rankings(self, precision: Precision) -> list[Ranking]:
        """The order of the networks wherever it changes, for ridge points from 0 to MOST."""
        places = sorted({0.0, MOST, *(place for _, _, places in self.changes(precision) for place in places)})
        found: list[Ranking] = []
        for start, end in pairwise(places):
            times = {one.name: predicted(self._layers(one), (start + end) / 2, precision) for one in self.networks}
            names = tuple(sorted(times, key=times.__getitem__))
            if found and found[-1].names == names:
                found[-1] = found[-1]._replace(end=end)
            else:
                found.append(Ranking(start, end, names))
        return found

    def changes(self, precision: Precision) -> list[tuple[str, str, list[float]]]:
        """The pairs of networks that change their order, and at which ridge points."""
        pairs = [(one.name, other.name, crossings(self._layers(one), self._layers(other), precision))
                 for one, other in combinations(self.networks, 2)]
        return [pair for pair in pairs if pair[2]]

    def tables(self) -> list[tuple[str, Table]]:
        """With their titles: the sweep for each precision; with a ridge point, the heaviest layers of each network."""
        return [table for precision in self.precisions for table in self._tables(precision)]

    def notes(self) -> str:
        """What the numbers of the tables mean."""
        what = ("every operator, nothing fused" if self.unfused else
                "convolutions and products, all else computed along with them (--unfused counts every operator)")
        inputs = {one.name: f"{one.size[1]} x {one.size[0]}" for one in self.networks}
        same = len(set(inputs.values())) == 1
        lines = [
            f"predicted latency: the sum over layers of max(MACs, ridge point x bytes), relative to "
            f"{self.networks[0].name}; layers: {what}; MB: what they move; up to the raw outputs; input: "
            + (inputs[self.networks[0].name] if same else ", ".join(f"{name} {size}" for name, size in inputs.items())),
            "ridge point: peak MAC/s over peak byte/s of the hardware; fitted by the paper (Table 16, int8): "
            + ", ".join(f"{name} {place:.0f}" for name, place in FITTED.items())]
        for precision in self.precisions:
            if len(self.networks) > 1:
                lines += [f"{precision}, fastest first from {ranking.start:.1f} to {ranking.end:.1f} MAC/byte: "
                          + ", ".join(ranking.names) for ranking in self.rankings(precision)]
            for one, other, places in self.changes(precision):
                lines.append(f"{precision}: {one} and {other} change their order at "
                             f"{', '.join(f'{place:.1f}' for place in places)} MAC/byte")
        if self.ridge is not None:
            lines += ["bound: a layer is memory bound where the ridge point is above its MAC/B",
                      *(self._bound(one, precision, self.ridge)
                        for precision in self.precisions for one in self.networks)]
        lines += [f"{each.name}: the second stage for {each.regions} regions is in it; what cuts them is not"
                  for each in self.networks if each.regions is not None]
        return "\n".join(lines)

    def panels(self) -> list[list[Panel]]:
        """For a picture: a row for each precision, with the latencies, and with those relative to the first network."""
        ridges = np.concatenate([np.linspace(0, 1, 21), np.geomspace(1, MOST, 400)[1:]])
        rows = []
        for precision in self.precisions:
            curves = {one.name: _curve(self._layers(one), ridges, precision) / 1e9 for one in self.networks}
            first = self.networks[0].name
            label, marks = "ridge point, MAC/byte", FITTED if precision == "int8" else {}
            latency = Panel(
                title=f"Predicted latency, {precision}", x_label=label, y_label="time of 10⁹ MACs at their peak",
                x=ridges.tolist(), lines={name: curve.tolist() for name, curve in curves.items()}, log=True,
                marks=marks)
            relative = Panel(
                title=f"Relative to {first}, {precision}", x_label=label, y_label="predicted latency, ratio",
                x=ridges.tolist(), lines={name: (curve / curves[first]).tolist() for name, curve in curves.items()},
                marks=marks)
            rows.append([latency, relative] if len(curves) > 1 else [latency])
        return rows

    def as_json(self) -> dict[str, Any]:
        """Plain values; latencies in the time of one multiply-add at the hardware's peak."""
        return {
            "unfused": self.unfused, "ridge_points": list(RIDGE_POINTS), "torch": torch.__version__,
            "networks": [self._network_json(one) for one in self.networks],
            "rankings": {precision: [ranking._asdict() for ranking in self.rankings(precision)]
                         for precision in self.precisions},
            "changes": {precision: [{"networks": [one, other], "ridge_points": places}
                                    for one, other, places in self.changes(precision)]
                        for precision in self.precisions}}

    def _layers(self, one: Network) -> tuple[Operator, ...]:
        return one.layers(unfused=self.unfused)

    def _tables(self, precision: Precision) -> Iterator[tuple[str, Table]]:
        yield self._sweep(precision)
        if self.ridge is not None:
            yield from (self._layer_table(one, precision, self.ridge) for one in self.networks)

    def _sweep(self, precision: Precision) -> tuple[str, Table]:
        title = f"{precision}, predicted latency by ridge point in MAC/byte"
        table = _plain_table("", "M MACs", "MB", *(f"{ridge:g}" for ridge in RIDGE_POINTS))
        ridges = np.array(RIDGE_POINTS)
        first = _curve(self._layers(self.networks[0]), ridges, precision)
        for one in self.networks:
            layers = self._layers(one)
            table.add_row(
                one.name, f"{one.cost.macs / 1e6:,.0f}",
                f"{sum(layer.bytes(precision) for layer in layers) / 1e6:,.1f}",
                *(f"{ratio:.2f}" for ratio in _curve(layers, ridges, precision) / first))
        return title, table

    def _layer_table(self, one: Network, precision: Precision, ridge: float) -> tuple[str, Table]:
        layers = self._layers(one)
        whole = predicted(layers, ridge, precision)
        shown = sorted(layers, key=lambda layer: -_time(layer, ridge, precision))[:self.num_layers]
        title = f"{one.name}: the {len(shown)} heaviest of {len(layers)} layers at {ridge:g} MAC/byte, {precision}"
        table = _plain_table("layer", "kind", "M MACs", "KB", "MAC/B", "bound", "share")
        for layer in shown:
            table.add_row(
                layer.layer, layer.kind, f"{layer.macs / 1e6:,.2f}", f"{layer.bytes(precision) / 1e3:,.0f}",
                f"{layer.intensity(precision):.1f}", bound(layer, ridge, precision),
                f"{_time(layer, ridge, precision) / whole:.1%}")
        return title, table

    def _bound(self, one: Network, precision: Precision, ridge: float) -> str:
        layers = self._layers(one)
        compute = [layer for layer in layers if bound(layer, ridge, precision) == "compute"]
        share = predicted(compute, ridge, precision) / predicted(layers, ridge, precision)
        return (f"{one.name}, {precision}: at {ridge:g} MAC/byte {len(compute)} of {len(layers)} layers are compute "
                f"bound, and take {share:.0%} of the latency")

    def _network_json(self, one: Network) -> dict[str, Any]:
        layers, ridges = self._layers(one), np.array(RIDGE_POINTS)
        return {
            "name": one.name, "input_size": list(one.size), "regions": one.regions, "macs": one.cost.macs,
            "weight_bytes": {each: one.cost.weight_bytes(each) for each in self.precisions},
            "peak_activation_bytes": {each: one.cost.peak_bytes(each) for each in self.precisions},
            "predicted": {each: _curve(layers, ridges, each).tolist() for each in self.precisions},
            "layers": [
                {"layer": layer.layer, "kind": layer.kind, "macs": layer.macs} | {
                    each: {"bytes": layer.bytes(each), "intensity": layer.intensity(each)}
                    | ({} if self.ridge is None else {"bound": bound(layer, self.ridge, each)})
                    for each in self.precisions} for layer in layers]}


def _plain_table(*columns: str) -> Table:
    """Narrow, numbers to the right."""
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns:
        column.justify = "left" if column.header in ("", "layer", "kind", "bound") else "right"
    return table


def bound(layer: Operator, ridge: float, precision: Precision) -> str:
    """What a layer waits for on such hardware: "compute" or "memory"."""
    return "compute" if layer.macs >= ridge * layer.bytes(precision) else "memory"


def _curve(layers: Sequence[Operator], ridges: NDArray[np.float64], precision: Precision) -> NDArray[np.float64]:
    macs = np.array([layer.macs for layer in layers], dtype=np.float64)
    moved = np.array([layer.bytes(precision) for layer in layers], dtype=np.float64)
    return cast(NDArray[np.float64], np.maximum(macs, ridges[:, None] * moved).sum(axis=1))


def _time(layer: Operator, ridge: float, precision: Precision) -> float:
    return max(layer.macs, ridge * layer.bytes(precision))


def _config(name: Path) -> Path | None:
    """The file of a config; None for a backbone."""
    try:
        return find_config(name)
    except FileNotFoundError as error:
        if str(name).partition("@")[0] in builders():
            return None
        raise FileNotFoundError(f"{error}; nor is it one of the backbones {', '.join(builders())}") from error


def _of_config(name: str, path: Path, overrides: Sequence[str], setup: Setup, regions: int | None) -> Network:
    model = built(configs.load(path, overrides), setup).folded()
    height, width = model.resize.size
    found, stage = network(name, model, (height, width)), model.head.second_stage
    if stage is None:
        return found
    number = regions or REGIONS
    second = network_cost(stage, torch.empty(1, number, *cast(Any, stage).input_shape, device="meta"))
    return found._replace(cost=found.cost.followed_by(second, "head.second_stage"), regions=number)


def _of_backbone(name: str, setup: Setup) -> Network:
    known, _, width = name.partition("@")
    try:
        built_one = builders()[known](taps=("c5",), **({"width": float(width)} if width else {}))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    fold(built_one)
    return network(name, built_one, setup.size or SIZE)
