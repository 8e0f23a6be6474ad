"""Cityscapes in its own layout (Cordts et al. 2016, cityscapes-dataset.com), without an offline step.

    leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
    gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png     label ids 0..33, of which 19 are trained on and evaluated

What cityscapesscripts' preparation writes, NAME_gtFine_labelTrainIds.png with 0..18 and 255, is read where there are no
label ids. Which of the two a folder holds is decided by the files' content. Coarse label maps, gtCoarse/ with
NAME_gtCoarse_labelIds.png, are read in the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detseg.data.label_index import LabelFiles, label_table, paired, read_label_image
from detseg.structures import VOID, Classes, LabelPixels

_TABLE = (
    (7, "road", (128, 64, 128)), (8, "sidewalk", (244, 35, 232)), (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)), (13, "fence", (190, 153, 153)), (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)), (20, "traffic sign", (220, 220, 0)), (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)), (23, "sky", (70, 130, 180)), (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)), (26, "car", (0, 0, 142)), (27, "truck", (0, 0, 70)), (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)), (32, "motorcycle", (0, 0, 230)), (33, "bicycle", (119, 11, 32)),
)  # fmt: skip

CITYSCAPES = Classes(
    names=tuple(name for _, name, _ in _TABLE),
    source_ids=tuple(label_id for label_id, _, _ in _TABLE),
    colours=tuple(colour for *_, colour in _TABLE),
)
"""The 19 classes of the benchmark in the order of their train ids; the source ids are the label ids
(cityscapesscripts.helpers.labels), so that predictions go back to files as the server wants them."""

_LABEL_IDS = label_table(CITYSCAPES.source_ids, void=tuple(sorted({*range(34)} - {*CITYSCAPES.source_ids})))
_TRAIN_IDS = label_table(range(len(CITYSCAPES)), void=(VOID,))

_IMAGES: Literal["leftImg8bit"] = "leftImg8bit"
_MAPS: Literal["gtFine"] = "gtFine"
_IMAGE_END = "_leftImg8bit"

_PROBED = 8
"""Label maps that are looked at to tell the kinds apart."""

_HINT = ("Label ids run from 0 to 33, train ids from 0 to 18 with 255 for void: is this file of another kind than the "
         "others? Write all from gtFine's polygons or label ids anew")


def cityscapes_images(folder: Path, split: str) -> Path:
    """The folder with the images of a split, by city."""
    return folder / _IMAGES / split


def cityscapes_maps(folder: Path, split: str, *, maps: str = _MAPS) -> Path:
    """The folder with the label maps of a split, by city; `maps` is gtFine or gtCoarse."""
    return folder / maps / split


def read_cityscapes(
    folder: Path, split: Literal["train", "train_extra", "val"], *, maps: Literal["gtFine", "gtCoarse"] = _MAPS
) -> LabelFiles:
    """The images with label maps of a split, in the order of their names, numbered from 1. The split train_extra has
    coarse ones only.

    Some label maps are opened to see whether they hold label ids or train ids; a note says so where it is not what
    their names say. Raises FileNotFoundError, or ValueError naming the file and what to do.
    """
    if split not in ("train", "val") and (split, maps) != ("train_extra", "gtCoarse"):
        raise ValueError(f"Cityscapes' labels are public for train and val, got {split!r}; the label maps of test are "
                         "dummies")
    images, labels = cityscapes_images(folder, split), cityscapes_maps(folder, split, maps=maps)
    label_end, train_end = (f"_{maps}_{kind}.png" for kind in ("labelIds", "labelTrainIds"))
    image_files = {_key(path, images, path.suffix, _IMAGE_END): str(path.relative_to(folder))
                   for path in sorted(images.rglob(f"*{_IMAGE_END}.*"))}
    if not image_files:
        raise FileNotFoundError(f"no images CITY/*{_IMAGE_END}.png in {images}")
    end = next((end for end in (label_end, train_end) if next(labels.rglob(f"*{end}"), None)), None)
    if end is None:
        archive = "gtFine_trainvaltest.zip" if maps == "gtFine" else "gtCoarse.zip"
        raise FileNotFoundError(f"no label maps CITY/*{label_end} in {labels}; they are in {archive}")
    map_files = {_key(path, labels, "", end): str(path.relative_to(folder)) for path in sorted(labels.rglob(f"*{end}"))}
    pairs, faults, alike = paired(image_files, map_files, f"{images} and {labels}/*{end}")
    table, notes = _kind(folder, [label_map for _, label_map in pairs], named_train_ids=end == train_end)
    return LabelFiles.of(CITYSCAPES, folder, pairs, table=table, notes=notes + alike, hint=_HINT, faults=faults)


def _key(path: Path, root: Path, suffix: str, end: str) -> str:
    """City and frame: what an image and its label map have in common."""
    return path.relative_to(root).as_posix().removesuffix(suffix).removesuffix(end)


def _kind(folder: Path, maps: list[str], *, named_train_ids: bool) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    """The table for the files' content, and a note where their names say something else."""
    chosen = [maps[i] for i in np.unique(np.linspace(0, len(maps) - 1, _PROBED).round().astype(int))]
    stored = _readable(folder, chosen)
    counts = np.sum([np.bincount(values.ravel(), minlength=256) for values in stored], axis=0)
    train_ids = _holds_train_ids(counts, named_train_ids=named_train_ids)
    table = _TRAIN_IDS if train_ids else _LABEL_IDS
    if train_ids != named_train_ids:
        held, named = ("train ids", "labelIds") if train_ids else ("label ids", "labelTrainIds")
        return table, (f"the files named {named} hold {held} (seen in {', '.join(chosen[:2])}) and are read as such",)
    if not train_ids and not counts[_LABEL_IDS != VOID].any():
        return table, (f"the label maps looked at hold no class at all ({', '.join(chosen[:2])}): are they the dummies "
                       "of the test split?",)
    return table, ()


def _readable(folder: Path, maps: list[str]) -> list[LabelPixels]:
    """The stored values of those that can be read; the others are found when all are. ValueError where none can be."""
    stored, problems = list[LabelPixels](), list[OSError | ValueError]()
    for name in maps:
        try:
            stored.append(read_label_image(folder / name)[0])
        except (OSError, ValueError) as problem:
            problems.append(problem)
    if not stored and problems:
        raise problems[0]
    return stored


def _holds_train_ids(counts: NDArray[np.int64], *, named_train_ids: bool) -> bool:
    """Whether pixels with these values, [256], are train ids."""
    if counts[len(CITYSCAPES) : VOID].any():  # 19..33 are label ids only; what is above them is for reading to refuse
        return False
    if counts[VOID]:
        return True
    if not counts[4:VOID].any():  # void in the one, road to wall in the other: nothing to tell them by
        return named_train_ids
    # Road, building and car are three quarters of a street: 0, 2 and 13 as train ids, of which 0 and 2 mean nothing as
    # label ids. Of true label ids little means nothing.
    meaningless = int(counts[_LABEL_IDS == VOID].sum())
    return 2 * meaningless > int(counts.sum())
