"""How well label maps do at the edges between classes, where their area says little."""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from detseg.data.label_index import LabelIndex
from detseg.metrics.label_maps import Counts, LabelMetric
from detseg.metrics.mean_iou import class_iou, confusion_matrix, pixel_accuracy
from detseg.metrics.numbers import best_first, mean_existing, ratio
from detseg.structures import VOID, LabelPixels, MetricTable


class BoundaryIoU(LabelMetric):
    """Boundary IoU (Cheng et al. 2021, arXiv 2103.16562) against the original label maps of `index`.

    IoU of the pixels of each class that are no further than a distance from the outline of what has this class, in
    the truth and in the prediction. The distance is `dilation_ratio` of the image's diagonal, counted in steps to any
    of the eight neighbours, and the image's edge is part of the outline, as in the authors' code. As for mIoU, pixels
    are added up over the images, and void pixels are not counted; where the truth is void, the prediction has its
    outline too, whatever it says there.

    Gives `boundary_IoU`, the mean over the classes of which the truth or a prediction has an outline, and with
    `per_class` `boundary_IoU/<class name>`. There is one implementation, so `reference` changes nothing.
    """

    main = "boundary_IoU"

    def __init__(
        self, index: LabelIndex, *, per_class: bool = False, reference: bool = False, dilation_ratio: float = 0.02
    ) -> None:
        super().__init__(index, (3, len(index.classes)), per_class=per_class)
        if not 0 < dilation_ratio <= 1:
            raise ValueError("the distance from an outline is a share of the image's diagonal, above 0 and at most 1, "
                             f"got {dilation_ratio}; the paper has 0.02")
        self.dilation_ratio = dilation_ratio

    def _count(self, image_id: int, truth: LabelPixels, labels: LabelPixels) -> Counts:
        """[3, K]: the pixels that both have, those of the truth, those of the prediction."""
        distance = max(1, round(self.dilation_ratio * math.hypot(*truth.shape)))
        labels = np.where(truth == VOID, truth, labels)
        near_true, near_predicted = _near_outline(truth, distance), _near_outline(labels, distance)
        counts = [np.bincount(side, minlength=256) for side in (
            truth[near_true & near_predicted & (truth == labels)], truth[near_true], labels[near_predicted])]
        assert not any(count[len(self.index.classes):VOID].any() for count in counts), "labels go beyond the classes"
        return np.stack(counts)[:, :len(self.index.classes)]

    def compute(self) -> dict[str, float]:
        """Every number by name. A ValueError where images of the index are missing."""
        self._check_complete("boundary IoU")
        common, true, predicted = self.counts.tolist()
        iou = {name: ratio(common[k], true[k] + predicted[k] - common[k]) for k, name in self._used.items()}
        numbers = {"boundary_IoU": mean_existing(iou.values())}
        return numbers | {f"boundary_IoU/{name}": value for name, value in iou.items()} if self.per_class else numbers

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """The mean and, where `numbers` has them, the classes, best first."""
        return MetricTable(
            ("measure", "value"), (("boundary_IoU", numbers["boundary_IoU"]), *best_first(numbers, "boundary_IoU/")),
            sections=(0,), notes=(f"within {self.dilation_ratio:.3g} of the image's diagonal from an outline",))


