"""torchvision's models of our architectures, with our weights: used as documented, trained as its reference scripts do.

They are what `detseg.benchmark.predictor` measures against, and what says whether both give the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, mobilenet_v3_large
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_mobilenet_v3_large_fpn,
    ssdlite320_mobilenet_v3_large,
)
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, lraspp_mobilenet_v3_large
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.transforms._presets import SemanticSegmentation

from detseg.interfaces import TrainingBatch
from detseg.model import Predictor
from detseg.resize import Resize
from detseg.structures import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VOID,
    BoxTargets,
    ImageDetections,
    ImageLabels,
    LabelTargets,
    Pixels,
    Size,
)
from detseg.weights.torchvision import ssdlite_names
from detseg.weights.torchvision_detection import faster_rcnn_names
from detseg.weights.torchvision_segmentation import deeplabv3_names, fcn_names, lraspp_names

TOLERANCE = 1e-4
"""Detections are the same if their scores differ by less, and their boxes by less of the image's longer side."""

Names: TypeAlias = Callable[[Mapping[str, Tensor]], Mapping[str, str]]
"""From a state dict of torchvision's: its tensor names to ours."""

_UNLIKE = {"detections": 0.01, "pixels": 1e-4}
"""The part of equal results that may differ. Folding moves the last digits: suppression may begin at either of two
scores that are as good as equal, two stages make more of a small difference, and a pixel may have either of two
classes."""


class DetectionAgreement(NamedTuple):
    """How far two detectors with the same weights say the same."""

    images: int
    detections: int
    """Of both."""
    unmatched: int
    """Those of both that have no match: of the same class, within TOLERANCE."""
    max_score_difference: float
    max_box_difference: float
    """In pixels; both among matches."""

    def __str__(self) -> str:
        same = self.unmatched <= _UNLIKE["detections"] * self.detections
        return (f"results {'equal' if same else 'NOT EQUAL'}: of {self.detections} detections on {self.images} images "
                f"{self.unmatched} have no match; matches differ by {self.max_score_difference:.1e} in score and "
                f"{self.max_box_difference:.1e} px at most")


class LabelAgreement(NamedTuple):
    """How far two segmenters with the same weights say the same."""

    images: int
    classes: int
    """That occur."""
    pixels: int
    different: int

    def __str__(self) -> str:
        same = self.different <= _UNLIKE["pixels"] * self.pixels
        return (f"results {'equal' if same else 'NOT EQUAL'}: of {self.pixels} pixels on {self.images} images, of "
                f"{self.classes} classes, {self.different} differ")


Agreement: TypeAlias = DetectionAgreement | LabelAgreement


def compare_detections(
    pairs: Sequence[tuple[ImageDetections, ImageDetections]], *, longer_sides: Sequence[int]
) -> DetectionAgreement:
    """Two detectors' results on the same images, whose longer sides have so many pixels."""
    detections, unmatched, scores, boxes = 0, 0, [0.0], [0.0]
    for (one, other), longer_side in zip(pairs, longer_sides, strict=True):
        score_MN = (one.scores[:, None] - other.scores).abs()
        box_MN = (one.boxes[:, None] - other.boxes).abs().amax(-1)
        matches_MN = ((one.labels[:, None] == other.labels) & (score_MN < TOLERANCE)
                    & (box_MN < TOLERANCE * longer_side))
        detections += len(one.scores) + len(other.scores)
        unmatched += int((~matches_MN.any(0)).sum() + (~matches_MN.any(1)).sum())
        scores += score_MN[matches_MN].tolist()
        boxes += box_MN[matches_MN].tolist()
    return DetectionAgreement(len(pairs), detections, unmatched, max(scores), max(boxes))


def compare_labels(pairs: Sequence[tuple[ImageLabels, ImageLabels]]) -> LabelAgreement:
    """Two segmenters' results on the same images."""
    classes = {k for _, other in pairs for k in np.unique(other.labels).tolist()}
    return LabelAgreement(
        len(pairs), len(classes), sum(other.labels.size for _, other in pairs),
        sum(int((one.labels != other.labels).sum()) for one, other in pairs))


