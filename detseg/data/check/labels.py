"""What is odd about label maps and their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detseg.data.check.findings import Finding, Spot, Table, counted, some
from detseg.data.check.looks import Look, look_at
from detseg.data.images import image_kind
from detseg.data.label_index import LabelIndex
from detseg.data.screening import pixels_say
from detseg.structures import VOID

_MUCH_VOID = 0.5
_FLAVOURS = {"L": "grey", "1": "black and white", "P": "palette", "RGB": "colours", "RGBA": "colours"}


class LabelLook(NamedTuple):
    """An image and its label map."""

    look: Look
    problem: str = ""
    """Why the label map cannot be used; empty where it can."""
    counts: NDArray[np.int64] | None = None
    """[256] pixels by label."""
    flavour: str = ""
    """How the file holds the labels; empty where they are drawn from outlines."""


def look_at_labels(index: LabelIndex, i: int) -> LabelLook:
    """Decodes both."""
    try:
        size = index.size(i)
    except (OSError, ValueError) as problem:
        return LabelLook(Look(str(problem)), str(problem))
    look = look_at(index.path(i), size, f"its label map {index.origin(i)} is")
    try:
        counts = np.bincount(index.labels(i, size).ravel(), minlength=VOID + 1)
    except (OSError, ValueError) as problem:
        return LabelLook(look, str(problem))
    return LabelLook(look, "", counts, _flavour(Path(index.origin(i))))


def _flavour(path: Path) -> str:
    if not path.is_file():
        return ""
    mode = image_kind(path).mode
    return _FLAVOURS.get(mode, mode)


class LabelNumbers(NamedTuple):
    """Of the label maps of a split."""

    pixels: NDArray[np.int64]
    """[256] by label."""
    images: NDArray[np.int64]
    """[256]: those that have each label."""
    only_void: int


def label_findings(
    index: LabelIndex, looks: list[LabelLook], split: str
) -> tuple[list[Finding], LabelNumbers]:
    """Of one split; what is wrong with its images is another's matter."""
    findings = [Finding("note", "reader", note, split) for note in index.notes]
    # A size that cannot be read is told of the image already.
    broken = [(i, look.problem) for i, look in enumerate(looks) if look.problem and look.problem != look.look.problem]
    if broken:
        findings.append(Finding(
            "problem", "broken label maps", f"{counted(len(broken), 'label map')} that cannot be used: {broken[0][1]}",
            split, tuple(Spot(problem, index.path(i)) for i, problem in broken)))
    good = [(i, look.counts) for i, look in enumerate(looks) if look.counts is not None]
    pixels = sum((counts for _, counts in good), np.zeros(VOID + 1, np.int64))
    images = sum(((counts > 0).astype(np.int64) for _, counts in good), np.zeros(VOID + 1, np.int64))
    void = [i for i, counts in good if not counts[:VOID].any()]
    if void and len(void) < len(good):
        findings.append(Finding(
            "note", "only void", f"{counted(len(void), 'label map')} with void only: nothing is learned from these",
            split, tuple(Spot(index.origin(i), index.path(i), index.size(i)) for i in void)))
    if good:
        findings += _of_classes(index, pixels, split)
    flavours = Counter(look.flavour for look in looks if look.flavour)
    if len(flavours) > 1:
        findings.append(Finding("note", "mixed label maps", "label maps are of several kinds: " + ", ".join(
            f"{name} {number}" for name, number in flavours.most_common()), split))
    return findings, LabelNumbers(pixels, images, len(void))


def _of_classes(index: LabelIndex, pixels: NDArray[np.int64], split: str) -> Iterator[Finding]:
    said = pixels_say(pixels, index.classes)
    if said.nothing_to_learn:
        yield Finding("problem", "nothing to learn", said.nothing_to_learn, split)
    if said.absent:
        yield Finding("note", "absent classes", f"no pixel is {said.absent}", split)
    if said.present and said.void >= _MUCH_VOID:
        yield Finding("note", "much void", f"{said.void:.1%} of the pixels are void, and taught to nobody", split)


SPLIT_COLUMNS = ("split", "images", "only void", "void pixels", "classes with pixels", "kept as")


def split_row(index: LabelIndex, looks: list[LabelLook], numbers: LabelNumbers, *, split: str) -> tuple[str, ...]:
    """Of the table of splits."""
    flavours = Counter(look.flavour or "outlines" for look in looks if not look.problem)
    void = numbers.pixels[VOID] / max(1, numbers.pixels.sum())
    there = sum(bool(numbers.pixels[k]) for k in range(len(index.classes)))
    return (split, f"{len(index):,}", f"{numbers.only_void:,}", f"{void:.1%}", f"{there} of {len(index.classes.used)}",
            some([name for name, _ in flavours.most_common()]))


def class_table(indexes: Mapping[str, LabelIndex], numbers: Mapping[str, LabelNumbers]) -> Table:
    """A row for each class: its share of the pixels that are not void, and its images."""
    names = list(dict.fromkeys(name for index in indexes.values() for name in index.classes.used.values()))
    rows = []
    for name in names:
        row = [name]
        for split, index in indexes.items():
            if name not in index.classes.names:
                row.append("-")
                continue
            k, of = index.classes.names.index(name), numbers[split]
            row.append(f"{of.pixels[k] / max(1, of.pixels[:VOID].sum()):.2%} ({of.images[k]:,})")
        rows.append(tuple(row))
    return Table("classes", ("class", *(f"{split}: pixels (images)" for split in indexes)), tuple(rows))
