"""Fake quantisation by PyTorch 2 Export (pt2e), with the quantiser that ExecuTorch's XNNPACK files are made with.

A network becomes a graph in which every tensor that the file holds in 8 bits passes a module that rounds it so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
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
from detseg.quantization.recorded import path_of

FORM = "8 bits simulated"
"""What was done to such a network for inference: its `form`."""

_HELD = "predictor"
"""Under which name a graph holds its network."""
_aten = torch.ops.aten


class Traced(NamedTuple):
    """A network as a graph."""

    graph: fx.GraphModule
    """Images to the tensors of the raw outputs, flat. It holds the network as `predictor`, whose weights are used and
    whose BatchNorm, dropout and stochastic depth are called, so that these train, freeze and evaluate as ever."""
    outputs: TreeSpec
    """How the flat tensors become the head's raw outputs."""
    points: dict[str, nn.Module]
    """The fake quantisation of activations by where it stands: the name of the module whose output it is, and behind a
    dot the operator where a module of several computes it. One may stand at several places that share a range."""
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
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

        with _marked(predictor, norms=True):
            module, outputs = _exported(predictor, images, any_size=any_size)
        _hold(module, predictor)
        marks, norms = _cut_marks(module.graph, predictor)
        prepared = prepare_pt2e(module, _quantizer())
    points, weights = _fake_quantisation(prepared, predictor)
    graph = prepared.graph
    for node in _before_clamps(prepared):  # rounded behind them by the same range, which is equal
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        graph.erase_node(node)
    _hold(prepared, predictor)  # it was copied in parts, here and below
    nodes = {node.name: node for node in graph.nodes}
    for conv, path in norms.items():
        _normalise(nodes[conv], predictor, path)
    for mark in marks:
        user = nodes[mark.user]
        with graph.inserting_before(user):
            user.update_arg(mark.argument, graph.call_module(mark.layer, (user.args[mark.argument],)))
    graph.lint()
    whole = fx.GraphModule(prepared, graph)
    _hold(whole, predictor)
    return Traced(whole, outputs, points, weights)


def converted(predictor: Predictor, ranges: Mapping[str, Tensor], images: Tensor) -> fx.GraphModule:
    """Images to the flat raw outputs by 8-bit integers: what ExecuTorch lowers for XNNPACK.

    Args:
        predictor: the network, which is left as it is.
        ranges: [low, high] of its activations by name, as a checkpoint of a run with `qat` has them.
        images: an example; the graph takes so many, of this size.

    ValueError where the network cannot be recorded, or an activation has no range.
    """
    # ExecuTorch cannot lower weights that lie channels last.
    folded = predictor.folded().to(memory_format=torch.contiguous_format)
    with quiet(), torch.no_grad():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        with _marked(folded, norms=False):
            module, _ = _exported(folded, images, any_size=None)
        _part_shared_convolutions(module.graph)
        prepared = prepare_pt2e(module, _quantizer())
        points, _ = _fake_quantisation(prepared, folded)
        for name, fake in points.items():
            if name not in ranges:
                raise _no_range(name)
            set_range(fake, *ranges[name].to(images.device))
        prepared(images)  # shows the weights to their observers
        graph: fx.GraphModule = convert_pt2e(prepared)
    return graph


def _part_shared_convolutions(graph: fx.Graph) -> None:
    """torchao folds a BatchNorm into a convolution whose output others take as well; not with a copy in between."""
    for node in list(graph.nodes):
        if node.target is _aten.batch_norm.default and len(node.args[0].users) > 1:
            with graph.inserting_before(node):
                node.update_arg(0, graph.call_function(_aten.clone.default, (node.args[0],)))


def _hold(graph: fx.GraphModule, predictor: Predictor) -> None:
    del graph._modules[_HELD]
    graph.add_module(_HELD, predictor)


def _check_norms(predictor: Predictor) -> None:
    """ValueError for a BatchNorm that does more than normalise."""
    for path, module in predictor.named_modules():
        if isinstance(module, _BatchNorm) and type(module) is not nn.BatchNorm2d:
            raise ValueError(f"{path} is a {type(module).__name__}; qat knows nn.BatchNorm2d alone")


def _no_range(name: str) -> ValueError:
    return ValueError(f"the activation {name} has no trained range: the ranges are those of another network, or of "
                      "other versions of torchao and executorch")


_EPS = 2.0**-24
"""The smallest scale of 8-bit integers."""


def _quantizer() -> Any:
    """That of ExecuTorch's XNNPACK: weights by channel and symmetric, activations by tensor.

    Its own settings allow no scale below 2^-12, by which a channel whose weights are all below 0.008 has five bits left
    of eight; and its fused fake quantisation does not keep to that limit, so that files differ from training. Here
    scales may be small, in training and in files alike.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import FakeQuantize, MinMaxObserver, PerChannelMinMaxObserver

    usual = get_symmetric_quantization_config(is_per_channel=True)
    activations = replace(usual.input_activation, observer_or_fake_quant_ctr=FakeQuantize.with_args(
        observer=MinMaxObserver, eps=_EPS))
    weights = replace(usual.weight, observer_or_fake_quant_ctr=FakeQuantize.with_args(
        observer=PerChannelMinMaxObserver, eps=_EPS))
    quantizer = XNNPACKQuantizer()
    # There is none left, and it takes half a minute to be told so.
    quantizer.SUPPORTED_PATTERNS = [pattern for pattern in quantizer.SUPPORTED_PATTERNS if "bn" not in pattern.name]
    return quantizer.set_global(
        replace(usual, input_activation=activations, output_activation=activations, weight=weights))


def _exported(predictor: Predictor, images: Tensor, *, any_size: bool | None) -> tuple[fx.GraphModule, TreeSpec]:
    """As a graph of PyTorch's operators, and how its outputs are bundled; any_size: None, for so many images too."""
    outputs: list[TreeSpec] = []
    flat = _Flat(predictor, outputs.append)  # what it would keep itself is reset behind the recording
    free: Any = torch.export.Dim.DYNAMIC
    dimensions = {None: {}, False: {0: free}, True: {0: free, 2: free, 3: free}}[any_size]
    try:
        program = torch.export.export(flat, (images,), dynamic_shapes={"images": dimensions}, strict=False)
    except Exception as problem:
        raise ValueError(
            f"the network cannot be recorded for quantisation: {str(problem).strip().splitlines()[0]}") from problem
    return program.module(check_guards=False), outputs[-1]


