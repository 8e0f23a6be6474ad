"""torchvision's parameter names in ours.

torchvision numbers the parts of a block, and the numbers depend on which parts the block has. What a part is shows in
its tensors: the depthwise convolution has one input channel, what lies before it expands, what lies behind it
projects, and squeeze-excite names itself (fc1, fc2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]

_CONV_NORM = {"0": "conv", "1": "norm"}
_SQUEEZE = {"fc1": "reduce", "fc2": "expand"}


def is_mobilenet(state: State) -> bool:
    """Whether these are the tensors of torchvision's mobilenet_v2 or mobilenet_v3, with or without classifier."""
    return "features.0.0.weight" in state and any(re.match(r"features\.1\.(block|conv)\.", key) for key in state)


def is_mnasnet(state: State) -> bool:
    """Whether these are the tensors of torchvision's mnasnet (which is MnasNet-B1)."""
    return "layers.0.weight" in state and "layers.8.0.layers.0.weight" in state


def is_ssdlite(state: State) -> bool:
    """Whether these are the tensors of torchvision's ssdlite320_mobilenet_v3_large."""
    return "backbone.features.0.0.0.weight" in state and "head.classification_head.module_list.0.1.weight" in state


def mobilenet_names(state: State) -> dict[str, str]:
    """torchvision's name to ours for every tensor of a mobilenet_v2 or _v3; the classifier's are left out."""
    parts: dict[int, list[str]] = {}
    for key in state:
        if found := re.match(r"(features\.(\d+)\.(?:block|conv)\.\d+)\.", key):
            known = parts.setdefault(int(found[2]), [])
            if found[1] not in known:
                known.append(found[1])
    roles = {part: role for known in parts.values() for part, role in _roles(state, known).items()}

    names = {}
    for key in state:
        if found := re.match(r"(features\.(\d+)\.(?:block|conv)\.\d+)\.(.+)", key):
            part, number, rest = found[1], int(found[2]), found[3]
            names[key] = f"blocks.{number - 1}.{roles[part]}.{_inner_name(state, part, roles[part], rest)}"
        elif found := re.match(r"features\.(\d+)\.([01])\.(\w+)$", key):
            owner = "stem" if found[1] == "0" else f"blocks.{int(found[1]) - 1}.conv"
            names[key] = f"{owner}.{_CONV_NORM[found[2]]}.{found[3]}"
    return names


def trunk_names(state: State, prefix: str) -> dict[str, str]:
    """The name of ours, with "backbone.", for every tensor of the mobilenet_v2 or _v3 inside a larger network, whose
    layers there are called `prefix` and their number; nothing where it is another trunk."""
    whole = {f"features.{key.removeprefix(prefix)}": key for key in state if key.startswith(prefix)}
    features = {name: state[key] for name, key in whole.items()}
    if not is_mobilenet(features):
        return {}
    return {whole[name]: f"backbone.{ours}" for name, ours in mobilenet_names(features).items()}


def mnasnet_names(state: State) -> dict[str, str]:
    """torchvision's name to ours for every tensor of a mnasnet; the classifier's are left out."""
    plain = {"0": "stem.conv", "1": "stem.norm", "3": "blocks.0.depthwise.conv", "4": "blocks.0.depthwise.norm",
             "6": "blocks.0.project.conv", "7": "blocks.0.project.norm"}
    inner = {"0": "expand.conv", "1": "expand.norm", "3": "depthwise.conv", "4": "depthwise.norm", "6": "project.conv",
             "7": "project.norm"}
    places = sorted({(int(found[1]), int(found[2])) for key in state
                     if (found := re.match(r"layers\.(\d+)\.(\d+)\.layers\.", key))})
    number = {place: k + 1 for k, place in enumerate(places)}
    last = max(stack for stack, _ in places) + 1
    plain |= {str(last): f"blocks.{len(places) + 1}.conv.conv", str(last + 1): f"blocks.{len(places) + 1}.conv.norm"}
    names = {}
    for key in state:
        if found := re.match(r"layers\.(\d+)\.(\d+)\.layers\.(\d)\.(\w+)$", key):
            names[key] = f"blocks.{number[int(found[1]), int(found[2])]}.{inner[found[3]]}.{found[4]}"
        elif found := re.match(r"layers\.(\d+)\.(\w+)$", key):
            names[key] = f"{plain[found[1]]}.{found[2]}"
    return names


