"""Where the data of a run lie, and which of them are for validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast

from detseg.data.box_index import BoxIndex
from detseg.data.class_index import ClassIndex
from detseg.data.label_index import LabelIndex
from detseg.data.layouts.layout import Place, Split, split_of
from detseg.data.layouts.reader import LayoutReader
from detseg.data.split import KeptSplit, split_by_name
from detseg.structures import Classes


@dataclass(frozen=True)
class Location:
    """Where data lie.

    Args:
        path: a folder, or an annotation file.
        images: the folder of an annotation file's images, where it is not found by itself.
        val: where the validation data lie, if elsewhere: a folder, an annotation file, or the name of a split.
        val_share: the share of the images, above 0 and below 1, that is kept for validation where there is no split.
    """

    path: Path
    images: Path | None = None
    val: Path | None = None
    val_share: float | None = None

    def __post_init__(self) -> None:
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise ValueError(f"--val-share is a share of the images, above 0 and below 1, got {self.val_share}")
        if self.val is not None and self.val_share is not None:
            raise ValueError("--val names validation data and --val-share takes some of the training data; give one")

    def __str__(self) -> str:
        return str(self.path)

    def as_plain(self) -> dict[str, Any]:
        """For files."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any] | str) -> Self:
        """The way back; older runs keep the folder alone."""
        if isinstance(values, str):
            return cls(Path(values))
        paths = {name: Path(values[name]) for name in ("path", "images", "val") if values.get(name) is not None}
        return cls(**paths, val_share=values.get("val_share"))


IndexT = TypeVar("IndexT")


class Splits(NamedTuple, Generic[IndexT]):
    """The data of a run."""

    train: IndexT
    val: IndexT
    lines: tuple[str, ...]
    """What a person should know about where they come from."""
    kept: KeptSplit | None
    """Which images are in which, where that was decided here: the run keeps it."""


def read_splits(
    read: Callable[[Path, Split], IndexT], location: Location, *, kept: KeptSplit | None = None
) -> Splits[IndexT]:
    """Both sides of the data.

    Args:
        read: a config's; with one that knows no layouts, the location is a folder.
        location: where they lie.
        kept: the split that the run has decided before.

    FileNotFoundError or ValueError that says both ways out where there is nothing to validate on, and what the readers
    raise.
    """
    found = _find(read, location)
    if location.val is None and (kept is not None or location.val_share is not None):
        whole = found.training()
        if kept is None:
            assert location.val_share is not None
            if found.has_validation:
                raise ValueError(f"{location} has a validation split, and --val-share would take other images; leave "
                                 "it out, or name the folder of the training images alone")
            kept = split_by_name(*_names_and_paths(whole, location), share=location.val_share)
        elif location.val_share not in (None, kept.share):
            raise ValueError(f"the run's images were split with --val-share {kept.share:g}, not "
                             f"{location.val_share:g}; leave it out to go on with the same images")
        train, val = (_chosen(whole, names, location) for names in (kept.train, kept.val))
        train = replace(train, notes=whole.notes, faults=whole.faults)  # type: ignore[attr-defined]
        val = replace(val, notes=(), faults=())
        return Splits(train, val, (*found.lines, str(kept), *kept.notes), kept)
    if found.val is None:
        raise FileNotFoundError(f"there is nothing to validate on in {location}: {found.has}. Name validation data "
                                "with --val DIR or --val FILE, or keep a share of the images for it with --val-share "
                                "0.1")
    train, val = found.training(), found.val()
    if found.ids_are_names:
        train, val = agreeing((train, val))
    return Splits(train, val, (*found.lines, *found.val_lines), None)


def read_validation(
    read: Callable[[Path, Split], IndexT], location: Location, *, kept: KeptSplit | None = None,
    classes: Classes | None = None,
) -> tuple[IndexT, tuple[str, ...]]:
    """What a network is measured on, and what a person should know about where it comes from.

    Args:
        read: a config's.
        location: where the data lie; without any split all images are taken, but for those that `kept` has trained on.
        kept: the split that the network's run has decided.
        classes: the network's; classes that have names only get the ids that the network has for these.

    Raises what `read_splits` does.
    """
    found = _find(read, location)
    lines = found.lines
    if found.val is not None and (kept is None or location.val is not None or found.has_validation):
        index, lines = _named_as(found, found.val(), classes), (*lines, *found.val_lines)
    elif kept is None and not found.is_whole:
        raise FileNotFoundError(f"there is nothing to evaluate on in {location}: {found.has}; name the folder or file "
                                "of the images to evaluate on with --data")
    else:
        index = _named_as(found, found.training(), classes)
        names = set(_names_and_paths(index, location)[0]) if kept is not None else set()
        if kept is not None and names.issuperset(kept.val):
            faults = index.faults  # type: ignore[attr-defined]
            index = replace(_chosen(index, kept.val, location), faults=faults)
            lines = (*lines, f"the {len(kept.val)} images that the run kept for validation")
        elif kept is not None and names.intersection(kept.train):
            lacking = min(set(kept.val) - names)
            raise ValueError(f"{location} has images that the network was trained on, and lacks some that were kept "
                             f"for validation, {lacking} for example; a score on these would mean nothing. Name other "
                             "images with --data")
    return index, lines


def read_training(
    read: Callable[[Path, Split], IndexT], location: Location, *, kept: KeptSplit | None = None
) -> IndexT:
    """The images that a network was trained on, or would be: those that `kept` has for training, or all where there is
    one split. Arguments and errors as of `read_splits`."""
    found = _find(read, location)
    whole = found.training()
    if kept is None or location.val is not None or found.has_validation:
        return whole
    return cast(IndexT, _chosen(whole, kept.train, location))


