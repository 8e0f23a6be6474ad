"""What int8 costs a network, layer by layer, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, fx

from detseg.quantization.post_training import PostTraining, Recipe, snr
from detseg.quantization.recorded import (
    BINARY,
    HARD_SWISH,
    WEIGHTED,
    Statistics,
    activation_behind,
    aten,
    attribute,
    flat,
    is_within,
    layer_of,
    limits,
    weight_name,
)

_WORST = 5
_WIDE = 8.0
"""From how many times the median on a channel's range is far from the others'."""
_IMAGES = 8


class LayerFigures(NamedTuple):
    """Of one layer."""

    name: str
    kind: str
    """"depthwise", "pointwise", "convolution" or "linear"."""
    own: float
    """Signal to quantisation noise of its output, in dB, when it alone is computed in int8."""
    alone: float
    """The same of the raw output that suffers most."""
    accumulated: float
    """The same of its own output when all layers are computed in int8."""
    low: float
    high: float
    """What it gave in floating point, behind its ReLU."""
    int8_low: float
    int8_high: float
    """What int8 can hold of it."""
    weight_spread: float
    """The largest weight of the largest channel over that of the median channel."""
    range_spread: float
    """The range of the largest channel of its output over that of the median channel."""
    dead: int
    """Channels that always give the same."""
    cause: str = ""
    """Of the worst: what its noise probably comes from."""
    remedy: str = ""


@dataclass(frozen=True)
class LayerReport:
    """Of all layers, in the network's order."""

    layers: tuple[LayerFigures, ...]

    @property
    def worst(self) -> tuple[LayerFigures, ...]:
        """Those that cost the raw outputs most, the worst first; as many as are worth naming."""
        return tuple(sorted(self.layers, key=lambda layer: layer.alone))[:_WORST]

    @property
    def order(self) -> tuple[str, ...]:
        """All layers, those first that cost most."""
        return tuple(layer.name for layer in sorted(self.layers, key=lambda layer: layer.alone))

    def as_json(self) -> list[dict[str, Any]]:
        """Plain values."""
        return [{name: None if isinstance(value, float) and not math.isfinite(value) else value
                 for name, value in layer._asdict().items()} for layer in self.layers]

    def table(self, *, number: int | None = None) -> Table:
        """The layers that cost most, or all."""
        table = Table("layer", "kind", "alone, dB", "own", "accumulated", "gave", "int8 holds", "weights", "channels",
                      "dead")
        for column in table.columns[2:]:
            column.justify = "right"
        for layer in sorted(self.layers, key=lambda one: one.alone)[:number]:
            table.add_row(
                layer.name, layer.kind, *(f"{value:.1f}" for value in (layer.alone, layer.own, layer.accumulated)),
                f"{layer.low:.3g} .. {layer.high:.3g}", f"{layer.int8_low:.3g} .. {layer.int8_high:.3g}",
                f"{layer.weight_spread:.1f}", f"{layer.range_spread:.1f}", f"{layer.dead or ''}")
        return table

    def notes(self) -> list[str]:
        """The worst by name, with the likely cause and what helps."""
        return [f"{layer.name} ({layer.alone:.1f} dB): {layer.cause}; {layer.remedy}" for layer in self.worst]


