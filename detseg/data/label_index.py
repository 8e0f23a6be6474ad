"""The label maps of a split, whatever kind of files they are read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detseg.data.faults import Fault
from detseg.data.files import folded
from detseg.data.images import load_pillow, read_image
from detseg.structures import VOID, Classes, LabelPixels, Pixels, Size


class LabelIndex(ABC):
    """Images by position, each with its label map; labels are positions in `classes`, or VOID."""

    classes: Classes
    notes: tuple[str, ...]
    """What a person should know about these label maps and that is no error."""
    faults: tuple[Fault, ...] = ()
    """What was left out because it is broken; training and evaluation refuse it unless they are told to skip it."""
    image_ids: NDArray[np.int64]
    """[number of images], each different."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @abstractmethod
    def path(self, i: int) -> Path:
        """The image file."""

    @abstractmethod
    def origin(self, i: int) -> str:
        """Where the label map of an image comes from, for a message."""

    @abstractmethod
    def size(self, i: int) -> Size:
        """(height, width) of the label map, without reading all of it."""

    @abstractmethod
    def labels(self, i: int, size: Size) -> LabelPixels:
        """The label map of an image of this size; a ValueError where the two differ in size, or a label is unknown."""

    @abstractmethod
    def relabel(self, classes: Classes, /) -> Self:
        """The same label maps with labels that are positions in `classes`, matched by source id; a ValueError where a
        class is not among them."""

    def select(self, image_positions: Sequence[int], /) -> LabelIndex:
        """Some of the images only, in the order given."""
        chosen = np.array([self.checked(i) for i in image_positions], np.int64)
        return SelectedLabels(self.classes, self, self.image_ids[chosen], chosen, self.notes, self.faults)

    def common(self, classes: Classes, /) -> LabelIndex:
        """The same label maps with labels that are positions in `classes`, matched by name; VOID where a class is not
        among them."""
        return _CommonLabels(self, classes, self.image_ids, self.notes, self.faults)

    def repeats(self, share: float) -> NDArray[np.float64]:
        """A ValueError: which classes an image shows is known only when all label maps are read."""
        raise ValueError(f"repeat_rare is for boxes, got {share:g} for label maps; their augmentation has rare_classes")

    def image(self, i: int) -> Pixels:
        """The image, turned as its label map is. Raises what `read_image` does."""
        return read_image(self.path(i), size=self.size(i), said_by=f"its label map {self.origin(i)} is")

    def checked(self, i: int) -> int:
        """`i`; an IndexError where there is no such image."""
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of a data set of {len(self)}; positions run from 0 to {len(self) - 1}")
        return i


@dataclass(frozen=True, eq=False)
class SelectedLabels(LabelIndex):
    """Some of the images of another index."""

    classes: Classes
    all: LabelIndex
    image_ids: NDArray[np.int64]
    """[n], each different."""
    positions: NDArray[np.int64]
    """[n]: where each image is in the other index."""
    notes: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    def path(self, i: int) -> Path:
        """The image file."""
        return self.all.path(int(self.positions[self.checked(i)]))

    def origin(self, i: int) -> str:
        """Where the label map comes from."""
        return self.all.origin(int(self.positions[self.checked(i)]))

    def size(self, i: int) -> Size:
        """(height, width) of the label map."""
        return self.all.size(int(self.positions[self.checked(i)]))

    def labels(self, i: int, size: Size) -> LabelPixels:
        """See `LabelIndex`."""
        return self.all.labels(int(self.positions[self.checked(i)]), size)

    def relabel(self, classes: Classes, /) -> SelectedLabels:
        """See `LabelIndex`."""
        return replace(self, classes=classes, all=self.all.relabel(classes))


@dataclass(frozen=True, eq=False)
class _CommonLabels(LabelIndex):
    """Another index's label maps, reduced to the classes that `classes` has too."""

    whole: LabelIndex
    classes: Classes
    image_ids: NDArray[np.int64]
    notes: tuple[str, ...]
    faults: tuple[Fault, ...] = ()

    def path(self, i: int) -> Path:
        """The image file."""
        return self.whole.path(i)

    def origin(self, i: int) -> str:
        """Where the label map comes from."""
        return self.whole.origin(i)

    def size(self, i: int) -> Size:
        """(height, width) of the label map."""
        return self.whole.size(i)

    def labels(self, i: int, size: Size) -> LabelPixels:
        """See `LabelIndex`."""
        table = np.full(256, VOID, dtype=np.uint8)
        for name in self.whole.classes.common(self.classes):
            table[self.whole.classes.names.index(name)] = self.classes.names.index(name)
        moved: LabelPixels = table[self.whole.labels(i, size)]
        return moved

    def relabel(self, classes: Classes, /) -> _CommonLabels:
        """See `LabelIndex`; by name, and VOID where a class is not among them."""
        return replace(self, classes=classes)