class _Found(NamedTuple, Generic[IndexT]):
    """What lies at a location; nothing of it is read yet."""

    train: Callable[[], IndexT] | None
    val: Callable[[], IndexT] | None
    has: str
    """What there is, for a message."""
    is_whole: bool = False
    """There are no splits: `train` gives all."""
    has_validation: bool = False
    """`val` is named so, and lies with the training data."""
    lines: tuple[str, ...] = ()
    val_lines: tuple[str, ...] = ()
    ids_are_names: bool = False

    def training(self) -> IndexT:
        """Reads the training images, or all. FileNotFoundError where there are none."""
        if self.train is None:
            raise FileNotFoundError(f"there is nothing to train on: {self.has}; name the folder or file of the "
                                    "training images with --data")
        return self.train()


def _find(read: Callable[[Path, Split], IndexT], location: Location) -> _Found[IndexT]:
    if isinstance(read, LayoutReader):
        return _recognised(read, location)
    if location.images is not None:
        raise ValueError("--images is for layouts that are found by content; this config reads data with a function of "
                         "its own, which takes a folder")
    return _Found(partial(read, location.path, "train"), partial(read, location.val or location.path, "val"),
                  has="the config's own function reads it")


def _recognised(read: LayoutReader[Any], location: Location) -> _Found[Any]:
    data = read.find(Place(location.path, location.images))
    parts, lines = data.parts, (f"layout of {location}: {data}",)
    train = parts.get("train", parts.get("whole"))
    found = _Found(train, None, has=f"it is in the layout {data}, and has {data.has}", is_whole="whole" in parts,
                   has_validation="val" in parts, lines=lines, ids_are_names=data.layout.ids_are_names)
    if location.val is None:
        name, note = data.validation()
        return found if name is None else found._replace(val=parts[name], val_lines=(note,) if note else ())
    name = split_of(str(location.val))
    if not location.val.exists() and name in parts and name is not None:
        return found._replace(val=parts[name], val_lines=(f"validation data: the split {name}",))
    other = read.find(Place(location.val, location.images if location.val.is_file() else None))
    chosen, note = other.validation()
    if chosen is None and len(other.parts) > 1:
        raise ValueError(f"{location.val} has {other.has}; name the validation images more closely with --val")
    val = other.parts[chosen] if chosen is not None else next(iter(other.parts.values()))
    return found._replace(
        val=val, val_lines=(f"layout of {location.val}: {other}", *((note,) if note else ())),
        ids_are_names=found.ids_are_names and other.layout.ids_are_names)


def _names_and_paths(index: Any, location: Location) -> tuple[list[str], list[Path]]:
    """The images' files, and their names relative to the data's folder."""
    _check_selectable(index)
    # Absolute names would split the same data otherwise where they lie elsewhere; ImageSets/Main/train.txt is the
    # deepest file that is named.
    roots = [location.path] if location.path.is_dir() else [*location.path.parents][:3]
    roots += [location.images] if location.images is not None else []
    paths = [index.path(i) for i in range(len(index))]
    return [_relative(path, roots) for path in paths], paths


def _relative(path: Path, roots: Sequence[Path]) -> str:
    for root in roots:
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return path.as_posix()


def _chosen(index: Any, names: Sequence[str], location: Location) -> Any:
    """The images of these names, with what there is to say about all of them. ValueError where one is missing."""
    position = {name: i for i, name in enumerate(_names_and_paths(index, location)[0])}
    if missing := [name for name in names if name not in position]:
        raise ValueError(f"{location} lacks {len(missing)} of the {len(names)} images that the run was split into, "
                         f"{missing[0]} for example; put them back, or start a new run")
    return index.select([position[name] for name in names])


def path_of(index: Any, item: int) -> Path | None:
    """The file of an image; None of an index of one's own, which need not tell it."""
    return index.path(item) if isinstance(index, BoxIndex | LabelIndex | ClassIndex) else None


def _check_selectable(index: Any) -> None:
    if not isinstance(index, BoxIndex | LabelIndex | ClassIndex):
        raise ValueError(f"--val-share needs a BoxIndex, a LabelIndex or a ClassIndex; this config's own "  # noqa: TRY004
                         f"function gives a {type(index).__name__}. Name validation data with --val DIR")


def agreeing(indexes: Sequence[Any]) -> tuple[Any, ...]:
    """All with the same ids for the same names, where each has numbered its own."""
    if not any(indexes[0].classes.difference(index.classes) for index in indexes[1:]):
        return tuple(indexes)
    names = sorted({name for index in indexes for name in index.classes.names})
    if "background" in names and all(index.classes.names[0] == "background" for index in indexes):
        names = ["background", *(name for name in names if name != "background")]
        union = Classes(tuple(names), tuple(range(len(names))))
    else:
        union = Classes(tuple(names), tuple(range(1, len(names) + 1)))
    return tuple(_with_ids_of(index, union).relabel(union) for index in indexes)


def _named_as(found: _Found[IndexT], index: IndexT, classes: Classes | None) -> IndexT:
    """With the ids of `classes`, where those of the data are made up."""
    return _with_ids_of(index, classes) if found.ids_are_names and classes is not None else index


def _with_ids_of(index: Any, classes: Classes) -> Any:
    """With the ids that `classes` has for the same names; as it is where a name is not among them."""
    ids = {name: source_id for source_id, name in classes.used.items()}
    mine = index.classes
    if not all(name in ids for name in mine.names):
        return index
    return replace(index, classes=Classes(mine.names, tuple(ids[name] for name in mine.names), mine.colours))
