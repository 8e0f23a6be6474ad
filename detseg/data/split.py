"""Which images of a data set without a split are kept for validation: decided by a hash of their names.

So an image stays where it is when others are added, on every machine, and whatever the order. What belongs together
stays together: frames of a series (names that differ in the number at their end), Roboflow's augmented copies of one
image (NAME_jpg.rf.HASH.jpg), and files of the same content.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

_BLOCK = 10
"""Consecutive numbers of a long series that stay together."""
_MOST = 2.5
"""A unit may make the validation share this many times as large as it is asked for."""
_HEAD_BYTES = 1 << 16

_ROBOFLOW = re.compile(r"(?:_(?:jpe?g|png|bmp|webp|tiff?))?\.rf\.[0-9A-Za-z]{8,}$", re.IGNORECASE)
_NUMBERED = re.compile(r"(?P<series>.*?)(?P<number>\d+)")


class KeptSplit(NamedTuple):
    """A split that was decided here, as the run keeps it."""

    share: float
    """What was asked for."""
    train: tuple[str, ...]
    """Names of images, relative to the data's folder, with forward slashes."""
    val: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was found on the way, in words."""

    def as_plain(self) -> dict[str, Any]:
        """For files."""
        return {"share": self.share, "train": list(self.train), "val": list(self.val), "notes": list(self.notes)}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """The way back."""
        return cls(float(values["share"]), tuple(values["train"]), tuple(values["val"]), tuple(values["notes"]))

    def __str__(self) -> str:
        number = len(self.train) + len(self.val)
        return (f"split: {len(self.val)} of {number} images ({len(self.val) / number:.1%}) are kept for validation, by "
                f"a hash of their names (--val-share {self.share:g})")


def split_by_name(names: Sequence[str], paths: Sequence[Path], share: float) -> KeptSplit:
    """Keeps about `share` of the images for validation.

    Args:
        names: of the images, relative to the data's folder, all different.
        paths: their files, which are compared where their sizes are equal.
        share: above 0 and below 1.

    A series that would make the share more than 2.5 times as large (or than half of all) is cut into blocks of ten
    consecutive numbers, in a small data set into single images: a note says so. ValueError where both sides cannot have
    an image.
    """
    most = int(min(_MOST * share, 0.5) * len(names))
    units, cut = _units(names, most)
    alike = _alike(paths)
    groups = _joined(units, alike)
    order = sorted((min(_hash(unit) for unit in group), min(group), sorted(members)) for group, members in groups)
    val: list[int] = []
    for number, _, members in order:
        fits = len(val) + len(members) <= max(1, most)
        if fits and (number < share or not val):
            val += members
        elif number >= share and val:
            break
    if not val or len(val) == len(names):
        raise ValueError(f"{len(names)} image{'s' * (len(names) != 1)} cannot be split into training and validation "
                         "without taking apart what belongs together; name other validation data with --val")
    chosen = set(val)
    notes = []
    if cut:
        whole = ", ".join(f"{series}* ({number} images)" for series, number in cut[:3])
        how = f"blocks of {_BLOCK} consecutive numbers" if most >= _BLOCK else "single images"
        notes.append(f"{len(cut)} numbered series too long to be kept for validation whole, {whole}"
                     f"{' ...' if len(cut) > 3 else ''}: taken as {how}. If these are frames of one video, name the "
                     "validation data with --val")
    if alike:
        notes.append(f"{sum(map(len, alike))} images are files of the same content as another, "
                     f"{' and '.join(names[i] for i in alike[0][:2])} for example; these stay on one side")
    return KeptSplit(
        share, tuple(name for i, name in enumerate(names) if i not in chosen), tuple(names[i] for i in sorted(val)),
        tuple(notes))


def series_of(name: str) -> tuple[str, int | None]:
    """The series that an image belongs to, with its folder, and its number there; a name that does not end with a
    number is a series of its own."""
    path = PurePosixPath(unicodedata.normalize("NFC", name))
    stem = _ROBOFLOW.sub("", path.stem)
    found = _NUMBERED.fullmatch(stem)
    folder = "" if path.parent == PurePosixPath() else f"{path.parent}/"
    return (folder + stem, None) if found is None else (folder + found["series"], int(found["number"]))


def _units(names: Sequence[str], most: int) -> tuple[dict[str, list[int]], list[tuple[str, int]]]:
    """The positions of the images that are not to be parted, by a name for them; and the series that were cut."""
    series: dict[str, list[int]] = defaultdict(list)
    numbers: list[int | None] = []
    for i, name in enumerate(names):
        key, number = series_of(name)
        series[key].append(i)
        numbers.append(number)
    units: dict[str, list[int]] = defaultdict(list)
    cut = []
    for key, members in series.items():
        distinct = {numbers[i] for i in members}
        if len(members) <= max(1, most) or len(distinct) == 1:
            units[key] += members
            continue
        cut.append((key, len(members)))
        for i in members:
            number = numbers[i] or 0
            units[f"{key}#{number // _BLOCK if most >= _BLOCK else number}"].append(i)
    return units, cut


def _joined(
    units: Mapping[str, list[int]], alike: Sequence[Sequence[int]]
) -> list[tuple[list[str], list[int]]]:
    """Units that share images of the same content, put together."""
    unit_of = {i: key for key, members in units.items() for i in members}
    root = {key: key for key in units}

    def top(key: str) -> str:
        while root[key] != key:
            key = root[key]
        return key

    for same in alike:
        for i in same[1:]:
            root[top(unit_of[i])] = top(unit_of[same[0]])
    groups: dict[str, tuple[list[str], list[int]]] = {}
    for key, members in units.items():
        keys, positions = groups.setdefault(top(key), ([], []))
        keys.append(key)
        positions += members
    return list(groups.values())


def _hash(text: str) -> float:
    """0..1, evenly."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()) / 2**64


def _alike(paths: Sequence[Path]) -> list[list[int]]:
    """Positions of files with the same content. Only files of equal size are read, and to the end only where their
    beginnings are equal too; a file that cannot be read is like no other."""
    groups: list[list[int]] = [list(range(len(paths)))]
    marks: tuple[Callable[[Path], object], ...] = (
        lambda path: path.stat().st_size, lambda path: _digest(path, _HEAD_BYTES), _digest)
    for mark in marks:
        finer: list[list[int]] = []
        for group in groups:
            by_mark: dict[object, list[int]] = defaultdict(list)
            for i in group:
                try:
                    by_mark[mark(paths[i])].append(i)
                except OSError:
                    continue
            finer += [members for members in by_mark.values() if len(members) > 1]
        groups = finer
    return groups


def _digest(path: Path, length: int = -1) -> bytes:
    with path.open("rb") as file:
        return hashlib.blake2b(file.read(length)).digest()
