"""Networks made ready for inference: BatchNorm folded into convolutions."""

from __future__ import annotations

import torch
from torch import nn

from detseg.backbones.taps import TappedTrunk
from detseg.layers import ConvNormAct, SharedConv
from detseg.necks import SeparableFPN


def fold(network: nn.Module) -> None:
    """Moves every BatchNorm that can be into its convolution, in place; the network is in evaluation mode from then on,
    without gradients, and channels last."""
    network.eval().requires_grad_(requires_grad=False)
    for module in list(network.modules()):  # folding replaces modules
        if isinstance(module, ConvNormAct | SharedConv | SeparableFPN | TappedTrunk):
            module.fold()
    network.to(memory_format=torch.channels_last)
