"""What is broken or useless in a data set, found out before the first step: by a look at every file."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from detseg.data.box_index import BoxIndex
from detseg.data.class_index import ClassIndex
from detseg.data.faults import Fault
from detseg.data.images import glance, read_image
from detseg.data.label_index import LabelIndex
from detseg.data.loading import spread
from detseg.structures import VOID, Classes, Size

_SURVEYED = 1000
"""Label maps that are read before the first step; all of them, where one of these is broken."""

_SOME_VOID = 0.01

_CHUNK = 64

ResultT = TypeVar("ResultT")


class Screened(NamedTuple):
    """An index without what is broken, and what there is to say about the rest."""

    index: Any
    """The broken images are left out and among its faults."""
    nothing_to_learn: str
    """Why no network can learn from these annotations; empty where one can."""


@singledispatch
def screened(index: Any, *, whole: bool) -> Screened:
    """Looks at every file: whether it is there and whole, of the size that is annotated, and its labels are known.

    Args:
        index: of a split. An index of your own kind is given back as it is; register it: `@screened.register`.
        whole: decode every image and label map, which finds all that is broken and takes about as long as an evaluation
            of these images. Without, JPEG and PNG files are seen to lack their end, other damage is found as images are
            read, and of label maps up to 1,000 are read.
    """
    return Screened(index, "")


@screened.register
def _(index: BoxIndex, *, whole: bool) -> Screened:
    def look(i: int) -> str:
        return _problem(index.path(i), index.size(i), whole=whole)

    sound = _without(index, _of_all(look, range(len(index))))
    return Screened(sound, (sound.nothing_to_learn() or "") if len(sound) else "no image is left")


@screened.register
def _(index: LabelIndex, *, whole: bool) -> Screened:
    def look(i: int) -> str:
        try:
            size = index.size(i)
        except (OSError, ValueError) as problem:
            return str(problem)
        return _problem(index.path(i), size, whole=whole, said_by=f"its label map {index.origin(i)} is")

    sound: LabelIndex = _without(index, _of_all(look, range(len(index))))
    if not len(sound):
        return Screened(sound, "no image is left")
    looked_at = range(len(sound)) if whole else spread(len(sound), _SURVEYED)
    counts, problems = _surveyed(sound, looked_at)
    if problems and len(looked_at) < len(sound):
        counts, problems = _surveyed(sound, range(len(sound)))
    sound = _without(sound, [problems.get(i, "") for i in range(len(sound))])
    if not len(sound):
        return Screened(sound, "no image is left")
    said = pixels_say(counts, sound.classes)
    notes = (f"no pixel of the label maps looked at is {said.absent}",) if said.absent else ()
    return Screened(replace(sound, notes=(*notes, *sound.notes)), said.nothing_to_learn)  # type: ignore[type-var]


@screened.register
def _(index: ClassIndex, *, whole: bool) -> Screened:
    def look(i: int) -> str:
        try:
            if whole or glance(index.path(i)) is None:
                index.image(i)
        except (OSError, ValueError) as problem:
            return str(problem)
        return ""

    sound: ClassIndex = _without(index, _of_all(look, range(len(index))))
    return Screened(sound, sound.nothing_to_learn() if len(sound) else "no image is left")


def without(index: Any, places: Collection[str]) -> Any:
    """The index without the images of these files, as `screened` named them."""
    if not places:
        return index
    return index.select([i for i in range(len(index)) if str(index.path(i)) not in places])


def _problem(path: Path, size: Size, *, whole: bool, said_by: str = "its annotations say") -> str:
    """What is wrong with an image file; nothing where it is sound, or seems so."""
    try:
        if whole or glance(path) not in (size, size[::-1]):  # which of the two it is, the decoder says
            read_image(path, size=size, said_by=said_by)
    except (OSError, ValueError) as problem:
        return str(problem)
    return ""


def _without(index: Any, problems: Sequence[str]) -> Any:
    """The index without the images that have a problem, which become its faults."""
    if not any(problems):
        return index
    faults = tuple(Fault(str(index.path(i)), problem) for i, problem in enumerate(problems) if problem)
    sound = index.select([i for i, problem in enumerate(problems) if not problem])
    return replace(sound, faults=(*index.faults, *faults))


def _surveyed(index: LabelIndex, positions: Sequence[int]) -> tuple[NDArray[np.int64], dict[int, str]]:
    """[256] pixels by label, and what is wrong with which label map."""
    def look(i: int) -> NDArray[np.int64] | str:
        try:
            return np.bincount(index.labels(i, index.size(i)).ravel(), minlength=VOID + 1)
        except (OSError, ValueError) as problem:
            return str(problem)

    counts, problems = np.zeros(VOID + 1, np.int64), {}
    for i, result in zip(positions, _of_all(look, positions), strict=True):
        if isinstance(result, str):
            problems[i] = result
        else:
            counts += result
    return counts, problems


class PixelsSay(NamedTuple):
    """What the pixels of label maps say about their classes."""

    nothing_to_learn: str
    """Why no network can learn from them; empty where one can."""
    absent: str
    """Classes without a pixel, where others have some, and what may be wrong; else empty."""
    present: tuple[str, ...]
    """Classes that have pixels."""
    void: float
    """The share that is void."""


def pixels_say(counts: NDArray[np.int64], classes: Classes) -> PixelsSay:
    """Of [256] pixels by label."""
    position = {source_id: k for k, source_id in enumerate(classes.source_ids)}
    used = {name: (source_id, int(counts[position[source_id]])) for source_id, name in classes.used.items()}
    present = tuple(name for name, (_, number) in used.items() if number)
    absent = [name for name, (_, number) in used.items() if not number]
    void = float(counts[VOID] / max(1, counts.sum()))
    if not present:
        return PixelsSay("every pixel of the label maps is void: do the classes have the values that are in the files?",
                         "", (), void)
    listed = " or ".join(absent)
    if absent and void >= _SOME_VOID and VOID not in classes.source_ids:
        name, source_id = absent[0], used[absent[0]][0]
        listed += (f", and {void:.1%} are void. If 255 is {name} in these files, write `{VOID} {name}` in classes.txt "
                   f"in place of `{source_id} {name}`")
    if len(present) == 1 and absent:
        return PixelsSay(f"every labelled pixel is {present[0]}, none is {listed}", "", present, void)
    return PixelsSay("", listed, present, void)


def _of_all(look: Callable[[int], ResultT], positions: Sequence[int]) -> list[ResultT]:
    """What `look` gives for each position, in order."""
    def chunk(first: int) -> list[ResultT]:
        return [look(i) for i in positions[first : first + _CHUNK]]

    # Threads suffice: reading and decoding leave Python's lock.
    with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
        return [result for results in pool.map(chunk, range(0, len(positions), _CHUNK)) for result in results]
