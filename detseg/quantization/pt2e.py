"""Fake quantisation by PyTorch 2 Export (pt2e), of the tensors that int8 files hold (`detseg.quantization.quantizer`).

A network becomes a graph in which every tensor that the file holds in 8 bits passes a module that rounds it so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torchvision.ops import StochasticDepth

from detseg.model import Predictor
from detseg.predict import Recomputed
from detseg.quantization.packages import quiet
from detseg.quantization.recorded import HELD, Point, no_range, path_of, points

FORM = "8 bits simulated"
"""What was done to such a network for inference: its `form`."""

_aten = torch.ops.aten


class Traced(NamedTuple):
    """A network as a graph."""

    graph: fx.GraphModule
    """Images to the tensors of the raw outputs, flat. It holds the network as `predictor`, whose weights are used and
    whose BatchNorm, dropout and stochastic depth are called, so that these train, freeze and evaluate as ever."""
    outputs: TreeSpec
    """How the flat tensors become the head's raw outputs."""
    points: dict[str, Point]
    """The fake quantisation of activations by where it stands, see `detseg.quantization.recorded.points`."""
    weights: dict[str, nn.Module]
    """The fake quantisation of weights by the name of the weight."""

    def raw(self, images: Tensor) -> Any:
        """The head's raw outputs."""
        return tree_unflatten(list(self.graph(images)), self.outputs)


class _Flat(nn.Module):
    """A predictor whose raw outputs are a flat tuple; it tells how they were bundled."""

    def __init__(self, predictor: Predictor, tell: Callable[[TreeSpec], None]) -> None:
        super().__init__()
        self.predictor, self.tell = predictor, tell

    def forward(self, images: Tensor) -> tuple[Any, ...]:
        leaves, outputs = tree_flatten(self.predictor(images))
        self.tell(outputs)
        return tuple(leaves)


def trace(predictor: Predictor, images: Tensor, *, any_size: bool = False) -> Traced:
    """The network with fake quantisation, in the mode it is in: evaluation, folded, or training.

    torchao's `prepare_qat_pt2e` does the same, but puts PyTorch's default epsilon and momentum in place of BatchNorm's
    own, divides by zero in a dead channel, and takes long to search for patterns. Here the quantiser sees the network
    without BatchNorm, as it sees the file's, and BatchNorm is put back behind its convolution.

    Args:
        predictor: becomes a part of the graph, and is left as it is.
        images: two or more, an example: the graph takes any number of images of this size.
        any_size: of any size instead.

    ValueError where the network cannot be recorded.
    """
    _check_norms(predictor)
    with quiet():
        from detseg.quantization.quantizer import Int8Quantizer, prepared

        with _marked(predictor):
            module, outputs = _exported(predictor, images, any_size=any_size)
        _hold(module, predictor)
        marks, norms = _cut_marks(module.graph, predictor)
        fake = prepared(module, Int8Quantizer(fake=True))
    found, weights = points(fake, predictor), _weights(fake)
    graph = fake.graph
    _hold(fake, predictor)  # it was copied in parts, here and below
    nodes = {node.name: node for node in graph.nodes}
    for conv, path in norms.items():
        _part_weight(nodes[conv], fake, weights)
        _normalise(nodes[conv], predictor, path)
    for mark in marks:
        user = nodes[mark.user]
        with graph.inserting_before(user):
            user.update_arg(mark.argument, graph.call_module(mark.layer, (user.args[mark.argument],)))
    graph.lint()
    whole = fx.GraphModule(fake, graph)
    _hold(whole, predictor)
    return Traced(whole, outputs, found, weights)


def _hold(graph: fx.GraphModule, predictor: Predictor) -> None:
    del graph._modules[HELD]
    graph.add_module(HELD, predictor)


def _check_norms(predictor: Predictor) -> None:
    """ValueError for a BatchNorm that does more than normalise."""
    for path, module in predictor.named_modules():
        if isinstance(module, _BatchNorm) and type(module) is not nn.BatchNorm2d:
            raise ValueError(f"{path} is a {type(module).__name__}; qat knows nn.BatchNorm2d alone")


