"""The parameter names of torchvision's segmenters in ours.

Their heads are named alike on every backbone. MobileNets are renamed to ours; another backbone's tensors keep their
names, as a tapped trunk does (`detseg.backbones.taps`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from detseg.weights.torchvision import trunk_names

State = Mapping[str, Tensor]

_CONV_NORM = {0: "conv", 1: "norm"}


def is_lraspp(state: State) -> bool:
    """Whether these are the tensors of torchvision's LRASPP."""
    return "classifier.low_classifier.weight" in state and "classifier.cbr.0.weight" in state


def is_deeplabv3(state: State) -> bool:
    """Whether these are the tensors of torchvision's DeepLabV3."""
    return "classifier.0.convs.0.0.weight" in state and "classifier.4.weight" in state


def is_fcn(state: State) -> bool:
    """Whether these are the tensors of torchvision's FCN."""
    return any(key.startswith("backbone.") for key in state) and all(
        key in state and state[key].dim() == 4 for key in ("classifier.0.weight", "classifier.4.weight"))


def lraspp_names(state: State) -> dict[str, str]:
    """torchvision's name to ours for every tensor of an LRASPP."""
    return _names(state, {
        "classifier.cbr.0": "head.reduce.conv",
        "classifier.cbr.1": "head.reduce.norm",
        "classifier.scale.1": "head.gate",
        "classifier.low_classifier": "head.low",
        "classifier.high_classifier": "head.high",
    })


def deeplabv3_names(state: State) -> dict[str, str]:
    """torchvision's name to ours for every tensor of a DeepLabV3; the auxiliary classifier's where there is one."""
    last = max(int(found[1]) for key in state if (found := re.match(r"classifier\.0\.convs\.(\d+)\.", key)))
    layers = {"classifier.1": "head.refine.conv", "classifier.2": "head.refine.norm", "classifier.4": "head.classify"}
    for position, leaf in _CONV_NORM.items():
        layers[f"classifier.0.convs.0.{position}"] = f"head.point.{leaf}"
        layers |= {f"classifier.0.convs.{k}.{position}": f"head.atrous.{k - 1}.{leaf}" for k in range(1, last)}
        layers[f"classifier.0.convs.{last}.{position + 1}"] = f"head.pooled.{leaf}"  # behind the pooling
        layers[f"classifier.0.project.{position}"] = f"head.project.{leaf}"
    return _names(state, layers | _fcn_head("aux_classifier", "head.auxiliary.0"))


def fcn_names(state: State) -> dict[str, str]:
    """torchvision's name to ours for every tensor of an FCN; the auxiliary classifier's where there is one."""
    return _names(state, _fcn_head("classifier", "head.classify") | _fcn_head("aux_classifier", "head.auxiliary.0"))


def _fcn_head(theirs: str, ours: str) -> dict[str, str]:
    """The layers of torchvision's FCNHead."""
    return {f"{theirs}.0": f"{ours}.0.conv", f"{theirs}.1": f"{ours}.0.norm", f"{theirs}.4": f"{ours}.2"}


def _names(state: State, head: Mapping[str, str]) -> dict[str, str]:
    """The names of the backbone's tensors, and of the head's by layer."""
    names = trunk_names(state, "backbone.") or {key: key for key in state if key.startswith("backbone.")}
    for key in state:
        layer, _, leaf = key.rpartition(".")
        if layer in head:
            names[key] = f"{head[layer]}.{leaf}"
    return names
