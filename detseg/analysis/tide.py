"""Which error every detection is, and what each kind of error costs: TIDE.

Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors" (ECCV 2020, arXiv
2008.08115), section 2, with its two thresholds; where the text leaves a choice, as the authors'
`tidecv` 1.0.1 makes it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from detseg.data.box_index import BoxIndex
from detseg.metrics.detections import detection_rows
from detseg.metrics.numbers import mean_existing
from detseg.structures import ImageDetections

ErrorKind: TypeAlias = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)
MEANING: dict[ErrorKind, str] = {
    "classification": "on an object, IoU 0.5 or more, under another class",
    "localisation": "of the right class, IoU 0.1 to 0.5 only",
    "both": "of another class, and IoU 0.1 to 0.5 only",
    "duplicate": "on an object that a surer detection has found",
    "background": "IoU below 0.1 with every object",
    "missed": "an object that neither a detection nor one put right finds",
}
SHORT: dict[ErrorKind, str] = {
    "classification": "cls", "localisation": "loc", "both": "both", "duplicate": "dup", "background": "bkg",
    "missed": "miss"}

FOUND_IOU = 0.5
"""From which a detection has found an object."""
BACKGROUND_IOU = 0.1
"""Up to which it is on none."""
MOST_DETECTIONS = 100
"""Of an image, of all classes together, the surest; COCO's AP takes as many of each class."""

_Floats: TypeAlias = NDArray[np.float64]
_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Matches:
    """Detections against true boxes, image by image and the surest first: d of them, against an index of m
    annotations. A number of an annotation is its row in the index."""

    index: BoxIndex
    image: _Ints
    """[d]: positions in the index."""
    boxes: _Floats
    """[d, 4] xyxy."""
    scores: _Floats
    """[d]."""
    labels: _Ints
    """[d]."""
    ignored: _Bools
    """[d]: in a crowd region of its class, neither right nor wrong. As in `tidecv` it has a kind nevertheless: put
    right, it may find an object beside the crowd."""
    found: _Ints
    """[d]: the annotation that a detection has found, -1 where it has found none."""
    kind: _Ints
    """[d]: position in `KINDS` of what is wrong, -1 where a detection has found an object."""
    about: _Ints
    """[d]: the annotation that an error is about, -1 where it is about none."""
    iou: _Floats
    """[d]: with the annotation that was found, or that the error is about."""
    mistaken: _Ints
    """[d]: the annotation of another class that stays without a detection and has this one on it, -1."""
    found_by: _Ints
    """[m]: the detection that has found an annotation, -1."""
    corrected_by: _Ints
    """[m]: of one without, the surest detection that would find it if its class or place were right, -1."""

    @property
    def objects(self) -> _Bools:
        """[m]: annotations to be found."""
        return ~self.index.crowd

    @property
    def unfound(self) -> _Bools:
        """[m]: objects that no detection has found."""
        return self.objects & (self.found_by < 0)

    @property
    def missed(self) -> _Bools:
        """[m]: objects of the kind "missed"."""
        return self.unfound & (self.corrected_by < 0)

    def of_kind(self, kind: ErrorKind) -> _Bools:
        """[d], of "missed" [m]: the errors of a kind."""
        return self.missed if kind == "missed" else (self.kind == KINDS.index(kind)) & ~self.ignored

    def num_objects(self, chosen: _Bools | None = None) -> _Ints:
        """[K]: objects of each class; of those that are chosen, [m]."""
        kept = self.objects if chosen is None else self.objects & chosen
        return np.bincount(self.index.labels[kept], minlength=len(self.index.classes))


class _Image(NamedTuple):
    """What `Matches` tells of one image, with annotations by their place in it."""

    ignored: _Bools
    found: _Ints
    kind: _Ints
    about: _Ints
    iou: _Floats
    mistaken: _Ints