def _exported(predictor: Predictor, images: Tensor, *, any_size: bool) -> tuple[fx.GraphModule, TreeSpec]:
    """As a graph of PyTorch's operators, for any number of images, and how its outputs are bundled."""
    outputs: list[TreeSpec] = []
    flat = _Flat(predictor, outputs.append)  # what it would keep itself is reset behind the recording
    free: Any = torch.export.Dim.DYNAMIC
    dimensions = {0: free, 2: free, 3: free} if any_size else {0: free}
    try:
        program = torch.export.export(flat, (images,), dynamic_shapes={"images": dimensions}, strict=False)
    except Exception as problem:
        raise ValueError(
            f"the network cannot be recorded for quantisation: {str(problem).strip().splitlines()[0]}") from problem
    return program.module(check_guards=False), outputs[-1]


@contextmanager
def _marked(predictor: Predictor) -> Iterator[None]:
    """Inside, dropout and stochastic depth leave one and the same operator behind in training, and else none; and so
    does BatchNorm in both."""
    modules = [module for module in predictor.modules()
               if _is_training_only(module) or isinstance(module, _BatchNorm)]
    for module in modules:
        module.forward = _mark if module.training or isinstance(module, _BatchNorm) else _nothing
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _is_training_only(module: nn.Module) -> bool:
    return isinstance(module, _DropoutNd | StochasticDepth)


def _mark(x: Tensor) -> Tensor:
    return torch.dropout(x, 0.5, train=True)


def _nothing(x: Tensor) -> Tensor:
    return x


class _Mark(NamedTuple):
    """A place of a layer that does something in training alone."""

    layer: str
    """In the graph."""
    user: str
    """The node that takes what the layer gives."""
    argument: int
    """As which of its arguments."""


def _cut_marks(graph: fx.Graph, predictor: Predictor) -> tuple[list[_Mark], dict[str, str]]:
    """Takes the marks out, as a file has nothing in their place, and says where they were.

    Of BatchNorm, which one stands behind a convolution; one that does not is called where it stands.
    """
    training_only, norms = list[_Mark](), dict[str, str]()
    for node in list(graph.nodes):
        if node.target is not _aten.dropout.default:
            continue
        path, before = path_of(node).removeprefix(f"{HELD}."), node.args[0]
        module = predictor.get_submodule(path)
        if isinstance(module, _BatchNorm):
            if before.target is _aten.conv2d.default and len(before.users) == 1:
                norms[before.name] = path
            else:
                with graph.inserting_before(node):
                    before = graph.call_module(f"{HELD}.{path}", (before,))
                before.meta = dict(node.meta)  # the quantiser asks for shapes
        elif _is_training_only(module):
            training_only += [_Mark(f"{HELD}.{path}", user.name, number)
                              for user in node.users for number, argument in enumerate(user.args) if argument is node]
        else:
            continue
        node.replace_all_uses_with(before)
        graph.erase_node(node)
    return training_only, norms


def _part_weight(conv: fx.Node, prepared: fx.GraphModule, weights: dict[str, nn.Module]) -> None:
    """Gives a convolution that shares its weight with others a fake quantisation of its own: each BatchNorm behind them
    scales the weight in its own way."""
    rounded = conv.args[1]
    if not isinstance(rounded, fx.Node) or rounded.op != "call_module" or len(rounded.users) == 1:
        return
    name = f"{rounded.target}_{conv.name}"
    module = copy.deepcopy(prepared.get_submodule(str(rounded.target)))
    prepared.add_submodule(name, module)
    with conv.graph.inserting_before(conv):
        conv.update_arg(1, conv.graph.call_module(name, rounded.args))
    weights[name] = module


