"""How fast each part of a network learns: frozen layers, and learning rates of their own.

A pretrained backbone on little data keeps more of what it knows when its first layers stay as they are, or when all of
it learns slower than the new head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from detseg.interfaces import Backbone
from detseg.model import Predictor
from detseg.optim import Freeze, OptimizerSettings


class Layer(NamedTuple):
    """A part of a backbone, as a block is one."""

    module: nn.Module
    stride: int
    """How many input pixels a cell of its output spans."""


@torch.no_grad()
def ordered_layers(backbone: Backbone, image: Tensor) -> list[Layer]:
    """The parts of a backbone in the order in which an image [1, 3, H, W] passes them."""
    found: list[Layer] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        maps = [each for each in tree_leaves(output) if isinstance(each, Tensor) and each.dim() == 4]
        found.append(Layer(module, 2 ** round(math.log2(image.shape[2] / maps[-1].shape[2]))))

    handles = [layer.register_forward_hook(note) for layer in _layers(backbone)]
    modes = {module: module.training for module in backbone.modules()}
    try:
        backbone.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return found


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Its children; of lists and sequences their children."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _layers(child)
        else:
            yield child


def freeze(model: Predictor, settings: Freeze) -> list[_BatchNorm]:
    """Makes parameters of the backbone keep their values; gives the BatchNorms that are to stay in evaluation mode.

    ValueError where the backbone has no layer of that stride.
    """
    layers = ordered_layers(model.backbone, _image_for(model)) if settings.stride else []
    frozen = [layer.module for layer in layers if layer.stride <= settings.stride]
    if settings.stride and not frozen:
        strides = ", ".join(map(str, sorted({layer.stride for layer in layers})))
        raise ValueError(f"freeze.stride={settings.stride} freezes nothing: the backbone's layers have strides "
                         f"{strides}")
    for layer in frozen:
        layer.requires_grad_(requires_grad=False)
    whole = [model.backbone] if settings.norms else frozen
    return [module for layer in whole for module in layer.modules() if isinstance(module, _BatchNorm)]


def learning_rates(model: Predictor, settings: OptimizerSettings) -> dict[nn.Parameter, float]:
    """By what the rate of each parameter of the backbone is multiplied, where it is not 1: `backbone_lr`, and
    `layer_decay` once for each layer between it and the head."""
    if settings.backbone_lr == settings.layer_decay == 1.0:
        return {}
    factors = dict.fromkeys(model.backbone.parameters(), settings.backbone_lr)
    if settings.layer_decay != 1.0:
        layers = ordered_layers(model.backbone, _image_for(model))
        for behind, layer in enumerate(reversed(layers), start=1):
            for parameter in layer.module.parameters():
                factors[parameter] = settings.backbone_lr * settings.layer_decay ** behind
    return factors


def _image_for(model: Predictor) -> Tensor:
    """Large enough for a cell of every map, and small."""
    return torch.zeros(1, 3, 256, 256, device=model.device)
