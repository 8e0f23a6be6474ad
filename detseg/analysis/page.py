"""An analysis as sections of a run's page: what stands out, what each kind of error costs, and pictures of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from markupsafe import Markup

from detseg.analysis.detection_result import DetectionAnalysis, Example
from detseg.analysis.result import Analysis, TitledTable
from detseg.analysis.segmentation_result import ConfusedPair, LabelImage, SegmentationAnalysis
from detseg.bootstrap import Interval
from detseg.report.html import Picture, picture_of
from detseg.report.inline_charts import Line, bar_chart, line_chart
from detseg.report.pictures import draw_against_truth, draw_labels
from detseg.report.run_page import Section, macro
from detseg.structures import VOID, BoxTargets, Classes, ImageDetections, LabelPixels, Pixels

_OF_A_KIND = 8
"""Errors of each kind that are shown, on an image each."""
_WORST = 8
"""Label maps that are shown."""
_SIDE = 360
"""Pixels of a picture's longer side."""
_AROUND = 1.0
"""Of the boxes' size: what is shown on every side of them."""
_MOST_LINES = 6
_MOST_PAIRS = 8
_WRONG = (224, 32, 32)
"""The colour of wrong pixels."""


class ErrorPicture(NamedTuple):
    """What went wrong somewhere, to be seen."""

    kind: str
    """Of the error; of a label map what is most often taken for what."""
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
        line_chart({one.name: Line(recalls, one.curves.precision_at_recall, (one.curves.recall, one.curves.precision))
                    for one in largest if one.objects},
                   title="Precision over recall, IoU 0.5; dots: at the best threshold", x_label="recall"),
        line_chart({one.name: Line(scores, one.curves.f1_at_score, (one.curves.threshold, one.curves.f1))
                    for one in largest if one.objects},
                   title="F1 over the score from which boxes are shown; dots: the best threshold", x_label="score"),
        _found_by_size(analysis),
        line_chart({"detections": Line([one.score for one in bins], [one.precision for one in bins]),
                    "as a probability": diagonal}, title="The share that is right over the score", x_label="score")]
    names = [one.name for one in analysis.classes]
    heat = _heat([*names, "background"], [*names, "not found"], analysis.confusion)
    tables = [one for one in _tables(analysis) if not one.title.startswith("Confusion")] if heat else _tables(analysis)
    return [_findings(analysis), Section("errors", "Where it fails", macro(
        "failures", charts, tables, heat, _error_pictures(analysis, images),
        f"Of each kind up to {_OF_A_KIND}: the surest errors, of missed objects the largest. True boxes are "
        "dashed. A click enlarges."))]


@sections.register
def _(analysis: SegmentationAnalysis, images: Images) -> list[Section]:
    bands = {band.words(): Interval(band.share_wrong, np.nan, np.nan) for band in analysis.edges
             if band.pixels}
    pairs = {_pair(one): Interval(one.share_of_errors, np.nan, np.nan) for one in analysis.pairs[:_MOST_PAIRS]}
    charts = [bar_chart(bands, title="Pixels that are wrong, by distance to an edge", most=None),
              bar_chart(pairs, title="Of all wrong pixels: what is taken for what", most=None)]
    names = [one.name for one in analysis.classes]
    return [_findings(analysis), Section("errors", "Where it fails", macro(
        "failures", charts, _tables(analysis), _heat(names, names, analysis.confusion),
        _label_pictures(analysis, images), "The worst images: above the image and the truth, below what is predicted "
        "and, in red, where that is wrong. A click enlarges.", True))]


def _found_by_size(analysis: DetectionAnalysis) -> Markup:
    size = next(one for one in analysis.sensitivities if one.name == "size")
    return bar_chart({group.name.removesuffix(" of the image's side"): Interval(group.recall, np.nan, np.nan)
                      for group in size.groups if group.objects},
                     title="Objects that are found, by their share of the image's side")


def _pair(of: ConfusedPair | LabelImage) -> str:
    return f"{of.true} as {of.predicted}"


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
    """The surroundings of an error, with the true box, dashed, and the predicted one. They are drawn when all has its
    last size, so that they can be read."""
    image, names = images.image(error.image_id), images.classes.names
    boxes = np.array([box for box in (error.true_box, error.box) if box is not None])
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    side = max(*(high - low), 24.0) * (1 + 2 * _AROUND)
    whole = np.array(image.shape[1::-1])
    size = np.minimum(round(side), whole)
    left, top = ((low + high - size) / 2).clip(0, whole - size).astype(int)
    scale = _SIDE / max(size)
    cut = cv2.resize(image[top : top + size[1], left : left + size[0]], None, fx=scale, fy=scale,
                     interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)

    def placed(box: tuple[float, float, float, float] | None) -> torch.Tensor:
        corners = torch.tensor([] if box is None else [box]).reshape(-1, 4)
        return torch.mul(corners - torch.tensor([left, top] * 2), scale)

    found, true = ([names.index(name) for name in (one,) if name is not None] for one in (error.predicted, error.true))
    drawn = draw_against_truth(
        cut, ImageDetections(error.image_id, placed(error.box), torch.tensor([error.score or 0.0] * len(found)),
                             torch.tensor(found)),
        BoxTargets(placed(error.true_box), torch.tensor(true), torch.zeros(len(true), dtype=torch.bool)),
        classes=images.classes)
    words = {"missed": f"{error.true} not found", "background": f"{error.predicted} {error.score or 0:.2f} on nothing",
             "duplicate": f"{error.predicted} {error.score or 0:.2f} once more"}.get(
        error.kind, f"{error.predicted} {error.score or 0:.2f}, IoU {error.iou:.2f} with {error.true}")
    return picture_of(drawn, f"{error.file}: {words}")


def _label_pictures(analysis: SegmentationAnalysis, images: Images) -> list[ErrorPicture]:
    """The worst images: each with its truth, with what is predicted, and where that is wrong."""
    made = []
    for one in analysis.worst[:_WORST]:
        image, (true, predicted) = images.image(one.image_id), images.labels(one.image_id)
        drawn = [draw_labels(image, labels, images.classes) for labels in (true, predicted)]
        wrong = np.repeat(image.mean(axis=2, keepdims=True) / 2, 3, axis=2).astype(np.uint8)
        wrong[(true != predicted) & (true != VOID)] = _WRONG
        made.append(ErrorPicture(_pair(one), one.true or "", picture_of(
            np.vstack([np.hstack([image, drawn[0]]), np.hstack([drawn[1], wrong])]),
            f"{one.file}: mIoU {100 * one.miou:.1f}", side=2 * _SIDE)))
    return made