def _normalise(conv: fx.Node, predictor: Predictor, path: str) -> None:
    """Puts a BatchNorm back: what is rounded are the weights as they will be folded, and it sees what it would see."""
    graph, norm = conv.graph, predictor.get_submodule(path)
    assert isinstance(norm, nn.BatchNorm2d)
    rounded, bias = conv.args[1], conv.args[2] if len(conv.args) > 2 else None
    assert isinstance(rounded, fx.Node)
    place = rounded if rounded.op == "call_module" else conv  # attention's is not rounded
    with graph.inserting_before(place):
        scale = graph.call_function(_folded_scale, (
            *(graph.get_attr(f"{HELD}.{path}.{name}") for name in ("weight", "running_var")), norm.eps))
        weight = place.args[0] if place is rounded else rounded
        scaled = graph.call_function(_scaled, (weight, scale))
    place.update_arg(0 if place is rounded else 1, scaled)
    if bias is not None:
        conv.update_arg(2, None)
    users = list(conv.users)
    with graph.inserting_after(conv):
        unscaled = graph.call_function(_unscaled, (conv, scale, bias))
    with graph.inserting_after(unscaled):
        normalised = graph.call_module(f"{HELD}.{path}", (unscaled,))
    for user in users:
        user.replace_input_with(conv, normalised)


def _folded_scale(weight: Tensor, variance: Tensor, eps: float) -> Tensor:
    """[C]: by what folding multiplies; that of a dead channel, 0, is kept from it."""
    scale = weight * torch.rsqrt(variance + eps)
    return torch.where(scale.abs() < _SMALLEST_SCALE, _SMALLEST_SCALE, scale)


_SMALLEST_SCALE = 1e-12


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    return weight * scale.view(-1, 1, 1, 1)


def _unscaled(x: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    x = x / scale.view(1, -1, 1, 1)
    return x if bias is None else x + bias.view(1, -1, 1, 1)


def _weights(prepared: fx.GraphModule) -> dict[str, nn.Module]:
    """The fake quantisation of weights by name."""
    found = dict[str, nn.Module]()
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.args[0].op == "get_attr":
            found.setdefault(node.args[0].target.removeprefix(f"{HELD}."), prepared.get_submodule(node.target))
    return found


def set_range(module: nn.Module, low: Tensor, high: Tensor) -> None:
    """Gives fake quantisation a range, and the scale and zero point that a file has for it; it keeps them."""
    observer: Any = module.activation_post_process
    observer.min_val, observer.max_val = low.detach().clone(), high.detach().clone()
    scale, zero_point = module.calculate_qparams()  # type: ignore[operator]
    module.scale, module.zero_point = scale, zero_point
    module.disable_observer()  # type: ignore[operator]


def watch_next(module: nn.Module) -> None:
    """Fake quantisation of weights takes the range of what it sees next, whatever it has seen before."""
    module.activation_post_process.reset_min_max_vals()  # type: ignore[union-attr, operator]
    module.enable_observer()  # type: ignore[operator]


class Simulated(Recomputed):
    """A network as its 8-bit file computes it: what evaluates and predicts in the place of a `Predictor`.

    Decoding and suppression, and the second stage of a detector that has one, stay in floating point.

    Args:
        predictor: the network; the graph is that of a copy made ready for inference.
        any_size: for images of any size, which not every network allows; else of `predictor.resize.size`.
    """

    @property
    def form(self) -> str:
        """What was done to it for inference."""
        return FORM

    def __init__(self, predictor: Predictor, *, any_size: bool = False) -> None:
        folded = predictor.ready()
        example = torch.zeros(2, 3, *folded.resize.size, device=folded.device)
        self.example = example.contiguous(memory_format=torch.channels_last)
        self.traced = trace(folded, self.example, any_size=any_size)
        super().__init__(folded)
        self.set_weights(folded)

    def __call__(self, images: Tensor) -> Any:
        """float [B, 3, H, W] RGB, 0..255, to the head's raw predictions."""
        return self.traced.raw(images)

    @torch.no_grad()
    def set_weights(self, predictor: Predictor) -> None:
        """Takes the weights of a network of the same make, and the ranges of each of their channels."""
        self.predictor.load_state_dict(predictor.ready().state_dict())
        for module in self.traced.weights.values():
            watch_next(module)
        self.traced.graph(self.example[:1])
        for module in self.traced.weights.values():
            module.disable_observer()  # type: ignore[operator]

    @torch.no_grad()
    def set_ranges(self, ranges: Mapping[str, Tensor]) -> None:
        """Takes the ranges of activations, [low, high] by name. ValueError where one has none."""
        for name, point in self.traced.points.items():
            if name not in ranges:
                raise no_range(name)
            set_range(point.module, *ranges[name].to(self.device))
