"""Mean intersection over union at the original resolution, in whole numbers.

Equal to cityscapesscripts' evalPixelLevelSemanticLabeling for the same label maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask
from rich.table import Table

from detseg.data.label_index import LabelIndex
from detseg.interfaces import VOID, Classes, ImageLabels, LabelPixels, Metric
from detseg.report.console import shown

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
    occurs in neither. Void pixels are not counted, whatever is predicted there.
    """

    main = "mIoU"

    def __init__(self, index: LabelIndex, *, per_class: bool = False) -> None:
        self.index = index
        self.per_class = per_class
        self._positions = {image_id: position for position, image_id in enumerate(index.image_ids.tolist())}
        self._merged = Collected(np.zeros((len(index.classes),) * 2, dtype=np.int64), frozenset())

    @property
    def confusion(self) -> _Counts:
        """[K, K]: the numbers of pixels by true class (rows) and predicted class (columns) so far."""
        return self._merged.confusion

    def update(self, predictions: Sequence[ImageLabels]) -> None:
        """Takes the label maps of some images and reads the true ones.

        ValueError: an image that was given before or that the index does not have, a label map of another size than
        the true one; the images before it in `predictions` have then been taken.
        """
        for image_id, labels in predictions:
            if image_id not in self._positions:
                raise ValueError(f"image {image_id} is not one of the {len(self.index)} images with label maps; "
                                 "evaluate on the data that was predicted")
            if image_id in self._merged.image_ids:
                raise ValueError(f"image {image_id} was given twice; give each image once")
            truth = self.index.labels(self._positions[image_id], (labels.shape[0], labels.shape[1]))
            found = confusion_matrix(truth, labels, len(self.index.classes))
            self._merged = Collected(self._merged.confusion + found, self._merged.image_ids | {image_id})

    def collected(self) -> Collected:
        """The confusion matrix and whose it is."""
        return self._merged

    def merge(self, collected: Sequence[Collected]) -> None:
        """The sum over processes; an image that two of them have is an error of ours."""
        image_ids = frozenset[int]().union(*(share.image_ids for share in collected))
        assert len(image_ids) == sum(len(share.image_ids) for share in collected), "two processes had the same image"
        self._merged = Collected(np.sum([share.confusion for share in collected], axis=0), image_ids)

    def compute(self) -> dict[str, float]:
        """Every number by name. A ValueError where images of the index are missing."""
        if missing := len(self.index) - len(self._merged.image_ids):
            raise ValueError(f"{missing} of {len(self.index)} images have no prediction; mIoU needs all")
        iou = class_iou(self.confusion)
        in_truth = self.confusion.sum(1) > 0
        numbers = {
            "mIoU": _mean(iou[~np.isnan(iou)]),
            "mIoU_present": _mean(iou[in_truth]),
            "pixel_accuracy": _ratio(int(np.trace(self.confusion)), int(self.confusion.sum())),
        }
        if self.per_class:
            numbers |= {f"IoU/{name}": float(iou[k]) for k, name in enumerate(self.index.classes.names)}
        return numbers

    def table(self, numbers: Mapping[str, float]) -> Table:
        """The means, the classes that `numbers` has, best first, and which classes do not occur in the truth."""
        names = np.asarray(self.index.classes.names)
        absent = ", ".join(names[self.confusion.sum(1) == 0]) if self._merged.image_ids else ""
        table = Table("measure", "value", caption=f"not in the label maps: {absent}" if absent else None)
        table.columns[1].justify = "right"
        by_class = {name: value for name, value in numbers.items() if name.startswith("IoU/")}
        for name, value in numbers.items():
            if name not in by_class:
                table.add_row(name, shown(value), end_section=name == "pixel_accuracy")
        for name, value in sorted(by_class.items(), key=lambda item: (math.isnan(item[1]), -item[1], item[0])):
            table.add_row(name, shown(value))
        return table


def confusion_matrix(truth: LabelPixels, labels: LabelPixels, num_classes: int) -> _Counts:
    """[K, K]: the numbers of pixels by true class (rows) and predicted class, without those whose truth is VOID."""
    assert truth.shape == labels.shape, (truth.shape, labels.shape)
    known = truth != VOID
    pairs = truth[known].astype(np.int64) * num_classes + labels[known]
    counts: _Counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    return counts


def class_iou(confusion: _Counts) -> NDArray[np.float64]:
    """[K]: intersection over union of each class; NaN for one that occurs neither in the truth nor in a prediction."""
    common = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - common
    return np.asarray([_ratio(int(c), int(u)) for c, u in zip(common, union, strict=True)])


def records(prediction: ImageLabels, classes: Classes) -> list[Mapping[str, Any]]:
    """The label map in COCO's results format for stuff: image_id, category_id and the run lengths of each class that
    occurs. Unused classes are left out: no file knows their ids."""
    found: list[Mapping[str, Any]] = []
    for k in np.unique(prediction.labels).tolist():
        if classes.source_ids[k] in classes.used:
            runs = mask.encode(np.asfortranarray(prediction.labels == k, dtype=np.uint8))
            found.append({"image_id": prediction.image_id, "category_id": classes.source_ids[k],
                          "segmentation": {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}})
    return found


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan
