"""The outlines in a COCO annotation file: polygons, and run lengths in either form."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray
from pycocotools import mask

from detseg.data.annotation_cache import cached
from detseg.data.box_index import Segmentation
from detseg.data.coco_json import AnnotationFile, Record
from detseg.structures import Size


@dataclass(frozen=True, eq=False)
class Outlines:
    """The outlines of `m` objects with `p` parts in all, as flat arrays, for the reason that `box_index` gives."""

    first_part: NDArray[np.int64]
    """[m + 1]: where the parts of each object begin. One without parts has no outline."""
    first_byte: NDArray[np.int64]
    """[p + 1]: where the content of each part begins."""
    content: NDArray[np.uint8]
    """A polygon's x, y, x, y, ... as float64, or run lengths as COCO's compressed text."""
    run_sizes: NDArray[np.int32]
    """[m, 2]: height and width of the image that an object's run lengths, its one part, are for; 0, 0 of polygons."""
    thin: NDArray[np.int32]
    """[m]: polygons of fewer than three corners beside others, which cover nothing and are left out."""
    reasons: Mapping[int, str]
    """What is wrong with some outlines, by object."""

    def encoded(self, i: int, size: Size) -> Record:
        """Where object i is in an image of this size, as pycocotools has masks."""
        parts = [self.content[start:end].tobytes() for start, end in
                 zip(*(self.first_byte[self.first_part[i] + k : self.first_part[i + 1] + k] for k in (0, 1)),
                     strict=True)]
        if self.run_sizes[i, 0]:
            return {"size": list(size), "counts": parts[0]}
        found: Record = mask.merge(mask.frPyObjects([np.frombuffer(part) for part in parts], *size))
        return found

    def as_coco(self, i: int) -> Segmentation | None:
        """The outline of object i as COCO's files have it; None where there is none."""
        parts = [self.content[start:end].tobytes() for start, end in
                 zip(*(self.first_byte[self.first_part[i] + k : self.first_part[i + 1] + k] for k in (0, 1)),
                     strict=True)]
        if self.run_sizes[i, 0]:
            return {"size": self.run_sizes[i].tolist(), "counts": parts[0].decode("ascii")}
        return [np.frombuffer(part).tolist() for part in parts] or None

    def present(self) -> NDArray[np.bool_]:
        """[m]: whether there is an outline."""
        found: NDArray[np.bool_] = np.diff(self.first_part) > 0
        return found

    def select(self, objects: NDArray[np.int64]) -> Outlines:
        """Those of some objects, in the order given."""
        parts = _rows(self.first_part, objects)
        first_byte = _offsets(np.diff(self.first_byte)[parts])
        # The parts of an object lie together. Object by object: the positions of all bytes would take eight times
        # their space.
        content = np.empty(first_byte[-1], np.uint8)
        starts, ends = self.first_byte[self.first_part[objects]], self.first_byte[self.first_part[objects + 1]]
        to = 0
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            content[to : to + end - start] = self.content[start:end]
            to += end - start
        return Outlines(_offsets(np.diff(self.first_part)[objects]), first_byte, content, self.run_sizes[objects],
                        self.thin[objects],
                        {k: self.reasons[i] for k, i in enumerate(objects.tolist()) if i in self.reasons})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, for a cache."""
        arrays: dict[str, NDArray[Any]] = {
            name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return arrays | {"told": np.frombuffer(json.dumps([*self.reasons.items()]).encode(), np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Outlines:
        """The reverse of `to_arrays`."""
        reasons = dict(json.loads(arrays["told"].tobytes()))
        return cls(**{name: value for name, value in arrays.items() if name != "told"}, reasons=reasons)


def read_outlines(annotations: Path) -> Outlines:
    """The outlines of all annotations of a file, also of those that are broken otherwise, in its order.

    A large file is read from a cache the next time. Raises what `read_coco` does.
    """
    try:
        return cached(annotations, "outlines", read=_parsed, to_arrays=Outlines.to_arrays,
                      from_arrays=Outlines.from_arrays)
    except ValueError as problem:
        raise ValueError(f"{annotations}: {problem}") from None


def _offsets(counts: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _rows(first: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions from `first[i]` to `first[i + 1]`, of each chosen i."""
    counts = np.diff(first)[chosen]
    ends = np.cumsum(counts)
    within = np.arange(ends[-1] if len(ends) else 0)
    rows: NDArray[np.int64] = within + np.repeat(first[chosen] - (ends - counts), counts)
    return rows


