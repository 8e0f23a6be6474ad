"""COCO's annotation files (cocodataset.org, "Data format", object detection), and any data set written like them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detseg.data.annotation_cache import cached
from detseg.data.box_index import BoxIndex
from detseg.data.coco_file import CocoFile, parse_coco
from detseg.data.faults import Fault
from detseg.data.files import FileFinder
from detseg.data.images import image_size
from detseg.structures import Classes, Size

_NAMES_BY_ID = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip

COCO_80 = Classes(names=tuple(_NAMES_BY_ID.values()), source_ids=tuple(_NAMES_BY_ID))
"""The categories of COCO 2017, in the order of their ids, which run from 1 to 90 with gaps."""

COCO_90 = Classes(
    names=tuple(_NAMES_BY_ID.get(i, f"unused {i}") for i in range(1, 91)),
    source_ids=tuple(range(1, 91)),
)
"""One slot for each id from 1 to 90, as TensorFlow's and torchvision's published networks have them."""


_FIRST = 1000
"""Boxes that are looked at before all of them are: what is said of all boxes is seldom true of the first."""


def coco_annotations(folder: Path, split: Literal["train", "val", "test"]) -> Path:
    """The annotation file of a split in COCO's layout."""
    return folder / "annotations" / f"instances_{split}2017.json"


def coco_images(folder: Path, split: Literal["train", "val", "test"]) -> Path:
    """The folder with the images of a split in COCO's layout."""
    return folder / f"{split}2017"

_LARGEST_SHARE = 1.5
"""Boxes in 0..1 whose numbers are all below this are no pixels: a little more than 1, for those that reach out."""


def read_coco(annotations: Path, images: Path) -> BoxIndex:
    """The images of an annotation file in its order, also those without objects; `images` is the folder they lie in.

    The classes are the file's own categories, by id. Numbers may be written as texts, ids that are no numbers are
    numbered, and what exporters leave out is taken from elsewhere: the area from the box, the box from the outline, an
    image's size from its file. All that is noted. Boxes of no area or outside their image are kept, as pycocotools
    does, and noted. Every broken record is left out and named in the index's `faults`.

    Images are looked for below `images` as `FileFinder` does; where there is no such folder, their names are taken as
    they stand. A large file is read from a cache the next time, until it changes.

    Raises FileNotFoundError, or ValueError where nothing can be read: it names the file, and what to do.
    """
    return CocoIndex.read(annotations, images).boxes


class CocoIndex(NamedTuple):
    """An index with what label maps need to know besides."""

    boxes: BoxIndex
    records: NDArray[np.int64]
    """[m]: which of the file's annotations each box is, from 0."""
    complete: NDArray[np.bool_]
    """[n]: no annotation of the image was left out."""
    notes: tuple[str, ...]
    """Those of the index that are not about boxes."""

    @classmethod
    def read(cls, annotations: Path, images: Path) -> CocoIndex:
        """See `read_coco`."""
        try:
            file = cached(annotations, "boxes", read=parse_coco, to_arrays=CocoFile.to_arrays,
                          from_arrays=CocoFile.from_arrays)
            return _with_images(file, annotations, images)
        except ValueError as problem:
            raise ValueError(f"{annotations}: {problem}") from None


def _with_images(file: CocoFile, annotations: Path, folder: Path) -> CocoIndex:
    names, reasons, notes = _found(file, folder)
    sizes, size_notes = _sizes(file, folder, names, reasons)
    kept = np.ones(len(names), np.bool_)
    kept[[*reasons]] = False
    boxes_of = np.bincount(file.image_of_box, minlength=len(names))
    if not kept.any():
        raise ValueError(f"none of its {len(names)} images can be used; of the first, {next(iter(reasons.values()))}")
    # Without a copy where all are kept.
    rows: NDArray[np.bool_] | slice = slice(None) if kept.all() else kept[file.image_of_box]
    image_of_box = (np.cumsum(kept) - 1)[file.image_of_box[rows]]
    _check_pixels(file.boxes[rows], sizes[kept][image_of_box])
    all_notes = (*file.notes, *notes, *size_notes, *_notes_on_unused(file.classes, file.labels[rows]))
    index = BoxIndex.of(
        file.classes,
        folder,
        image_ids=file.image_ids[kept],
        sizes=sizes[kept],
        names=[name for name, one in zip(names, kept.tolist(), strict=True) if one],
        image_of_box=image_of_box,
        boxes=file.boxes[rows],
        labels=file.labels[rows],
        crowd=file.crowd[rows],
        areas=file.areas[rows],
        annotation_ids=file.annotation_ids[rows],
        notes=(*_notes_on_corners(file.boxes[rows], sizes[kept][image_of_box]), *all_notes),
        faults=(*file.faults, *(
            Fault(f"{annotations}: image {file.image_ids[i]}",
                  reason + (f" (its {boxes_of[i]} annotations left out with it)" if boxes_of[i] else ""))
            for i, reason in sorted(reasons.items()))),
    )
    order = np.argsort(image_of_box, kind="stable")
    return CocoIndex(index, file.records[rows][order], file.complete[kept], all_notes)


