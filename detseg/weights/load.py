"""Published weights into a predictor: a file in any known format, or a name to download."""

from __future__ import annotations

import copy
import difflib
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import get_model_weights

from detseg import checkpoint
from detseg.data.cityscapes import CITYSCAPES
from detseg.data.coco import COCO_80, COCO_90
from detseg.data.imagenet import IMAGENET
from detseg.data.voc import VOC_21
from detseg.model import Predictor
from detseg.run_folder import trained_run
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.weights import openmmlab, tensorflow, tensorflow_detection, timm, torchvision, torchvision_retinanet
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
    """None: it may predict any."""
    normalisation: tuple[RGB, RGB] | None
    """The mean and std it was trained with, None where the file cannot tell."""
    tensors: Callable[[Mapping[str, Tensor], Predictor], Mapping[str, Tensor]] | None = None
    """Where a file has other layouts: its tensors as the predictor's layers take them, before `names`."""
    licence: str | None = None
    """Under which its source publishes such files, as SPDX names it; None where files differ."""
    backbone: bool = False
    """Whether it is a backbone, with the classifier that it was trained with or without."""
    classifier: Names | None = None
    """Of a backbone: our names for that classifier's tensors, for ImageNet's classes."""


_NORMALISATION = ("scale", "shift")


def _own_names(state: Mapping[str, Tensor]) -> Mapping[str, str]:
    return {key: key for key in state}


def _is_own(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a whole network of ours."""
    return {"scale", "shift"} <= state.keys() and any(key.startswith("head.") for key in state)


def _is_classifier(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a classifier of ours."""
    return "head.classify.weight" in state and state["head.classify.weight"].ndim == 2


def _classifier_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor], names: Names) -> Mapping[str, str]:
    """Our names for a published classifier's tensors, where the network is one with the same layers, whatever its
    classes; else none."""
    found = names(state)
    theirs = {ours: state[key].shape[1:] for key, ours in found.items()}
    return found if theirs == {name: own[name].shape[1:] for name in own if name.startswith("head.")} else {}


def _of_backbone(state: Mapping[str, Tensor]) -> Mapping[str, str]:
    """Our names for the backbone in a network of ours, and for how its images are normalised."""
    return {key: key for key in state if key.startswith("backbone.") or key in _NORMALISATION}


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
           _IMAGENET, licence=_BSD, backbone=True, classifier=torchvision.classifier_names),
    Format("torchvision MnasNet", torchvision.is_mnasnet, _backbone_names(torchvision.mnasnet_names), None, _IMAGENET,
           licence=_BSD, backbone=True, classifier=torchvision.classifier_names),
    Format("OpenMMLab LR-ASPP", openmmlab.is_lraspp, openmmlab.lraspp_names, CITYSCAPES, _IMAGENET, licence=_APACHE),
    Format("OpenMMLab SSDLite", openmmlab.is_ssdlite, openmmlab.ssdlite_names, COCO_80, _IMAGENET,
           openmmlab.background_first, licence=_APACHE),
    Format("TensorFlow DeepLab", tensorflow.is_deeplab, _own_names, VOC_21, (_HALF, _HALF),
           tensorflow.deeplab_tensors, licence=_APACHE),
    Format("TensorFlow SSDLite", tensorflow_detection.is_ssdlite, _own_names, COCO_90, (_HALF, _HALF),
           tensorflow_detection.ssdlite_tensors),
    Format("timm MobileNet", timm.is_mobilenet, _backbone_names(timm.mobilenet_names), None, None, backbone=True),
    Format("detseg state dict", _is_own, _own_names, None, None),
)


class Report(NamedTuple):
    """What a weight file gave."""

    title: str
    num_loaded: int
    left_over: tuple[str, ...]
    """Tensors of the file that the network has no place for: the classifier, blocks behind the last tap."""
    fresh: tuple[str, ...]
    """Tensors of the network that the file does not set: they keep their initial values."""
    other_classes: tuple[str, ...]
    """Those of them that the file has for other classes."""
    renormalised: bool
    """Whether the images are now normalised as these weights expect, and not as the config said."""
    licence: str | None
    """Of the file, where its source has one for all."""

    def __str__(self) -> str:
        lines = [f"{self.title}: {self.num_loaded} tensors loaded"]
        missing = tuple(key for key in self.fresh if key not in self.other_classes)
        for what, keys in (
            ("left over in the file", self.left_over), ("not in the file, start anew", missing),
            ("made for other classes in the file, start anew", self.other_classes),
        ):
            if keys:
                lines.append(f"  {len(keys)} {what}: {_abridged(keys)}")
        if self.renormalised:
            lines.append("  images are normalised with the mean and std that these weights were trained with")
        return "\n".join(lines)


