"""Data sets of any layout written anew: as COCO's files, or as folders of images and masks.

What is written is read back as it was: the same boxes, outlines and label maps under the same names of classes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from detseg.atomic import new_folder
from detseg.data.box_index import BoxIndex
from detseg.data.coco import coco_annotations, coco_images
from detseg.data.faults import Fault, check_faults
from detseg.data.label_index import LabelIndex
from detseg.data.layouts import read_boxes, read_labels
from detseg.data.layouts.layout import PartName, Place
from detseg.data.location import Location
from detseg.data.masks import class_file, read_classes, write_classes
from detseg.data.parts import Parts, read_parts
from detseg.structures import VOID, Classes, LabelPixels, Size

Form: TypeAlias = Literal["coco", "masks"]
FORMS: tuple[Form, Form] = ("coco", "masks")

Way: TypeAlias = Literal["copy", "link", "symlink"]
"""How an image comes to the new folder: with a content of its own, as a second name of the same, or as a pointer."""

PutImage: TypeAlias = Callable[[Path, Size, Path], None]
"""(where it is, the height and width that its annotations are for, where it should be): writes one image."""


class Converted(NamedTuple):
    """What was written."""

    lines: tuple[str, ...]
    """For a person."""
    skipped: tuple[Fault, ...]
    """What was left out."""


def convert(
    location: Location, folder: Path, *, to: Form | None = None, way: Way = "copy", skip_broken: bool = False
) -> Converted:
    """Writes all splits of the data at a location into a folder that is new.

    Args:
        location: in any layout that is known; a whole without splits becomes a train split.
        folder: appears when everything is written.
        to: "coco" needs boxes, "masks" label maps or outlines; None takes the boxes where there are such.
        way: how the images get there.
        skip_broken: leave out what is broken, and name it in skipped.txt, rather than refuse it.

    FileNotFoundError where there are no data, ValueError where they cannot have the form, are broken, or the folder is
    not empty.
    """
    place = Place(location.path, location.images)
    if to is None:
        to = "coco" if read_boxes.recognises(place) is not None else "masks"
    put = _PUT[way]
    with new_folder(folder) as unfinished:
        if to == "coco":
            boxes = _boxes(location, place)
            lines, skipped = boxes.lines, _faults(boxes, skip_broken=skip_broken, what=str(location))
            write_coco(unfinished, boxes.indexes, put)
            counts = [f"{name} {len(index):,} images, {len(index.boxes):,} boxes" for name, index in
                      as_splits(boxes.indexes).items()]
        else:
            labels = _labels(location, place)
            lines, skipped = labels.lines, _faults(labels, skip_broken=skip_broken, what=str(location))
            broken = write_masks(unfinished, labels.indexes, put)
            if not skip_broken:
                check_faults(broken, str(location))
            skipped += broken
            counts = [f"{name} {len([*(unfinished / 'masks' / name).rglob('*.png')]):,} images" for name in
                      as_splits(labels.indexes)]
        if skipped:
            (unfinished / "skipped.txt").write_text("".join(f"{fault}\n" for fault in skipped), "utf-8")
    left_out = f"; {len(skipped)} broken left out, named in skipped.txt" if skipped else ""
    return Converted((*lines, f"written to {folder}: {'; '.join(counts)}{left_out}"), skipped)


def write_coco(folder: Path, parts: Mapping[PartName, BoxIndex], put: PutImage) -> None:
    """Writes splits in the layout that COCO's official site has, with their outlines where there are such."""
    (folder / "annotations").mkdir()
    for split, index in as_splits(parts).items():
        names = new_names([index.path(i) for i in range(len(index))])
        images = coco_images(folder, split)
        images.mkdir()
        _put_all(put, [(index.path(i), index.size(i), images / name) for i, name in enumerate(names)])
        content = index.coco_ground_truth()
        for record, name in zip(content["images"], names, strict=True):
            record["file_name"] = name
        find = index.outlines() if index.outlines is not None else None
        for record, annotation_id in zip(content["annotations"], index.annotation_ids.tolist(), strict=True):
            record["segmentation"] = (find(annotation_id) if find is not None else None) or []
        content["info"] = {"description": f"{split}, converted by detseg"}
        content["licenses"] = []
        with coco_annotations(folder, split).open("w", encoding="utf-8") as file:
            for text in json.JSONEncoder(allow_nan=False).iterencode(content):
                file.write(text)


def write_masks(folder: Path, parts: Mapping[PartName, LabelIndex], put: PutImage) -> tuple[Fault, ...]:
    """Writes splits as folders of images and palette PNGs whose indices are the classes' ids, and classes.txt.

    Gives the label maps that cannot be read, which are left out. ValueError where the classes of the splits differ, or
    have names that classes.txt cannot hold.
    """
    splits = as_splits(parts)
    (first, index), *others = splits.items()
    for name, other in others:
        if difference := index.classes.difference(other.classes):
            raise ValueError(f"one classes.txt is for all splits, but the classes of {first} (here) and {name} (there) "
                             f"differ:\n{difference}")
    classes = _fit_for_masks(index.classes)
    _check_names(folder, classes)
    faults: list[Fault] = []
    for split, labelled in splits.items():
        masks = folder / "masks" / split
        masks.mkdir(parents=True)
        names = new_names([labelled.path(i) for i in range(len(labelled))], different_stems=True)
        reasons = _write_maps(labelled, [masks / PurePosixPath(name).with_suffix(".png") for name in names], classes)
        _put_all(put, [(labelled.path(i), labelled.size(i), folder / "images" / split / name)
                       for i, name in enumerate(names) if not reasons[i]])
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        faults += (Fault(str(labelled.path(i)), reason) for i, reason in enumerate(reasons) if reason)
    return tuple(faults)