@dataclass(frozen=True, eq=False)
class LabelFiles(LabelIndex):
    """Images with label maps that lie in image files of their own, one for each. `n` images.

    The names are NumPy's fixed-width texts: forked workers share them, which they could not do with Python's.
    """

    classes: Classes
    folder: Path
    """The names are relative to it."""
    image_ids: NDArray[np.int64]
    """[n], all different."""
    images: NDArray[np.str_]
    """[n] names of the image files."""
    maps: NDArray[np.str_]
    """[n] names of the label maps' files."""
    table: NDArray[np.int16]
    """[256]: the label that a stored value means, VOID where it means nothing, -1 where it should not occur."""
    notes: tuple[str, ...] = ()
    hint: str = ""
    """Said after a message about unknown values: what may be wrong with files of this kind."""
    faults: tuple[Fault, ...] = ()

    @classmethod
    def of(
        cls, classes: Classes, folder: Path, pairs: Sequence[tuple[str, str]], *, table: NDArray[np.int16],
        notes: tuple[str, ...] = (), hint: str = "", faults: tuple[Fault, ...] = (),
    ) -> LabelFiles:
        """From the names of images and label maps; the images are numbered from 1 in the order given."""
        images, maps = np.array(pairs, dtype=np.str_).reshape(-1, 2).T
        return cls(classes, folder, np.arange(1, len(pairs) + 1), images, maps, table, notes, hint, faults)

    def path(self, i: int) -> Path:
        """The image file."""
        return self.folder / str(self.images[self.checked(i)])

    def origin(self, i: int) -> str:
        """The file of the label map."""
        return str(self._map(i))

    def size(self, i: int) -> Size:
        """(height, width) of the label map, from its header."""
        return label_image_size(self._map(i))

    def labels(self, i: int, size: Size) -> LabelPixels:
        """The label map of an image of this size.

        ValueError: the file is no label map, has another size, or values that are no class.
        """
        path = self._map(i)
        stored, palette = read_label_image(path)
        if stored.shape != size:
            raise ValueError(f"the label map {path} is {stored.shape[0]} x {stored.shape[1]} (height x width), its "
                             f"image {self.path(i)} is {size[0]} x {size[1]}; a label map has its image's size")
        _check_palette(stored, palette, table=self.table, classes=self.classes, path=path)
        return to_labels(stored, self.table, classes=self.classes, what=f"the label map {path}", hint=self.hint)

    def relabel(self, classes: Classes, /) -> LabelFiles:
        """See `LabelIndex`."""
        moved = moved_labels(self.classes, classes)
        known = (self.table >= 0) & (self.table != VOID)
        return replace(self, classes=classes, table=np.where(known, moved[self.table], self.table).astype(np.int16))

    def _map(self, i: int) -> Path:
        return self.folder / str(self.maps[self.checked(i)])


def paired(
    images: Mapping[str, str], maps: Mapping[str, str], what: str
) -> tuple[list[tuple[str, str]], tuple[Fault, ...], tuple[str, ...]]:
    """Files of images and of label maps, both by a key, as pairs in the keys' order; those without a partner as faults;
    and a note about keys that agree but for their case or Unicode form.

    `what` says where they lie and how they are named.
    """
    partners = {key: key for key in images.keys() & maps.keys()}
    by_folded = {folded(key): key for key in maps.keys() - partners.keys()}
    alike = {key: by_folded.pop(folded(key)) for key in sorted(images.keys() - partners.keys())
             if folded(key) in by_folded}
    partners |= alike
    faults = [Fault(images[key], f"an image without label map ({what}); add it, or remove the image")
              for key in sorted(images.keys() - partners.keys())]
    faults += [Fault(maps[key], f"a label map without image ({what}); add it, or remove the label map")
               for key in sorted(maps.keys() - {*partners.values()})]
    notes = (f"{len(alike)} image{'s' * (len(alike) > 1)} named in another case or Unicode form than the label map, as "
             f"{images[min(alike)]}",) if alike else ()
    return [(images[key], maps[partners[key]]) for key in sorted(partners)], tuple(faults), notes


def moved_labels(old: Classes, new: Classes) -> NDArray[np.uint8]:
    """[256]: the position in `new` of each label of `old`, by source id; VOID stays VOID.

    ValueError where a used class of `old` is not in `new`, or has another name there.
    """
    strange = [f"{source_id} {name}" for source_id, name in old.used.items() if new.used.get(source_id) != name]
    if strange:
        raise ValueError(f"the label maps have classes that are not asked for: {', '.join(strange)}")
    position = {source_id: k for k, source_id in enumerate(new.source_ids)}
    table = np.full(256, VOID, dtype=np.uint8)
    for k, source_id in enumerate(old.source_ids):
        table[k] = position.get(source_id, VOID)
    return table


