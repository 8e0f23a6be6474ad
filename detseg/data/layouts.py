"""The layouts of data sets that are read as they are: for boxes and for label maps, each a line of a tuple."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

from detseg.data.box_index import BoxIndex
from detseg.data.cityscapes import cityscapes_images, cityscapes_maps, read_cityscapes
from detseg.data.coco import coco_annotations, coco_images, read_coco
from detseg.data.coco_labels import read_coco_labels
from detseg.data.label_index import LabelIndex
from detseg.data.masks import image_folder, mask_folder, read_masks
from detseg.data.voc import read_voc, read_voc_labels, voc_list, voc_segmentation_list

Split: TypeAlias = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")

MIN_OBJECT_PIXELS = 1000
"""What torchvision asks of the VOC objects of a training image of COCO (references/segmentation/coco_utils.py)."""

IndexT = TypeVar("IndexT", bound=BoxIndex | LabelIndex)


class Layout(NamedTuple, Generic[IndexT]):
    """How a kind of data set lies in a folder, and who reads it."""

    title: str
    annotations: Callable[[Path, Split], Path]
    """The file or folder by which a split is recognised."""
    images: Callable[[Path, Split], Path] | None
    """The folder that has to be there too; None where the annotations tell the images."""
    read: Callable[[Path, Split], IndexT]


def _read_coco(folder: Path, split: Split) -> BoxIndex:
    return read_coco(coco_annotations(folder, split), coco_images(folder, split))


def _read_coco_labels(folder: Path, split: Split) -> LabelIndex:
    """Of COCO's training images only those that show more than `MIN_OBJECT_PIXELS` of VOC's classes."""
    return read_coco_labels(coco_annotations(folder, split), coco_images(folder, split),
                            more_than=MIN_OBJECT_PIXELS if split == "train" else None)


BOX_LAYOUTS: tuple[Layout[BoxIndex], ...] = (
    Layout("COCO's layout", coco_annotations, coco_images, _read_coco),
    Layout("PASCAL VOC's layout", voc_list, None, read_voc),
)
"""In the order in which they are looked for."""

LABEL_LAYOUTS: tuple[Layout[LabelIndex], ...] = (
    Layout("Cityscapes' layout", cityscapes_maps, cityscapes_images, read_cityscapes),
    Layout("PASCAL VOC's layout", voc_segmentation_list, None, read_voc_labels),
    Layout("masks, with a classes.txt", mask_folder, image_folder, read_masks),
    Layout("COCO's layout, for VOC's labels", coco_annotations, coco_images, _read_coco_labels),
)

_GET_BOXES = (
    "COCO 2017 is at https://cocodataset.org/#download: unpack train2017.zip, val2017.zip and "
    "annotations_trainval2017.zip there, or name another folder with --data. ")
_GET_LABELS = (
    "Cityscapes is at https://www.cityscapes-dataset.com/downloads (register, then unpack "
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there), VOC 2012 at "
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012, COCO 2017 at https://cocodataset.org/#download. "
    "Or name another folder with --data. ")
_NO_DATA = "To try without any data, use --sample: it generates its own."


def read_boxes(folder: Path, split: Split) -> BoxIndex:
    """The boxes of a split in the first of `BOX_LAYOUTS` that is found.

    Raises FileNotFoundError that says what was looked for and how to get data, and what the readers raise.
    """
    return _read(BOX_LAYOUTS, folder, split, what=f"{split} data", hint=_GET_BOXES + _NO_DATA)


def read_labels(folder: Path, split: Split) -> LabelIndex:
    """The label maps of a split in the first of `LABEL_LAYOUTS` that is found; errors as in `read_boxes`."""
    return _read(LABEL_LAYOUTS, folder, split, what=f"{split} label maps", hint=_GET_LABELS + _NO_DATA)


def has_boxes(folder: Path) -> bool:
    """Whether there is a split that `read_boxes` would read."""
    return any(_is_there(layout, folder, split) for layout in BOX_LAYOUTS for split in SPLITS)


def has_label_files(folder: Path) -> bool:
    """Whether there is a split with label maps as files, which COCO's outlines are not."""
    return any(_is_there(layout, folder, split) for layout in LABEL_LAYOUTS for split in SPLITS
               if layout.annotations is not coco_annotations)


def _is_there(layout: Layout[IndexT], folder: Path, split: Split) -> bool:
    return layout.annotations(folder, split).exists()


def _read(layouts: Sequence[Layout[IndexT]], folder: Path, split: Split, *, what: str, hint: str) -> IndexT:
    looked = []
    for layout in layouts:
        annotations = layout.annotations(folder, split)
        images = None if layout.images is None else layout.images(folder, split)
        if annotations.exists():
            if images is not None and not images.is_dir():
                raise FileNotFoundError(f"{annotations} is there, but the folder {images} with its images is not")
            return layout.read(folder, split)
        looked.append(f"  {annotations}{'' if images is None else f' and {images}'} ({layout.title})")
    missing = "" if folder.is_dir() else " (no such folder)"
    raise FileNotFoundError("\n".join([f"no {what} in {folder}{missing}. Looked for", *looked, hint]))
