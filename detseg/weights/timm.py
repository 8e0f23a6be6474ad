"""timm's parameter names in ours: mobilenetv1, v2, v3 (also the tf_ ones), v4, mnasnet and semnasnet (MnasNet-A1).

What a file cannot say: timm's own weights expect BatchNorm's epsilon 1e-5, which MobileNetV3 here has only with
`norm=Norm(momentum=0.01, eps=1e-5)`; the tf_ ones expect 0.001 and `padding="same"`. Nor does a file tell the mean and
std of its images; a name to download, "timm/mobilenetv4_conv_small.e2400_r224_in1k", does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

State = Mapping[str, Tensor]

HUB = "timm/"
"""What the names of timm's published weights begin with; the timm package itself downloads them."""

_NETWORKS = re.compile(
    r"mobilenetv1_\d{3}|mobilenetv2_\d{3}|(tf_)?mobilenetv3_(large|small)(_minimal)?_\d{3}"
    r"|mobilenetv4_(conv|hybrid)_(small|medium|large)(_050)?|(se)?mnasnet_\d{3}")
"""Those that are networks here. Others have the same tensors and compute something else, as the V4 that blur."""

_SEPARABLE = {"conv_dw": "depthwise.conv", "bn1": "depthwise.norm", "conv_pw": "project.conv", "bn2": "project.norm"}
_INVERTED = {
    "conv_pw": "expand.conv", "bn1": "expand.norm", "conv_dw": "depthwise.conv", "bn2": "depthwise.norm",
    "conv_pwl": "project.conv", "bn3": "project.norm",
}
_FUSED = {"conv_exp": "expand.conv", "bn1": "expand.norm", "conv_pwl": "project.conv", "bn2": "project.norm"}
_CONV = {"conv": "conv", "bn1": "norm"}
_SQUEEZE = {"se.conv_reduce": "squeeze.reduce", "se.conv_expand": "squeeze.expand"}
_UNIVERSAL = {
    f"{theirs}.{part}": f"{ours}.{our_part}"
    for theirs, ours in (("dw_start", "start"), ("pw_exp", "expand"), ("dw_mid", "middle"), ("pw_proj", "project"))
    for part, our_part in (("conv", "conv"), ("bn", "norm"))
} | {"layer_scale": "scale"}
_ATTENTION = {
    "norm": "norm", "attn.query.proj": "query", "attn.key.down_conv": "smaller_key.conv",
    "attn.key.norm": "smaller_key.norm", "attn.key.proj": "key", "attn.value.down_conv": "smaller_value.conv",
    "attn.value.norm": "smaller_value.norm", "attn.value.proj": "value", "attn.output.proj": "output",
    "layer_scale": "scale",
}


def is_mobilenet(state: State) -> bool:
    """Whether these are the tensors of one of timm's MobileNets or MnasNets."""
    return "conv_stem.weight" in state and "bn1.weight" in state and any(key.startswith("blocks.0.0.") for key in state)


def mobilenet_names(state: State) -> dict[str, str]:
    """timm's name to ours for every tensor of the trunk; the classifier's and what feeds it are left out."""
    places: dict[tuple[int, int], set[str]] = {}
    for key in state:
        if found := re.match(r"blocks\.(\d+)\.(\d+)\.(.+)\.\w+$", key):
            places.setdefault((int(found[1]), int(found[2])), set()).add(found[3])
    prefixes, number = {}, 0
    parts_before: set[str] = set()
    for place in sorted(places):
        parts = places[place]
        if "conv" not in parts:
            prefixes[place] = (f"blocks.{number}.", _table(parts))
        elif "conv" in parts_before and place[1] == 1:  # the second of Conv-S's pair of plain convolutions
            number -= 1
            prefixes[place] = (f"blocks.{number}.project.", _CONV)
        elif (place[0], 1) in places:
            prefixes[place] = (f"blocks.{number}.expand.", _CONV)
        else:
            prefixes[place] = (f"blocks.{number}.conv.", _CONV)
        number, parts_before = number + 1, parts

    names = {}
    last_conv_precedes_pooling = "bn2.weight" in state
    for key in state:
        owner, _, leaf = key.rpartition(".")
        if found := re.match(r"blocks\.(\d+)\.(\d+)\.(.+)$", owner):
            prefix, table = prefixes[int(found[1]), int(found[2])]
            names[key] = f"{prefix}{table[found[3]]}.{leaf}"
        elif owner in ("conv_stem", "bn1"):
            names[key] = f"stem.{'conv' if owner == 'conv_stem' else 'norm'}.{leaf}"
        elif owner in ("conv_head", "bn2") and last_conv_precedes_pooling:
            names[key] = f"blocks.{number}.conv.{'conv' if owner == 'conv_head' else 'norm'}.{leaf}"
    return names


class Download(NamedTuple):
    """Published weights, and the mean and std of RGB in 0..1 that they were trained with."""

    state: dict[str, Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def download(source: str) -> Download:
    """The weights of a name "timm/MODEL.TAG", through the cache of huggingface_hub.

    ValueError: timm is not installed; FileNotFoundError: no such name; ConnectionError: no network.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"{source}: such names need timm: pip install timm, or give the path of a file") from error
    name = source.removeprefix(HUB)
    known = [known for known in timm.list_pretrained() if _NETWORKS.fullmatch(known.partition(".")[0])]
    if name not in known:
        near = ", ".join(f"{HUB}{one}" for one in difflib.get_close_matches(name, known, n=3, cutoff=0.0))
        raise FileNotFoundError(f"{source}: timm publishes no such weights of a network that is one here; the nearest "
                                f"are {near}")
    try:
        model = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"{source}: could not be downloaded ({error}). Fetch the file where there is a network and give its path: "
            "--weights FILE") from error
    config = model.pretrained_cfg
    return Download(dict(model.state_dict()), tuple(config["mean"]), tuple(config["std"]))


def _table(parts: set[str]) -> dict[str, str]:
    """How the parts of a block are called, by what parts it has."""
    if any(part.startswith("attn.") for part in parts):
        return _ATTENTION
    if "pw_exp.conv" in parts:
        return _UNIVERSAL
    if "conv_exp" in parts:
        return _FUSED
    return (_INVERTED if "conv_pwl" in parts else _SEPARABLE) | _SQUEEZE
