"""An analysis as sections of a run's page: what stands out, what each kind of error costs, and pictures of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from detseg.analysis.detection_result import DetectionAnalysis, Example
from detseg.analysis.result import Analysis, TitledTable
from detseg.analysis.segmentation_result import SegmentationAnalysis
from detseg.bootstrap import Interval
from detseg.report.html import Picture, picture_of
from detseg.report.inline_charts import Line, bar_chart, line_chart
from detseg.report.pictures import draw_boxes, draw_labels, draw_true_boxes
from detseg.report.run_page import Section, macro
from detseg.structures import BoxTargets, Classes, ImageDetections, LabelPixels, Pixels

_OF_A_KIND = 8
"""Errors of each kind that are shown, on an image each."""
_WORST = 8
"""Label maps that are shown."""
_SIDE = 360
"""Pixels of a picture's longer side."""
_AROUND = 1.5
"""Of the boxes' size: what is shown on every side of them."""
_MOST_LINES = 6


class ErrorPicture(NamedTuple):
    """What went wrong somewhere, to be seen."""

    kind: str
    name: str
    """Of the class: the true one, of a box on nothing the predicted one."""
    picture: Picture


class Images(NamedTuple):
    """What pictures are made of."""

    image: Callable[[int], Pixels]
    """By id."""
    labels: Callable[[int], tuple[LabelPixels, LabelPixels]]
    """Of a segmenter: the true label map of an image, by id, and the predicted one."""
    classes: Classes


@singledispatch
def sections(analysis: Analysis, images: Images) -> list[Section]:
    """The sections of a page; of an analysis without pictures and charts the tables alone."""
    return [_findings(analysis), Section("errors", "Where it fails", macro("failures", [], _tables(analysis), [], []))]


@sections.register
def _(analysis: DetectionAnalysis, images: Images) -> list[Section]:
    costs: dict[str, Interval] = {one.kind: Interval(one.ap50_gain, np.nan, np.nan) for one in analysis.errors}
    largest = sorted(analysis.classes, key=lambda one: -one.objects)[:_MOST_LINES]
    recalls, scores = ([at / 100 for at in range(101)] for _ in range(2))
    diagonal = Line([0.0, 1.0], [0.0, 1.0])
    bins = [one for one in analysis.calibration.bins if one.count]
    charts = [
        bar_chart(costs, title="AP50 lost to each kind of error", most=None),
        line_chart({one.name: Line(recalls, one.curves.precision_at_recall) for one in largest if one.objects},
                   title="Precision over recall, IoU 0.5", x_label="recall"),
        line_chart({one.name: Line(scores, one.curves.f1_at_score) for one in largest if one.objects},
                   title="F1 over the score from which boxes are shown", x_label="score"),
        line_chart({"detections": Line([one.score for one in bins], [one.precision for one in bins]),
                    "as a probability": diagonal}, title="The share that is right over the score", x_label="score")]
    names = [one.name for one in analysis.classes]
    heat = _heat([*names, "background"], [*names, "not found"], analysis.confusion)
    tables = [one for one in _tables(analysis) if not one.title.startswith("Confusion")] if heat else _tables(analysis)
    return [_findings(analysis), Section("errors", "Where it fails", macro(
        "failures", charts, tables, heat, _error_pictures(analysis, images),
        f"Of each kind up to {_OF_A_KIND}: the surest errors, of missed objects the largest. Boxes without a score are "
        "true ones. A click enlarges."))]


@sections.register
def _(analysis: SegmentationAnalysis, images: Images) -> list[Section]:
    bands = {f"from {band.low:g} px": Interval(band.share_wrong, np.nan, np.nan) for band in analysis.edges
             if band.pixels}
    charts = [bar_chart(bands, title="Pixels that are wrong, by distance to an edge", most=None)]
    names = [one.name for one in analysis.classes]
    return [_findings(analysis), Section("errors", "Where it fails", macro(
        "failures", charts, _tables(analysis), _heat(names, names, analysis.confusion),
        _label_pictures(analysis, images), "The worst: left the truth, right what is predicted. A click enlarges."))]


