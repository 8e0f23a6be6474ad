"""What else is asked of label maps' confusion: other averages than mIoU's, and the matrix itself."""

from __future__ import annotations

from collections.abc import Mapping

from detseg.data.label_index import LabelIndex
from detseg.metrics.label_maps import Counts, LabelMetric
from detseg.metrics.mean_iou import class_iou, confusion_matrix
from detseg.metrics.numbers import best_first, mean_existing, ratio
from detseg.structures import LabelPixels, MetricTable


class LabelAverages(LabelMetric):
    """Averages that weigh classes and images in other ways than mIoU does.

    Gives, as fractions: `mean_accuracy`, the mean over the classes in the truth of the share of their pixels that was
    found; `frequency_weighted_IoU`, the mean IoU of the classes weighed by their pixels in the truth (both as in Long
    et al. 2015, arXiv 1411.4038, section 5); `image_IoU`, the mean over images of the mean over the classes that occur
    there, in the truth or in the prediction. With `per_class` also `accuracy/<class name>` and, for every two classes
    of which one was taken for the other, `confusion/<true>/<predicted>`, the share of the true class's pixels. Void
    pixels are not counted, and an image without others has no IoU. There is one implementation, so `reference` changes
    nothing.
    """

    main = "image_IoU"

    def __init__(self, index: LabelIndex, *, per_class: bool = False, reference: bool = False) -> None:
        super().__init__(index, (len(index.classes),) * 2, per_class=per_class)

    def _count(self, image_id: int, truth: LabelPixels, labels: LabelPixels) -> Counts:
        confusion = confusion_matrix(truth, labels, len(self.index.classes))
        iou = class_iou(confusion)
        self.of_image[image_id] = mean_existing(iou[k] for k in self._used)
        return confusion

    def compute(self) -> dict[str, float]:
        """Every number by name. A ValueError where images of the index are missing."""
        self._check_complete("image_IoU")
        used, iou, total = self._used, class_iou(self.counts), int(self.counts.sum())
        truth, right = self.counts.sum(1).tolist(), self.counts.diagonal().tolist()
        accuracy = {name: ratio(right[k], truth[k]) for k, name in used.items()}
        numbers = {
            "mean_accuracy": mean_existing(accuracy.values()),
            # A mean over pixels, each of which has the IoU of its class.
            "frequency_weighted_IoU": ratio(1, total) * sum(truth[k] * iou[k] for k in used if truth[k]),
            "image_IoU": mean_existing(self.of_image[image_id] for image_id in sorted(self.of_image)),
        }
        if self.per_class:
            numbers |= {f"accuracy/{name}": value for name, value in accuracy.items()}
            numbers |= {f"confusion/{name}/{other}": count / truth[k] for k, name in used.items()
                        for other, count in zip(self.index.classes.names, self.counts[k].tolist(), strict=True)
                        if count and other != name}
        return numbers

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """The averages and, where `numbers` has them, the classes, best first; the confusion is for files."""
        rows = [(name, numbers[name]) for name in ("mean_accuracy", "frequency_weighted_IoU", "image_IoU")]
        return MetricTable(("measure", "value"), (*rows, *best_first(numbers, "accuracy/")), sections=(2,))