def classifier_names(state: State) -> dict[str, str]:
    """torchvision's name to ours for the classifier's tensors of a mobilenet or mnasnet: of its last layer, and of the
    one before, which V3 has."""
    layers = sorted({int(found[1]) for key in state if (found := re.match(r"classifier\.(\d+)\.", key))}, reverse=True)
    ours = dict(zip(layers, ("classify", "hidden"), strict=False))
    return {key: f"head.{ours[int(found[1])]}.{found[2]}" for key in state
            if (found := re.match(r"classifier\.(\d+)\.(\w+)$", key))}


def ssdlite_names(state: State) -> dict[str, str]:
    """torchvision's name to ours for every tensor of ssdlite320_mobilenet_v3_large, with "backbone." or "head."."""
    split = max(int(found[1]) for key in state if (found := re.match(r"backbone\.features\.0\.(\d+)\.", key)))
    whole = {}  # the backbone's tensors under the names of the classification model, where block `split` is in one
    for key in state:
        if found := re.match(r"backbone\.features\.0\.(\d+)\.(.+)", key):
            whole[f"features.{split}.block.0.{found[2]}" if int(found[1]) == split
                  else f"features.{found[1]}.{found[2]}"] = key
        elif found := re.match(r"backbone\.features\.1\.0\.(\d+)\.(.+)", key):
            whole[f"features.{split}.block.{int(found[1]) + 1}.{found[2]}"] = key
        elif found := re.match(r"backbone\.features\.1\.(\d+)\.(.+)", key):
            whole[f"features.{split + int(found[1])}.{found[2]}"] = key
    names = {whole[name]: f"backbone.{ours}"
             for name, ours in mobilenet_names({name: state[key] for name, key in whole.items()}).items()}
    kinds = {"classification_head": "classify", "regression_head": "locate"}
    for key in state:
        if found := re.match(r"backbone\.extra\.(\d+)\.(\d)\.([01])\.(\w+)$", key):
            names[key] = f"head.extras.{found[1]}.{found[2]}.{_CONV_NORM[found[3]]}.{found[4]}"
        elif found := re.match(r"head\.(\w+)\.module_list\.(\d+)\.0\.([01])\.(\w+)$", key):
            names[key] = f"head.{kinds[found[1]]}.{found[2]}.0.{_CONV_NORM[found[3]]}.{found[4]}"
        elif found := re.match(r"head\.(\w+)\.module_list\.(\d+)\.1\.(\w+)$", key):
            names[key] = f"head.{kinds[found[1]]}.{found[2]}.1.{found[3]}"
    return names


def _roles(state: State, parts: list[str]) -> dict[str, str]:
    """What each numbered part of one block is."""
    roles, behind_depthwise = {}, False
    for part in parts:
        weight = state.get(f"{part}.0.weight", state.get(f"{part}.weight"))
        if f"{part}.fc1.weight" in state:
            roles[part] = "squeeze"
        elif behind_depthwise:
            roles[part] = "project"
        elif weight is not None and weight.dim() == 4 and weight.shape[1] == 1:
            roles[part], behind_depthwise = "depthwise", True
        else:
            roles[part] = "expand"
    return roles


def _inner_name(state: State, part: str, role: str, rest: str) -> str:
    """The name below a part: "0.weight" (convolution), "1.bias" (norm), "fc1.weight", or V2's bare "weight"."""
    owner, _, leaf = rest.rpartition(".")
    if role == "squeeze":
        return f"{_SQUEEZE[owner]}.{leaf}"
    if owner:
        return f"{_CONV_NORM[owner]}.{leaf}"
    return f"{'conv' if state[f'{part}.weight'].dim() == 4 else 'norm'}.{leaf}"
