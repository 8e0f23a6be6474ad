"""What an analysis of a detector gives, as plain values and as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from detseg.analysis.calibration import Calibration
from detseg.analysis.curves import Curves
from detseg.analysis.result import Analysis, TitledTable
from detseg.analysis.sensitivity import Sensitivity
from detseg.analysis.thresholds import ScoreThresholds
from detseg.analysis.tide import SHORT, ErrorKind
from detseg.structures import MetricTable

_MOST_COLUMNS = 10
"""Classes of a confusion matrix on a terminal; with more, the largest pairs are listed."""
_MOST_PAIRS = 15
_MOST_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class ErrorCost:
    """A kind of error."""

    kind: ErrorKind
    meaning: str
    ap50_gain: float
    """What AP at IoU 0.5 would be more without it. These do not add up: one error hides behind another."""
    count: int
    """Of all detections."""
    shown: int
    """Of the detections that are shown, from the best threshold of their class on."""


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """What became of one class, or of all."""

    name: str
    objects: int
    detections: int
    ap50: float
    curves: Curves
    ap50_gains: Mapping[ErrorKind, float]
    """What the class's AP would be more without errors of a kind."""


@dataclass(frozen=True, kw_only=True)
class AnchorMisses:
    """How many objects no anchor of the network meets."""

    iou: float
    """From which an anchor meets an object."""
    missed: int
    """Objects of the kind "missed" that have an area."""
    missed_unmet: int
    """Of them, those that no anchor meets."""
    objects_unmet: float
    """Of all objects, the share that no anchor meets."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An error among the detections that are shown. Boxes are xyxy in the image's pixels."""

    kind: ErrorKind
    image_id: int
    file: str
    box: tuple[float, float, float, float] | None
    """The detection's; None of a missed object."""
    predicted: str | None
    score: float | None
    true_box: tuple[float, float, float, float] | None
    """The object's that the error is about; None of one in the background."""
    true: str | None
    iou: float
    """Of the two; 0 where there are none."""


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """What became of one image, of the detections that are shown."""

    image_id: int
    file: str
    objects: int
    found: int
    errors: Mapping[ErrorKind, int]