def load_weights(predictor: Predictor, source: str) -> Report:
    """Loads a weight file, a run's weights, or the published weights of that name, strictly.

    A whole network must fit everywhere; only what the loss alone uses may be missing, and starts anew. Where it
    predicts other classes, the class layers take the rows of the predictor's classes if it knows all of them, or start
    anew. A backbone file must fill the backbone; its classifier is taken where the network is one with the same layers.
    Of a classifier of ours the backbone is taken, with the normalisation that it learned with, where the network is no
    classifier. Raises ValueError: unreadable or unknown file, tensors missing or of another shape; FileNotFoundError:
    neither a file nor a name; ConnectionError: no network.
    """
    read = _read(source)
    state, classes, normalisation, licence = read.state, read.classes, read.normalisation, None
    own = predictor.weights()
    if classes is not None:
        title, own, names, is_backbone = "detseg checkpoint", dict(predictor.state_dict()), _own_names(state), False
    else:
        state, kind = _recognised(state, source)
        if kind.tensors is not None:
            state = dict(kind.tensors(state, predictor))
        title, names, classes, licence = kind.title, kind.names(state), kind.classes, kind.licence
        is_backbone = kind.backbone
        normalisation = normalisation or kind.normalisation
        if kind.matches is _is_own:
            own = dict(predictor.state_dict())
        if kind.classifier is not None and (of_head := _classifier_names(state, own, kind.classifier)):
            names, classes, is_backbone = {**names, **of_head}, IMAGENET, False
    if _is_classifier(state) and not _is_classifier(own):
        title, names, is_backbone = f"classifier's {title}", _of_backbone(state), True
    found = {names[key]: tensor for key, tensor in state.items() if key in names}
    for norm in [key.removesuffix("running_mean") for key in found if key.endswith(".running_mean")]:
        if f"{norm}num_batches_tracked" in own:  # a frozen BatchNorm has counted none
            found.setdefault(f"{norm}num_batches_tracked", torch.tensor(0))
    other: list[str] = []
    if is_backbone:
        fresh = [key for key in own if not key.startswith("backbone.") and key not in _NORMALISATION]
    else:
        other = _fit_classes(found, predictor, classes)
        fresh = other + [key for key in _training_only(predictor) if key not in found and key not in other]
    _check(found, own, fresh, source=source, title=title)
    before = torch.cat((predictor.scale, predictor.shift))
    predictor.load_state_dict({key: found[key] for key in own if key not in fresh}, strict=False)
    if normalisation is not None:
        predictor.set_normalisation(*normalisation)
    return Report(
        f"{source} ({title}{read.part})",
        num_loaded=len(own) - len(fresh),
        left_over=tuple(key for key in state if names.get(key) not in own),
        fresh=tuple(fresh),
        other_classes=tuple(other),
        renormalised=not torch.equal(before, torch.cat((predictor.scale, predictor.shift))),
        licence=licence,
    )


def _recognised(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], Format]:
    """The kind of weight file, and its tensors without what a training script put before their names. ValueError where
    it is none that is known."""
    for bare in _bare(state):
        kind = next((kind for kind in FORMATS if kind.matches(bare)), None)
        if kind is not None:
            return bare, kind
    raise ValueError(f"{source}: not a known kind of weight file (known: {', '.join(kind.title for kind in FORMATS)}, "
                     f"detseg checkpoint); its tensors begin with {', '.join(list(state)[:5])}")


