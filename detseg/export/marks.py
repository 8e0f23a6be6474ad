"""Sums of floats that change nothing, in int8 networks, where a converter would make integers of floats."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from detseg.export.contract import ExportedNetwork
from detseg.quantization.recorded import aten

NOTHING = 1e-30
"""Which no activation feels."""


def marked(network: ExportedNetwork, operators: Collection[object] = ()) -> ExportedNetwork:
    """A copy with such a sum behind every raw output and before these operators.

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
    module.recompile()
    return copied
