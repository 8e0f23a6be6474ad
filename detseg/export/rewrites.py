"""Changes of an int8 network that change none of its numbers, but what converters make of it."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch

from detseg.export.contract import ExportedNetwork
from detseg.quantization.recorded import aten

NOTHING = 1e-30
"""Which no activation feels."""


def rewritten(network: ExportedNetwork, operators: Collection[object] = ()) -> ExportedNetwork:
    """A copy with a sum of floats that changes nothing behind every raw output and before these operators, and a
    conversion for each reader of an int8 tensor.

    What only moves the numbers of raw outputs, such as what makes one tensor of all maps' boxes or takes one class out
    of a map, converters compute in 8 bits; LiteRT's with one scale, which does not hold the boxes of all maps,
    ExecuTorch's so that the first class comes out wrong.
    """
    copied = copy.deepcopy(network)
    module: Any = copied.int8
    for node in list(module.graph.nodes):
        if node.op == "output" or node.target in operators:
            with module.graph.inserting_before(node):
                for given in list(node.all_input_nodes):
                    node.replace_input_with(given, module.graph.call_function(aten.add.Tensor, (given, NOTHING)))
    _separate_readers(module)
    module.recompile()
    return copied


def _separate_readers(module: Any) -> None:
    """Gives each operator that reads an int8 tensor as floats a conversion of its own, in place.

    XNNPACK's partitioner puts operators that share one into the same part, also where a map is enlarged, which XNNPACK
    does not compute, and comes back to the next of them: a part that would wait for itself. LiteRT's converter loses
    the shape of one that is read in two layouts.
    """
    _, dequantize = conversions()
    for node in list(module.graph.nodes):
        if node.target == dequantize:
            for user in list(node.users)[1:]:
                with module.graph.inserting_before(user):
                    user.replace_input_with(node, module.graph.node_copy(node))


def conversions() -> tuple[object, object]:
    """The operators from floats to int8, and back."""
    from torchao.quantization.pt2e import quantizer  # noqa: F401 (it registers them)

    operators = torch.ops.quantized_decomposed
    return operators.quantize_per_tensor.default, operators.dequantize_per_tensor.default
