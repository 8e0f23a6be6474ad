"""A network's operators up to its raw outputs, as torch.export records them, and the layers they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from detseg.model import Predictor
from detseg.structures import Size

aten = torch.ops.aten
WEIGHTED = frozenset({aten.conv2d.default, aten.linear.default})
"""Operators with weights."""
ACTIVATIONS = frozenset({
    aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default})
"""What an operator with weights does besides, without a pass of its own: ReLU and ReLU6."""
HARD_SWISH = frozenset({aten.hardswish.default, aten.hardswish_.default})
HARD_SIGMOID = frozenset({aten.hardsigmoid.default, aten.hardsigmoid_.default})
BINARY = frozenset({aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor})
MEANS = frozenset({aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default})
CONSTANT = frozenset({aten.zeros_like.default, aten.ones_like.default, aten.full_like.default})
"""What gives the same numbers whatever it takes."""
_FLOAT_ONLY = frozenset({
    aten.bmm.default, aten.softmax.int, aten.matmul.default, aten.scaled_dot_product_attention.default,
    aten.gelu.default})
_DROPOUT = frozenset({aten.dropout.default, aten.feature_dropout.default})
HELD = "predictor"
"""Under which name a graph holds its network, where it does."""
_INNER = frozenset({"conv", "norm", "act", "gate"})
"""Parts of a layer that nobody names."""


class Statistics(NamedTuple):
    """Of what a node gave for the calibration images."""

    low: Tensor
    high: Tensor
    """The smallest and the largest number of each channel, [C]; [1] where it has no channels."""
    mean: Tensor
    """Of each channel, [C]."""
    histogram: Tensor | None = None
    """How many numbers lie in each of equal parts between the smallest and the largest of all; None where nobody asked
    for it, which takes a second pass over the images."""

    @property
    def range(self) -> tuple[float, float]:
        """Of all channels."""
        return float(self.low.min()), float(self.high.max())


class Point(NamedTuple):
    """An activation that int8 holds."""

    module: nn.Module
    """What observes it or rounds it; one may stand at several places, which share a range."""
    source: str
    """The node that gives it."""
    limits: tuple[float, float]
    """Beyond which numbers it makes no difference what it is."""


class Pair(NamedTuple):
    """Two operators with weights, of which the second alone takes what the first gives."""

    first: fx.Node
    activation: fx.Node | None
    second: fx.Node


def record(predictor: Predictor, size: Size) -> fx.GraphModule:
    """Images float [B, 3, H, W] of this size, in 0..255, to a network's raw outputs, for any B.

    predictor: folded, with contiguous weights.
    """
    example = torch.zeros(2, 3, *size)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(predictor, (example,), dynamic_shapes={"images": {0: batch}},
                                      strict=False)
    module: fx.GraphModule = program.module(check_guards=False)
    remove(module, _DROPOUT)  # it does nothing here, and would be taken for a layer
    for node in list(module.graph.nodes):
        if node.target is aten.batch_norm.default:  # pt2e would fold it, whoever else takes what is before it
            with module.graph.inserting_before(node):
                node.update_arg(0, module.graph.call_function(aten.clone.default, (node.args[0],)))
    module.recompile()
    return module


def remove(module: fx.GraphModule, operators: Collection[object]) -> None:
    """Takes operators out that give what they get, in place."""
    for node in list(module.graph.nodes):
        if node.target in operators:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()


def path_of(node: fx.Node) -> str:
    """Of the innermost module that a node is from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"@\d+", "", stack[-1][0]) if stack else ""


def layer_of(node: fx.Node) -> str:
    """The name of the layer that a node belongs to, as `--keep-float` takes it: "backbone.blocks.3.expand"."""
    *outer, last = path_of(node).split(".")
    return ".".join(outer if last in _INNER and outer else [*outer, last])


def is_within(layer: str, names: Sequence[str]) -> bool:
    """Whether a layer is one of those named, or a part of one."""
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


def layers(graph: fx.Graph) -> tuple[str, ...]:
    """All layers with weights, in their order."""
    return tuple(dict.fromkeys(layer_of(node) for node in graph.nodes if node.target in WEIGHTED))


def float_only(graph: fx.Graph) -> tuple[str, ...]:
    """Modules that stay in floating point because int8 has no operators for what they do: attention."""
    found = dict.fromkeys(path_of(node) for node in graph.nodes if node.target in _FLOAT_ONLY)
    return tuple(path for path in found if path and path.rpartition(".")[2] not in _INNER)


def activation_behind(node: fx.Node) -> fx.Node | None:
    """The ReLU or ReLU6 that alone takes what a node gives."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in ACTIVATIONS else None


def pairs(graph: fx.Graph) -> Iterator[Pair]:
    """All of them."""
    for node in graph.nodes:
        if node.target not in WEIGHTED:
            continue
        activation = activation_behind(node)
        last = node if activation is None else activation
        users = list(last.users)
        if len(users) == 1 and users[0].target in WEIGHTED and users[0].args[0] is last:
            yield Pair(node, activation, users[0])


def weight_name(node: fx.Node) -> str:
    """Of an operator with weights: the parameter's name in the network."""
    weight = node.args[1]
    assert isinstance(weight, fx.Node), node
    return str(weight.target)


def bias_name(node: fx.Node) -> str | None:
    """The same of its bias, if it has one."""
    bias = node.args[2] if len(node.args) > 2 else None
    return str(bias.target) if isinstance(bias, fx.Node) else None


