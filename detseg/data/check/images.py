"""What is odd about image files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from detseg.data.check.findings import IN_TWO_SPLITS, Finding, MarkedBox, Spot, counted, some
from detseg.data.check.looks import Look, alike, digest
from detseg.structures import Size

_CHANNELS = {"RGB": "RGB", "L": "grey", "1": "black and white", "P": "palette", "RGBA": "RGB and alpha",
             "LA": "grey and alpha", "CMYK": "CMYK", "I;16": "grey, 16 bits", "I": "grey, 16 bits", "YCbCr": "YCbCr"}
_EXTREME = 4.0
"""Ratio of the sides from which a picture is a strip."""

_Members: TypeAlias = list[tuple[str, int]]
"""Images by split and position."""

IMAGE_COLUMNS = ("split", "width x height", "kinds", "channels", "turned by EXIF")


class Images(NamedTuple):
    """The images of a split, looked at."""

    paths: Sequence[Path]
    sizes: Sequence[Size]
    """(height, width), as the annotations say."""
    looks: Sequence[Look]
    boxes: Callable[[int], tuple[MarkedBox, ...]] = lambda _: ()
    """To draw on an image."""


def image_findings(images: Images, split: str) -> Iterator[Finding]:
    """Of one split."""
    broken = [i for i, look in enumerate(images.looks) if look.problem]
    if broken:
        yield Finding("problem", "broken images", f"{counted(len(broken), 'image')} that cannot be used: "
                      f"{images.looks[broken[0]].problem}", split,
                      tuple(Spot(images.looks[i].problem, images.paths[i]) for i in broken))
    turned = [i for i, look in enumerate(images.looks) if look.kind is not None and look.kind.is_turned]
    if turned:
        yield Finding("note", "turned images", f"{counted(len(turned), 'image')} turned by EXIF data; the annotations "
                      "decide by their size which way is up, but square ones are taken as viewers show them: look at "
                      "the boxes", split, _spots(images, turned))
    strips = [i for i, (height, width) in enumerate(images.sizes) if max(height, width) > _EXTREME * min(height, width)]
    if strips:
        yield Finding("note", "strips", f"{counted(len(strips), 'image')} more than {_EXTREME:g} times as long as "
                      "wide: stretched to a square, objects are hard to know", split, _spots(images, strips))


def _spots(images: Images, positions: Sequence[int]) -> tuple[Spot, ...]:
    return tuple(Spot(str(images.paths[i]), images.paths[i], images.sizes[i], images.boxes(i)) for i in positions)


def image_row(images: Images, split: str) -> tuple[str, ...]:
    """Of the table of images."""
    distinct = Counter(images.sizes)
    heights, widths = np.array([*images.sizes]).reshape(-1, 2).T
    shown = "-"
    if len(distinct) <= 3:
        shown = ", ".join(f"{width} x {height}" for (height, width), _ in distinct.most_common()) or "-"
    else:
        shown = (f"{widths.min()} x {heights.min()} to {widths.max()} x {heights.max()}, median "
                 f"{np.median(widths):.0f} x {np.median(heights):.0f}")
    kinds = [look.kind for look in images.looks if look.kind is not None]
    formats = Counter(kind.format for kind in kinds)
    modes = Counter(_CHANNELS.get(kind.mode, kind.mode) for kind in kinds)
    return (split, shown, *(some([f"{name} {number:,}" for name, number in counts.most_common()])
                            for counts in (formats, modes)),
            f"{sum(kind.is_turned for kind in kinds):,}")


def copy_findings(parts: Mapping[str, Images]) -> Iterator[Finding]:
    """Images that are in a split twice, or in two splits."""
    places = [(split, i) for split, images in parts.items() for i in range(len(images.paths))]
    groups = alike([parts[split].looks[i] for split, i in places])
    same_across: list[_Members] = []
    near_across: list[_Members] = []
    same_within: list[_Members] = []
    for group in groups:
        members = [places[k] for k in group]
        digests = [digest(parts[split].paths[i]) for split, i in members]
        by_split: dict[str, list[int]] = {}
        for k, (split, _) in enumerate(members):
            by_split.setdefault(split, []).append(k)
        if len(by_split) > 1:
            identical = any(digests[k] in {digests[j] for j in others} for split, own in by_split.items() for k in own
                            for name, others in by_split.items() if name != split)
            (same_across if identical else near_across).append(members)
        elif len({*digests}) < len(digests):
            same_within.append(members)

    def spots(found: Sequence[_Members]) -> tuple[Spot, ...]:
        return tuple(Spot(" = ".join(str(parts[split].paths[i]) for split, i in members[:4]),
                          parts[members[0][0]].paths[members[0][1]], parts[members[0][0]].sizes[members[0][1]])
                     for members in found)

    if same_across:
        held = min((len(images.paths) for images in parts.values() if len(images.paths)), default=1)
        yield Finding("note", IN_TWO_SPLITS, f"{counted(len(same_across), 'image')} in two splits, to the byte "
                      f"({len(same_across) / held:.1%} of the smaller one): the score is of images that were trained "
                      "on. Keep each in one", "", spots(same_across))
    if near_across:
        yield Finding("note", "near copies in two splits", f"{counted(len(near_across), 'image')} looking the same in "
                      "two splits (frames of one video, or saved anew?): the score may be too good", "",
                      spots(near_across))
    if same_within:
        yield Finding("note", "copies", f"{counted(len(same_within), 'image')} more than once in a split", "",
                      spots(same_within))
