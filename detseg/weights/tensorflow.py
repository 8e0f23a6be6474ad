"""TensorFlow's DeepLab on MobileNetV2 in our names and layouts.

Such files come from frozen inference graphs: each BatchNorm is folded into its convolution and an offset. Here it is
taken apart again into the convolution and a BatchNorm that does nothing but add the offset. That is exact for
prediction; it knows no statistics, so training begins from other outputs than prediction gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detseg.model import Predictor

State = Mapping[str, Tensor]

_HEAD = {"aspp0": "head.reduce", "image_pooling": "head.pool", "concat_projection": "head.project"}
_CLASSIFIER = {"logits_semantic_Conv2D": "head.classify.weight", "logits_semantic_biases": "head.classify.bias"}


def is_deeplab(state: State) -> bool:
    """Whether these are the tensors of TensorFlow's DeepLab on MobileNetV2 without ASPP, BatchNorm folded."""
    return "MobilenetV2_Conv_Conv2D" in state and "logits_semantic_Conv2D" in state


def deeplab_tensors(state: State, predictor: Predictor) -> dict[str, Tensor]:
    """The file's tensors under our names, channels first, with the BatchNorms of `predictor` set to add the offset.

    What has no place among ours keeps its own name.
    """
    norms = {name: module for name, module in predictor.named_modules() if isinstance(module, nn.BatchNorm2d)}
    found = {}
    for key, tensor in state.items():
        layer = _layer(key)
        if key in _CLASSIFIER:
            found[_CLASSIFIER[key]] = _channels_first(tensor)
        elif layer is None:
            found[key] = tensor
        elif tensor.dim() == 4:
            found[f"{layer}.conv.weight"] = _channels_first(tensor)
        else:
            found |= _adding(tensor, f"{layer}.norm", norms.get(f"{layer}.norm"))
    return found


def _layer(key: str) -> str | None:
    """Our name of the convolution, norm and activation that a tensor belongs to."""
    if found := re.match(r"MobilenetV2_expanded_conv_(?:(\d+)_)?(expand|depthwise|project)_", key):
        return f"backbone.blocks.{found[1] or 0}.{found[2]}"
    if key.startswith("MobilenetV2_Conv_"):
        return "backbone.stem"
    return next((ours for theirs, ours in _HEAD.items() if key.startswith(f"{theirs}_Conv2D")), None)


def _channels_first(tensor: Tensor) -> Tensor:
    """[out, H, W, in] to [out, in, H, W], and depthwise [1, H, W, out] to [out, 1, H, W]."""
    if tensor.dim() != 4:
        return tensor
    depthwise = tensor.shape[0] == 1 and tensor.shape[1] > 1
    return tensor.permute((3, 0, 1, 2) if depthwise else (0, 3, 1, 2)).contiguous()


def _adding(offset: Tensor, name: str, norm: nn.BatchNorm2d | None) -> dict[str, Tensor]:
    """A BatchNorm's tensors under which it adds `offset`; the weight makes up for its epsilon."""
    ones = torch.ones_like(offset)
    return {
        f"{name}.weight": (ones + (norm.eps if norm is not None else 0.0)).sqrt(),
        f"{name}.bias": offset,
        f"{name}.running_mean": torch.zeros_like(offset),
        f"{name}.running_var": ones,
    }
