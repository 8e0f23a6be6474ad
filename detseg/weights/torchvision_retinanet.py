"""torchvision's names of retinanet_resnet50_fpn in ours: its backbone's layers, feature pyramid and head.

Whatever the trunk is, it keeps torchvision's own names, as `detseg.backbones.taps.tapped` does:

    backbone = tapped(resnet50(norm_layer=partial(BatchNorm2d, eps=0.0)),
                      {"c3": "layer2", "c4": "layer3", "c5": "layer4"})
    neck = FPN(backbone.specs, coarser="convolutions")

The published weights were trained with torchvision's FrozenBatchNorm2d, which serves for training them further, and
with this epsilon. The file of retinanet_resnet50_fpn_v2 is none of these: its head has group normalisation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]

_TOWERS = {"classification_head": "classify", "regression_head": "locate"}
_PREDICTORS = {"cls_logits": "classify", "bbox_reg": "locate"}


def is_retinanet(state: State) -> bool:
    """Whether these are the tensors of torchvision's retinanet_resnet50_fpn, on any trunk."""
    return "head.classification_head.cls_logits.weight" in state and not any(
        re.match(r"head\.classification_head\.conv\.\d\.1\.", key) for key in state)


def retinanet_names(state: State) -> dict[str, str]:
    """torchvision's name to ours for every tensor of a RetinaNet.

    The layers of the older files' heads are numbered with the activations between them, and their pyramid has a level
    less in its names.
    """
    old = "head.classification_head.conv.0.weight" in state
    names = {}
    for key in state:
        if found := re.match(r"backbone\.body\.(.+)", key):
            names[key] = f"backbone.{found[1]}"
        elif found := re.match(r"backbone\.fpn\.(\w+_blocks)\.(\d)(?:\.0)?\.(weight|bias)$", key):
            names[key] = f"neck.pyramid.{found[1]}.{found[2]}.0.{found[3]}"
        elif found := re.match(r"backbone\.fpn\.extra_blocks\.p([67])\.(\w+)$", key):
            names[key] = f"neck.convolutions.{int(found[1]) - 6}.{found[2]}"
        elif found := re.match(r"head\.(\w+)\.conv\.(\d)(?:\.0)?\.(\w+)$", key):
            number = int(found[2]) // (2 if old else 1)
            names[key] = f"head.{_TOWERS[found[1]]}.convs.{number}.conv.0.{found[3]}"
        elif found := re.match(r"head\.\w+\.(cls_logits|bbox_reg)\.(\w+)$", key):
            names[key] = f"head.{_PREDICTORS[found[1]]}.predict.0.{found[2]}"
    return names
