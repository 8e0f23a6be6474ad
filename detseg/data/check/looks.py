"""A look at every image file: whether it decodes, what kind it is, and what it looks like in 64 bits."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from detseg.data.images import ImageKind, image_kind, read_image
from detseg.structures import Pixels, Size

_BANDS, _BAND_BITS = 4, 16
_MOST_BITS = _BANDS - 1
"""Hashes that differ in so many bits at most agree in one of the bands at least."""
_MOST_DIFFERENCE = 5.0
"""Mean difference of two thumbnails' grey values, of 255: what compression and resizing change."""
_SIDE = 16
_MOST_ALIKE = 64
"""Images of one hash that are compared with each other; the hash of plain pictures says little."""
_CHUNK = 32

ProgressT = Callable[[int], None]
_ResultT = TypeVar("_ResultT")


class Look(NamedTuple):
    """One image file."""

    problem: str
    """Why it cannot be used; empty where it can."""
    kind: ImageKind | None = None
    hash: int = 0
    """64 bits: of each of 8 x 8 places of the grey picture whether it is darker than the one to its right."""
    thumbnail: NDArray[np.uint8] | None = None
    """[256] grey values of the picture at 16 x 16."""


def look_at(path: Path, size: Size, said_by: str = "its annotations say") -> Look:
    """Decodes an image of which annotations claim a (height, width)."""
    try:
        image = read_image(path, size=size, said_by=said_by)
        kind = image_kind(path)
    except (OSError, ValueError) as problem:
        return Look(str(problem))
    return Look("", kind, difference_hash(image), _grey(image, _SIDE, _SIDE).ravel())


def of_all(look: Callable[[int], _ResultT], number: int, *, done: ProgressT) -> Iterator[_ResultT]:
    """What `look` gives for each position, in order. `done` is told how many more are through."""
    def chunk(first: int) -> list[_ResultT]:
        return [look(i) for i in range(first, min(number, first + _CHUNK))]

    # Threads suffice: decoding leaves Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for results in pool.map(chunk, range(0, number, _CHUNK)):
            yield from results
            done(len(results))


def difference_hash(image: Pixels) -> int:
    """64 bits that stay almost the same when a picture is resized, compressed anew, or made a little brighter."""
    grey = _grey(image, 9, 8).astype(np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes())


def _grey(image: Pixels, width: int, height: int) -> NDArray[np.uint8]:
    small: NDArray[np.uint8] = cv2.cvtColor(
        cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return small


def alike(looks: Sequence[Look]) -> list[list[int]]:
    """Positions of images that look the same, group by group; images with a problem are like no other."""
    positions = [i for i, look in enumerate(looks) if not look.problem]
    root = {i: i for i in positions}

    def top(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    by_hash: dict[int, list[int]] = defaultdict(list)
    for i in positions:
        by_hash[looks[i].hash].append(i)
    for members in by_hash.values():
        different: list[int] = []
        for i in members:
            same = next((j for j in different if _same_picture(looks[i], looks[j])), None)
            if same is not None:
                root[top(i)] = top(same)
            elif len(different) < _MOST_ALIKE:
                different.append(i)
    hashes = np.array([*by_hash], np.uint64)
    for first, second in _near(hashes):
        for i in by_hash[int(hashes[first])][:_MOST_ALIKE]:
            for j in by_hash[int(hashes[second])][:_MOST_ALIKE]:
                if top(i) != top(j) and _same_picture(looks[i], looks[j]):
                    root[top(i)] = top(j)
    groups: dict[int, list[int]] = defaultdict(list)
    for i in positions:
        groups[top(i)].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _near(hashes: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs of different hashes that differ in few bits: only those that agree in a band are compared."""
    if not len(hashes):
        return
    for band in range(_BANDS):
        keys = (hashes >> np.uint64(band * _BAND_BITS)) & np.uint64((1 << _BAND_BITS) - 1)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order][:1] + np.uint64(1)))
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            bucket = order[start:end]
            for k in range(len(bucket) - 1):
                bits = np.bitwise_count(hashes[bucket[k + 1 :]] ^ hashes[bucket[k]])
                for other in bucket[k + 1 :][bits <= _MOST_BITS]:
                    yield int(bucket[k]), int(other)


def _same_picture(first: Look, second: Look) -> bool:
    assert first.thumbnail is not None
    assert second.thumbnail is not None
    difference = np.abs(first.thumbnail.astype(np.int16) - second.thumbnail)
    return bool(difference.mean() <= _MOST_DIFFERENCE)


def digest(path: Path) -> bytes:
    """Of a file's content; of one that cannot be read its name's, which is like no other."""
    try:
        return hashlib.blake2b(path.read_bytes()).digest()
    except OSError:
        return os.fsencode(path)
