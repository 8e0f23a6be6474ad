"""Mean intersection over union at the original resolution, in whole numbers.

Equal to cityscapesscripts' evalPixelLevelSemanticLabeling for the same label maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detseg.data.label_index import LabelIndex
from detseg.interfaces import Metric
from detseg.structures import VOID, ImageLabels, LabelPixels, MetricTable

_Counts: TypeAlias = NDArray[np.int64]


class Collected(NamedTuple):
    """What is known of some images."""

    confusion: _Counts
    """[K, K]: pixels by true class (rows) and predicted class; void is not counted."""
    image_ids: frozenset[int]


class MeanIoU(Metric[ImageLabels]):
    """mIoU, pixel accuracy and the confusion matrix against the original label maps of `index`.

    Gives, as fractions: `mIoU`, the mean over the classes that occur in the truth or in a prediction, as
    cityscapesscripts takes it (so that a class that is only predicted counts as 0); `mIoU_present`, the mean over the
    classes that occur in the truth; `pixel_accuracy`; with `per_class` also `IoU/<class name>`, NaN for a class that
    occurs in neither. Void pixels are not counted, whatever is predicted there. Unused classes are in no mean; whoever
    predicts one has missed the pixel. There is one implementation, so `reference` changes nothing.
    """

    main = "mIoU"

    def __init__(self, index: LabelIndex, *, per_class: bool = False, reference: bool = False) -> None:
        self.index = index
        self.per_class = per_class
        self.confusion: _Counts = np.zeros((len(index.classes),) * 2, dtype=np.int64)
        """[K, K]: the numbers of pixels so far by true class (rows) and predicted class (columns)."""
        self._waiting = {image_id: position for position, image_id in enumerate(index.image_ids.tolist())}

    def update(self, predictions: Sequence[ImageLabels], truths: Sequence[Tensor]) -> None:
        """Takes the label maps of some images and the true ones, uint8 [H, W] each.

        ValueError: an image that was given before or that the index does not have, a label map of another size than
        the true one; the images before it in `predictions` have then been taken.
        """
        for (image_id, labels), truth in zip(predictions, truths, strict=True):
            if image_id not in self._waiting:
                raise ValueError(f"image {image_id} was given twice; give each image once"
                                 if image_id in self.index.image_ids else
                                 f"image {image_id} is not one of the {len(self.index)} images with label maps; "
                                 "evaluate on the data that was predicted")
            if truth.shape != labels.shape:
                raise ValueError(f"the label map of image {image_id} is {labels.shape[0]} x {labels.shape[1]} (height "
                                 f"x width), the true one is {truth.shape[0]} x {truth.shape[1]}")
            self.confusion += confusion_matrix(truth.numpy(), labels, len(self.index.classes))
            del self._waiting[image_id]

    def collected(self) -> Collected:
        """The confusion matrix and whose it is."""
        return Collected(self.confusion, frozenset(self.index.image_ids.tolist()) - self._waiting.keys())

    def merge(self, collected: Sequence[Collected]) -> None:
        """The sum over processes; an image that two of them have is an error of ours."""
        image_ids = frozenset[int]().union(*(share.image_ids for share in collected))
        assert len(image_ids) == sum(len(share.image_ids) for share in collected), "two processes had the same image"
        self.confusion = np.sum([share.confusion for share in collected], axis=0)
        self._waiting = {image_id: position for position, image_id in enumerate(self.index.image_ids.tolist())
                         if image_id not in image_ids}

    def compute(self) -> dict[str, float]:
        """Every number by name. A ValueError where images of the index are missing."""
        if self._waiting:
            raise ValueError(f"{len(self._waiting)} of {len(self.index)} images have no prediction, image "
                             f"{min(self._waiting)} is the first; mIoU needs all")
        iou = class_iou(self.confusion)
        used = [k for k, source_id in enumerate(self.index.classes.source_ids) if source_id in self.index.classes.used]
        numbers = {
            "mIoU": _mean([iou[k] for k in used if not math.isnan(iou[k])]),
            "mIoU_present": _mean([iou[k] for k in used if self.confusion[k].any()]),
            "pixel_accuracy": _ratio(int(self.confusion.trace()), int(self.confusion.sum())),
        }
        if self.per_class:
            numbers |= {f"IoU/{self.index.classes.names[k]}": iou[k] for k in used}
        return numbers

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """The means and the classes that `numbers` has, best first.

        Where images have been taken, it also says for each class how much of the truth it is and what its pixels are
        most often taken for, and names the classes that do not occur in the truth.
        """
        by_class = {name: value for name, value in numbers.items() if name.startswith("IoU/")}
        rows: list[tuple[str | float, ...]] = [(name, value) for name, value in numbers.items() if name not in by_class]
        end = len(rows) - 1
        for name, value in sorted(by_class.items(), key=lambda item: (math.isnan(item[1]), -item[1], item[0])):
            rows.append((name, value, *self._of_class(name.removeprefix("IoU/"))))
        absent = self._absent()
        return MetricTable(
            ("measure", "value", *(("pixels", "most often taken for") if by_class else ())), tuple(rows),
            sections=(end,), notes=(f"not in the label maps: {', '.join(absent)}",) if absent else ())

    def _absent(self) -> list[str]:
        """Which classes have no pixel in the truth, if there is any truth to tell."""
        counts = dict(zip(self.index.classes.names, self.confusion.sum(1).tolist(), strict=True))
        return [name for name in self.index.classes.used.values() if not counts[name]] if any(counts.values()) else []

    def _of_class(self, name: str) -> tuple[float, str]:
        """The class's share of the truth; the class that most of its missed pixels have got, and their share of it."""
        k = self.index.classes.names.index(name)
        missed = self.confusion[k].copy()
        missed[k] = 0
        total = int(self.confusion[k].sum())
        share = _ratio(total, int(self.confusion.sum()))
        if not missed.any():
            return share, ""
        return share, f"{self.index.classes.names[missed.argmax()]} {missed.max() / total:.0%}"


def confusion_matrix(truth: LabelPixels, labels: LabelPixels, num_classes: int) -> _Counts:
    """[K, K]: the numbers of pixels by true class (rows) and predicted class, without those whose truth is VOID."""
    assert truth.shape == labels.shape, (truth.shape, labels.shape)
    # All pairs of two bytes, with void and what may not be: cheaper than selecting pixels first, and checks them.
    pairs = (truth.astype(np.uint16) << 8) | labels
    counts: _Counts = np.bincount(pairs.ravel(), minlength=2**16).reshape(256, 256)
    assert not counts[num_classes:VOID].any(), f"true labels go beyond the {num_classes} classes"
    assert not counts[:, num_classes:].any(), f"predicted labels go beyond the {num_classes} classes"
    return counts[:num_classes, :num_classes]


def class_iou(confusion: _Counts) -> list[float]:
    """Intersection over union of each class; NaN for one that occurs neither in the truth nor in a prediction."""
    common = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - common
    return [_ratio(part, whole) for part, whole in zip(common.tolist(), union.tolist(), strict=True)]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
