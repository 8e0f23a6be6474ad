"""Published weights into a predictor: a file in any known format, or a name to download."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import get_model_weights

from detseg import checkpoint
from detseg.data.cityscapes import CITYSCAPES
from detseg.data.coco import COCO_80, COCO_90
from detseg.data.voc import VOC_21
from detseg.model import Predictor
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.weights import openmmlab, tensorflow, timm, torchvision, torchvision_retinanet
from detseg.weights import torchvision_detection as detection
from detseg.weights import torchvision_segmentation as segmentation

DOWNLOADS = (
    "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small",
    "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn",
    "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101",
    "fcn_resnet50", "fcn_resnet101",
)
"""The names that `--weights` takes instead of a file: torchvision's default weights of these models. Beside them it
takes timm's ("timm/MODEL.TAG")."""


RGB: TypeAlias = tuple[float, float, float]
Names: TypeAlias = Callable[[Mapping[str, Tensor]], Mapping[str, str]]


class Format(NamedTuple):
    """A kind of weight file: how to know it, our names for its tensors, and the classes it predicts."""

    title: str
    matches: Callable[[Mapping[str, Tensor]], bool]
    names: Names
    classes: Classes | None
    """None: it is a backbone alone."""
    normalisation: tuple[RGB, RGB] | None
    """The mean and std it was trained with, None where the file cannot tell."""
    tensors: Callable[[Mapping[str, Tensor], Predictor], Mapping[str, Tensor]] | None = None
    """Where a file has other layouts: its tensors as the predictor's layers take them, before `names`."""
    licence: str | None = None
    """Under which its source publishes such files, as SPDX names it; None where files differ."""


def _own_names(state: Mapping[str, Tensor]) -> Mapping[str, str]:
    return {key: key for key in state}


def _backbone_names(names: Names) -> Names:
    return lambda state: {key: f"backbone.{name}" for key, name in names(state).items()}


_BSD, _APACHE = "BSD-3-Clause", "Apache-2.0"
_HALF = (0.5, 0.5, 0.5)
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


FORMATS = (
    Format("torchvision SSDLite", torchvision.is_ssdlite, torchvision.ssdlite_names, COCO_90, (_HALF, _HALF),
           licence=_BSD),
    Format("torchvision Faster R-CNN", detection.is_faster_rcnn, detection.faster_rcnn_names, COCO_90, _IMAGENET,
           licence=_BSD),
    Format("torchvision RetinaNet", torchvision_retinanet.is_retinanet, torchvision_retinanet.retinanet_names, COCO_90,
           _IMAGENET, licence=_BSD),
    Format("torchvision LR-ASPP", segmentation.is_lraspp, segmentation.lraspp_names, VOC_21, _IMAGENET, licence=_BSD),
    Format("torchvision DeepLabV3", segmentation.is_deeplabv3, segmentation.deeplabv3_names, VOC_21, _IMAGENET,
           licence=_BSD),
    Format("torchvision FCN", segmentation.is_fcn, segmentation.fcn_names, VOC_21, _IMAGENET, licence=_BSD),
    Format("torchvision MobileNet", torchvision.is_mobilenet, _backbone_names(torchvision.mobilenet_names), None,
           _IMAGENET, licence=_BSD),
    Format("torchvision MnasNet", torchvision.is_mnasnet, _backbone_names(torchvision.mnasnet_names), None, _IMAGENET,
           licence=_BSD),
    Format("OpenMMLab LR-ASPP", openmmlab.is_lraspp, openmmlab.lraspp_names, CITYSCAPES, _IMAGENET, licence=_APACHE),
    Format("OpenMMLab SSDLite", openmmlab.is_ssdlite, openmmlab.ssdlite_names, COCO_80, _IMAGENET,
           openmmlab.background_first, licence=_APACHE),
    Format("TensorFlow DeepLab", tensorflow.is_deeplab, _own_names, VOC_21, (_HALF, _HALF),
           tensorflow.deeplab_tensors, licence=_APACHE),
    Format("timm MobileNet", timm.is_mobilenet, _backbone_names(timm.mobilenet_names), None, None),
)


