"""Why a detector has its AP: kinds of error and what they cost, classes, thresholds, calibration, sensitivity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from detseg.analysis.advice import detection_findings
from detseg.analysis.calibration import calibration
from detseg.analysis.curves import curves
from detseg.analysis.detection_result import (
    AnchorMisses,
    ClassResult,
    DetectionAnalysis,
    ErrorCost,
    Example,
    ImageResult,
)
from detseg.analysis.sensitivity import sensitivities
from detseg.analysis.tide import KINDS, MEANING, ErrorKind, Matches, costs, match, scored
from detseg.data.box_index import BoxIndex
from detseg.data.check.network import MET, NetworkView, anchor_fit, at_network_size
from detseg.metrics.coco_ap import CocoAP
from detseg.metrics.numbers import ratio
from detseg.structures import ImageDetections

NUM_EXAMPLES = 20
"""Of each kind of error."""


def analyze_detections(
    predictions: Sequence[ImageDetections], index: BoxIndex, *, numbers: Mapping[str, float] | None = None,
    brightness: Mapping[int, float] | None = None, view: NetworkView | None = None, anchors_note: str = "not asked",
    num_examples: int = NUM_EXAMPLES,
) -> DetectionAnalysis:
    """Why these detections have their AP.

    Args:
        predictions: of images of the index, each once, unsure ones too.
        index: the true boxes, with the labels of the network.
        numbers: the official ones, where they are known already.
        brightness: of every image by its id, 0 to 1; None tells nothing of it.
        view: the network's anchors, to see which objects they meet.
        anchors_note: why there are none to see.
        num_examples: of each kind of error.

    ValueError: nothing to analyse, or predictions of other images.
    """
    check_something(index)
    if num_examples < 0:
        raise ValueError(f"the number of examples is at least 0, got {num_examples}")
    if numbers is None:
        metric = CocoAP(index, per_class=True)
        metric.update(predictions)
        numbers = metric.compute()
    matches = match(predictions, index)
    found, cost = scored(matches), costs(matches)
    used = [k for k, source_id in enumerate(index.classes.source_ids) if source_id in index.classes.used]
    overall = curves(found.scores, found.right, int(found.num_objects.sum()))
    of_class = {k: curves(*found.of(k)) for k in used}
    floor = math.inf if math.isnan(overall.threshold) else overall.threshold
    thresholds = np.array([of_class[k].threshold if k in of_class and not math.isnan(of_class[k].threshold) else floor
                           for k in range(len(index.classes))])
    shown = match(predictions, index, thresholds=thresholds)
    classes = tuple(
        ClassResult(name=index.classes.names[k], objects=int(found.num_objects[k]),
                    detections=int((found.labels == k).sum()), ap50=cost.class_ap50[k], curves=of_class[k],
                    ap50_gains={kind: cost.class_gained[kind][k] for kind in KINDS}) for k in used)
    class_errors, besides = _class_errors(shown, used)
    analysis = DetectionAnalysis(
        num_images=len(index), numbers=dict(numbers), findings=(), num_objects=int(found.num_objects.sum()),
        num_detections=sum(len(one.scores) for one in predictions), ap50=cost.ap50,
        errors=tuple(
            ErrorCost(kind=kind, meaning=MEANING[kind], ap50_gain=cost.gained[kind],
                      count=int(matches.of_kind(kind).sum()), shown=int(shown.of_kind(kind).sum())) for kind in KINDS),
        false_positives_gain=cost.false_positives, false_negatives_gain=cost.false_negatives,
        overall=ClassResult(name="all", objects=int(found.num_objects.sum()), detections=len(found.scores),
                            ap50=cost.ap50, curves=overall, ap50_gains=cost.gained),
        classes=classes, confusion=_confusion(shown, used),
        class_errors=class_errors, class_errors_besides=besides, calibration=calibration(found.scores, found.right),
        sensitivities=sensitivities(matches, shown, brightness or {}),
        anchors=None if view is None else _anchor_misses(matches, view),
        anchors_note=anchors_note if view is None else "",
        examples=tuple(example for kind in KINDS for example in _examples(shown, kind, num_examples)),
        images=_images(shown))
    return replace(analysis, findings=detection_findings(analysis))


def _confusion(shown: Matches, used: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Objects that were found, those that were taken for another class, those that were not found, and detections where
    there is none."""
    labels, background = shown.index.labels, len(shown.index.classes)
    taken = np.where(shown.found >= 0, shown.found, shown.mistaken)
    counts = np.zeros((background + 1,) * 2, np.int64)
    on_object = taken >= 0
    np.add.at(counts, (labels[taken[on_object]], shown.labels[on_object]), 1)
    counts[background, :-1] += np.bincount(shown.labels[~on_object & ~shown.ignored], minlength=background)
    counts[:-1, background] = shown.num_objects() - counts[:-1, :-1].sum(1)
    kept = [*used, background]
    return tuple(tuple(row) for row in counts[np.ix_(kept, kept)].tolist())


