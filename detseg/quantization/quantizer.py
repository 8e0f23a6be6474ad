"""The operators that a network computes in int8, told to torch's export quantisation (pt2e), in training and in files.

Weights are symmetric, with a scale for each output channel; activations have one scale and zero point. A ReLU or ReLU6
belongs to the operator before it. Raw outputs have a scale each, for each map: boxes and scores never share one.
h-swish, sigmoids, attention and everything behind the raw outputs stay in floating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e import FakeQuantize
from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from detseg.quantization.packages import quiet
from detseg.quantization.recorded import (
    BINARY,
    CONSTANT,
    MEANS,
    WEIGHTED,
    activation_behind,
    float_only,
    is_within,
    layer_of,
)

_SMALLEST_SCALE = 2 ** -20
"""That of PyTorch's quantisers, 2^-12, leaves a channel whose weights are all below 0.008 five bits of eight. Smaller
ones leave a dead channel's bias no room in 32 bits."""


def _activation_spec(*, fake: bool) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=_observed(MinMaxObserver, fake=fake))


def _weight_spec(*, per_channel: bool, fake: bool) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8, quant_min=-127, quant_max=127, ch_axis=0,
        qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=_observed(PerChannelMinMaxObserver if per_channel else MinMaxObserver, fake=fake))


def _observed(observer: Any, *, fake: bool) -> Any:
    if fake:
        return FakeQuantize.with_args(observer=observer, eps=_SMALLEST_SCALE)
    return observer.with_args(eps=_SMALLEST_SCALE)


class Int8Quantizer(Quantizer):  # type: ignore[misc]
    """Annotates a recorded network.

    Args:
        keep_float: layers that stay in floating point, by name; a name stands for all that it contains.
        per_channel: whether weights have a scale for each output channel.
        fake: for modules that round as int8 does, for training; else for observers.
    """

    def __init__(self, *, keep_float: Sequence[str] = (), per_channel: bool = True, fake: bool = False) -> None:
        super().__init__()
        self.keep_float = tuple(keep_float)
        self.activation = _activation_spec(fake=fake)
        self.weight = _weight_spec(per_channel=per_channel, fake=fake)

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Says of each node what it takes and gives."""
        kept = (*self.keep_float, *float_only(model.graph))
        for node in model.graph.nodes:
            if node.op != "call_function" or not layer_of(node) or is_within(layer_of(node), kept):
                continue
            if node.target in WEIGHTED:
                self._annotate(node, {node.args[0]: self.activation, node.args[1]: self.weight})
            elif node.target in BINARY and all(_is_map(one) for one in node.args[:2]) and len(node.args) == 2:
                self._annotate(node, dict.fromkeys(node.args, self.activation))
            elif node.target in MEANS:
                self._annotate(node, {node.args[0]: self.activation})
        return model

    def _annotate(self, node: fx.Node, inputs: dict[Any, QuantizationSpec]) -> None:
        last = activation_behind(node)
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=self.activation if last is None else None, _annotated=True)
        if last is not None:
            last.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=self.activation, _annotated=True)

    def validate(self, model: fx.GraphModule) -> None:
        """There is nothing that could be wrong."""


def prepared(module: fx.GraphModule, quantizer: Int8Quantizer) -> fx.GraphModule:
    """A recorded network with a module behind every tensor that int8 holds, quietly; `module` is used up."""
    with quiet():
        found: fx.GraphModule = prepare_pt2e(module, quantizer)
    return found


def _is_map(argument: Any) -> bool:
    """Whether it is an activation, and not a number or a constant, such as zeros that make a map larger."""
    return isinstance(argument, fx.Node) and argument.op == "call_function" and argument.target not in CONSTANT and (
        getattr(argument.meta.get("val"), "dim", lambda: 0)() == 4)
