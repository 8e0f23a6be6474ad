"""PASCAL VOC's layout (Everingham et al., "The PASCAL VOC 2012 Development Kit", section 4), and sets written like it.

    Annotations/NAME.xml      the objects of one image
    JPEGImages/NAME.jpg       the image (any extension)
    ImageSets/Main/SPLIT.txt  one NAME a line

and, for segmentation,

    SegmentationClass/NAME.png        the class of each pixel as a palette's index, 255 for void
    ImageSets/Segmentation/SPLIT.txt  one NAME a line
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from detseg.data.box_index import BoxIndex
from detseg.data.faults import Fault
from detseg.data.label_index import LabelFiles, label_table
from detseg.structures import VOID, Classes, Size

VOC_21 = Classes(
    names=(
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
    source_ids=tuple(range(21)),
    colours=(
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
        (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128),
        (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
    ),
)  # fmt: skip
"""The classes of VOC's segmentation, background included, with the colours of the development kit's `VOClabelcolormap`.
Detection sets in VOC's layout have whatever classes their files name."""


class _Object(NamedTuple):
    name: str
    box_xywh: tuple[float, float, float, float]
    difficult: bool


class _Annotation(NamedTuple):
    size: Size
    objects: tuple[_Object, ...]


def voc_list(folder: Path, split: str) -> Path:
    """The list of a split's images in VOC's layout."""
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def read_voc(folder: Path, split: str) -> BoxIndex:
    """The images that a split lists, in its order, also those without objects.

    VOC counts pixels from 1 and includes the last one: xmin..xmax becomes [xmin - 1, xmax] here, where a pixel spans
    [x, x + 1]. A box with xmax <= xmin or ymax <= ymin is a click and no object one pixel wide: it is stored with its
    bare difference as width or height, so it has no area, is kept for evaluation, and noted.

    `difficult` objects become regions to ignore, like COCO's crowds. The classes are the names found in the train
    split, the val split and this one, sorted, so that all splits of a folder agree. VOC has no ids: images, annotations
    and classes are numbered from 1.

    Raises FileNotFoundError, or ValueError naming the file, the object, and what to do.
    """
    names = _listed(voc_list(folder, split))
    others = [path for path in (voc_list(folder, other) for other in ("train", "val")) if path.is_file()]
    all_names = dict.fromkeys(name for listed in (names, *map(_listed, others)) for name in listed)
    images, annotations = folder / "JPEGImages", folder / "Annotations"
    files = dict(zip(names, _image_files(images, names), strict=True))
    return read_voc_files(images, {annotations / f"{name}.xml": file for name, file in files.items()},
                          others=[annotations / f"{name}.xml" for name in all_names])


def read_voc_files(
    images: Path, files: Mapping[Path, str], *, others: Sequence[Path] = (), notes: tuple[str, ...] = (),
    faults: tuple[Fault, ...] = (),
) -> BoxIndex:
    """The objects of some annotation files, wherever they lie, as `read_voc` reads them.

    Args:
        images: the folder of the images.
        files: annotation file to the name of its image in that folder; in the order of the index.
        others: annotation files whose classes count too.
        notes: what to say about the files.
        faults: what has been left out of them.
    """
    annotations = {path: _read_annotation(path) for path in dict.fromkeys((*files, *others))}
    class_names = sorted({thing.name for annotation in annotations.values() for thing in annotation.objects})
    if not class_names:
        where = next(iter(annotations)).parent
        raise ValueError(f"{where}: none of {len(annotations)} files has an object; nothing to learn")
    classes = Classes(names=tuple(class_names), source_ids=tuple(range(1, len(class_names) + 1)))

    chosen = [annotations[path] for path in files]
    objects = [thing for annotation in chosen for thing in annotation.objects]
    boxes = np.array([thing.box_xywh for thing in objects], np.float64).reshape(-1, 4)
    label_of = {name: label for label, name in enumerate(class_names)}
    return BoxIndex.of(
        classes,
        images,
        image_ids=np.arange(1, len(files) + 1),
        sizes=np.array([annotation.size for annotation in chosen], np.int32),
        names=list(files.values()),
        image_of_box=np.repeat(np.arange(len(files)), [len(annotation.objects) for annotation in chosen]),
        boxes=boxes,
        labels=np.array([label_of[thing.name] for thing in objects], np.int32),
        crowd=np.array([thing.difficult for thing in objects], np.bool_),
        areas=np.maximum(boxes[:, 2], 0) * np.maximum(boxes[:, 3], 0),
        annotation_ids=np.arange(1, len(objects) + 1),
        notes=notes,
        faults=faults,
    )


