"""OpenMMLab's checkpoints: mmsegmentation's LR-ASPP and mmdetection's SSDLite, their parameter names in ours.

Whole networks as their runners save them, mmcv's of old and mmengine's: {"meta": ..., "state_dict": ..., ...}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import Tensor
from torch.serialization import safe_globals

from detseg.model import Predictor

State = Mapping[str, Tensor]

_PARTS = {"conv": "conv", "bn": "norm"}
_BLOCK = {"expand_conv": "expand", "depthwise_conv": "depthwise", "linear_conv": "project"}
_SQUEEZE = {"conv1": "reduce", "conv2": "expand"}
_PREDICTORS = {"cls_convs": "classify", "reg_convs": "locate"}
_EXTRA = {"0": "0", "1.depthwise_conv": "1", "1.pointwise_conv": "2"}


# ------------------------------------------------------------------------------------------ metadata


class _LeftOut:
    """Stands for an object beside the weights. It takes what a pickle says of the object and keeps nothing."""

    def __init__(self, *arguments: object) -> None:
        """Nothing of them is kept."""

    def __setstate__(self, state: object) -> None:
        """Nothing of it is kept."""


_METADATA = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "argparse.Namespace",  # the arguments of torchvision's and timm's training scripts
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "builtins.getattr",  # how a HistoryBuffer names its own methods; here it gets nothing
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
)
"""What stands in these checkpoints beside tensors and plain values: the course of the losses, NumPy's numbers."""


def metadata_left_out() -> AbstractContextManager[None]:
    """While it is entered, `torch.load(weights_only=True)` reads these checkpoints too.

    Their metadata become empty stand-ins: nothing of mmengine or NumPy is called, neither needs to be there. Whatever
    else a file names is refused as before.
    """
    context: AbstractContextManager[None] = safe_globals([(_LeftOut, name) for name in _METADATA])
    return context


# ------------------------------------------------------------------------------------------ names


def is_lraspp(state: State) -> bool:
    """Whether these are the tensors of mmsegmentation's LRASPPHead on MobileNetV3."""
    return "decode_head.image_pool.1.conv.weight" in state and "backbone.layer0.conv.weight" in state


def is_ssdlite(state: State) -> bool:
    """Whether these are the tensors of mmdetection's SSDHead with depthwise predictors, on MobileNetV2."""
    return "bbox_head.cls_convs.0.0.conv.weight" in state and "backbone.conv2.conv.weight" in state


def lraspp_names(state: State) -> dict[str, str]:
    """mmsegmentation's name to ours for every tensor of an LR-ASPP, Large or Small."""
    head = {"aspp_conv.conv": "reduce.conv", "aspp_conv.bn": "reduce.norm", "image_pool.1.conv": "gate",
            "conv_up_input": "mix", "conv_seg": "classify"}
    names = {}
    for key in state:
        layer, _, leaf = key.rpartition(".")
        if found := re.match(r"backbone\.layer(\d+)\.(.+)$", layer):
            if name := _v3_layer(int(found[1]), found[2]):
                names[key] = f"backbone.{name}.{leaf}"
        elif found := re.match(r"decode_head\.convs\.conv(\d+)$", layer):
            names[key] = f"head.skips.{found[1]}.{leaf}"
        elif found := re.match(r"decode_head\.conv_ups\.conv_up(\d+)\.(conv|bn)$", layer):
            names[key] = f"head.merges.{found[1]}.{_PARTS[found[2]]}.{leaf}"
        elif (name := layer.removeprefix("decode_head.")) in head:
            names[key] = f"head.{head[name]}.{leaf}"
    return names


def ssdlite_names(state: State) -> dict[str, str]:
    """mmdetection's name to ours for every tensor of an SSDLite on MobileNetV2."""
    places = sorted({(int(found[1]), int(found[2])) for key in state
                     if (found := re.match(r"backbone\.layer(\d+)\.(\d+)\.", key))})
    number = {place: k for k, place in enumerate(places)}
    names = {}
    for key in state:
        layer, _, leaf = key.rpartition(".")
        if found := re.match(r"backbone\.(conv1|conv2)\.(conv|bn)$", layer):
            owner = "stem" if found[1] == "conv1" else f"blocks.{len(places)}.conv"
            names[key] = f"backbone.{owner}.{_PARTS[found[2]]}.{leaf}"
        elif found := re.match(r"backbone\.layer(\d+)\.(\d+)\.(\w+)\.(conv|bn)$", layer):
            block = number[int(found[1]), int(found[2])]
            names[key] = f"backbone.blocks.{block}.{_BLOCK[found[3]]}.{_PARTS[found[4]]}.{leaf}"
        elif found := re.match(r"neck\.extra_layers\.(\d+)\.(0|1\.\w+)\.(conv|bn)$", layer):
            names[key] = f"head.extras.{found[1]}.{_EXTRA[found[2]]}.{_PARTS[found[3]]}.{leaf}"
        elif found := re.match(r"bbox_head\.(cls_convs|reg_convs)\.(\d+)\.0\.(conv|bn)$", layer):
            names[key] = f"head.{_PREDICTORS[found[1]]}.{found[2]}.0.{_PARTS[found[3]]}.{leaf}"
        elif found := re.match(r"bbox_head\.(cls_convs|reg_convs)\.(\d+)\.1$", layer):
            names[key] = f"head.{_PREDICTORS[found[1]]}.{found[2]}.1.{leaf}"
    return names


def background_first(state: State, _predictor: Predictor) -> dict[str, Tensor]:
    """The tensors with the background's output before those of the classes; mmdetection puts it behind them."""
    turned = dict(state)
    for key, tensor in state.items():
        if found := re.match(r"bbox_head\.cls_convs\.(\d+)\.1\.\w+$", key):
            num_anchors = len(state[f"bbox_head.reg_convs.{found[1]}.1.bias"]) // 4
            by_anchor = tensor.reshape(num_anchors, -1, *tensor.shape[1:])
            turned[key] = by_anchor.roll(1, dims=1).reshape(tensor.shape)
    return turned


def _v3_layer(number: int, inner: str) -> str | None:
    """A layer of mmsegmentation's MobileNetV3: the stem, then the blocks, then the last convolution."""
    if inner in _PARTS:
        owner = "stem" if number == 0 else f"blocks.{number - 1}.conv"
        return f"{owner}.{_PARTS[inner]}"
    if found := re.match(r"se\.(conv[12])\.conv$", inner):
        return f"blocks.{number - 1}.squeeze.{_SQUEEZE[found[1]]}"
    if found := re.match(r"(\w+)\.(conv|bn)$", inner):
        return f"blocks.{number - 1}.{_BLOCK[found[1]]}.{_PARTS[found[2]]}"
    return None
