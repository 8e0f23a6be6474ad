"""What is odd about boxes and their classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detseg.data.box_index import BoxIndex
from detseg.data.check.findings import Finding, MarkedBox, Spot, Table, counted, some
from detseg.data.check.network import MET, NetworkView, anchor_fit, at_network_size

SMALL_SIDE = 8.0
"""Pixels at the network's size; an object whose shorter side has fewer is hardly found by anybody."""
_SAME = 0.9
"""IoU from which two boxes are one."""
_ENORMOUS = 0.95
"""Of the image."""
_FEW = 20
"""Boxes of a class in train."""


class BoxNumbers(NamedTuple):
    """Of the classes of a split, each [K]."""

    boxes: NDArray[np.int64]
    """Without crowds."""
    images: NDArray[np.int64]
    side: NDArray[np.float64]
    """Median of the square root of the area at the network's size; NaN of a class without boxes."""
    small: NDArray[np.int64]
    unmet: NDArray[np.float64]
    """Share of the boxes that no anchor meets; NaN where that was not asked."""


def box_findings(index: BoxIndex, split: str, view: NetworkView) -> tuple[list[Finding], BoxNumbers]:
    """Of one split; what is wrong with its images is another's matter."""
    findings = [*_of_reader(index, split)]
    findings += _same_boxes(index, split)
    corners, sizes = index.corners(), index.sizes[index.image_of_box()]
    inside = np.clip(corners, 0, np.tile(sizes[:, ::-1], 2))
    share = np.prod(inside[:, 2:] - inside[:, :2], axis=1) / np.maximum(1, np.prod(sizes, axis=1, dtype=np.float64))
    enormous = (share >= _ENORMOUS) & ~index.crowd
    if enormous.any():
        findings.append(Finding(
            "note", "enormous boxes", f"{counted(int(enormous.sum()), 'box', 'boxes')} covering at least "
            f"{_ENORMOUS:.0%} of the image: frames drawn around everything?", split, box_spots(index, enormous)))
    placed = at_network_size(index, view)
    sides = placed[:, 2:] - placed[:, :2]
    usable = ~index.crowd & np.all(sides > 0, axis=1)
    small = usable & (sides.min(axis=1, initial=np.inf) < SMALL_SIDE)
    if small.any():
        findings.append(Finding(
            "note", "tiny objects", f"{counted(int(small.sum()), 'object')} ({small.sum() / usable.sum():.1%}) with a "
            f"side below {SMALL_SIDE:g} pixels at {view.title}: a larger size, or images cut into parts, would show "
            "them", split, box_spots(index, _ordered(small, sides.min(axis=1, initial=np.inf)))))
    unmet: NDArray[np.float64] = np.full(len(index.classes), np.nan)
    if view.anchors is not None and usable.any():
        finding, unmet = _anchors(index, split, placed, usable=usable, view=view)
        findings += finding
    return findings, BoxNumbers(
        np.bincount(index.labels[~index.crowd], minlength=len(index.classes)),
        _images_of_class(index),
        _median_sides(np.sqrt(np.maximum(0, np.prod(sides, axis=1))), index.labels, usable, len(index.classes)),
        np.bincount(index.labels[small], minlength=len(index.classes)),
        unmet,
    )


def _ordered(rows: NDArray[np.bool_], by: NDArray[np.float64]) -> NDArray[np.int64]:
    """The positions of some annotations, the smallest first."""
    positions = np.flatnonzero(rows)
    ordered: NDArray[np.int64] = positions[np.argsort(by[positions], kind="stable")]
    return ordered


def box_spots(index: BoxIndex, rows: NDArray[np.bool_] | NDArray[np.int64]) -> tuple[Spot, ...]:
    """A spot for each of some annotations, [m] or positions."""
    positions = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    images = np.searchsorted(index.offsets, positions, side="right") - 1
    return tuple(_spot(index, int(i), (int(row),)) for i, row in zip(images, positions, strict=True))


def marked_boxes(index: BoxIndex, rows: Iterable[int]) -> tuple[MarkedBox, ...]:
    """Some annotations, to draw."""
    marked = []
    for row in rows:
        x, y, width, height = index.boxes[row].tolist()
        marked.append(MarkedBox((x, y, x + width, y + height), index.classes.names[index.labels[row]]))
    return tuple(marked)


