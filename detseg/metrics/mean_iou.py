"""Mean intersection over union at the original resolution, in whole numbers.

Equal to cityscapesscripts' evalPixelLevelSemanticLabeling for the same label maps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from detseg.data.label_index import LabelIndex
from detseg.metrics.label_maps import Counts, LabelMetric
from detseg.metrics.numbers import best_first, mean_existing, ratio
from detseg.structures import VOID, LabelPixels, MetricTable


class MeanIoU(LabelMetric):
    """mIoU, pixel accuracy and the confusion matrix against the original label maps of `index`.

    Gives, as fractions: `mIoU`, the mean over the classes that occur in the truth or in a prediction, as
    cityscapesscripts takes it (so that a class that is only predicted counts as 0); `mIoU_present`, the mean over the
    classes that occur in the truth; `pixel_accuracy`; with `per_class` also `IoU/<class name>`, NaN for a class that
    occurs in neither. Void pixels are not counted, whatever is predicted there. Unused classes are in no mean; whoever
    predicts one has missed the pixel. There is one implementation, so `reference` changes nothing.
    """

    main = "mIoU"

    def __init__(self, index: LabelIndex, *, per_class: bool = False, reference: bool = False) -> None:
        super().__init__(index, (len(index.classes),) * 2, per_class=per_class)

    @property
    def confusion(self) -> Counts:
        """[K, K]: the numbers of pixels so far by true class (rows) and predicted class (columns), without void."""
        return self.counts

    def _count(self, image_id: int, truth: LabelPixels, labels: LabelPixels) -> Counts:
        return confusion_matrix(truth, labels, len(self.index.classes))

    def compute(self) -> dict[str, float]:
        """Every number by name. A ValueError where images of the index are missing."""
        self._check_complete("mIoU")
        iou, used = class_iou(self.confusion), self._used
        numbers = {
            "mIoU": mean_existing(iou[k] for k in used),
            "mIoU_present": mean_existing(iou[k] for k in used if self.confusion[k].any()),
            "pixel_accuracy": pixel_accuracy(self.confusion),
        }
        if self.per_class:
            numbers |= {f"IoU/{name}": iou[k] for k, name in used.items()}
        return numbers

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """The means and the classes that `numbers` has, best first.

        Where images have been taken, it also says for each class how much of the truth it is and what its pixels are
        most often taken for, and names the classes that do not occur in the truth.
        """
        by_class = best_first(numbers, "IoU/")
        rows: list[tuple[str | float, ...]] = [
            (name, numbers[name]) for name in ("mIoU", "mIoU_present", "pixel_accuracy")]
        end = len(rows) - 1
        for name, value in by_class:
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
        share = ratio(total, int(self.confusion.sum()))
        if not missed.any():
            return share, ""
        return share, f"{self.index.classes.names[missed.argmax()]} {missed.max() / total:.0%}"


def confusion_matrix(truth: LabelPixels, labels: LabelPixels, num_classes: int) -> Counts:
    """[K, K]: the numbers of pixels by true class (rows) and predicted class, without those whose truth is VOID."""
    assert truth.shape == labels.shape, (truth.shape, labels.shape)
    # All pairs of two bytes, with void and what may not be: cheaper than selecting pixels first, and checks them.
    pairs = (truth.astype(np.uint16) << 8) | labels
    counts: Counts = np.bincount(pairs.ravel(), minlength=2**16).reshape(256, 256)
    assert not counts[num_classes:VOID].any(), f"true labels go beyond the {num_classes} classes"
    assert not counts[:, num_classes:].any(), f"predicted labels go beyond the {num_classes} classes"
    return counts[:num_classes, :num_classes]


def class_iou(confusion: Counts) -> list[float]:
    """Intersection over union of each class; NaN for one that occurs neither in the truth nor in a prediction."""
    common = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - common
    return [ratio(part, whole) for part, whole in zip(common.tolist(), union.tolist(), strict=True)]


def pixel_accuracy(confusion: Counts) -> float:
    """The share of pixels whose class was told."""
    return ratio(int(confusion.trace()), int(confusion.sum()))