class Reference(ABC):
    """A model of torchvision's, with random weights.

    size: what its images come to have, whatever the model's own size is.
    """

    def __init__(self, model: Any, names: Names, *, size: Size | None) -> None:
        self.model, self.size = model.eval(), size
        self.names = names(model.state_dict())

    def fits(self, model: Predictor) -> bool:
        """Whether the two have the same tensors."""
        state = self.model.state_dict()
        return {ours: state[theirs].shape for theirs, ours in self.names.items()} == {
            name: tensor.shape for name, tensor in model.weights().items()}

    def take_weights(self, model: Predictor) -> None:
        """Copies those of ours."""
        own = model.weights()
        self.model.load_state_dict({theirs: own[ours] for theirs, ours in self.names.items()})

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """What corresponds to our forward pass: without resizing, decoding, enlarging; from `inputs`."""

    @abstractmethod
    def size_of(self, image: Pixels) -> Size:
        """To which an image is resized."""

    @abstractmethod
    def inputs(self, image: Pixels) -> Tensor:
        """[1, 3, H, W], resized and normalised."""

    @abstractmethod
    def predict(self, image: Pixels) -> Any:
        """The prediction in the image's pixels, in our form, in evaluation mode."""

    @abstractmethod
    def step(self, batch: TrainingBatch[Any]) -> Callable[[], float]:
        """A training step at learning rate 0, on images of the right size; it gives the loss."""

    @abstractmethod
    def compared(self, predict: Callable[[Pixels], Any], images: Sequence[Pixels]) -> Agreement:
        """Its predictions and those of `predict`."""


class _Detector(Reference):
    """references/detection: engine.py and train.py."""

    def __init__(self, model: Any, names: Names, *, size: Size | None) -> None:
        super().__init__(model, names, size=size)
        if size is not None:
            model.transform.fixed_size = size[::-1]

    @property
    def network(self) -> nn.Module:
        return _DetectorNetwork(self.model)

    def size_of(self, image: Pixels) -> Size:
        height, width = self.model.transform([_tensor(image)])[0].image_sizes[0]
        return height, width

    def inputs(self, image: Pixels) -> Tensor:
        images: Tensor = self.model.transform([_tensor(image)])[0].tensors
        return images

    @torch.inference_mode()
    def predict(self, image: Pixels) -> ImageDetections:
        found = self.model([_tensor(image)])[0]
        return ImageDetections(0, found["boxes"], found["scores"], found["labels"] - 1)

    def step(self, batch: TrainingBatch[BoxTargets]) -> Callable[[], float]:
        model = self.model.train()
        images = [image.float() / 255 for image in batch.images]
        boxes_BM4, labels_BM = batch.targets[:2]
        targets = [{"boxes": boxes[labels >= 0], "labels": labels[labels >= 0] + 1}
                   for boxes, labels in zip(boxes_BM4, labels_BM, strict=True)]
        return _step(model, lambda: sum(model(images, targets).values()))

    def compared(self, predict: Callable[[Pixels], Any], images: Sequence[Pixels]) -> DetectionAgreement:
        return compare_detections([(predict(image), self.predict(image)) for image in images],
                                  longer_sides=[max(image.shape) for image in images])


class _DetectorNetwork(nn.Module):
    def __init__(self, detector: Any) -> None:
        super().__init__()
        # Of two stages the first; the second works on what it finds.
        self.backbone, self.head = detector.backbone, getattr(detector, "rpn", detector).head

    def forward(self, images: Tensor) -> object:
        """Images [B, 3, H, W] to raw predictions."""
        return self.head(list(self.backbone(images).values()))


class _Segmenter(Reference):
    """references/segmentation/train.py, and the transforms that the weights come with."""

    def __init__(self, model: Any, names: Names, *, size: Size | None) -> None:
        super().__init__(model, names, size=size)
        self.preset = SemanticSegmentation(resize_size=520 if size is None else None)

    @property
    def network(self) -> nn.Module:
        return _SegmenterNetwork(self.model)

    def size_of(self, image: Pixels) -> Size:
        height, width = self.inputs(image).shape[2:]
        return height, width

    def inputs(self, image: Pixels) -> Tensor:
        # Resized in floating point, as ours; of bytes the preset would round what it resized.
        images: Tensor = self.preset(_tensor(image))[None]
        return images

    @torch.inference_mode()
    def predict(self, image: Pixels) -> ImageLabels:
        labels = self.model(self.inputs(image))["out"].argmax(1).to(torch.uint8)
        if labels.shape[1:] != image.shape[:2]:
            labels = F.interpolate(labels[None], image.shape[:2], mode="nearest-exact")[0]
        return ImageLabels(0, labels[0].numpy())

    def step(self, batch: TrainingBatch[LabelTargets]) -> Callable[[], float]:
        model = self.model.train()
        images = SemanticSegmentation(resize_size=None)(batch.images)
        labels = batch.targets.labels.long()

        def loss() -> Tensor:
            terms = {name: F.cross_entropy(logits, labels, ignore_index=VOID) for name, logits in model(images).items()}
            return terms["out"] + 0.5 * terms["aux"] if "aux" in terms else terms["out"]

        return _step(model, loss)

    def compared(self, predict: Callable[[Pixels], Any], images: Sequence[Pixels]) -> LabelAgreement:
        return compare_labels([(predict(image), self.predict(image)) for image in images])


class _SegmenterNetwork(nn.Module):
    def __init__(self, segmenter: Any) -> None:
        super().__init__()
        self.backbone, self.classifier = segmenter.backbone, segmenter.classifier
        self.aux_classifier = getattr(segmenter, "aux_classifier", None)

    def forward(self, images: Tensor) -> object:
        """Images [B, 3, H, W] to logits at the strides of their maps; published weights have the auxiliary ones."""
        features = self.backbone(images)
        if self.aux_classifier is None:
            return self.classifier(features if "low" in features else features["out"])
        return self.classifier(features["out"]), self.aux_classifier(features["aux"])


def _tensor(image: Pixels) -> Tensor:
    """As torchvision reads images, and in 0..1: float32 [3, H, W], the channels first in memory."""
    return torch.from_numpy(image).permute(2, 0, 1).contiguous().float() / 255


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], float]:
    """With SGD, with which all of them were trained."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

    def step() -> float:
        total = loss()
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        return float(total.detach())

    return step


class Published(NamedTuple):
    """A model of torchvision that is one of our configs."""

    title: str
    build: Callable[[], Any]
    """The model with random weights."""
    names: Names
    kind: Callable[..., Reference]


def _ssdlite_mobilenet_v2() -> Any:
    """torchvision has no such model, but all its parts: the network of ssdlite_v2_bccd, trained with smooth L1."""
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.1)
    layers: Any = mobilenet_v2(weights=None).features
    layers[14].block = layers[14].conv  # SSDLite's extractor splits a block of MobileNetV3, which calls it so
    del layers[14].conv
    trunk = SSDLiteFeatureExtractorMobileNet(layers, 14, norm)
    anchors = DefaultBoxGenerator([[2, 3]] * 6, scales=[0.07, 0.46, 0.6, 0.75, 0.85, 0.95, 1.0])
    head = SSDLiteHead(retrieve_out_channels(trunk, (320, 320)), anchors.num_anchors_per_location(), 4, norm)
    return SSD(
        trunk, anchors, (320, 320), 4, head=head, image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD),
        score_thresh=0.001, nms_thresh=0.5, topk_candidates=100, detections_per_img=100)


def _fcn_mobilenet_v3() -> Any:
    """torchvision publishes no such model, but all its parts."""
    trunk = mobilenet_v3_large(weights=None, dilated=True).features
    backbone = IntermediateLayerGetter(trunk, {"4": "aux", "16": "out"})
    return FCN(backbone, FCNHead(960, 21), FCNHead(40, 21))


_UNTRAINED = {"weights": None, "weights_backbone": None}

REFERENCES = (
    Published(
        "ssdlite320_mobilenet_v3_large", partial(ssdlite320_mobilenet_v3_large, **_UNTRAINED), ssdlite_names,
        _Detector),
    Published("SSD of its parts on mobilenet_v2", _ssdlite_mobilenet_v2, ssdlite_names, _Detector),
    Published(
        "fasterrcnn_mobilenet_v3_large_320_fpn", partial(fasterrcnn_mobilenet_v3_large_320_fpn, **_UNTRAINED),
        faster_rcnn_names, _Detector),
    Published(
        "fasterrcnn_mobilenet_v3_large_fpn", partial(fasterrcnn_mobilenet_v3_large_fpn, **_UNTRAINED),
        faster_rcnn_names, _Detector),
    Published(
        "lraspp_mobilenet_v3_large", partial(lraspp_mobilenet_v3_large, **_UNTRAINED), lraspp_names, _Segmenter),
    Published(
        "deeplabv3_mobilenet_v3_large", partial(deeplabv3_mobilenet_v3_large, **_UNTRAINED, aux_loss=True),
        deeplabv3_names, _Segmenter),
    Published("FCN of its parts on mobilenet_v3_large", _fcn_mobilenet_v3, fcn_names, _Segmenter),
)
"""In this order the first is taken whose network and input size are ours."""


@cache
def _sketch(published: Published) -> Reference:
    """The model without numbers, for images of many sizes."""
    with torch.device("meta"):
        return published.kind(published.build(), published.names, size=None)


def reference_of(
    model: Predictor, *, resize: Resize, size: Size | None, image: Pixels
) -> tuple[str, Reference]:
    """torchvision's model of the same network, with the weights of ours, and its name.

    Args:
        model: ours; what it is compared by is its tensors, and the size to which `resize` brings `image`.
        resize: that of its config, whatever `size` is: two architectures may differ in nothing else.
        size: that all images have, in place of either's resize.
        image: any.

    ValueError where torchvision has none that is like it.
    """
    original = (image.shape[0], image.shape[1])
    placement = resize.place(original)
    resized = (round(original[0] * placement.scale_y), round(original[1] * placement.scale_x))
    for published in REFERENCES:
        sketch = _sketch(published)
        if sketch.fits(model) and sketch.size_of(image) == resized:
            reference = published.kind(published.build(), published.names, size=size)
            reference.take_weights(model)
            return published.title, reference
    raise ValueError(
        "torchvision has no such network to compare with. It has " + ", ".join(one.title for one in REFERENCES)
        + ", each with one width, one tail, one input size and one number of classes: leave out --set model.*")