def _bare(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors without the prefixes of DistributedDataParallel and torch.compile; then also without that of a
    module which holds the network under a name, as Lightning's do."""
    bare = {re.sub(r"(^|\.)_orig_mod\.", r"\1", key): tensor for key, tensor in state.items()}
    yield bare
    while bare and (prefix := next(iter(bare)).partition(".")[0]) in _HOLDERS:
        if not all(key.startswith(f"{prefix}.") for key in bare):
            break
        bare = {key.removeprefix(f"{prefix}."): tensor for key, tensor in bare.items()}
        yield bare


_HOLDERS = frozenset({"module", "model", "net", "network", "ema"})
"""What the attribute of a wrapper is called that holds the network."""


def _fit_classes(found: dict[str, Tensor], predictor: Predictor, classes: Classes | None) -> list[str]:
    """Makes the class layers of a file fit the predictor's classes; names those that have to start anew.

    classes: what a file of this kind predicts, if it predicts as many; None, where nothing is known of them.
    """
    wanted = predictor.classes
    offset = predictor.head.num_outputs - len(wanted)
    own = predictor.state_dict()
    names = {name: num_rows for layer, num_rows in predictor.head.class_layers.items()
             for name in (f"head.{layer}.weight", f"head.{layer}.bias") if name in found and name in own}
    # A layer has rows for each anchor and output; a file of other anchors shows in the other layers.
    outputs = {len(found[name]) / (len(own[name]) // predictor.head.num_outputs) for name in names}
    if len(outputs) != 1:
        return []  # it is of another network
    num_outputs = outputs.pop()
    if classes is None or num_outputs != len(classes) + offset:  # made for classes that it does not name
        if num_outputs == predictor.head.num_outputs or not num_outputs.is_integer():
            return []
    elif (wanted.names, wanted.source_ids) == (classes.names, classes.source_ids):
        return []
    elif all(name in classes.names for name in wanted.names):
        position = {name: k for k, name in enumerate(classes.names)}
        kept = list(range(offset)) + [offset + position[name] for name in wanted.names]
        for name, num_rows in names.items():
            per_anchor = found[name].reshape(-1, len(classes) + offset, num_rows, *found[name].shape[1:])
            found[name] = per_anchor[:, kept].flatten(0, 2)
        return []
    for name in names:
        found.pop(name)
    return list(names)


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


class _Read(NamedTuple):
    """What lies in a file."""

    state: Mapping[str, Tensor]
    """The tensors by name."""
    classes: Classes | None = None
    """Of a checkpoint of ours."""
    normalisation: tuple[RGB, RGB] | None = None
    """Mean and std, if the name of the file tells them."""
    part: str = ""
    """For people, which part of a training script's checkpoint it is, where that is not the usual one."""


def is_plain(path: Path) -> bool:
    """Whether a file holds tensors by name and nothing else, so that it is no checkpoint."""
    return path.suffix in (".safetensors", ".npz")


def read_checkpoint(path: Path) -> Any:
    """What `torch.save` wrote, ours or another's; ValueError as of `detseg.checkpoint.read_tensors`, which for the
    files of others says what to do about it."""
    try:
        with openmmlab.metadata_left_out():
            return checkpoint.read_tensors(path)
    except ValueError as error:
        if "was refused" not in str(error):
            raise
        raise ValueError(
            f"{error}. If you trust where it comes from, save its tensors alone, once: "
            f"torch.save(torch.load({path.name!r}, weights_only=False)[...], 'weights.pth') with the key of its state "
            "dict, often \"model\" or \"state_dict\"") from error


def _read(source: str) -> _Read:
    path = Path(source)
    if path.is_dir():
        path = trained_run(path).weights
    if not path.is_file():
        if source.startswith(timm.HUB):
            state, mean, std = timm.download(source)
            return _Read(state, normalisation=(mean, std))
        if path.suffix or "/" in source:
            raise FileNotFoundError(f"{source}: no such weight file")
        return _Read(_download(source))
    if path.suffix == ".safetensors":
        try:
            return _Read(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{source}: not a readable safetensors file ({error})") from error
    if path.suffix == ".npz":
        return _Read(_read_npz(path))
    if path.suffix in _TENSORFLOWS or path.suffix.startswith(".data-"):
        raise ValueError(f"{source}: TensorFlow's own files are not read here; docs/tensorflow_weights.md has the few "
                         "lines that make an .npz of their variables")
    content = read_checkpoint(path)
    if checkpoint.is_checkpoint(content):
        return _Read(checkpoint.inference_weights(content), checkpoint.stored_classes(content))
    return _flat(content, source)


_TENSORFLOWS = frozenset({".pb", ".index", ".meta", ".tflite", ".h5", ".keras"})


def _read_npz(path: Path) -> dict[str, Tensor]:
    """Arrays by name, never objects."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable npz file of numbers ({error})") from error


_AVERAGES = ("model_ema", "ema_state_dict", "state_dict_ema", "params_ema", "ema")
"""Where training scripts keep averaged weights, which are what is evaluated."""
_COUNTERS = frozenset({"n_averaged", "steps", "updates"})
"""What counts the averaged steps beside the averages."""
_WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")


def _flat(content: Any, source: str) -> _Read:
    """A plain state dict, also from below the usual keys of a training script's checkpoint; averages before others."""
    part = ""
    while isinstance(content, dict):
        below = next((key for key in (*_AVERAGES, *_WEIGHTS) if isinstance(content.get(key), dict) and content[key]),
                     None)
        if below is None:
            break
        part = f', its averaged weights, "{below}"' if below in _AVERAGES else part
        content = content[below]
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _COUNTERS}
    if not isinstance(content, dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise ValueError(f"{source}: holds no state dict (a mapping from parameter names to tensors)")
    return _Read(content, part=part)


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