def separate_biases(module: fx.GraphModule) -> None:
    """Gives each operator a bias of its own, in place, where several share one: as integers, a bias has the scale of
    what its operator takes, and these differ, as what is to be corrected does."""
    seen = set[str]()
    for node in list(module.graph.nodes):
        if node.target not in WEIGHTED or (name := bias_name(node)) is None:
            continue
        if name in seen:
            owner, _, last = name.rpartition(".")
            own = f"{last}_of_{node.name}"
            module.get_submodule(owner).register_parameter(own, nn.Parameter(attribute(module, name).detach().clone()))
            with module.graph.inserting_before(node):
                node.update_arg(2, module.graph.get_attr(f"{owner}.{own}" if owner else own))
        seen.add(name)
    module.recompile()


def flat(raw: Any) -> list[Tensor]:
    """Raw outputs as tensors."""
    return [leaf for leaf in tree_leaves(raw) if isinstance(leaf, Tensor)]


_BINS = 2048


class _Watched(fx.Interpreter):
    """Runs a graph and shows every tensor of floats that an operator gives, before others change it in place."""

    def __init__(self, module: fx.GraphModule, look: Callable[[str, Tensor], None]) -> None:
        super().__init__(module)
        self.look = look

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, Tensor) and result.is_floating_point():
            self.look(n.name, result)
        return result


@torch.no_grad()
def statistics(module: fx.GraphModule, batches: Sequence[Tensor]) -> dict[str, Statistics]:
    """Of every node that gives floats, by its name, over batches of images; without histograms."""
    lows, highs, totals, counts = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor](), dict[str, int]()

    def look(name: str, x: Tensor) -> None:
        channels = x.transpose(0, 1).flatten(1) if x.dim() == 4 else x.flatten()[None]
        low, high, total = channels.amin(1), channels.amax(1), channels.sum(1, dtype=torch.float64)
        if name in lows:
            low, high = torch.minimum(low, lows[name]), torch.maximum(high, highs[name])
            total = total + totals[name]
        lows[name], highs[name], totals[name] = low, high, total
        counts[name] = counts.get(name, 0) + channels.shape[1]

    for batch in batches:
        _Watched(module, look).run(batch)
    return {name: Statistics(low, highs[name], (totals[name] / counts[name]).float()) for name, low in lows.items()}


@torch.no_grad()
def with_histograms(
    module: fx.GraphModule, batches: Sequence[Tensor], found: Mapping[str, Statistics]
) -> dict[str, Statistics]:
    """What `statistics` found over the same images, and how it is spread within its range."""
    histograms = dict[str, Tensor]()

    def look(name: str, x: Tensor) -> None:
        least, most = found[name].range
        seen = torch.histc(x, _BINS, least, max(most, least + 1e-12))
        histograms[name] = seen + histograms[name] if name in histograms else seen

    for batch in batches:
        _Watched(module, look).run(batch)
    return {name: one._replace(histogram=histograms[name]) for name, one in found.items()}


def limits(node: fx.Node) -> tuple[float, float]:
    """Beyond which numbers it makes no difference what a node gives: h-swish makes 0 of everything below -3, and hard
    sigmoid knows nothing beyond 3. int8 need not hold them, and has finer steps for the rest."""
    users = list(node.users)
    if users and all(user.target in HARD_SWISH for user in users):
        return -3.0, math.inf
    if users and all(user.target in HARD_SIGMOID for user in users):
        return -3.0, 3.0
    return -math.inf, math.inf


def points(prepared: fx.GraphModule, predictor: nn.Module) -> dict[str, Point]:
    """The activations of a network that pt2e has prepared, by name, which is the same in training and in files: that of
    the module whose output it is, and behind a dot the operator where a module of several computes it. `:2` is the
    second of a name.

    Args:
        prepared: what `prepare_pt2e` gives.
        predictor: whose graph it is, or that it holds as `HELD`.
    """
    found, seen = dict[str, Point](), set[nn.Module]()
    for node in prepared.graph.nodes:
        if node.op != "call_module" or not isinstance(node.target, str) or node.args[0].op == "get_attr":
            continue
        module = prepared.get_submodule(node.target)
        if module in seen or not hasattr(module, "calculate_qparams"):
            continue
        seen.add(module)
        wanted = name = _activation_name(node.args[0], predictor)
        number = 1
        while name in found:
            number += 1
            name = f"{wanted}:{number}"
        found[name] = Point(module, node.args[0].name, limits(node))
    return found


def no_range(name: str) -> ValueError:
    """What is wrong with trained ranges that lack one."""
    return ValueError(f"the activation {name} has no trained range: the ranges are those of another network, or of "
                      "another version of detseg or torchao; detseg export --calibrate DIR takes them from images")


def _activation_name(node: fx.Node, predictor: nn.Module) -> str:
    if node.op == "placeholder":
        return "images"
    if node.op == "call_module":
        own = str(node.target)
        return own.removeprefix(f"{HELD}.") if own.startswith(f"{HELD}.") else _activation_name(
            node.args[0], predictor)  # type: ignore[arg-type]
    path, operator = path_of(node).removeprefix(HELD).removeprefix("."), str(node.target).split(".")[1].rstrip("_")
    is_leaf = next(predictor.get_submodule(path).children(), None) is None
    return path if path and is_leaf else f"{path}.{operator}".removeprefix(".")


def attribute(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its dotted name."""
    owner, _, last = name.rpartition(".")
    found = getattr(module.get_submodule(owner), last)
    assert isinstance(found, Tensor), name
    return found
