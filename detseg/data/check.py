"""Whether a detection data set can be trained on, found out before the training does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from detseg.data.box_index import BoxIndex
from detseg.data.detection import read_boxes
from detseg.data.images import read_image

Level: TypeAlias = Literal["count", "note", "problem"]


class Finding(NamedTuple):
    """One line of the report. A "problem" stops a training or falsifies its scores, a "note" does not."""

    level: Level
    text: str


def check_boxes(folder: Path) -> Iterator[Finding]:
    """Reads both splits, decodes every image, and says what it finds as it finds it. Raises nothing about the data."""
    found: dict[str, BoxIndex] = {}
    for split in ("train", "val"):
        try:
            index = read_boxes(folder, split)
        except (OSError, ValueError) as problem:
            yield Finding("problem", f"{split}: {problem}")
            continue
        found[split] = index
        yield Finding("count", f"{split}: {_counts(index)}")
        yield from (Finding("note", f"{split}: {note}") for note in index.notes)
        yield from (Finding("problem", f"{split}: {problem}") for problem in _unreadable(index))
    if len(found) == 2:
        train, val = found["train"], found["val"]
        if difference := train.classes.difference(val.classes):
            yield Finding("problem", f"the classes of train (here) and val (there) differ:\n{difference}")


def _counts(index: BoxIndex) -> str:
    empty = int((np.diff(index.offsets) == 0).sum())
    return (
        f"images {len(index)} (without objects {empty}), boxes {len(index.boxes)} (crowds {int(index.crowd.sum())}), "
        f"classes {len(index.classes)}"
    )


def _unreadable(index: BoxIndex) -> Iterator[str]:
    def problem(i: int) -> str | None:
        try:
            read_image(index.path(i), size=index.size(i))
        except (OSError, ValueError) as reason:
            return str(reason)
        return None

    # Threads suffice: decoding leaves Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from (reason for reason in pool.map(problem, range(len(index))) if reason is not None)