def _spot(index: BoxIndex, i: int, rows: Sequence[int]) -> Spot:
    marked = marked_boxes(index, rows)
    told = " and ".join(f"{box.name} {_told(index, row)}" for box, row in zip(marked, rows, strict=True))
    return Spot(f"{index.path(i)}: {told}", index.path(i), index.size(i), marked)


def _told(index: BoxIndex, row: int) -> str:
    x, y, width, height = (f"{value:.5g}" for value in index.boxes[row].tolist())
    return f"(annotation {index.annotation_ids[row]}: {width} x {height} at {x}, {y})"


def _of_reader(index: BoxIndex, split: str) -> Iterator[Finding]:
    """What the reader and the index say."""
    if reason := index.nothing_to_learn():
        yield Finding("problem" if split != "test" else "note", "nothing to learn", reason, split)
    remarks = index.remarks()
    said = {remark.text for remark in remarks}
    for note in index.notes:
        if note.startswith("DO THE BOXES HOLD CORNERS?"):
            yield Finding("problem", "corners", note, split)
        elif note not in said and not note.startswith("NOTHING TO LEARN FROM"):
            yield Finding("note", "reader", note, split)
    for remark in remarks:
        yield Finding("note", remark.kind, remark.text, split, box_spots(index, remark.rows))


def _same_boxes(index: BoxIndex, split: str) -> Iterator[Finding]:
    pairs = same_boxes(index)
    for alike, kind, text in (
        (True, "duplicate boxes", "on an object that has a box of this class already"),
        (False, "two classes", "on an object that has a box of another class"),
    ):
        found = [(i, rows) for i, rows in pairs if (index.labels[rows[0]] == index.labels[rows[1]]) == alike]
        if found:
            yield Finding("note", kind, f"{counted(len(found), 'box', 'boxes')} {text} (IoU of at least {_SAME:g})",
                          split, tuple(_spot(index, i, rows) for i, rows in found))


def same_boxes(index: BoxIndex, *, least: float = _SAME) -> list[tuple[int, tuple[int, int]]]:
    """The image of each box that an earlier one of it lies on, and both rows; crowds and empty boxes aside."""
    corners, usable = index.corners(), ~index.crowd & np.all(index.boxes[:, 2:] > 0, axis=1)
    found = []
    for i in range(len(index)):
        start, end = int(index.offsets[i]), int(index.offsets[i + 1])
        rows = start + np.flatnonzero(usable[start:end])
        if len(rows) < 2:
            continue
        iou = np.triu(_iou(corners[rows], corners[rows]), 1)
        for later in np.flatnonzero((iou >= least).any(axis=0)).tolist():
            found.append((i, (int(rows[iou[:, later].argmax()]), int(rows[later]))))
    return found