@contextmanager
def _marked(predictor: Predictor, *, norms: bool) -> Iterator[None]:
    """Inside, dropout and stochastic depth leave one and the same operator behind in training, and else none; and so
    does BatchNorm where `norms`, in both."""
    modules = [module for module in predictor.modules()
               if _is_training_only(module) or (norms and isinstance(module, _BatchNorm))]
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
        path, before = _path(node), node.args[0]
        module = predictor.get_submodule(path)
        if isinstance(module, _BatchNorm):
            if before.target is _aten.conv2d.default and len(before.users) == 1:
                norms[before.name] = path
            else:
                with graph.inserting_before(node):
                    before = graph.call_module(f"{_HELD}.{path}", (before,))
                before.meta = dict(node.meta)  # the quantiser asks for shapes
        elif _is_training_only(module):
            training_only += [_Mark(f"{_HELD}.{path}", user.name, number)
                              for user in node.users for number, argument in enumerate(user.args) if argument is node]
        else:
            continue
        node.replace_all_uses_with(before)
        graph.erase_node(node)
    return training_only, norms


def _normalise(conv: fx.Node, predictor: Predictor, path: str) -> None:
    """Puts a BatchNorm back: what is rounded are the weights as they will be folded, and it sees what it would see."""
    graph, norm = conv.graph, predictor.get_submodule(path)
    assert isinstance(norm, nn.BatchNorm2d)
    rounded, bias = conv.args[1], conv.args[2] if len(conv.args) > 2 else None
    assert isinstance(rounded, fx.Node)
    place = rounded if rounded.op == "call_module" else conv  # a repeated use of weights is not rounded
    with graph.inserting_before(place):
        scale = graph.call_function(_folded_scale, (
            *(graph.get_attr(f"{_HELD}.{path}.{name}") for name in ("weight", "running_var")), norm.eps))
        weight = place.args[0] if place is rounded else rounded
        scaled = graph.call_function(_scaled, (weight, scale))
    place.update_arg(0 if place is rounded else 1, scaled)
    if bias is not None:
        conv.update_arg(2, None)
    users = list(conv.users)
    with graph.inserting_after(conv):
        unscaled = graph.call_function(_unscaled, (conv, scale, bias))
    with graph.inserting_after(unscaled):
        normalised = graph.call_module(f"{_HELD}.{path}", (unscaled,))
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


def _path(node: fx.Node) -> str:
    """Of the innermost module that a node is from, in the predictor."""
    return path_of(node).removeprefix(_HELD).removeprefix(".")


def _fake_quantisation(
    prepared: fx.GraphModule, predictor: Predictor
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Of activations and of weights, by name; of what several share the first name."""
    points, weights, seen = dict[str, nn.Module](), dict[str, nn.Module](), set[nn.Module]()
    left_out = _before_clamps(prepared)
    for node in prepared.graph.nodes:
        if node.op != "call_module" or node in left_out:
            continue
        module = prepared.get_submodule(node.target)
        if module in seen or isinstance(module, _BatchNorm):
            continue
        seen.add(module)
        source = node.args[0]
        if module.is_per_channel:
            while source.op != "get_attr":
                source = source.args[0]
            weights[source.target.removeprefix(f"{_HELD}.")] = module
        else:
            wanted = name = _name(source, predictor)
            number = 1
            while name in points:
                number += 1
                name = f"{wanted}:{number}"
            points[name] = module
    return points, weights


def _before_clamps(prepared: fx.GraphModule) -> list[fx.Node]:
    """The fake quantisation between a convolution and its ReLU6, which shares that behind it.

    Its range is that of what comes out of the ReLU6: what lies beyond is cut off by either. A range that also held what
    goes in would leave half of the 256 steps unused.
    """
    modules = {node: prepared.get_submodule(node.target) for node in prepared.graph.nodes if node.op == "call_module"}
    return [node for node, module in modules.items() if node.users and all(
        user.target in _CLAMPS and any(modules.get(after) is module for after in user.users) for user in node.users)]


_CLAMPS = {_aten.hardtanh.default, _aten.hardtanh_.default, _aten.relu.default, _aten.relu_.default}


def _name(node: fx.Node, predictor: Predictor) -> str:
    """What a tensor is called."""
    if node.op == "placeholder":
        return "images"
    if node.op == "get_attr":
        if str(node.target).startswith(f"{_HELD}."):
            return str(node.target).removeprefix(f"{_HELD}.")
        return f"{_name(next(iter(next(iter(node.users)).users)), predictor)}.constant"  # of an operator behind
    if node.op == "call_module":
        return _name(node.args[0], predictor)  # type: ignore[arg-type]
    path, operator = _path(node), str(node.target).split(".")[1].rstrip("_")
    is_leaf = next(predictor.get_submodule(path).children(), None) is None
    return path if path and is_leaf else f"{path}.{operator}".removeprefix(".")


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
        for name, module in self.traced.points.items():
            if name not in ranges:
                raise _no_range(name)
            set_range(module, *ranges[name].to(self.device))