def _class_errors(shown: Matches, used: Sequence[int]) -> tuple[tuple[tuple[int, ...], ...], int]:
    rows = np.flatnonzero(shown.of_kind("classification"))
    about = shown.about[rows]
    counts = np.zeros((len(shown.index.classes),) * 2, np.int64)
    np.add.at(counts, (shown.index.labels[about], shown.labels[rows]), 1)
    return (tuple(tuple(row) for row in counts[np.ix_(used, used)].tolist()), int((shown.found_by[about] >= 0).sum()))


def _anchor_misses(matches: Matches, view: NetworkView) -> AnchorMisses:
    placed = at_network_size(matches.index, view)
    usable = matches.objects & (placed[:, 2:] > placed[:, :2]).all(1)
    fit = anchor_fit(placed, usable, view)
    unmet, missed = fit.best_iou < MET, matches.missed[fit.rows]
    return AnchorMisses(iou=MET, missed=int(missed.sum()), missed_unmet=int((unmet & missed).sum()),
                        objects_unmet=ratio(int(unmet.sum()), len(unmet)))


def _examples(shown: Matches, kind: ErrorKind, number: int) -> list[Example]:
    index, rows = shown.index, np.flatnonzero(shown.of_kind(kind))
    corners, image_of_box = index.corners(), index.image_of_box()
    worth = index.boxes[rows, 2:].prod(1) if kind == "missed" else shown.scores[rows]
    found = []
    for row in rows[np.argsort(-worth, kind="stable")][:number].tolist():
        about = row if kind == "missed" else int(shown.about[row])
        i = int(image_of_box[row] if kind == "missed" else shown.image[row])
        detected = kind != "missed"
        found.append(Example(
            kind=kind, image_id=int(index.image_ids[i]), file=str(index.path(i).relative_to(index.folder)),
            box=_box(shown.boxes[row]) if detected else None,
            predicted=index.classes.names[shown.labels[row]] if detected else None,
            score=float(shown.scores[row]) if detected else None,
            true_box=_box(corners[about]) if about >= 0 else None,
            true=index.classes.names[index.labels[about]] if about >= 0 else None,
            iou=float(shown.iou[row]) if detected else 0.0))
    return found


def _box(corners: NDArray[np.float64]) -> tuple[float, float, float, float]:
    left, top, right, bottom = corners.round(2).tolist()
    return left, top, right, bottom


def _images(shown: Matches) -> tuple[ImageResult, ...]:
    index = shown.index
    number, image_of_box = len(index), index.image_of_box()
    objects, found = (np.bincount(image_of_box[chosen], minlength=number).tolist()
                      for chosen in (shown.objects, shown.found_by >= 0))
    errors = {kind: np.bincount((image_of_box if kind == "missed" else shown.image)[shown.of_kind(kind)],
                                minlength=number).tolist() for kind in KINDS}
    return tuple(
        ImageResult(image_id=int(index.image_ids[i]), file=str(index.path(i).relative_to(index.folder)),
                    objects=objects[i], found=found[i], errors={kind: errors[kind][i] for kind in KINDS})
        for i in np.argsort(index.image_ids).tolist())


def check_something(index: BoxIndex) -> None:
    """ValueError where there is nothing to analyse."""
    if not len(index):
        raise ValueError(f"there are no images in {index.folder} to analyse; name other data with --data")
    if index.crowd.all():  # also where there are none
        raise ValueError(f"none of the {len(index)} images in {index.folder} has an object to find, so there is no AP "
                         "to explain; name other data with --data")