def match(predictions: Sequence[ImageDetections], index: BoxIndex, *, thresholds: _Floats | None = None) -> Matches:
    """Finds the object or the error of every detection.

    Args:
        predictions: of images of the index, each once; one without finds nothing.
        index: the true boxes, with the labels of the network.
        thresholds: [K], the smallest score of each class that counts; None takes every detection.
    """
    position = {image_id: i for i, image_id in enumerate(index.image_ids.tolist())}
    pieces: list[tuple[_Ints, _Floats, _Image]] = [(np.zeros(0, np.int64), np.zeros((0, 6)), _unmatched(0))]
    for prediction in sorted(predictions, key=lambda one: one.image_id):  # equal scores rank by image, as in COCO's AP
        i = position[prediction.image_id]
        rows = detection_rows(prediction, index.classes)
        if thresholds is not None:
            rows = rows[rows[:, 4] >= thresholds[rows[:, 5].astype(np.int64)]]
        rows = rows[np.argsort(-rows[:, 4], kind="stable")][:MOST_DETECTIONS]
        pieces.append((np.full(len(rows), i), rows, _matched(rows, index, i)))
    image, rows = (np.concatenate([piece[column] for piece in pieces]) for column in (0, 1))
    joined = _Image(*map(np.concatenate, zip(*(piece[2] for piece in pieces), strict=True)))
    start = index.offsets[image]

    def rows_of(local: _Ints) -> _Ints:
        found: _Ints = np.where(local >= 0, local + start, -1)
        return found

    found, about = rows_of(joined.found), rows_of(joined.about)
    found_by, corrected_by = np.full(len(index.boxes), -1), np.full(len(index.boxes), -1)
    hits = np.flatnonzero(found >= 0)
    found_by[found[hits]] = hits
    near = np.isin(joined.kind, (KINDS.index("classification"), KINDS.index("localisation")))
    near[near] = found_by[about[near]] < 0
    surest_last = np.flatnonzero(near)[::-1]
    corrected_by[about[surest_last]] = surest_last
    boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
    return Matches(index, image, boxes, rows[:, 4], rows[:, 5].astype(np.int64), joined.ignored, found, joined.kind,
                   about, joined.iou, rows_of(joined.mistaken), found_by, corrected_by)


def _unmatched(number: int) -> _Image:
    none = np.full((4, number), -1)
    return _Image(np.zeros(number, bool), none[0], none[1], none[2], np.zeros(number), none[3])


def _matched(rows: _Floats, index: BoxIndex, i: int) -> _Image:
    """Detections [d, 6] (x, y, width, height, score, label), the surest first, with those of image i."""
    image = _unmatched(len(rows))
    of_image = slice(index.offsets[i], index.offsets[i + 1])
    objects = np.flatnonzero(~index.crowd[of_image])
    crowds = np.flatnonzero(index.crowd[of_image])
    boxes, labels = index.boxes[of_image], index.labels[of_image]
    overlap = _iou(rows, boxes[objects], crowd=False)
    same = rows[:, 5, None] == labels[None, objects]
    own, used = overlap * same, np.zeros(len(objects), bool)
    free = own.copy()
    for d in np.flatnonzero(own.max(axis=1, initial=0) >= FOUND_IOU):
        best = int(free[d].argmax())
        if free[d, best] >= FOUND_IOU:
            image.found[d], image.iou[d], used[best] = best, free[d, best], True
            free[:, best] = 0
    right = image.found >= 0
    in_crowd = (_iou(rows, boxes[crowds], crowd=True) > FOUND_IOU) & (rows[:, 5, None] == labels[None, crowds])
    image.ignored[:] = ~right & in_crowd.any(axis=1)
    if len(objects):
        wrong = np.flatnonzero(~right)
        image.kind[wrong], image.about[wrong], image.iou[wrong] = _errors(overlap[wrong], same[wrong], used)
    else:
        image.kind[~right] = _BACKGROUND
    left = overlap * ~used
    for d in np.flatnonzero(~right & ~image.ignored & (left.max(axis=1, initial=0) >= FOUND_IOU)):
        best = int(left[d].argmax())
        if left[d, best] >= FOUND_IOU:
            image.mistaken[d] = best
            left[:, best] = 0
    image.found[right] = objects[image.found[right]]
    for named in (image.about, image.mistaken):
        named[named >= 0] = objects[named[named >= 0]]
    return image


_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(len(KINDS))


def _errors(overlap: _Floats, same: _Bools, used: _Bools) -> tuple[_Ints, _Ints, _Floats]:
    """The kinds [e] of wrong detections, the objects that they are about, and their overlap with these.

    Args:
        overlap: [e, n], the IoU with each object.
        same: [e, n], whether it is of the detection's class.
        used: [n], whether it is found already.
    """
    own = overlap * same
    tried = [own, overlap * ~same, own * used, overlap]
    best = [one.max(axis=1) for one in tried]
    # In the order of `tidecv`; what none holds for is both.
    cases = [(best[0] >= BACKGROUND_IOU) & (best[0] <= FOUND_IOU), best[1] >= FOUND_IOU, best[2] >= FOUND_IOU,
             best[3] <= BACKGROUND_IOU]
    kinds = [_LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND]
    nearest = [one.argmax(axis=1) for one in tried]
    return (np.select(cases, kinds, _BOTH), np.select(cases, [*nearest[:3], np.full(len(own), -1)], nearest[3]),
            np.select(cases, [*best[:3], np.zeros(len(own))], best[3]))