class Report(NamedTuple):
    """What a weight file gave."""

    title: str
    num_loaded: int
    left_over: tuple[str, ...]
    """Tensors of the file that the network has no place for: the classifier, blocks behind the last tap."""
    fresh: tuple[str, ...]
    """Tensors of the network that the file does not set: they keep their initial values."""
    renormalised: bool
    """Whether the images are now normalised as these weights expect, and not as the config said."""
    licence: str | None
    """Of the file, where its source has one for all."""

    def __str__(self) -> str:
        lines = [f"{self.title}: {self.num_loaded} tensors loaded"]
        for what, keys in (("left over in the file", self.left_over), ("not in the file, start anew", self.fresh)):
            if keys:
                lines.append(f"  {len(keys)} {what}: {_abridged(keys)}")
        if self.renormalised:
            lines.append("  images are normalised with the mean and std that these weights were trained with")
        return "\n".join(lines)


def load_weights(predictor: Predictor, source: str) -> Report:
    """Loads a weight file, or the published weights of that name, strictly.

    A whole network must fit everywhere; only what the loss alone uses may be missing, and starts anew. Where it
    predicts other classes, the class layers take the rows of the predictor's classes if it knows all of them, or start
    anew. A backbone file must fill the backbone. Raises ValueError: unreadable or unknown file, tensors missing or of
    another shape; FileNotFoundError: neither a file nor a name; ConnectionError: no network.
    """
    state, classes, normalisation = _read(source)
    licence = None
    if classes is not None:
        title, own = "detseg checkpoint", dict(predictor.state_dict())
        names = _own_names(state)
    else:
        kind = next((kind for kind in FORMATS if kind.matches(state)), None)
        if kind is None:
            raise ValueError(f"{source}: not a known kind of weight file (known: "
                             f"{', '.join(kind.title for kind in FORMATS)}, detseg checkpoint); its tensors begin with "
                             f"{', '.join(list(state)[:5])}")
        if kind.tensors is not None:
            state = dict(kind.tensors(state, predictor))
        title, names, classes, licence = kind.title, kind.names(state), kind.classes, kind.licence
        normalisation = normalisation or kind.normalisation
        own = predictor.weights()
    found = {names[key]: tensor for key, tensor in state.items() if key in names}
    for norm in [key.removesuffix("running_mean") for key in found if key.endswith(".running_mean")]:
        if f"{norm}num_batches_tracked" in own:  # a frozen BatchNorm has counted none
            found.setdefault(f"{norm}num_batches_tracked", torch.tensor(0))
    if classes is not None:
        fresh = _fit_classes(found, predictor, classes)
        fresh += [key for key in _training_only(predictor) if key not in found and key not in fresh]
    else:
        fresh = [key for key in own if not key.startswith("backbone.")]
    _check(found, own, fresh, source=source, title=title)
    predictor.load_state_dict({key: found[key] for key in own if key not in fresh}, strict=False)
    before = torch.cat((predictor.scale, predictor.shift))
    if normalisation is not None:
        predictor.set_normalisation(*normalisation)
    return Report(
        f"{source} ({title})",
        num_loaded=len(own) - len(fresh),
        left_over=tuple(key for key in state if names.get(key) not in own),
        fresh=tuple(fresh),
        renormalised=not torch.equal(before, torch.cat((predictor.scale, predictor.shift))),
        licence=licence,
    )