def as_splits(parts: Mapping[PartName, object]) -> dict[Literal["train", "val", "test"], Any]:
    """The parts by the names that their folders get: a whole is for training."""
    return {"train" if name == "whole" else name: index for name, index in parts.items()}


def new_names(paths: Sequence[Path], *, different_stems: bool = False) -> list[str]:
    """Names for files in another folder, relative with forward slashes: as they are below the folder that they have in
    common; with `different_stems` those that would share a label map's name get their suffix into their stem."""
    if not paths:
        return []
    common = os.path.commonpath([path.absolute().parent for path in paths])
    names = [path.absolute().relative_to(common) for path in paths]
    if not different_stems:
        return [name.as_posix() for name in names]
    stems = [name.with_suffix("") for name in names]
    twice = {stem for stem in stems if stems.count(stem) > 1} if len({*stems}) < len(stems) else set()
    return [(name.with_name(f"{name.stem}_{name.suffix[1:]}{name.suffix}") if stem in twice else name).as_posix()
            for name, stem in zip(names, stems, strict=True)]


def _boxes(location: Location, place: Place) -> Parts[BoxIndex]:
    if read_boxes.recognises(place) is None and (labels := read_labels.recognises(place)) is not None:
        raise ValueError(f"{location} has label maps in the layout {labels}, which say the class of each pixel and not "
                         "which object it is of; COCO's files hold objects. Convert them --to masks")
    return _complete(read_parts(read_boxes, location))


def _labels(location: Location, place: Place) -> Parts[LabelIndex]:
    if read_labels.recognises(place) is None and (boxes := read_boxes.recognises(place)) is not None:
        raise ValueError(f"{location} has boxes in the layout {boxes}, and masks need outlines or label maps. Convert "
                         "it --to coco")
    return _complete(read_parts(read_labels, location))


def _complete(parts: Parts[Any]) -> Parts[Any]:
    for name, reason in parts.failures.items():
        raise ValueError(f"{name}: {reason}")
    return parts


def _faults(parts: Parts[Any], *, skip_broken: bool, what: str) -> tuple[Fault, ...]:
    faults = tuple(fault for index in parts.indexes.values() for fault in index.faults)
    if not skip_broken:
        check_faults(faults, what)
    return faults


def _fit_for_masks(classes: Classes) -> Classes:
    """With ids that are values of a mask and not the one for void."""
    if all(0 <= source_id < VOID for source_id in classes.source_ids):
        return classes
    return Classes(classes.names, tuple(range(len(classes))), classes.colours)


def _check_names(folder: Path, classes: Classes) -> None:
    """Writes classes.txt; ValueError unless it is read back as it was."""
    path = class_file(folder)
    write_classes(path, classes)
    try:
        read, void = read_classes(path)
    except ValueError as problem:
        raise ValueError(f"classes.txt cannot hold the names of these classes ({problem}); rename them") from None
    wrong = [name for name in classes.names if name not in read.names]
    if void or wrong:
        raise ValueError(f"classes.txt cannot hold the name {(wrong or ['void'])[0]!r}: there, void means no class, "
                         "and names have no blanks or colours at their ends; rename it")


def _write_maps(index: LabelIndex, paths: Sequence[Path], classes: Classes) -> list[str]:
    """Writes the label maps; gives for each what is wrong with it, or nothing."""
    values = np.full(256, VOID, np.uint8)
    values[: len(classes)] = classes.source_ids
    palette = np.zeros((256, 3), np.uint8)
    palette[list(classes.source_ids)] = classes.colours

    def write(i: int) -> str:
        try:
            labels: LabelPixels = index.labels(i, index.size(i))
        except (OSError, ValueError) as problem:
            return str(problem)
        picture = Image.fromarray(values[labels], mode="P")
        picture.putpalette(palette.ravel().tolist())
        paths[i].parent.mkdir(parents=True, exist_ok=True)
        picture.save(paths[i])
        return ""

    with ThreadPoolExecutor() as pool:
        return [*pool.map(write, range(len(index)))]


def _put_all(put: PutImage, images: Sequence[tuple[Path, Size, Path]]) -> None:
    for folder in {target.parent for _, _, target in images}:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda image: put(*image), images):
            pass


def _copy(source: Path, size: Size, target: Path) -> None:
    shutil.copyfile(source, target)


def _link(source: Path, size: Size, target: Path) -> None:
    try:
        # Of a symbolic link the file that it leads to: the link may be relative.
        target.hardlink_to(source.resolve())
    except OSError as problem:
        raise ValueError(f"{source} cannot have a second name in the new folder ({problem.strerror}): a hard link "
                         "stays on one disk; use --symlink, or copy") from None


def _symlink(source: Path, size: Size, target: Path) -> None:
    target.symlink_to(source.resolve())


_PUT: Mapping[Way, PutImage] = {"copy": _copy, "link": _link, "symlink": _symlink}