def _iou(rows: _Floats, boxes_xywh: _Floats, *, crowd: bool) -> _Floats:
    """[d, n]; in a crowd the share of the detection that lies in it."""
    if not len(rows) or not len(boxes_xywh):
        return np.zeros((len(rows), len(boxes_xywh)))
    overlap: _Floats = np.asarray(mask.iou(
        np.ascontiguousarray(rows[:, :4]), np.ascontiguousarray(boxes_xywh), [crowd] * len(boxes_xywh)))
    return overlap


class Scored(NamedTuple):
    """Detections as average precision sees them."""

    scores: _Floats
    """[d]."""
    labels: _Ints
    """[d]."""
    right: _Bools
    """[d]."""
    num_objects: _Ints
    """[K]."""

    def of(self, label: int) -> tuple[_Floats, _Bools, int]:
        """Scores, which are right, and the number of objects of a class."""
        chosen = self.labels == label
        return self.scores[chosen], self.right[chosen], int(self.num_objects[label])


def scored(matches: Matches, *, without: Collection[ErrorKind] = ()) -> Scored:
    """The detections, with these kinds of errors put right: one that only misses an object that nobody else finds
    finds it, others are left out, and missed objects are no longer asked for."""
    kept, right, labels = ~matches.ignored, matches.found >= 0, matches.labels.copy()
    num_objects = matches.num_objects()
    for kind in without:
        of_kind = matches.of_kind(kind)
        if kind == "missed":
            num_objects = num_objects - matches.num_objects(of_kind)
            continue
        corrected = np.zeros_like(kept)
        if kind in ("classification", "localisation"):
            finders = matches.corrected_by[matches.corrected_by >= 0]
            corrected[finders[matches.kind[finders] == KINDS.index(kind)]] = True
            labels[corrected] = matches.index.labels[matches.about[corrected]]
        kept = kept & ~of_kind | corrected
        right = right | corrected
    return Scored(matches.scores[kept], labels[kept], right[kept], num_objects)


def average_precision(scores: _Floats, right: _Bools, num_objects: int) -> float:
    """COCO's: the mean of the precision at 101 recalls. 0 without objects."""
    recall_precision = precision_at_recalls(scores, right, num_objects)
    return float(recall_precision.mean())


def precision_at_recalls(scores: _Floats, right: _Bools, num_objects: int) -> _Floats:
    """[101]: the best precision at a recall of at least 0, 0.01, ... 1; 0 where that is not reached."""
    precision_at = np.zeros(101)
    if num_objects:
        true = right[np.argsort(-scores, kind="stable")].cumsum()
        precision = true / np.arange(1, len(true) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(true / num_objects, np.linspace(0, 1, 101), side="left")
        precision_at[reached < len(true)] = envelope[reached[reached < len(true)]]
    return precision_at


def class_ap(of: Scored, asked: _Bools) -> list[float]:
    """[K]: AP at IoU 0.5 of each class that is asked for; NaN of others, and of one that has neither objects nor
    detections left."""
    found = []
    for label in range(len(asked)):
        scores, right, number = of.of(label)
        found.append(average_precision(scores, right, number) if asked[label] and (number or len(scores)) else math.nan)
    return found


class Costs(NamedTuple):
    """AP at IoU 0.5, and what it would be more without errors: as fractions."""

    ap50: float
    class_ap50: tuple[float, ...]
    """[K]."""
    gained: dict[ErrorKind, float]
    """Without one kind each; these do not add up, for one error hides behind another."""
    class_gained: dict[ErrorKind, tuple[float, ...]]
    """[K] each."""
    false_positives: float
    """If every wrong detection had a score of 0."""
    false_negatives: float
    """If only objects that were found were asked for."""


def costs(matches: Matches) -> Costs:
    """What each kind of error costs. The mean is over the classes that have objects, as in COCO's AP (`tidecv` takes
    those that are only predicted too, with an AP of 0)."""
    now = scored(matches)
    asked = now.num_objects > 0
    aps = class_ap(now, asked)
    ap50 = mean_existing(aps)

    def gain(of: Scored) -> float:
        # Correcting can cost a hundredth where recalls fall differently on the 101 places; that is no cost.
        return max(mean_existing(class_ap(of, asked)) - ap50, 0.0)

    gained, class_gained = dict[ErrorKind, float](), dict[ErrorKind, tuple[float, ...]]()
    for kind in KINDS:
        better = scored(matches, without=(kind,))
        gained[kind] = gain(better)
        # A class of which nothing is left has nothing wrong left.
        class_gained[kind] = tuple(
            max((1.0 if math.isnan(after) else after) - before, 0.0) if known else math.nan
            for before, after, known in zip(aps, class_ap(better, asked), asked.tolist(), strict=True))
    precise = now._replace(scores=now.right.astype(np.float64))
    complete = now._replace(num_objects=now.num_objects - matches.num_objects(matches.unfound))
    return Costs(ap50, tuple(aps), gained, class_gained, gain(precise), gain(complete))