def _fit_classes(found: dict[str, Tensor], predictor: Predictor, classes: Classes) -> list[str]:
    """Makes the class layers of a file fit the predictor's classes; names those that have to start anew."""
    wanted = predictor.classes
    if (wanted.names, wanted.source_ids) == (classes.names, classes.source_ids):
        return []
    offset = predictor.head.num_outputs - len(wanted)
    names = {f"head.{layer}.{leaf}": num_rows for layer, num_rows in predictor.head.class_layers.items()
             for leaf in ("weight", "bias")}
    position = {name: k for k, name in enumerate(classes.names)}
    if any(len(found[name]) % ((len(classes) + offset) * num_rows)
           for name, num_rows in names.items() if name in found):
        return []  # made for other classes than this kind of file has: it fits as it is, or not at all
    if not all(name in position for name in wanted.names):
        for name in names:
            found.pop(name, None)
        return list(names)
    kept = list(range(offset)) + [offset + position[name] for name in wanted.names]
    for name, num_rows in names.items():
        if name in found:
            per_anchor = found[name].reshape(-1, len(classes) + offset, num_rows, *found[name].shape[1:])
            found[name] = per_anchor[:, kept].flatten(0, 2)
    return []


def _training_only(predictor: Predictor) -> list[str]:
    """The tensors that copies for inference do without; published files often do, too."""
    head = copy.deepcopy(predictor.head)
    head.drop_training_parts()
    kept = head.state_dict()
    return [f"head.{key}" for key in predictor.head.state_dict() if key not in kept]


def _check(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], fresh: Sequence[str], *, source: str, title: str
) -> None:
    """A ValueError where a tensor is missing or has another shape."""
    missing = [key for key in own if key not in found and key not in fresh]
    other = [f"{key} is {list(found[key].shape)}, the network has {list(own[key].shape)}"
             for key in own if key in found and key not in fresh and found[key].shape != own[key].shape]
    if missing or other:
        lines = [f"{source}: this {title} file does not fit the network; it is of another family, width or tail, or "
                 "made for other classes."]
        if missing:
            lines.append(f"  {len(missing)} tensors are missing: {_abridged(missing)}")
        if other:
            lines.append(f"  {len(other)} have another shape: {_abridged(other, separator='; ')}")
        raise ValueError("\n".join(lines))


def _abridged(names: Sequence[str], *, separator: str = ", ") -> str:
    shown = separator.join(names[:6])
    return shown if len(names) <= 6 else f"{shown}{separator}... and {len(names) - 6} more"


def _read(source: str) -> tuple[dict[str, Tensor], Classes | None, tuple[RGB, RGB] | None]:
    """The tensors by name, the classes if it is a checkpoint of ours, and mean and std if the name tells them."""
    path = Path(source)
    if not path.is_file():
        if source.startswith(timm.HUB):
            state, mean, std = timm.download(source)
            return state, None, (mean, std)
        if path.suffix or "/" in source:
            raise FileNotFoundError(f"{source}: no such weight file")
        return _download(source), None, None
    if path.suffix == ".safetensors":
        try:
            return load_file(path), None, None
        except SafetensorError as error:
            raise ValueError(f"{source}: not a readable safetensors file ({error})") from error
    with openmmlab.metadata_left_out():
        content = checkpoint.read_tensors(path)
    if checkpoint.is_checkpoint(content):
        return checkpoint.inference_weights(content), checkpoint.stored_classes(content), None
    return _flat(content, source), None, None


def _flat(content: Any, source: str) -> dict[str, Tensor]:
    """A plain state dict, also from below the usual key of a training script's checkpoint."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise ValueError(f"{source}: holds no state dict (a mapping from parameter names to tensors)")
    return content


def _download(name: str) -> dict[str, Tensor]:
    """torchvision's default weights of a model, through torch.hub's cache."""
    if name not in DOWNLOADS:
        near = difflib.get_close_matches(name, DOWNLOADS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise FileNotFoundError(f"{name}: neither a file nor a known name ({', '.join(DOWNLOADS)}){hint}")
    weights = get_model_weights(name).DEFAULT
    try:
        state = torch.hub.load_state_dict_from_url(weights.url, weights_only=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a file that is not what its name's hash says
        raise ConnectionError(
            f"{name}: could not download {weights.url} ({error}). Fetch the file where there is a network and give "
            f"its path: --weights FILE") from error
    return dict(state)
