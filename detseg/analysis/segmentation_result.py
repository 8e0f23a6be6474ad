"""What an analysis of a segmenter gives, as plain values and as tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from detseg.analysis.result import Analysis, TitledTable
from detseg.structures import MetricTable


@dataclass(frozen=True, kw_only=True)
class LabelClass:
    """What became of one class."""

    name: str
    pixels: int
    """That are of it."""
    predicted: int
    """That are taken for it."""
    iou: float
    precision: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class EdgeBand:
    """Pixels by their distance to the nearest edge between labels, void among them."""

    low: float
    high: float
    """Pixels; inf for all that lie farther."""
    pixels: int
    wrong: int
    share_wrong: float
    """Of these pixels."""
    share_of_errors: float
    """Of all wrong pixels, those that lie here."""

    def words(self) -> str:
        """As in "2 to 4 px"."""
        return f"over {self.low:g} px" if math.isinf(self.high) else f"{self.low:g} to {self.high:g} px"


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Pixels of one class that are taken for another."""

    true: str
    predicted: str
    pixels: int
    share_of_true: float
    """Of the true class's pixels."""
    share_of_errors: float
    """Of all wrong pixels."""


@dataclass(frozen=True, kw_only=True)
class LabelImage:
    """What became of one image."""

    image_id: int
    file: str
    pixels: int
    """That are not void."""
    wrong: int
    accuracy: float
    miou: float
    """Over the classes that occur in its label map or in its prediction."""
    true: str | None
    predicted: str | None
    """Its largest confusion; None where no pixel is wrong."""
    confused: int
    """Pixels of that confusion."""


@dataclass(frozen=True, kw_only=True)
class SegmentationAnalysis(Analysis):
    """Why a segmenter has its mIoU."""

    kind: ClassVar[str] = "segmentation"
    pixel_accuracy: float
    classes: tuple[LabelClass, ...]
    confusion: tuple[tuple[int, ...], ...]
    """[K, K]: pixels by true class (rows) and predicted class, used classes alone."""
    pairs: tuple[ConfusedPair, ...]
    """The largest first."""
    edges: tuple[EdgeBand, ...]
    worst: tuple[LabelImage, ...]
    """Of the smallest mIoU first."""
    images: tuple[LabelImage, ...]
    """All, in the order of their ids."""

    def tables(self) -> tuple[TitledTable, ...]:
        """Classes, confusion, edges, worst images."""
        classes = tuple((one.name, one.iou, one.precision, one.recall) for one in self.classes)
        pairs = tuple((one.true, one.predicted, one.share_of_true, one.share_of_errors) for one in self.pairs)
        edges = tuple((band.words(), band.share_wrong, band.share_of_errors) for band in self.edges)
        worst = tuple((one.file, one.miou, one.accuracy, f"{one.true} as {one.predicted}" if one.true else "")
                      for one in self.worst)
        return (
            TitledTable("Classes", MetricTable(("class", "IoU", "precision", "recall"), classes, notes=(
                f"mIoU is {self.numbers['mIoU']:.3f}, pixel accuracy {self.pixel_accuracy:.3f}",))),
            TitledTable("What is taken for what", MetricTable(
                ("true", "taken for", "of the true", "of all errors"), pairs)),
            TitledTable("Errors by distance to an edge between labels", MetricTable(
                ("distance", "wrong there", "of all errors"), edges)),
            TitledTable("The worst images", MetricTable(("image", "mIoU", "right", "largest confusion"), worst)))
