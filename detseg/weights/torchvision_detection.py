"""torchvision's Faster R-CNN on MobileNetV3: parameter names in its files, and ours.

Its published files are older than its code: they lack the second number in the names of the pyramid's and the proposing
convolutions, and their BatchNorm, which was frozen, has counted no batches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from detseg.weights.torchvision import trunk_names

State = Mapping[str, Tensor]

_HEAD = {
    "rpn.head.conv": "conv", "rpn.head.conv.0.0": "conv", "rpn.head.cls_logits": "objectness",
    "rpn.head.bbox_pred": "shift", "roi_heads.box_head.fc6": "second_stage.hidden.0",
    "roi_heads.box_head.fc7": "second_stage.hidden.2", "roi_heads.box_predictor.cls_score": "second_stage.score",
    "roi_heads.box_predictor.bbox_pred": "second_stage.box",
}


def is_faster_rcnn(state: State) -> bool:
    """Whether these are the tensors of torchvision's fasterrcnn_mobilenet_v3_large_fpn or _320_fpn, one network."""
    return "backbone.body.0.0.weight" in state and "roi_heads.box_predictor.cls_score.weight" in state


def faster_rcnn_names(state: State) -> dict[str, str]:
    """torchvision's name to ours for every tensor, with "backbone.", "neck." or "head."."""
    names = trunk_names(state, "backbone.body.")
    for key in state:
        owner, _, leaf = key.rpartition(".")
        if found := re.match(r"backbone\.fpn\.(inner_blocks|layer_blocks)\.(\d+)(?:\.0)?$", owner):
            names[key] = f"neck.pyramid.{found[1]}.{found[2]}.0.{leaf}"
        elif owner in _HEAD:
            names[key] = f"head.{_HEAD[owner]}.{leaf}"
    return names
