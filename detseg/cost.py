"""What a network costs: parameters, multiply-adds, memory and time, as a whole and operator by operator."""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any, NamedTuple

import cv2
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from detseg.choices import Precision

_ATEN = torch.ops.aten
_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
_BIAS_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 4}
"""Every runtime keeps the biases of an int8 network in 32 bits."""
_UNTAGGED = ("hardswish",)
"""What works number by number, though PyTorch does not tag it so."""
_PRODUCTS = (_ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm)

_UNCOUNTED = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid)
"""Layers without multiply-adds that leave the shape as it is; to trace them takes three quarters of a count's time."""


def count_parameters(module: nn.Module) -> int:
    """Numbers in all parameters, each counted once where it is shared; buffers are not parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, *inputs: object) -> int:
    """Multiply-adds of convolutions and matrix products in one forward pass, as papers count them.

    Counts for the batch that `inputs` are: tensors or dicts of tensors, of which only shape and type matter (anything
    else is passed as it is). It works on a copy without numbers, in evaluation mode: nothing is computed, and
    `module` stays as it is. Normalisation, activations and interpolation are not counted.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _without_uncounted(_weightless(module))(*(_without_numbers(value) for value in inputs))
    operations = int(counter.get_total_flops())
    assert operations % 2 == 0, "torch counts a multiply-add as two"
    return operations // 2


class Operator(NamedTuple):
    """One call of an operator in a forward pass. Sizes are counts of numbers, whatever type they will have."""

    layer: str
    """The dotted name of the module that calls it; "" is the network itself."""
    kind: str
    """As in "conv 3x3", "depthwise 5x5", "linear", "matmul", or the operator's name in PyTorch."""
    macs: int
    """Multiply-adds; 0 of all that is no convolution and no matrix product."""
    weights: int
    biases: int
    """Weights in vectors."""
    inputs: int
    """Activations that it reads."""
    outputs: int
    """Activations that it writes."""

    def bytes(self, precision: Precision) -> int:
        """What it moves: weights, activations that it reads and activations that it writes, each once."""
        return stored_bytes(self.weights, self.biases, precision) + (self.inputs + self.outputs) * _BYTES[precision]

    def intensity(self, precision: Precision) -> float:
        """Its operational intensity: multiply-adds a byte."""
        return self.macs / self.bytes(precision)


class NetworkCost(NamedTuple):
    """A forward pass operator by operator, and the memory that it needs."""

    operators: tuple[Operator, ...]
    """In the order of their calls, without those that only look at a tensor in another shape."""
    weights: int
    """All that the operators read, each number once."""
    biases: int
    peak_activations: int
    """Numbers in the activations that are needed at the same time, at most: while an operator runs its inputs, its
    outputs and all that a later operator or the caller reads; the image is one of them. An operator that works number
    by number, such as an activation or an addition, writes over an input that nobody needs afterwards. Weights and what
    an operator needs inside are not counted."""
    peak_layer: str
    """The operator's layer."""

    @property
    def macs(self) -> int:
        """Of all operators."""
        return sum(operator.macs for operator in self.operators)

    def weight_bytes(self, precision: Precision) -> int:
        """All weights; at int8, biases have four bytes."""
        return stored_bytes(self.weights, self.biases, precision)

    def peak_bytes(self, precision: Precision) -> int:
        """The most that activations take at the same time."""
        return self.peak_activations * _BYTES[precision]

    def followed_by(self, other: NetworkCost, layer: str) -> NetworkCost:
        """With the cost of a part that runs afterwards and is called `layer`; the two have no weights in common, and
        nothing lives on from one to the other."""
        operators = tuple(each._replace(layer=f"{layer}.{each.layer}".removesuffix(".")) for each in other.operators)
        peak = max((self.peak_activations, self.peak_layer), (other.peak_activations, f"{layer}.{other.peak_layer}"))
        return NetworkCost(
            self.operators + operators, self.weights + other.weights, self.biases + other.biases, *peak)


def stored_bytes(weights: int, biases: int, precision: Precision) -> int:
    """Bytes of so many numbers."""
    return weights * _BYTES[precision] + biases * _BIAS_BYTES[precision]


def network_cost(module: nn.Module, *inputs: object) -> NetworkCost:
    """What one forward pass costs, operator by operator, for the batch that `inputs` are.

    Nothing is computed, as in `count_macs`, whose count is the sum of the operators'. A layer that is called several
    times is in the list as often. Fold BatchNorm before (`Predictor.folded`), or it is an operator of its own.
    """
    recorded = _record(module, *inputs)
    calls = recorded.operators()
    of_weights = {_storage(tensor): tensor for call in calls for tensor in call.read if recorded.is_weight(tensor)}
    biases = sum(tensor.numel() for tensor in of_weights.values() if tensor.dim() == 1)
    peak, layer = _peak(recorded, calls)
    return NetworkCost(
        tuple(_operator(call, recorded) for call in calls),
        sum(tensor.numel() for tensor in of_weights.values()) - biases, biases, peak, layer)