def _iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    shared = np.prod((np.minimum(first[:, None, 2:], second[:, 2:]) - np.maximum(first[:, None, :2], second[:, :2])
                      ).clip(0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    iou: NDArray[np.float64] = shared / (areas[0][:, None] + areas[1] - shared)
    return iou


def _anchors(
    index: BoxIndex, split: str, placed: NDArray[np.float64], *, usable: NDArray[np.bool_], view: NetworkView
) -> tuple[list[Finding], NDArray[np.float64]]:
    """What no anchor meets, and its share of each class."""
    fit = anchor_fit(placed, usable, view)
    missed = fit.best_iou < MET
    labels = index.labels[fit.rows]
    number = np.bincount(labels, minlength=len(index.classes))
    share = np.where(number > 0, np.bincount(labels[missed], minlength=len(index.classes)) / np.maximum(1, number),
                     np.nan)
    if not missed.any():
        return [], share
    how = "" if view.resize.fixed else ", by their shapes"
    worst = [f"{index.classes.names[k]} {share[k]:.0%}" for k in np.argsort(-np.nan_to_num(share)) if share[k] > 0]
    return [Finding(
        "note", "no anchor", f"{missed.mean():.1%} of the boxes meet no anchor with an IoU of {MET:g} at "
        f"{view.title}{how}: {some(worst)}. Few is usual; much calls for other anchors or another size", split,
        box_spots(index, fit.rows[missed][np.argsort(fit.best_iou[missed], kind="stable")]))], share


def _images_of_class(index: BoxIndex) -> NDArray[np.int64]:
    pairs = np.unique(np.stack([index.image_of_box(), index.labels])[:, ~index.crowd], axis=1)
    return np.bincount(pairs[1], minlength=len(index.classes))


def _median_sides(
    sides: NDArray[np.float64], labels: NDArray[np.int32], usable: NDArray[np.bool_], number: int
) -> NDArray[np.float64]:
    return np.array([np.median(sides[chosen]) if (chosen := usable & (labels == k)).any() else np.nan
                     for k in range(number)])


def split_row(index: BoxIndex, split: str) -> tuple[str, ...]:
    """Of the table of splits."""
    empty = int((np.diff(index.offsets) == 0).sum())
    used = len(np.unique(index.labels))
    return (split, f"{len(index):,}", f"{empty:,}", f"{len(index.boxes):,}", f"{int(index.crowd.sum()):,}",
            f"{used} of {len(index.classes.used)}")


SPLIT_COLUMNS = ("split", "images", "without objects", "boxes", "crowds", "classes with boxes")


def class_table(indexes: Mapping[str, BoxIndex], numbers: Mapping[str, BoxNumbers], view: NetworkView) -> Table:
    """A row for each class: boxes and images by split, and of the first split how large they are."""
    first = next(iter(indexes))
    names = list(dict.fromkeys(name for index in indexes.values() for name in index.classes.used.values()))
    columns = ["class", *(f"{split}: boxes (images)" for split in indexes), "median side", f"side < {SMALL_SIDE:g}"]
    columns += ["no anchor"] if view.anchors is not None else []
    rows = []
    for name in names:
        row = [name]
        for split, index in indexes.items():
            k = index.classes.names.index(name) if name in index.classes.names else None
            row.append("-" if k is None else f"{numbers[split].boxes[k]:,} ({numbers[split].images[k]:,})")
        if name not in indexes[first].classes.names:
            rows.append((*row, *("-" for _ in columns[len(row) :])))
            continue
        k, of = indexes[first].classes.names.index(name), numbers[first]
        row += ["-" if np.isnan(of.side[k]) else f"{of.side[k]:.0f} px", f"{of.small[k]:,}"]
        row += [("-" if np.isnan(of.unmet[k]) else f"{of.unmet[k]:.0%}")] if view.anchors is not None else []
        rows.append(tuple(row))
    return Table(f"classes (sides of {first} at {view.title})", tuple(columns), tuple(rows))


def balance_findings(indexes: Mapping[str, BoxIndex], numbers: Mapping[str, BoxNumbers]) -> Iterator[Finding]:
    """Classes that have no boxes, or few, in the split that is trained on."""
    split = next((name for name in ("train", "whole") if name in indexes), None)
    if split is None:
        return
    index, boxes = indexes[split], numbers[split].boxes
    names = {name: int(boxes[index.classes.names.index(name)]) for name in index.classes.used.values()}
    unused = [name for name, number in names.items() if not number]
    if unused and len(unused) < len(names) and not any("have no box: " in note for note in index.notes):
        yield Finding("note", "unused classes", f"{counted(len(unused), 'class', 'classes')} of {len(names)} without a "
                      f"box: {some(unused)}; each is an output that learns nothing", split)
    few = {name: number for name, number in names.items() if 0 < number < _FEW}
    if few:
        listed = [f"{name} {number}" for name, number in sorted(few.items(), key=lambda pair: pair[1])]
        yield Finding("note", "rare classes", f"{counted(len(few), 'class', 'classes')} with fewer than {_FEW} boxes: "
                      f"{some(listed)}", split)
    for other, theirs in indexes.items():
        if other == split:
            continue
        found = {name: int(numbers[other].boxes[k]) for k, name in enumerate(theirs.classes.names)}
        unlearned = [f"{name} {number}" for name, number in found.items() if number and not names.get(name)]
        if unlearned:
            yield Finding("note", "never trained on", f"boxes of classes that {split} has no box of: "
                          f"{some(unlearned)}", other)
