"""PASCAL VOC's layout (Everingham et al., "The PASCAL VOC 2012 Development Kit", section 4), and sets written like it.

    Annotations/NAME.xml      the objects of one image
    JPEGImages/NAME.jpg       the image (any extension)
    ImageSets/Main/SPLIT.txt  one NAME a line

and, for segmentation,

    SegmentationClass/NAME.png        the class of each pixel as a palette's index, 255 for void
    ImageSets/Segmentation/SPLIT.txt  one NAME a line
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from detseg.data.box_index import BoxIndex
from detseg.data.faults import Fault
from detseg.data.files import FileFinder, is_image, read_text
from detseg.data.images import image_size
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


class VocObject(NamedTuple):
    """One object of an annotation file."""

    name: str
    box_xywh: tuple[float, float, float, float]
    difficult: bool


class VocAnnotation(NamedTuple):
    """What an XML file says about its image."""

    file_name: str
    """Of the image; empty where it says none."""
    size: Size | None
    """(height, width); None where it is missing, or 0."""
    objects: tuple[VocObject, ...]
    faults: tuple[Fault, ...]
    """The objects that are broken."""


def voc_list(folder: Path, split: str) -> Path:
    """The list of a split's images in VOC's layout."""
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def read_voc(folder: Path, split: str) -> BoxIndex:
    """The images that a split lists, in its order, also those without objects.

    The list may name images with or without their suffix and folder, or in the rows `NAME 1`, `NAME -1` of VOC's lists
    of a class. The classes are the names found in the train split, the val split and this one, so that all splits of a
    folder agree. See `read_voc_files` for the rest.

    Raises FileNotFoundError where a folder or the list is not there, ValueError where nothing is in it.
    """
    files, notes, faults = _listed_files(folder, voc_list(folder, split))
    others: dict[Path, str] = {}
    for path in (voc_list(folder, other) for other in ("train", "val") if other != split):
        if path.is_file():
            others |= _listed_files(folder, path)[0]
    return read_voc_files(folder / "JPEGImages", files, others=tuple(others), notes=notes, faults=faults)


def read_voc_files(
    images: Path, files: Mapping[Path, str], *, others: Sequence[Path] = (), notes: tuple[str, ...] = (),
    faults: tuple[Fault, ...] = (),
) -> BoxIndex:
    """The objects of some annotation files, wherever they lie.

    VOC counts pixels from 1 and includes the last one: xmin..xmax becomes [xmin - 1, xmax] here, where a pixel spans
    [x, x + 1]. A box with xmax <= xmin or ymax <= ymin is a click and no object one pixel wide: it is stored with its
    bare difference as width or height, so it has no area, is kept for evaluation, and noted.

    `difficult` objects become regions to ignore, like COCO's crowds. Where the size of an image is missing, it is read
    from the image. VOC has no ids: images, annotations and classes are numbered from 1.

    Args:
        images: the folder of the images.
        files: annotation file to the name of its image in that folder; in the order of the index.
        others: annotation files whose classes count too.
        notes: what to say about the files.
        faults: what has been left out of them.

    ValueError where no file has an object.
    """
    found_faults, sizes_read, chosen = list(faults), 0, list[tuple[str, Size, tuple[VocObject, ...]]]()
    for path, name in files.items():
        try:
            annotation = read_voc_annotation(path)
            size = annotation.size or image_size(images / name)
        except (OSError, ValueError) as problem:
            found_faults.append(Fault(str(path), str(problem).removeprefix(f"{path}: ")))
            continue
        found_faults += annotation.faults
        sizes_read += annotation.size is None
        chosen.append((name, size, annotation.objects))
    if sizes_read:
        notes += (f"{sizes_read} annotation{'s' * (sizes_read > 1)} without the image's size, which was read from the "
                  "image",)
    class_names = sorted({thing.name for _, _, things in chosen for thing in things}
                         | _names_in([path for path in others if path not in files]))
    if not class_names:
        nothing = f"{images}: none of its {len(files)} annotations has an object; nothing to learn"
        raise ValueError("\n  ".join([nothing, *map(str, found_faults[:5])]))
    classes = Classes(names=tuple(class_names), source_ids=tuple(range(1, len(class_names) + 1)))
    objects = [thing for _, _, things in chosen for thing in things]
    boxes = np.array([thing.box_xywh for thing in objects], np.float64).reshape(-1, 4)
    label_of = {name: label for label, name in enumerate(class_names)}
    return BoxIndex.of(
        classes,
        images,
        image_ids=np.arange(1, len(chosen) + 1),
        sizes=np.array([size for _, size, _ in chosen], np.int32).reshape(-1, 2),
        names=[name for name, _, _ in chosen],
        image_of_box=np.repeat(np.arange(len(chosen)), [len(things) for _, _, things in chosen]),
        boxes=boxes,
        labels=np.array([label_of[thing.name] for thing in objects], np.int32),
        crowd=np.array([thing.difficult for thing in objects], np.bool_),
        areas=np.maximum(boxes[:, 2], 0) * np.maximum(boxes[:, 3], 0),
        annotation_ids=np.arange(1, len(objects) + 1),
        notes=notes,
        faults=tuple(found_faults),
    )


def voc_segmentation_list(folder: Path, split: str) -> Path:
    """The list of a split's images with label maps in VOC's layout."""
    return folder / "ImageSets" / "Segmentation" / f"{split}.txt"


def read_voc_labels(folder: Path, split: str, *, train: str = "train", maps: str = "SegmentationClass") -> LabelFiles:
    """The images with label maps that a split lists, in its order, numbered from 1.

    `train` is the list that is read for the split "train", and `maps` the folder of label maps. The augmented training
    set that most results on VOC 2012 use is `train="trainaug", maps="SegmentationClassAug"`.

    Raises FileNotFoundError where a folder or the list is not there, ValueError where nothing is in it.
    """
    listing = voc_segmentation_list(folder, train if split == "train" else split)
    finders = [FileFinder(folder / part, images_only=True) for part in ("JPEGImages", maps)]
    pairs: dict[tuple[str, str], None] = {}
    faults: list[Fault] = []
    names = listed_names(listing)
    for name in names:
        # An image's suffix in the list is not its label map's.
        image, label_map = (finder.find(_as_there(name, finder)) for finder in finders)
        if image is None or label_map is None:
            missing = finders[0] if image is None else finders[1]
            faults.append(Fault(f"{listing}, {name}", missing.why_not(_as_there(name, missing))))
            continue
        pairs[f"JPEGImages/{image}", f"{maps}/{label_map}"] = None
    return LabelFiles.of(VOC_21, folder, list(pairs), table=label_table(VOC_21.source_ids, void=(VOID,)),
                         notes=finders[0].notes + _repeated(names), faults=tuple(faults))


def listed_names(path: Path) -> list[str]:
    """What a list of images names, a line each, without blanks around it. ValueError where it names none."""
    names = [line.strip() for line in read_text(path, guess=True).splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} lists no images")
    return names


def read_voc_annotation(path: Path) -> VocAnnotation:
    """An XML file of one image. Objects that are broken are left out and among its faults.

    FileNotFoundError, or ValueError for a file that is no XML.
    """
    try:
        root = _parsed(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"no annotation {path.name} in {path.parent}") from None
    except ElementTree.ParseError as problem:
        raise ValueError(f"{path}: broken XML: {problem}") from None
    objects, faults = list[VocObject](), list[Fault]()
    for place, node in enumerate(root.iter("object"), 1):
        try:
            objects.append(_read_object(node))
        except ValueError as problem:
            faults.append(Fault(f"{path}, object {place}", str(problem)))
    return VocAnnotation((root.findtext("filename") or "").strip(), _size(root), tuple(objects), tuple(faults))


def _listed_files(folder: Path, listing: Path) -> tuple[dict[Path, str], tuple[str, ...], tuple[Fault, ...]]:
    """The annotation files that a list names and their images, notes, and what is not there."""
    annotations, images = FileFinder(folder / "Annotations"), FileFinder(folder / "JPEGImages", images_only=True)
    found: dict[Path, str] = {}
    faults: list[Fault] = []
    names = listed_names(listing)
    for row in names:
        name = row if annotations.find(f"{row}.xml") else _without_columns(row)
        annotation = annotations.find(f"{name}.xml") or annotations.find(f"{_stem(name)}.xml")
        if annotation is None:
            faults.append(Fault(f"{listing}, {row}", annotations.why_not(f"{_stem(name)}.xml")))
            continue
        path = annotations.folder / annotation
        image = images.find(name) or _named_by(path, images)
        if image is None:
            faults.append(Fault(f"{listing}, {row}", images.why_not(name)))
            continue
        found[path] = image
    return found, images.notes + annotations.notes + _repeated(names), tuple(faults)


def _repeated(names: Sequence[str]) -> tuple[str, ...]:
    """A note where a list names something more than once."""
    more = len(names) - len(set(names))
    return (f"{more} repetition{'s' * (more > 1)} in the list of images, read once",) if more else ()


_COLUMNS = re.compile(r"(?P<name>\S.*?)\s+(?:-1|0|1|\S+\.xml)")
"""A row of a class's list, or an image and its annotation."""


