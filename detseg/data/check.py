"""Whether a data set can be trained on, found out before the training does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from detseg.data.box_index import BoxIndex
from detseg.data.images import read_image
from detseg.data.label_index import LabelIndex
from detseg.data.layouts import read_boxes, read_labels
from detseg.data.layouts.layout import SPLITS, PartName, Place
from detseg.data.layouts.reader import LayoutReader, Recognised
from detseg.structures import VOID

Level: TypeAlias = Literal["count", "note", "problem"]
_IndexT = TypeVar("_IndexT", BoxIndex, LabelIndex)


class Finding(NamedTuple):
    """One line of the report. A "problem" stops a training or falsifies its scores, a "note" does not."""

    level: Level
    text: str


def check_place(place: Place) -> Iterator[Finding]:
    """Checks the boxes where there are boxes, and the label maps where there are files of them; says which layout that
    is, and why."""
    try:
        boxes, labels = read_boxes.recognises(place), read_labels.recognises(place)
    except ValueError as problem:
        yield Finding("problem", str(problem))
        return
    label_files = labels is not None and labels.layout.label_maps == "files"
    if boxes is not None or not label_files:
        yield from _layout(boxes)
        yield from check_boxes(place)
    if label_files or boxes is None:
        yield from _layout(labels)
        yield from check_labels(place)


def check_boxes(place: Place | Path) -> Iterator[Finding]:
    """Reads every split, decodes every image, and says what it finds as it finds it. Raises nothing about the data."""
    return _check(place, read_boxes, _box_findings)


def check_labels(place: Place | Path) -> Iterator[Finding]:
    """The same for label maps, which are all read too."""
    return _check(place, read_labels, _label_findings)


def _layout(recognised: Recognised[BoxIndex] | Recognised[LabelIndex] | None) -> Iterator[Finding]:
    if recognised is not None:
        yield Finding("count", f"layout: {recognised}")


def _check(
    place: Place | Path,
    reader: LayoutReader[_IndexT],
    findings: Callable[[_IndexT], Iterator[Finding]],
) -> Iterator[Finding]:
    place = place if isinstance(place, Place) else Place(place)
    found: dict[PartName, _IndexT] = {}
    for name in _split_names(place, reader):
        try:
            index = _read(place, reader, name)
        except (OSError, ValueError) as problem:
            yield Finding("problem", f"{name}: {problem}")
            continue
        found[name] = index
        for level, text in findings(index):
            yield Finding(level, f"{name}: {text}")
    for name, other in found.items():
        if name != "train" and "train" in found and (difference := found["train"].classes.difference(other.classes)):
            yield Finding("problem", f"the classes of train (here) and {name} (there) differ:\n{difference}")
    if [*found] == ["whole"]:
        yield Finding("note", "there is one split: keep a share of the images for validation with --val-share 0.1, or "
                              "name validation data with --val")


def _split_names(place: Place, reader: LayoutReader[_IndexT]) -> tuple[PartName, ...]:
    """The splits that are there, and those that should be."""
    try:
        found: Recognised[_IndexT] = reader.find(place)
    except (OSError, ValueError):
        return SPLITS  # whoever reads a split gives the message
    if "whole" in found.parts:
        return tuple(found.parts)
    needed: tuple[PartName, ...] = ("train",) if found.validation()[0] == "test" else SPLITS
    return (*needed, *(name for name in found.parts if name not in needed))


def _read(place: Place, reader: LayoutReader[_IndexT], name: PartName) -> _IndexT:
    found = reader.find(place, wanted=name)
    if name not in found.parts:
        raise FileNotFoundError(f"no {name} {reader.what} in {place.path}: it is in the layout {found}, and has "
                                f"{found.has}")
    return found.parts[name]()


def _box_findings(index: BoxIndex) -> Iterator[Finding]:
    empty = int((np.diff(index.offsets) == 0).sum())
    yield Finding(
        "count",
        f"images {len(index)} (without objects {empty}), boxes {len(index.boxes)} (crowds {int(index.crowd.sum())}), "
        f"classes {len(index.classes)}",
    )
    yield from (Finding("note", note) for note in index.notes)
    yield from (Finding("problem", str(fault)) for fault in index.faults)

    def problem(i: int) -> str | None:
        try:
            read_image(index.path(i), size=index.size(i))
        except (OSError, ValueError) as reason:
            return str(reason)
        return None

    for reason in _of_all(problem, len(index)):
        if reason is not None:
            yield Finding("problem", reason)


def _label_findings(index: LabelIndex) -> Iterator[Finding]:
    def counted(i: int) -> NDArray[np.int64] | str:
        """[256] pixels by label, or what is wrong."""
        try:
            image = index.image(i)
            return np.bincount(index.labels(i, (image.shape[0], image.shape[1])).ravel(), minlength=VOID + 1)
        except (OSError, ValueError) as reason:
            return str(reason)

    yield from (Finding("note", note) for note in index.notes)
    yield from (Finding("problem", str(fault)) for fault in index.faults)
    counts, void_only = np.zeros(VOID + 1, np.int64), 0
    for result in _of_all(counted, len(index)):
        if isinstance(result, str):
            yield Finding("problem", result)
        else:
            counts += result
            void_only += not result[:VOID].any()
    known = max(1, int(counts[:VOID].sum()))
    yield Finding(
        "count",
        f"images with label maps {len(index)} (only void {void_only}), classes {len(index.classes)}, "
        f"void {counts[VOID] / max(1, counts.sum()):.1%} of the pixels",
    )
    shares = {name: counts[index.classes.names.index(name)] / known for name in index.classes.used.values()}
    present = [f"{name} {share:.2%}" for name, share in shares.items() if share]
    yield Finding("count", f"of the others: {', '.join(present)}")
    if absent := [name for name, share in shares.items() if not share]:
        yield Finding("note", f"no pixel is {' or '.join(absent)}")


_ResultT = TypeVar("_ResultT")


def _of_all(look: Callable[[int], _ResultT], number: int) -> Iterator[_ResultT]:
    """What `look` gives for each position, in order."""
    # Threads suffice: decoding leaves Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(look, range(number))