# ---------------------------------------------------------------------------------------------- values to labels


def label_table(source_ids: Sequence[int], void: Sequence[int] = ()) -> NDArray[np.int16]:
    """[256]: position in `source_ids` of each value, VOID for those in `void`, -1 for values that are neither.

    ValueError where a value does not fit an image of 8 bits, or is void and a class.
    """
    if wrong := sorted(value for value in {*source_ids, *void} if not 0 <= value <= 255):
        raise ValueError(f"label maps are images of 8 bits, their values lie in 0..255, got {wrong}")
    if both := sorted({*source_ids} & {*void}):
        raise ValueError(f"a value is a class or void, not both: {both}")
    if len(source_ids) > VOID:
        raise ValueError(f"a label map has room for {VOID} classes, got {len(source_ids)}")
    table = np.full(256, -1, dtype=np.int16)
    table[list(void)] = VOID
    table[list(source_ids)] = np.arange(len(source_ids))
    return table


def to_labels(
    stored: LabelPixels, table: NDArray[np.int16], *, classes: Classes, what: str, hint: str = ""
) -> LabelPixels:
    """An image of stored values to labels. A ValueError with the histogram where `table` does not know one."""
    labels = table[stored]
    if labels.min(initial=0) < 0:
        raise ValueError(_unknown_values(what, stored, table, classes) + (f" {hint}" if hint else ""))
    return labels.astype(np.uint8)


def _unknown_values(what: str, stored: LabelPixels, table: NDArray[np.int16], classes: Classes) -> str:
    """The message about values that no class has: which ones the file has, and how many pixels of each."""
    values, counts = np.unique(stored, return_counts=True)
    histogram = ", ".join(f"{value} x {count}{'' if table[value] >= 0 else ' (unknown)'}"
                          for value, count in zip(values.tolist(), counts.tolist(), strict=True))
    known = ", ".join(f"{value} {'void' if table[value] == VOID else classes.names[table[value]]}"
                      for value in np.flatnonzero(table >= 0).tolist())
    return (f"{what} has values that are no class. Values and their numbers of pixels: {histogram}. "
            f"Known are: {known}.")


# ---------------------------------------------------------------------------------------------- files


def read_label_image(path: Path) -> tuple[LabelPixels, NDArray[np.uint8] | None]:
    """The stored values of a label map, uint8 [H, W], and its palette, RGB [<= 256, 3], if it has one.

    Pillow and not OpenCV, which would give a palette's colours for its indices. Raises FileNotFoundError, or ValueError
    for a file that is damaged, or holds more than one number of 8 bits for each pixel.
    """
    image = _pillow(path)
    if image.mode not in ("L", "P", "1"):
        raise ValueError(_not_label_map(path, image.mode))
    flat = image.getpalette("RGB") if image.mode == "P" else None
    stored = np.asarray(image).astype(np.uint8)
    return stored, np.array(flat, dtype=np.uint8).reshape(-1, 3) if flat else None


def label_image_size(path: Path) -> Size:
    """(height, width) of an image file, from its header. Raises what `read_label_image` does."""
    image = _pillow(path, header_only=True)
    return image.height, image.width


def _pillow(path: Path, *, header_only: bool = False) -> Image.Image:
    try:
        return load_pillow(path, header_only=header_only)
    except FileNotFoundError:
        raise FileNotFoundError(f"no label map {path}") from None
    except ValueError as problem:
        raise ValueError(f"cannot read the label map {path}: {problem}") from None


def _not_label_map(path: Path, mode: str) -> str:
    if mode.startswith("I"):
        return (f"the label map {path} has more than 8 bits a pixel: does it hold instance ids? A label map holds the "
                "class of each pixel, 0..255")
    return (f"the label map {path} holds colours ({mode}): a picture to look at. A label map holds the class of each "
            "pixel as one number, 0..255, in a grey or palette PNG; save that one, or name its files")


def _check_palette(
    stored: LabelPixels, palette: NDArray[np.uint8] | None, *, table: NDArray[np.int16], classes: Classes, path: Path
) -> None:
    """Refuses a palette image whose indices are in another order than the classes, which its colours give away.

    Saving a colour picture as a palette PNG numbers the colours as they come. Colours that are no class' say nothing.
    """
    if palette is None:
        return
    class_of_colour = {colour: k for k, colour in enumerate(classes.colours)}
    for index in np.unique(stored).tolist():
        colour = tuple(palette[index].tolist()) if index < len(palette) else None
        k, label = class_of_colour.get(colour) if colour else None, int(table[index])
        if k is not None and 0 <= label != VOID and k != label:
            raise ValueError(
                f"the label map {path} has the palette index {index} for {classes.names[label]}, but shows it in the "
                f"colour of {classes.names[k]} {colour}: a colour picture saved with a palette in another order? "
                "Save the classes' own numbers as indices"
            )
