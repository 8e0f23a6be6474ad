"""Channels of pairs of layers brought to one range, by factors that cancel out (Nagel et al. 2019, section 4.1).

Weights have a scale for each output channel here, so that only activations gain: a depthwise convolution takes any
factors for nothing; one over all channels pays with the spread of its rows, and is met half-way (as in SmoothQuant).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from detseg.quantization.recorded import Pair, Statistics, aten, attribute, bias_name, pairs, weight_name

_LIMIT = 6.0
"""ReLU6's: a channel may be scaled as long as it stays below."""
_MOST = 32.0
"""The largest factor, and one over the smallest."""


@torch.no_grad()
def equalize(network: nn.Module, graph: fx.Graph, found: Mapping[str, Statistics]) -> int:
    """Scales the weights of a network in place; its outputs stay the same up to rounding.

    Args:
        network: folded.
        graph: its operators.
        found: what they gave.

    Gives the number of pairs.
    """
    number = 0
    for pair in pairs(graph):
        factors = _factors(network, pair, found)
        if factors is None or torch.equal(factors, torch.ones_like(factors)):
            continue
        first, second = attribute(network, weight_name(pair.first)), attribute(network, weight_name(pair.second))
        first.mul_(factors.view(-1, *[1] * (first.dim() - 1)))
        if (bias := bias_name(pair.first)) is not None:
            attribute(network, bias).mul_(factors)
        if _is_depthwise(pair.second):
            second.div_(factors.view(-1, *[1] * (second.dim() - 1)))
        else:
            second.div_(factors.view(1, -1, *[1] * (second.dim() - 2)))
        number += 1
    return number


def _factors(network: nn.Module, pair: Pair, found: Mapping[str, Statistics]) -> Tensor | None:
    """Of the first operator's output channels; None where its activation allows none."""
    if not (_is_depthwise(pair.second) or _groups(pair.second) == 1):
        return None
    last = pair.first if pair.activation is None else pair.activation
    if last.name not in found:
        return None
    high = torch.maximum(found[last.name].high.abs(), found[last.name].low.abs())
    used = high > 1e-6 * high.max().clamp_min(1e-30)
    if int(used.sum()) < 2:
        return None
    factors = torch.ones_like(high)
    if _is_depthwise(pair.second):
        factors[used] = high.max() / high[used]
    else:
        rows = attribute(network, weight_name(pair.second)).abs()
        columns = rows.amax([k for k in range(rows.dim()) if k != 1]).clamp_min(1e-12)
        ratio = (columns[used] / high[used]).sqrt()
        # The largest channel sets the scale of the whole; no other may become larger than it.
        factors[used] = ratio / ratio[high[used].argmax()]
        factors[used] = torch.minimum(factors[used], high.max() / high[used])
    factors = factors.clamp(1 / _MOST, _MOST)
    if pair.activation is not None and pair.activation.target in (aten.hardtanh.default, aten.hardtanh_.default):
        below = found[last.name].high * factors < 0.95 * _LIMIT
        free = (found[last.name].high < 0.95 * _LIMIT) & used
        factors = torch.where(free & below, factors, torch.where(
            free, (0.95 * _LIMIT / found[last.name].high.clamp_min(1e-12)).clamp(1.0, _MOST), torch.ones_like(factors)))
    return factors


def _groups(node: fx.Node) -> int:
    return int(node.args[6]) if node.target is aten.conv2d.default and len(node.args) > 6 else 1  # type: ignore[arg-type]


def _is_depthwise(node: fx.Node) -> bool:
    value = node.args[1].meta["val"] if isinstance(node.args[1], fx.Node) else None
    return _groups(node) > 1 and value is not None and _groups(node) == value.shape[0]