def _found(file: CocoFile, folder: Path) -> tuple[list[str], dict[int, str], tuple[str, ...]]:
    """The files of the images, what is wrong with some of them, and notes about names."""
    reasons: dict[int, str] = {}
    names = list(file.names)
    notes: tuple[str, ...] = ()
    if folder.is_dir():
        finder = FileFinder(folder)
        for i, name in enumerate(names):
            found = finder.find(name)
            if found is None:
                reasons[i] = finder.why_not(name)
            else:
                names[i] = found
        notes = finder.notes
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if i not in reasons and (one := first.setdefault(name, i)) != i:
            reasons[i] = f"its file {name} is that of image {file.image_ids[one]} too; list each file once"
    return names, reasons, notes


def _sizes(
    file: CocoFile, folder: Path, names: Sequence[str], reasons: dict[int, str]
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """[n, 2] height, width; what the file does not say is read from the images' headers."""
    absent = [i for i in np.flatnonzero(file.sizes[:, 0] == 0).tolist() if i not in reasons]
    sizes = file.sizes.copy()
    with ThreadPoolExecutor() as pool:
        paths = [folder / names[i] for i in absent]
        for i, found in zip(absent, pool.map(_size_of, paths), strict=True):
            if isinstance(found, str):
                reasons[i] = f"it has no 'width' and 'height', and its file does not tell them: {found}"
            else:
                sizes[i] = found
    return sizes, (f"{len(absent)} of {len(names)} images have no 'width' and 'height'; read from their files",
                   ) if absent else ()


def _size_of(path: Path) -> Size | str:
    """(height, width) of an image as viewers show it, from its header; or why there is none."""
    try:
        return image_size(path)
    except (OSError, ValueError) as problem:
        return str(problem)


def _check_pixels(boxes: NDArray[np.float64], sizes: NDArray[np.int32]) -> None:
    """ValueError where all boxes lie in 0..1, as other formats have them."""
    if np.any(boxes[:_FIRST] > _LARGEST_SHARE):
        return
    if (len(boxes) and np.abs(boxes).max() <= _LARGEST_SHARE and np.any(boxes != boxes.round())
            and sizes.min() > 10 * _LARGEST_SHARE):
        raise ValueError(f"the boxes look like shares of the image: no number of any bbox is above "
                         f"{boxes.max():.3g}; COCO's are pixels, [x, y, width, height]. Multiply x and width by the "
                         "image's width, y and height by its height")


def _notes_on_corners(boxes: NDArray[np.float64], sizes: NDArray[np.int32]) -> tuple[str, ...]:
    """A note where the boxes look like [x1, y1, x2, y2]: most reach out of their images as they stand."""
    if not np.all(boxes[:_FIRST, 2:] > boxes[:_FIRST, :2]):
        return ()
    beyond = np.any(boxes[:, :2] + boxes[:, 2:] > sizes[:, ::-1] + 1, axis=1)
    corners = np.all((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes[:, ::-1] + 1), axis=1)
    if not 2 * beyond.sum() > len(boxes) or not corners.all():
        return ()
    return (f"DO THE BOXES HOLD CORNERS? {beyond.sum()} of {len(boxes)} reach beyond their image as [x, y, width, "
            "height], which COCO's are, and none would as [x1, y1, x2, y2]",)


def _notes_on_unused(classes: Classes, labels: NDArray[np.int32]) -> tuple[str, ...]:
    counts = np.bincount(labels, minlength=len(classes))
    without = [name for name, count in zip(classes.names, counts.tolist(), strict=True)
               if not count and name in classes.used.values()]
    if not without or len(without) == len(classes.used):
        return ()
    more = f" and {len(without) - 10} more" if len(without) > 10 else ""
    return (f"{len(without)} of {len(classes.used)} categories have no box: {', '.join(without[:10])}{more}",)