def _findings(analysis: Analysis) -> Section:
    return Section("findings", "What stands out", macro("findings", analysis.findings))


def _tables(analysis: Analysis) -> list[TitledTable]:
    return [*analysis.tables()]


class HeatRow(NamedTuple):
    """A row of a confusion matrix."""

    name: str
    cells: Sequence[tuple[str, float]]
    """What stands in each, and its share of the row, 0 to 1."""


_MOST_HEATED = 24
"""Classes of a matrix; with more nobody reads it."""


def _heat(rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> list[Any]:
    """The columns' names, and the rows; nothing where they are too many."""
    if len(rows) > _MOST_HEATED:
        return []
    made = []
    for name, row in zip(rows, counts, strict=True):
        whole = sum(row)
        made.append(HeatRow(name, [(_short(count), count / whole if whole else 0.0) for count in row]))
    return [list(columns), made]


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            return f"{count / min(size, size if letter != 'k' else 10**3):.3g}{letter}"
    return str(count)


def _error_pictures(analysis: DetectionAnalysis, images: Images) -> list[ErrorPicture]:
    """Of each kind the worst, each of another image while there are some."""
    chosen = list[Example]()
    for kind in dict.fromkeys(one.kind for one in analysis.examples):
        of_kind = [one for one in analysis.examples if one.kind == kind]
        first = list({one.image_id: one for one in reversed(of_kind)}.values())[::-1]
        chosen += (first + [one for one in of_kind if one not in first])[:_OF_A_KIND]
    return [ErrorPicture(one.kind, one.true or one.predicted or "", _error_picture(one, images)) for one in chosen]


def _error_picture(error: Example, images: Images) -> Picture:
    """The surroundings of an error, with the true box, which has no score, and the predicted one."""
    image, names = images.image(error.image_id), images.classes.names
    drawn, boxes = image, [box for box in (error.true_box, error.box) if box is not None]
    if error.true_box is not None and error.true is not None:
        drawn = draw_true_boxes(drawn, BoxTargets(
            torch.tensor([error.true_box]), torch.tensor([names.index(error.true)]), torch.tensor([False])),
            images.classes)
    if error.box is not None and error.predicted is not None:
        drawn = draw_boxes(drawn, ImageDetections(
            error.image_id, torch.tensor([error.box]), torch.tensor([error.score or 0.0]),
            torch.tensor([names.index(error.predicted)])), images.classes, threshold=0.0)
    low, high = np.min(boxes, axis=0)[:2], np.max(boxes, axis=0)[2:]
    side = int(min(max(*(high - low), 24.0) * (1 + 2 * _AROUND), *image.shape[:2]))
    left, top = (int(np.clip((one + other - side) / 2, 0, most - side))
                 for one, other, most in zip(low, high, image.shape[1::-1], strict=True))
    words = {"missed": f"{error.true} not found", "background": f"{error.predicted} {error.score or 0:.2f} on nothing",
             "duplicate": f"{error.predicted} {error.score or 0:.2f} once more"}.get(
        error.kind, f"{error.predicted} {error.score or 0:.2f}, IoU {error.iou:.2f} with {error.true}")
    return _small(drawn[top : top + side, left : left + side], f"{error.file}: {words}")


def _label_pictures(analysis: SegmentationAnalysis, images: Images) -> list[ErrorPicture]:
    """The worst images: the truth beside what is predicted."""
    made = []
    for one in analysis.worst[:_WORST]:
        image, (true, predicted) = images.image(one.image_id), images.labels(one.image_id)
        beside = np.concatenate([draw_labels(image, labels, images.classes)
                                 for labels in (true, predicted)], axis=1)
        words = f"mIoU {100 * one.miou:.1f}" + (f", {one.true} as {one.predicted}" if one.true else "")
        made.append(ErrorPicture("worst images", one.true or "", _small(
            beside, f"{one.file}: {words}", side=2 * _SIDE)))
    return made


def _small(image: Pixels, where: str, *, side: int = _SIDE) -> Picture:
    scale = min(1.0, side / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return picture_of(np.ascontiguousarray(image), where)
