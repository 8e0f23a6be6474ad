"""Label maps that are pictures: each class has a colour, which a file lists."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detseg.data.faults import Fault
from detseg.data.label_index import LabelIndex, label_image_size, moved_labels
from detseg.structures import VOID, Classes, LabelPixels, Size

Palette = dict[tuple[int, int, int], str]
"""Colour to name."""

VOID_NAMES = frozenset({"void", "unlabelled", "unlabeled", "ignore", "ignored"})
"""Classes of these names mean nothing."""

_SHOWN = 8


@dataclass(frozen=True, eq=False)
class ColourLabels(LabelIndex):
    """Images with label maps in colours. `n` images."""

    classes: Classes
    folder: Path
    """The names are relative to it."""
    image_ids: NDArray[np.int64]
    """[n], from 1."""
    images: NDArray[np.str_]
    """[n] names of the image files."""
    maps: NDArray[np.str_]
    """[n] names of the label maps' files."""
    codes: NDArray[np.int32]
    """[P]: the palette's colours as 65536 R + 256 G + B, sorted."""
    values: NDArray[np.uint8]
    """[P]: the label of each, or VOID."""
    listing: Path
    """The file with the palette."""
    notes: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    @classmethod
    def of(
        cls, palette: Palette, folder: Path, pairs: Sequence[tuple[str, str]], *, listing: Path,
        faults: tuple[Fault, ...] = (),
    ) -> ColourLabels:
        """From a palette, whose order is that of the classes, and the names of images and label maps."""
        names = list(dict.fromkeys(name for name in palette.values() if name.lower() not in VOID_NAMES))
        if not names:
            raise ValueError(f"{listing}: need at least one class that is not void")
        first = {name: colour for colour, name in reversed(palette.items())}
        classes = Classes(tuple(names), tuple(range(len(names))), tuple(first[name] for name in names))
        label_of = {name: k for k, name in enumerate(names)}
        rows = sorted((_code(colour), label_of.get(name, VOID)) for colour, name in palette.items())
        images, maps = (np.array(column, dtype=np.str_) for column in zip(*pairs, strict=True))
        return cls(classes, folder, np.arange(1, len(pairs) + 1), images, maps,
                   np.array([code for code, _ in rows], np.int32), np.array([label for _, label in rows], np.uint8),
                   listing, faults=faults)

    def path(self, i: int) -> Path:
        """The image file."""
        return self.folder / str(self.images[self.checked(i)])

    def origin(self, i: int) -> str:
        """The file of the label map."""
        return str(self.folder / str(self.maps[self.checked(i)]))

    def size(self, i: int) -> Size:
        """(height, width) of the label map, from its header."""
        return label_image_size(Path(self.origin(i)))

    def labels(self, i: int, size: Size) -> LabelPixels:
        """The label map of an image of this size.

        ValueError: the file is no picture, has another size, or colours that are not in the palette.
        """
        path = Path(self.origin(i))
        colours = _colours(path)
        if colours.shape != size:
            raise ValueError(f"the label map {path} is {colours.shape[0]} x {colours.shape[1]} (height x width), its "
                             f"image {self.path(i)} is {size[0]} x {size[1]}; a label map has its image's size")
        places = np.minimum(np.searchsorted(self.codes, colours), len(self.codes) - 1)
        unknown = self.codes[places] != colours
        if unknown.any():
            codes, counts = np.unique(colours[unknown], return_counts=True)
            order = np.argsort(-counts)[:_SHOWN]
            shown = ", ".join(f"{_rgb(int(codes[k]))} x {counts[k]}" for k in order)
            more = f" and {len(codes) - _SHOWN} more colours" if len(codes) > _SHOWN else ""
            raise ValueError(f"the label map {path} has colours that are no class (R G B and their numbers of pixels): "
                             f"{shown}{more}. Add them to {self.listing}; many colours of few pixels come from a JPEG, "
                             "or from resizing with smoothing")
        labels: LabelPixels = self.values[places]
        return labels

    def relabel(self, classes: Classes, /) -> ColourLabels:
        """See `LabelIndex`."""
        return replace(self, classes=classes, values=moved_labels(self.classes, classes)[self.values])


def read_class_dict(path: Path) -> Palette:
    """A table with the columns name, r, g, b (class_dict.csv). ValueError with the line that is wrong."""
    lines = _lines(path)
    palette: Palette = {}
    rows = csv.reader(lines)
    header = [column.strip().lower() for column in next(rows, [])]
    try:
        places = [next(header.index(name) for name in names if name in header)
                  for names in (("name", "class", "label"), ("r", "red"), ("g", "green"), ("b", "blue"))]
    except StopIteration:
        raise ValueError(f"{path}: need the columns name, r, g and b, got {', '.join(header) or 'nothing'}") from None
    for number, row in enumerate(rows, 2):
        if not any(field.strip() for field in row):
            continue
        try:
            name, *colour = (row[place].strip() for place in places)
            _add(palette, name, [int(value) for value in colour])
        except (IndexError, ValueError) as problem:
            raise ValueError(f"{path}, line {number}: need NAME,R,G,B with 0..255, each colour once, got "
                             f"{','.join(row)!r} ({problem})") from None
    return palette


def read_labelmap(path: Path) -> Palette:
    """CVAT's and Datumaro's labelmap.txt, lines `NAME:R,G,B:PARTS:ACTIONS`. ValueError with the line that is wrong."""
    palette: Palette = {}
    for number, line in enumerate(_lines(path), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = re.fullmatch(r"(?P<name>.+?)\s*:\s*(?P<colour>\d+\s*,\s*\d+\s*,\s*\d+)\s*(?::.*)?", text)
        try:
            if found is None:
                raise ValueError("no colour")
            _add(palette, found["name"].strip(), [int(value) for value in found["colour"].split(",")])
        except ValueError as problem:
            raise ValueError(f"{path}, line {number}: need NAME:R,G,B:: with 0..255, each colour once, got {text!r} "
                             f"({problem})") from None
    return palette


def _add(palette: Palette, name: str, colour: Sequence[int]) -> None:
    red, green, blue = colour
    if not name or not all(0 <= value <= 255 for value in colour):
        raise ValueError("no name, or no colour")
    if (red, green, blue) in palette:
        raise ValueError(f"the colour of {palette[red, green, blue]}")
    palette[red, green, blue] = name


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: byte {problem.start} is no UTF-8 text; save the file as UTF-8") from None


def _colours(path: Path) -> NDArray[np.int32]:
    """[H, W]: the colours of a picture as codes; of a palette image those that it shows."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(np.int32)
    except FileNotFoundError:
        raise FileNotFoundError(f"no label map {path}") from None
    except Exception as problem:  # decoders raise what they like
        raise ValueError(f"cannot read the label map {path}: it is no image or damaged ({problem})") from None
    codes: NDArray[np.int32] = (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]
    return codes


def _code(colour: tuple[int, int, int]) -> int:
    return (colour[0] << 16) + (colour[1] << 8) + colour[2]


def _rgb(code: int) -> str:
    return f"{code >> 16} {code >> 8 & 255} {code & 255}"