def _without_columns(row: str) -> str:
    matched = _COLUMNS.fullmatch(row)
    return row if matched is None else matched["name"]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if is_image(name) else name


def _as_there(name: str, finder: FileFinder) -> str:
    """The name as the list has it, or without the suffix."""
    return name if finder.find(name) else _stem(name)


def _named_by(annotation: Path, images: FileFinder) -> str | None:
    """The image whose name stands in the file."""
    try:
        name = read_voc_annotation(annotation).file_name
    except ValueError:
        return None
    return images.find(name) if name else None


def _names_in(annotations: Sequence[Path]) -> set[str]:
    """The classes of files that are good enough to be read."""
    names = set[str]()
    for path in annotations:
        with contextlib.suppress(OSError, ValueError):
            names |= {thing.name for thing in read_voc_annotation(path).objects}
    return names


_HEADING = re.compile(r"""<\?xml[^>]*?(?:encoding=["'](?P<encoding>[\w.-]+)["'])?[^>]*?\?>""")


def _parsed(content: bytes) -> ElementTree.Element:
    content = content.lstrip()
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as problem:
        # Expat knows few encodings; and tools write the paths of Windows in its own under the heading of UTF-8, which
        # is harmless where the classes are plain.
        text = content.decode("latin-1")
        heading = _HEADING.match(text)
        with contextlib.suppress(UnicodeDecodeError, LookupError):
            encoding = heading["encoding"] if heading is not None else None
            return ElementTree.fromstring(_HEADING.sub("", content.decode(encoding or "utf-8"), count=1))
        root = ElementTree.fromstring(_HEADING.sub("", text, count=1))
        if not all((name.text or "").isascii() for name in root.iter("name")):
            raise ElementTree.ParseError(f"{problem}; save it as UTF-8") from None
        return root


def _size(root: ElementTree.Element) -> Size | None:
    try:
        size = int(_number(root, "size/height")), int(_number(root, "size/width"))
    except ValueError:
        return None
    return size if min(size) > 0 else None


_IS_DIFFICULT = {
    "": False, "0": False, "0.0": False, "false": False, "no": False, "unspecified": False,
    "1": True, "1.0": True, "true": True, "yes": True,
}


def _read_object(node: ElementTree.Element) -> VocObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError("it has no <name>")
    x1, y1, x2, y2 = (_number(node, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
    word = (node.findtext("difficult") or "").strip()
    difficult = _IS_DIFFICULT.get(word.lower())
    if difficult is None:
        raise ValueError(f"<difficult> must be 0 or 1, got {word!r}")
    width = x2 - x1 + 1 if x2 > x1 else x2 - x1
    height = y2 - y1 + 1 if y2 > y1 else y2 - y1
    return VocObject(name, (x1 - 1, y1 - 1, width, height), difficult)


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