def _parsed(path: Path) -> Outlines:
    first_part, first_byte = array("q", [0]), array("q", [0])
    content, run_sizes, thin = bytearray(), array("i"), array("i")
    reasons: dict[int, str] = {}
    for block in AnnotationFile(path).outlines.blocks():
        for record in block:
            parts: list[bytes] = []
            height = width = dropped = 0
            outline: Any = record.segmentation
            try:
                if isinstance(outline, dict):
                    height, width, run_lengths = _runs(outline)
                    parts = [run_lengths]
                elif outline not in (UNSET, None):
                    parts, dropped = _polygons(outline)
            except _BrokenError as problem:
                reasons[len(thin)] = str(problem)
            for part in parts:
                content += part
                first_byte.append(len(content))
            first_part.append(len(first_byte) - 1)
            run_sizes.extend((height, width))
            thin.append(dropped)
    return Outlines(
        np.frombuffer(first_part, np.int64), np.frombuffer(first_byte, np.int64), np.frombuffer(content, np.uint8),
        np.array(run_sizes, np.int32).reshape(-1, 2), np.array(thin, np.int32), reasons,
    )


class _BrokenError(Exception):
    """What is wrong with an outline."""


def _polygons(outline: Any) -> tuple[list[bytes], int]:
    """Each polygon's numbers as bytes, and how many are left out because they have fewer than three corners."""
    if not isinstance(outline, (list, tuple)):
        raise _BrokenError(_FORMS)
    polygons = []
    for number, part in enumerate(outline, 1):
        try:
            polygon = array("d", part)
        except TypeError:
            raise _BrokenError(f"polygon {number} of its 'segmentation' is no list of numbers; {_FORMS}"
                               if isinstance(part, (list, tuple)) else _FORMS) from None
        if len(polygon) % 2:
            raise _BrokenError(f"polygon {number} of its 'segmentation' has {len(polygon)} numbers, an odd count; "
                               "they are x, y, x, y, ...")
        if not math.isfinite(sum(polygon)):
            raise _BrokenError(f"polygon {number} of its 'segmentation' has numbers that are not finite")
        polygons.append(polygon)
    kept = [polygon.tobytes() for polygon in polygons if len(polygon) >= 6]
    if polygons and not kept:
        raise _BrokenError(f"its 'segmentation' has {len(polygons[0])} numbers; a polygon has at least three corners, "
                           "6 numbers")
    return kept, len(polygons) - len(kept)


_FORMS = ("its 'segmentation' is neither polygons [[x, y, x, y, ...], ...] nor run lengths {'size': [height, width], "
          "'counts': ...}")


def _runs(outline: Record) -> tuple[int, int, bytes]:
    """Height, width, and run lengths as COCO's compressed text."""
    size, counts = outline.get("size"), outline.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise _BrokenError(_FORMS)
    height, width = size
    try:
        if isinstance(counts, str):
            encoded = counts.encode("ascii")
            runs = _decompressed(encoded)
        else:
            runs = np.array(counts, np.int64)
            if runs.ndim != 1 or np.any(runs != np.array(counts, np.float64)):
                raise ValueError(counts)
            encoded = b""
    except (TypeError, ValueError, OverflowError):
        raise _BrokenError(_FORMS) from None
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise _BrokenError(f"the run lengths of its 'segmentation' are for {runs.sum()} pixels, its 'size' is {height} "
                           f"x {width}, {height * width} pixels: are they damaged?")
    if not encoded:
        encoded = mask.frPyObjects({"size": size, "counts": runs.tolist()}, height, width)["counts"]
    return height, width, encoded


def _decompressed(text: bytes) -> NDArray[np.int64]:
    """The run lengths of COCO's compressed text (`rleFrString` in cocoapi's common/maskApi.c).

    pycocotools would read past the end of a text that is cut. ValueError for one that is none.
    """
    characters = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(characters) or characters.min() < 0 or characters.max() > 63 or characters[-1] & 32:
        raise ValueError(text)
    last = np.flatnonzero(~characters & 32)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 12:
        raise ValueError(text)
    shifts = 5 * (np.arange(len(characters)) - np.repeat(first, lengths))
    values = np.add.reduceat((characters & 31) << shifts, first)
    values -= np.where(characters[last] & 16, 1 << (5 * lengths), 0)
    # Every run but the first three is told as the difference to the one two before.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
