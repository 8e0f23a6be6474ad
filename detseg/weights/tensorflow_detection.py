"""SSDLite of TensorFlow's object detection API, on MobileNetV1, V2 and V3: its variables in our names and layouts.

As its training checkpoints and frozen graphs name them (`FeatureExtractor/MobilenetV2/...`, `BoxPredictor_0/...`);
docs/tensorflow_weights.md tells how to get a file of them. Kernels are height, width, in, out there, boxes y before x.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detseg.layers import ConvNormAct
from detseg.model import Predictor
from detseg.ops.anchors import TensorFlowAnchors

State = Mapping[str, Tensor]

_AVERAGE = "/ExponentialMovingAverage"
_EPSILON = 1e-3
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_PREDICTORS = {"BoxEncodingPredictor": "locate", "ClassPredictor": "classify"}
_PARTS = {"expand": "expand", "depthwise": "depthwise", "project": "project", "pointwise": "project"}
_SQUEEZE = {"Conv": "reduce", "Conv_1": "expand"}
_VARIABLE = re.compile(
    r"(.+)/(?:BatchNorm/(gamma|beta|moving_mean|moving_variance)|(weights|depthwise_weights|biases))$")
_MADE = re.compile(r"\w+_([12])_Conv2d_(\d+)_(?:1x1|3x3_s2)_\d+(_depthwise)?$")


class _Variable(NamedTuple):
    """What the name of a variable says."""

    layer: str
    """TensorFlow's scope, without the first two parts where it is the feature extractor's."""
    norm: str | None
    """Which of BatchNorm's variables it is."""
    kind: str | None
    """Else the kind of a convolution's."""


def is_ssdlite(state: State) -> bool:
    """Whether these are variables of an SSDLite of TensorFlow's object detection API."""
    return any(re.match(r"FeatureExtractor/MobilenetV[123]/", key) for key in state) and any(
        _plain(key) == "BoxPredictor_0/ClassPredictor_depthwise/depthwise_weights" for key in state)


def ssdlite_tensors(state: State, predictor: Predictor) -> dict[str, Tensor]:
    """The file's tensors under our names, channels first, x before y. What has no place keeps its own name.

    Where a checkpoint has averages of variables, they are taken. A BatchNorm without gamma has ones. ValueError where
    `predictor` would understand the same tensors differently: other paddings, anchors, scores or epsilon.
    """
    _check_wiring(predictor)
    known = {_plain(key): tensor for key, tensor in state.items() if not key.endswith(_AVERAGE)}
    known |= {_plain(key): tensor for key, tensor in state.items() if key.endswith(_AVERAGE)}
    variables = {key: _Variable(_inside(found[1]), found[2], found[3]) for key in known
                 if (found := _VARIABLE.match(key))}
    names = _layers(variable.layer for variable in variables.values())
    given: dict[str, Tensor] = {}
    for key, tensor in known.items():
        variable = variables.get(key)
        name = None if variable is None else names.get(variable.layer)
        if variable is None or name is None:
            given[key] = tensor
        elif variable.norm is not None:
            given[f"{name}.norm.{_NORM[variable.norm]}"] = tensor
            given.setdefault(f"{name}.norm.weight", torch.ones_like(tensor))
        elif variable.kind == "biases":
            given[f"{name}.bias"] = _x_first(tensor) if ".locate." in name else tensor
        else:
            own = name if re.search(r"\.(locate|classify)\.\d+\.1$|\.squeeze\.", name) else f"{name}.conv"
            kernel = _channels_first(tensor, depthwise=variable.kind == "depthwise_weights")
            given[f"{own}.weight"] = _x_first(kernel) if own.endswith(".1") and ".locate." in own else kernel
    return given


def _plain(key: str) -> str:
    """The variable's name without what a graph or an average adds."""
    return key.removesuffix(":0").removesuffix(_AVERAGE)


def _inside(scope: str) -> str:
    return re.sub(r"^FeatureExtractor/MobilenetV[123]/", "", scope)


def _layers(scopes: Iterable[str]) -> dict[str, str]:
    """Our name of every layer by TensorFlow's scope; those that are no part of an SSDLite are left out."""
    found = sorted(set(scopes))
    made = sorted({int(one[2]) for scope in found if (one := _MADE.match(scope))})
    blocks = [int(one[1] or 0) for scope in found if (one := re.match(r"expanded_conv(?:_(\d+))?/", scope))]
    names = {"Conv2d_0": "backbone.stem", "Conv": "backbone.stem"}
    if blocks:
        names["Conv_1"] = f"backbone.blocks.{max(blocks) + 1}.conv"
    for scope in found:
        if one := _MADE.match(scope):
            part = 0 if one[1] == "1" else 1 if one[3] else 2
            names[scope] = f"head.extras.{made.index(int(one[2]))}.{part}"
        elif one := re.match(r"Conv2d_(\d+)_(depthwise|pointwise)$", scope):
            names[scope] = f"backbone.blocks.{int(one[1]) - 1}.{_PARTS[one[2]]}"
        elif one := re.match(r"expanded_conv(?:_(\d+))?/(expand|depthwise|project)$", scope):
            names[scope] = f"backbone.blocks.{one[1] or 0}.{_PARTS[one[2]]}"
        elif one := re.match(r"expanded_conv(?:_(\d+))?/squeeze_excite/(Conv|Conv_1)$", scope):
            names[scope] = f"backbone.blocks.{one[1] or 0}.squeeze.{_SQUEEZE[one[2]]}"
        elif one := re.match(r"BoxPredictor_(\d+)/(BoxEncodingPredictor|ClassPredictor)(_depthwise)?$", scope):
            names[scope] = f"head.{_PREDICTORS[one[2]]}.{one[1]}.{0 if one[3] else 1}"
    return names


def _channels_first(kernel: Tensor, *, depthwise: bool) -> Tensor:
    """[H, W, in, out] to [out, in, H, W], and depthwise [H, W, C, 1] to [C, 1, H, W]."""
    if kernel.dim() != 4:
        return kernel
    return kernel.permute((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)).contiguous()


def _x_first(tensor: Tensor) -> Tensor:
    """Outputs y, x, height, width of every anchor to x, y, width, height."""
    if len(tensor) % 4:
        return tensor
    return tensor.reshape(-1, 4, *tensor.shape[1:])[:, [1, 0, 3, 2]].reshape(tensor.shape)


def _check_wiring(predictor: Predictor) -> None:
    """A ValueError where a network pads, places boxes or scores otherwise than TensorFlow's SSDLite."""
    held = vars(predictor.head)
    wrong = []
    if any(isinstance(layer, ConvNormAct) and isinstance(layer.conv, nn.Conv2d) and layer.same is None
           and max(layer.conv.stride) > 1 and max(layer.conv.kernel_size) > 1 for layer in predictor.modules()):
        wrong.append('padding="same" in the backbone and the head')
    if not isinstance(held.get("anchors"), TensorFlowAnchors):
        wrong.append("TensorFlowAnchors")
    if held.get("class_loss") not in ("sigmoid", "focal"):
        wrong.append('class_loss="sigmoid" or "focal"')
    if any(isinstance(layer, nn.BatchNorm2d) and layer.eps != _EPSILON for layer in predictor.modules()):
        wrong.append(f"BatchNorm's epsilon {_EPSILON:g}")
    if wrong:
        raise ValueError(
            f"weights of TensorFlow's object detection API mean something else in this network: they need "
            f"{', '.join(wrong)}. configs/ssdlite_v2_tensorflow.py has all of it, and v1 and v3 beside it")