def voc_segmentation_list(folder: Path, split: str) -> Path:
    """The list of a split's images with label maps in VOC's layout."""
    return folder / "ImageSets" / "Segmentation" / f"{split}.txt"


def read_voc_labels(folder: Path, split: str, *, train: str = "train", maps: str = "SegmentationClass") -> LabelFiles:
    """The images with label maps that a split lists, in its order, numbered from 1.

    `train` is the list that is read for the split "train", and `maps` the folder of label maps. The augmented training
    set that most results on VOC 2012 use is `train="trainaug", maps="SegmentationClassAug"`.

    Raises FileNotFoundError, or ValueError naming the file and what to do.
    """
    names = _listed(voc_segmentation_list(folder, train if split == "train" else split))
    files = [[f"{part}/{file}" for file in _image_files(folder / part, names)] for part in ("JPEGImages", maps)]
    pairs = list(zip(*files, strict=True))
    return LabelFiles.of(VOC_21, folder, pairs, table=label_table(VOC_21.source_ids, void=(VOID,)))


def _listed(path: Path) -> list[str]:
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} lists no images")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{path} lists images more than once: {', '.join(twice[:5])}; remove the repetitions")
    return names


def _image_files(folder: Path, names: list[str]) -> list[str]:
    """The file of each image. One listing of the folder: asking for each extension of each name takes far longer."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} with the images")
    files = {path.stem: path.name for path in sorted(folder.iterdir())}
    missing = [name for name in names if name not in files]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise FileNotFoundError(f"no image in {folder} for the listed {', '.join(missing[:5])}{more}")
    return [files[name] for name in names]


def _read_annotation(path: Path) -> _Annotation:
    try:
        root = ElementTree.fromstring(path.read_bytes())
        size = int(_number(root, "size/height")), int(_number(root, "size/width"))
        if min(size) < 1:
            raise ValueError(f"the size is {size[0]} x {size[1]} (height x width); write the image's")
        return _Annotation(size, tuple(_read_object(node, place) for place, node in enumerate(root.iter("object"), 1)))
    except FileNotFoundError:
        raise FileNotFoundError(f"no annotation {path.name} in {path.parent}; an image list names it") from None
    except ElementTree.ParseError as problem:
        raise ValueError(f"{path}: broken XML: {problem}") from None
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def _read_object(node: ElementTree.Element, place: int) -> _Object:
    try:
        name = (node.findtext("name") or "").strip()
        if not name:
            raise ValueError("it has no <name>")
        x1, y1, x2, y2 = (_number(node, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (node.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise ValueError(f"<difficult> must be 0 or 1, got {difficult!r}")
    except ValueError as problem:
        raise ValueError(f"object {place}: {problem}") from None
    width = x2 - x1 + 1 if x2 > x1 else x2 - x1
    height = y2 - y1 + 1 if y2 > y1 else y2 - y1
    return _Object(name, (x1 - 1, y1 - 1, width, height), difficult == "1")


def _number(node: ElementTree.Element, key: str) -> float:
    text = node.findtext(key)
    if text is None:
        raise ValueError(f"it has no <{key}>")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"<{key}> must be a number, got {text.strip()!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"<{key}> must be finite, got {text.strip()!r}")
    return value