def count_tensorflow_macs(module: nn.Module, *inputs: object) -> int:
    """Multiply-adds of one forward pass as TensorFlow's profiler has them: half of its floating point operations.

    Google's tables from MobileNetV3 on count so. To two operations for each multiply-add of a convolution or product
    it adds one for each number that an addition, a multiplication or a bias gives, and for each that a mean takes in:
    three for h-swish, two for the hard sigmoid, five for softmax. BatchNorm, ReLU, sigmoid and resizing are free: give
    the network as it is trained, not folded.
    """
    calls = _record(module, *inputs).operators()
    return sum(2 * _macs(call) + _elementwise_flops(call) for call in calls) // 2


class Timing(NamedTuple):
    """How long one call of a function took, in milliseconds, over the rounds of `time_alternating`."""

    median: float
    minimum: float
    p90: float
    """Nine of ten rounds were as fast or faster."""
    ratio: float
    """Median over the rounds of this function's time by that of the first one in the same round. On a machine whose
    speed drifts it says more than the quotient of the medians: both times of a round saw the same machine."""
    runs: int
    """Calls that were measured."""


def time_alternating(
    functions: Mapping[str, Callable[[], object]], *, seconds: float, warmup: int = 3, block: int = 1
) -> dict[str, Timing]:
    """Times functions against each other, in turns, for about `seconds` in all and at least three rounds.

    In a round every function runs `block` times in a row, in the order given and in the next round in reverse, and
    the mean of the block is its time. Before that each runs `warmup` times. A function that starts work on a device
    must wait for its end. Garbage is collected between the rounds only.
    """
    if not functions:
        raise ValueError("there is nothing to time: give at least one function")
    if seconds < 0 or warmup < 0 or block < 1:
        raise ValueError(f"seconds and warmup must be 0 or more and block 1 or more, got {seconds}, {warmup}, {block}")
    for function in functions.values():
        for _ in range(warmup):
            function()
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    end = time.perf_counter() + seconds
    done = 0
    while done < 3 or time.perf_counter() < end:
        gc.collect()
        with _uncollected():
            for name in order:
                rounds[name].append(_block_ms(functions[name], block))
        order.reverse()
        done += 1
    first = next(iter(rounds.values()))
    return {
        name: Timing(
            median=statistics.median(times),
            minimum=min(times),
            p90=statistics.quantiles(times, n=10, method="inclusive")[-1],
            ratio=statistics.median(mine / base for mine, base in zip(times, first, strict=True)),
            runs=done * block,
        )
        for name, times in rounds.items()
    }


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Inside, torch and OpenCV compute with `number` threads; afterwards with as many as before."""
    if number < 1:
        raise ValueError(f"threads must be 1 or more, got {number}")
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(number)
    cv2.setNumThreads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


class _Call(NamedTuple):
    """An operator with its arguments; it keeps them, so that no two tensors share a place in memory by chance."""

    layer: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def packet(self) -> Any:
        """The operator without the types of its arguments."""
        return self.function.overloadpacket

    @property
    def name(self) -> str:
        """The operator's, without its name space; one that works in place has that of the other."""
        return str(self.packet.__name__).removesuffix("_")

    @property
    def read(self) -> list[Tensor]:
        """The tensors of floats that it takes."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if _is_float(leaf)]

    @property
    def written(self) -> list[Tensor]:
        """The tensors of floats that it gives; not indices, which exported files leave out."""
        return [leaf for leaf in tree_leaves(self.out) if _is_float(leaf) and leaf.numel()]

    def is_view(self) -> bool:
        """Whether it gives nothing but what it takes, in another shape."""
        taken = {_storage(tensor) for tensor in self.read}
        return not self.function._schema.is_mutable and all(_storage(tensor) in taken for tensor in self.written)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of its __init_subclass__
    """Keeps every call of an operator, and in which module it happens."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.results: list[Tensor] = []
        self.given: list[Tensor] = []
        self._weights = {_storage(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self._layers = [""]
        for name, part in module.named_modules():
            part.register_forward_pre_hook(partial(self._enter, name))
            part.register_forward_hook(self._leave, always_call=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append(_Call(self._layers[-1], func, args, kwargs or {}, out))
        return out

    def operators(self) -> list[_Call]:
        """All that read or write numbers."""
        return [call for call in self.calls if call.read and call.written and not call.is_view()]

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether it is a parameter or a buffer, or a part of one."""
        return _storage(tensor) in self._weights

    def _enter(self, name: str, part: nn.Module, given: Any) -> None:
        self._layers.append(name)

    def _leave(self, part: nn.Module, given: Any, out: Any) -> None:
        self._layers.pop()


def _record(module: nn.Module, *inputs: object) -> _Recorder:
    network = _weightless(module)
    recorder = _Recorder(network)
    taken = [_without_numbers(value) for value in inputs]
    recorder.given = [leaf for leaf in tree_leaves(taken) if _is_float(leaf)]
    with torch.no_grad(), recorder:
        recorder.results = [leaf for leaf in tree_leaves(network(*taken)) if _is_float(leaf)]
    return recorder


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _storage(tensor: Tensor) -> int:
    """What tensors have in common that are views of the same numbers."""
    return int(tensor.untyped_storage()._cdata)


def _macs(call: _Call) -> int:
    count = flop_registry.get(call.packet)
    return 0 if count is None else int(count(*call.args, **call.kwargs, out_val=call.out)) // 2


def _operator(call: _Call, recorded: _Recorder) -> Operator:
    of_weights = [tensor.numel() for tensor in call.read if recorded.is_weight(tensor) and tensor.dim() != 1]
    biases = [tensor.numel() for tensor in call.read if recorded.is_weight(tensor) and tensor.dim() == 1]
    inputs = [tensor.numel() for tensor in call.read if not recorded.is_weight(tensor)]
    return Operator(
        call.layer, _kind(call, bool(of_weights)), _macs(call), sum(of_weights), sum(biases), sum(inputs),
        sum(tensor.numel() for tensor in call.written))


def _kind(call: _Call, has_weights: bool) -> str:
    if call.packet is _ATEN.convolution:
        kernel, groups = call.args[1].shape, call.args[8]
        name = "conv" if groups == 1 else "depthwise" if kernel[1] == 1 else "grouped conv"
        return f"{name} {'x'.join(map(str, kernel[2:]))}"
    if call.packet in _PRODUCTS:
        return "linear" if has_weights else "matmul"
    return call.name


def _elementwise_flops(call: _Call) -> int:
    """What TensorFlow's profiler counts besides multiply-adds (its flops_registry.py, and BiasAdd in nn_ops.py)."""
    taken, given = call.read[0].numel(), call.written[0].numel()
    match call.name:
        case "convolution":
            return given if call.args[2] is not None else 0
        case "addmm" | "add" | "sub" | "mul" | "div" | "maximum" | "minimum":
            return given
        case "hardswish":  # x * relu6(x + 3) / 6, and so on
            return 3 * given
        case "hardsigmoid":
            return 2 * given
        case "mean":
            return taken
        case "avg_pool2d" | "max_pool2d_with_indices":
            return int(given * prod(call.args[1]))
        case "_softmax":
            return 5 * given
    return 0


def _peak(recorded: _Recorder, calls: Sequence[_Call]) -> tuple[int, str]:
    """Numbers in the activations that live at the same time, at most, and in which layer."""
    last_read = {_storage(tensor): step for step, call in enumerate(calls) for tensor in call.read}
    # What nobody reads is there while it is written; what the caller gets stays to the end.
    for step, call in enumerate(calls):
        for tensor in call.written:
            last_read[_storage(tensor)] = max(step, last_read.get(_storage(tensor), 0))
    last_read |= {_storage(tensor): len(calls) for tensor in recorded.results}
    live = {_storage(tensor): tensor.numel() for tensor in recorded.given}
    peak, layer = 0, ""
    for step, call in enumerate(calls):
        free = [_storage(tensor) for tensor in call.read
                if last_read[_storage(tensor)] == step and _storage(tensor) in live]
        for tensor in call.written:
            if _storage(tensor) in live:
                continue
            number = tensor.numel()
            place = next((old for old in free if live.get(old) == number), None)
            if place is not None and _works_number_by_number(call):
                del live[place]
            live[_storage(tensor)] = number
        if sum(live.values()) > peak:
            peak, layer = sum(live.values()), call.layer
        live = {place: number for place, number in live.items() if last_read.get(place, -1) > step}
    return peak, layer


def _works_number_by_number(call: _Call) -> bool:
    return torch.Tag.pointwise in call.function.tags or call.name in _UNTAGGED


def _weightless(module: nn.Module) -> nn.Module:
    """A copy without numbers, in evaluation mode."""
    return copy.deepcopy(module).to("meta").eval()


def _without_uncounted(module: nn.Module) -> nn.Module:
    """The module itself, layers of `_UNCOUNTED` passed over."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in _UNCOUNTED:
                setattr(parent, name, nn.Identity())
    return module


def _without_numbers(value: object) -> object:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {name: _without_numbers(entry) for name, entry in value.items()}
    return value


def _block_ms(function: Callable[[], object], block: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(block):
        function()
    return (time.perf_counter_ns() - start) / block / 1e6


@contextmanager
def _uncollected() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
