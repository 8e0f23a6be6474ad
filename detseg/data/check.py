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
from detseg.data.layouts import SPLITS, Split, has_boxes, has_label_files, read_boxes, read_labels
from detseg.structures import VOID

Level: TypeAlias = Literal["count", "note", "problem"]
_IndexT = TypeVar("_IndexT", BoxIndex, LabelIndex)


class Finding(NamedTuple):
    """One line of the report. A "problem" stops a training or falsifies its scores, a "note" does not."""

    level: Level
    text: str


def check_folder(folder: Path) -> Iterator[Finding]:
    """Checks the boxes where there are boxes, and the label maps where there are files of them."""
    boxes, label_files = has_boxes(folder), has_label_files(folder)
    if boxes or not label_files:
        yield from check_boxes(folder)
    if label_files or not boxes:
        yield from check_labels(folder)


def check_boxes(folder: Path) -> Iterator[Finding]:
    """Reads both splits, decodes every image, and says what it finds as it finds it. Raises nothing about the data."""
    return _check(folder, read_boxes, _box_findings)


def check_labels(folder: Path) -> Iterator[Finding]:
    """The same for label maps, which are all read too."""
    return _check(folder, read_labels, _label_findings)


def _check(
    folder: Path,
    read: Callable[[Path, Split], _IndexT],
    findings: Callable[[_IndexT], Iterator[Finding]],
) -> Iterator[Finding]:
    found: dict[str, _IndexT] = {}
    for split in SPLITS:
        try:
            index = read(folder, split)
        except (OSError, ValueError) as problem:
            yield Finding("problem", f"{split}: {problem}")
            continue
        found[split] = index
        for level, text in findings(index):
            yield Finding(level, f"{split}: {text}")
    if len(found) == 2:
        train, val = found["train"], found["val"]
        if difference := train.classes.difference(val.classes):
            yield Finding("problem", f"the classes of train (here) and val (there) differ:\n{difference}")


def _box_findings(index: BoxIndex) -> Iterator[Finding]:
    empty = int((np.diff(index.offsets) == 0).sum())
    yield Finding(
        "count",
        f"images {len(index)} (without objects {empty}), boxes {len(index.boxes)} (crowds {int(index.crowd.sum())}), "
        f"classes {len(index.classes)}",
    )
    yield from (Finding("note", note) for note in index.notes)

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
