"""What a network costs: parameters, multiply-adds and time."""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import cv2
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

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
    weightless = _without_uncounted(copy.deepcopy(module).to("meta").eval())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        weightless(*(_without_numbers(value) for value in inputs))
    operations = int(counter.get_total_flops())
    assert operations % 2 == 0, "torch counts a multiply-add as two"
    return operations // 2


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