class _Kept(fx.Interpreter):
    """Keeps what some operators gave; in an int8 network, only the layers of `active` quantise what they give and their
    weights, or all where that is None."""

    def __init__(
        self, module: fx.GraphModule, wanted: Collection[str], *, active: Collection[str] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(module)
        self.wanted, self.active, self.weights = wanted, active, weights or {}
        self.kept = dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        if self.active is not None and _quantizes(n) and self._owner(n) not in self.active:
            value = self.fetch_args_kwargs_from_env(n)[0][0]
            source = n.args[0]
            if isinstance(source, fx.Node) and source.op == "get_attr" and "dequantize" in str(n.target):
                return self.weights[_user(n).name]
            return value
        result = super().run_node(n)
        if n.name in self.wanted:
            self.kept[n.name] = result.clone()  # activations behind it work in place
        return result

    def _owner(self, n: fx.Node) -> str:
        """The layer whose output or weight passes here; of the input, the first that takes it."""
        source = n.args[0]
        assert isinstance(source, fx.Node)
        if _quantizes(source):
            return self._owner(source)
        if source.op == "get_attr":
            return layer_of(_user(n))
        return layer_of(source) or layer_of(_user(n))


def _user(n: fx.Node) -> fx.Node:
    """The first operator behind the nodes that quantise and dequantise."""
    user = next(iter(n.users))
    return _user(user) if _quantizes(user) else user


def _quantizes(n: fx.Node) -> bool:
    """Whether a node quantises or dequantises; these operators exist once torchao is imported."""
    return str(n.target).startswith("quantized_decomposed.")


@torch.no_grad()
def layer_report(
    network: PostTraining, recipe: Recipe, *, progress: Callable[[int, int], None] = lambda *_: None
) -> LayerReport:
    """What each layer costs that the recipe computes in int8.

    Args:
        network: calibrated.
        recipe: without equalisation and correction, which would hide the causes.
        progress: hears how many layers are done, and of how many.
    """
    graph = network.float_module.graph
    images = network.batches[0][:_IMAGES]
    seen = network.statistics(recipe.ranges)
    module, ranges = network.converted(recipe)
    ends = {layer_of(node): node for node in graph.nodes if node.target in WEIGHTED}
    outputs = {name: (activation_behind(node) or node).name for name, node in ends.items()}
    names = set(outputs.values())
    reference = _Kept(network.float_module, names)
    wanted = flat(reference.run(images))
    weights = {node.name: attribute(network.float_module, weight_name(node)) for node in graph.nodes
               if node.target in WEIGHTED}
    whole = _Kept(module, names)
    whole.run(images)
    kept = tuple(recipe.keep_float) + network.float_only
    found = []
    measured = [name for name in ends if not is_within(name, kept)]
    for number, name in enumerate(measured):
        progress(number, len(measured))
        partly = _Kept(module, {outputs[name]}, active={name}, weights=weights)
        raw = flat(partly.run(images))
        node, statistics = ends[name], seen[outputs[name]]
        # What is kept is the layer's output before it is quantised itself.
        int8_low, int8_high = ranges[outputs[name]]
        least, most = limits(activation_behind(node) or node)
        truth = reference.kept[outputs[name]].clamp(least, most)
        own = snr(truth, _rounded(partly.kept[outputs[name]], int8_low, int8_high))
        accumulated = snr(truth, _rounded(whole.kept[outputs[name]], int8_low, int8_high))
        low, high = statistics.range
        channels = torch.maximum(statistics.high.abs(), statistics.low.abs())
        found.append(LayerFigures(
            name, _kind(node), own, min(snr(a, b) for a, b in zip(wanted, raw, strict=True)), accumulated, low, high,
            int8_low, int8_high, _spread(weights[node.name].abs().flatten(1).amax(1)), _spread(channels),
            int((statistics.high - statistics.low < 1e-6).sum())))
    progress(len(measured), len(measured))
    worst = {layer.name for layer in LayerReport(tuple(found)).worst}
    return LayerReport(tuple(
        _explained(layer, ends[layer.name], seen, per_channel=recipe.per_channel) if layer.name in worst else layer
        for layer in found))


def _rounded(x: Tensor, low: float, high: float) -> Tensor:
    """As int8 holds it."""
    scale = max((high - low) / 255, 1e-12)
    zero = round(-128 - low / scale)
    return (((x / scale).round() + zero).clamp(-128, 127) - zero) * scale


def _spread(values: Tensor) -> float:
    """The largest over the median of those that are not nothing."""
    used = values[values > 1e-9]
    return float(used.max() / used.median()) if len(used) else 1.0


def _kind(node: fx.Node) -> str:
    if node.target is aten.linear.default:
        return "linear"
    weight = node.args[1].meta["val"]  # type: ignore[union-attr]
    if weight.shape[1] == 1 and weight.shape[0] > 1:
        return "depthwise"
    return "pointwise" if tuple(weight.shape[2:]) == (1, 1) else "convolution"


def _explained(
    layer: LayerFigures, node: fx.Node, statistics: Mapping[str, Statistics], *, per_channel: bool
) -> LayerFigures:
    """With the likely cause of its noise, and what helps."""
    cause, remedy = _cause(layer, node, statistics, per_channel=per_channel)
    return layer._replace(cause=cause, remedy=remedy)


def _cause(
    layer: LayerFigures, node: fx.Node, statistics: Mapping[str, Statistics], *, per_channel: bool
) -> tuple[str, str]:
    """The likely cause, and what helps."""
    last = activation_behind(node) or node
    users = list(last.users)
    if not per_channel and layer.weight_spread > _WIDE:
        return (f"wide {layer.kind} spread: the weights of one channel are {layer.weight_spread:.0f} times those of "
                "the median channel, and all share a scale",
                "a scale for each channel, Recipe(per_channel=True)")
    if ".squeeze" in layer.name:
        return ("squeeze-excite gate: its few numbers scale whole channels, and one scale holds them all",
                f"--keep-float {layer.name} costs next to no time")
    if any(user.target in HARD_SWISH for user in users):
        return (f"h-swish tail: it gives {layer.low:.3g} .. {layer.high:.3g}, and the numbers about 0, where "
                         "h-swish bends, get few of the steps",
                f"--keep-float {layer.name}, --ranges mse, or a network with relu6")
    if layer.range_spread > _WIDE:
        return (f"wide spread: one channel of its output has {layer.range_spread:.0f} times the range of the "
                         "median channel, and all share a scale",
                "equalisation where a ReLU follows, or quantisation-aware training")
    for user in users:
        if user.target in BINARY and len(user.args) == 2:
            ranges = [statistics[one.name].range for one in user.args
                      if isinstance(one, fx.Node) and one.name in statistics]
            sizes = [max(high - low, 1e-12) for low, high in ranges]
            if len(sizes) == 2 and max(sizes) / min(sizes) > _WIDE:
                return ("shared scale: it is added to something of another range, "
                                 f"{max(sizes) / min(sizes):.0f} times as wide",
                        f"--keep-float {layer.name}")
    return ("rounding of weights and outputs; nothing about it stands out",
            f"--keep-float {layer.name}, or quantisation-aware training")