class EdgeIoU(LabelMetric):
    """mIoU and pixel accuracy of the pixels near a true edge alone, and of all others (a trimap; Kohli et al. 2009,
    Robust Higher Order Potentials for Enforcing Label Consistency, section 5).

    A pixel is within N pixels of an edge where a pixel of another true label, or a void one, is at most N steps to any
    of the eight neighbours away. For each of `widths`, ascending, gives `mIoU_within_<N>px`, `mIoU_beyond_<N>px`,
    `accuracy_within_<N>px` and `accuracy_beyond_<N>px`; with `per_class` also `IoU_within_<N>px/<class name>` and
    `IoU_beyond_<N>px/<class name>`. What counts for a mean is as in mIoU. There is one implementation, so `reference`
    changes nothing.
    """

    def __init__(
        self, index: LabelIndex, *, per_class: bool = False, reference: bool = False,
        widths: tuple[int, ...] = (1, 2, 4, 8, 16),
    ) -> None:
        super().__init__(index, (len(widths) + 1, len(index.classes), len(index.classes)), per_class=per_class)
        if not widths or list(widths) != sorted({*widths}) or widths[0] < 1:
            raise ValueError(f"widths of bands are whole pixels from 1 on, ascending, got {widths}")
        self.widths = widths
        self.main = f"mIoU_within_{widths[0]}px"

    def _count(self, image_id: int, truth: LabelPixels, labels: LabelPixels) -> Counts:
        """[W + 1, K, K]: the confusion of the pixels in the narrowest band, of those that each wider one adds, and of
        the rest."""
        band = np.full(truth.shape, len(self.widths), np.uint8)
        for width in self.widths:
            band -= _near_other(truth, width)
        return np.stack([confusion_matrix(truth[band == number], labels[band == number], len(self.index.classes))
                         for number in range(len(self.widths) + 1)])

    def compute(self) -> dict[str, float]:
        """Every number by name. A ValueError where images of the index are missing."""
        self._check_complete("the numbers at edges")
        numbers, by_class = dict[str, float](), dict[str, float]()
        for number, width in enumerate(self.widths, start=1):
            for where, counts in (("within", self.counts[:number]), ("beyond", self.counts[number:])):
                confusion = counts.sum(0)
                every = class_iou(confusion)
                iou = {name: every[k] for k, name in self._used.items()}
                numbers[f"mIoU_{where}_{width}px"] = mean_existing(iou.values())
                numbers[f"accuracy_{where}_{width}px"] = pixel_accuracy(confusion)
                by_class |= {f"IoU_{where}_{width}px/{name}": value for name, value in iou.items()}
        return numbers | by_class if self.per_class else numbers

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """A column for each width; the rows are the numbers and, where `numbers` has them, the classes."""
        kinds = [(kind, where) for where in ("within", "beyond") for kind in ("mIoU", "accuracy")]
        rows: list[tuple[str | float, ...]] = [
            (f"{kind} {where}", *(numbers[f"{kind}_{where}_{width}px"] for width in self.widths))
            for kind, where in kinds]
        named = sorted(name.partition("/")[2] for name, _ in best_first(numbers, f"IoU_within_{self.widths[0]}px/"))
        rows += [(f"IoU {where}/{name}", *(numbers[f"IoU_{where}_{width}px/{name}"] for width in self.widths))
                 for name in named for where in ("within", "beyond")]
        if self.counts.any():
            within = self.counts.sum((1, 2)).cumsum() / self.counts.sum()
            rows.insert(0, ("of all pixels, within", *(f"{share:.1%}" for share in within[:-1].tolist())))
        return MetricTable(
            ("measure", *(f"{width} px" for width in self.widths)), tuple(rows),
            sections=(len(rows) - 2 * len(named) - 1,),
            notes=("pixels within and beyond so many pixels of an edge between true labels",))


def _near_other(labels: LabelPixels, distance: int) -> NDArray[np.bool_]:
    """[H, W]: whether another label is at most so many steps to any of the eight neighbours away."""
    # A window has one label where its smallest and its largest are equal, whatever the number of classes.
    window = np.ones((2 * distance + 1,) * 2, np.uint8)
    near: NDArray[np.bool_] = cv2.dilate(labels, window) != cv2.erode(labels, window)
    return near


def _near_outline(labels: LabelPixels, distance: int) -> NDArray[np.bool_]:
    """[H, W]: whether another label or the end of the image is so near."""
    near = _near_other(labels, distance)
    near[:distance] = near[-distance:] = near[:, :distance] = near[:, -distance:] = True
    return near