@dataclass(frozen=True, kw_only=True)
class DetectionAnalysis(Analysis):
    """Why a detector has its AP."""

    kind: ClassVar[str] = "detection"
    num_objects: int
    num_detections: int
    """Of which up to 100 of an image were taken, the surest."""
    ap50: float
    """Of these, over the classes that have objects."""
    errors: tuple[ErrorCost, ...]
    false_positives_gain: float
    """What AP50 would be more if every wrong detection had a score of 0."""
    false_negatives_gain: float
    """What it would be more if only objects that were found were asked for."""
    overall: ClassResult
    """All classes in one, and the mean of their AP."""
    classes: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    """[K + 1, K + 1] of the detections that are shown: true class, last the background (rows), and predicted class,
    last nothing (columns)."""
    class_errors: tuple[tuple[int, ...], ...]
    """[K, K] of the detections that are shown: errors of the kind "classification" by the class of the object that they
    are on (rows) and the predicted one. Unlike in `confusion`, the object may have been found besides."""
    class_errors_besides: int
    """How many of them are on an object that has been found."""
    calibration: Calibration
    sensitivities: tuple[Sensitivity, ...]
    anchors: AnchorMisses | None
    anchors_note: str
    """Why there is nothing to say of anchors."""
    examples: tuple[Example, ...]
    """By kind: the surest errors first, of missed objects the largest."""
    images: tuple[ImageResult, ...]
    """In the order of their ids."""

    def tables(self) -> tuple[TitledTable, ...]:
        """Errors, classes, confusion, sensitivity, calibration."""
        return (self._errors(), self._classes(), self._class_errors(), self._confusion(), self._sensitivity(),
                self._calibration())

    def score_thresholds(self, *, weights: str, data: str) -> ScoreThresholds | None:
        """Where F1 is largest."""
        return ScoreThresholds.of(
            {one.name: one.curves.threshold for one in self.classes}, self.overall.curves.threshold, weights=weights,
            data=data, num_images=self.num_images)

    def _errors(self) -> TitledTable:
        rows = [*((one.kind, one.ap50_gain, str(one.count), str(one.shown), one.meaning) for one in self.errors),
                ("false positives", self.false_positives_gain, "", "", "all wrong detections, as if of score 0"),
                ("false negatives", self.false_negatives_gain, "", "", "all objects that are not found")]
        return TitledTable("What each kind of error costs (TIDE)", MetricTable(
            ("error", "AP50 lost", "all", "shown", "what it is"), tuple(rows), sections=(len(self.errors) - 1,),
            notes=(f"AP50 is {self.ap50:.3f} (AP {self.numbers['AP']:.3f}); shown: from the best threshold of the "
                   "class on", self._anchors())))

    def _anchors(self) -> str:
        if self.anchors is None:
            return f"anchors: {self.anchors_note}"
        return (f"of {self.anchors.missed} missed objects {self.anchors.missed_unmet} meet no anchor with an IoU of "
                f"{self.anchors.iou:g}; of all objects {self.anchors.objects_unmet:.0%}")

    def _classes(self) -> TitledTable:
        rows = tuple(
            (one.name, str(one.objects), one.ap50, one.curves.threshold, one.curves.precision, one.curves.recall,
             one.curves.f1) for one in (*self.classes, self.overall))
        return TitledTable("Classes, shown from the score where F1 is largest", MetricTable(
            ("class", "objects", "AP50", "threshold", "precision", "recall", "F1"), rows,
            sections=(len(self.classes) - 1,)))

    def _class_errors(self) -> TitledTable:
        dearest = sorted((one for one in self.classes if one.objects), key=lambda one: -max(one.ap50_gains.values()))
        rows: tuple[tuple[str | float, ...], ...] = tuple(
            (one.name, *one.ap50_gains.values()) for one in dearest[:_MOST_ROWS])
        more = len(dearest) - len(rows)
        return TitledTable("What each class loses of its AP50", MetricTable(
            ("class", *(SHORT[kind] for kind in self.overall.ap50_gains)), rows,
            notes=(f"and {more} more that lose less",) if more else ()))

    def _confusion(self) -> TitledTable:
        names = tuple(one.name for one in self.classes)
        if len(names) <= _MOST_COLUMNS:
            rows = tuple((name, *map(str, row)) for name, row in zip((*names, "background"), self.confusion,
                                                                      strict=True))
            return TitledTable("Confusion: true classes down, predicted across", MetricTable(
                ("", *names, "not found"), rows))
        pairs = sorted(((count, true, predicted) for true, row in zip((*names, "background"), self.confusion,
                                                                       strict=True)
                        for predicted, count in zip((*names, "not found"), row, strict=True)
                        if count and true != predicted), key=lambda pair: -pair[0])
        return TitledTable("Confusion: the largest numbers", MetricTable(
            ("true", "predicted", "boxes"), tuple((true, predicted, str(count))
                                                  for count, true, predicted in pairs[:_MOST_PAIRS])))

    def _sensitivity(self) -> TitledTable:
        rows = list[tuple[str | float, ...]]()
        ends = list[int]()
        for one in self.sensitivities:
            rows += [(one.name, of.name, str(of.objects), of.recall, of.ap50) for of in one.groups]
            ends.append(len(rows) - 1)
        return TitledTable("Where objects are found", MetricTable(
            ("property", "objects that are", "objects", "recall", "AP50"), tuple(rows), sections=tuple(ends)))

    def _calibration(self) -> TitledTable:
        of = self.calibration
        rows = tuple((f"{one.low:.1f} to {one.high:.1f}", str(one.count), one.score, one.precision) for one in of.bins)
        fitted = ("" if math.isnan(of.temperature) else
                  f"; {of.scaled_error:.3f} with logits divided by {of.temperature:.2f}")
        return TitledTable("Are scores probabilities?", MetricTable(
            ("score", "detections", "mean score", "right"), rows,
            notes=(f"expected calibration error {of.error:.3f}{fitted}; scores of at least {of.least_score:g}",)))
