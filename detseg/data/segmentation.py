"""Images with label maps, ready for a segmenter: from a folder to samples."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from detseg.data.cityscapes import cityscapes_images, cityscapes_maps, read_cityscapes
from detseg.data.coco import coco_annotations, coco_images
from detseg.data.coco_labels import read_coco_labels
from detseg.data.label_index import LabelIndex
from detseg.data.masks import image_folder, mask_folder, read_masks
from detseg.data.voc import read_voc_labels, voc_segmentation_list
from detseg.interfaces import (
    VOID,
    Dataset,
    Draw,
    LabelPixels,
    LabelTargets,
    Pixels,
    Placement,
    Resize,
    Sample,
    Size,
    Source,
)

MIN_OBJECT_PIXELS = 1000
"""What torchvision asks of the VOC objects of a training image of COCO (references/segmentation/coco_utils.py)."""


def read_labels(folder: Path, split: Literal["train", "val"]) -> LabelIndex:
    """The label maps of a split in Cityscapes' layout, PASCAL VOC's, folders of images and masks, or COCO's with VOC's
    labels, whichever is found first in this order.

    Of COCO's training images only those are taken that show more than `MIN_OBJECT_PIXELS` of VOC's classes.
    Raises FileNotFoundError that says what was looked for and how to get data, and what the readers raise.
    """
    if cityscapes_maps(folder, split).is_dir():
        return read_cityscapes(folder, split)
    if voc_segmentation_list(folder, split).is_file():
        return read_voc_labels(folder, split)
    if mask_folder(folder, split).is_dir():
        return read_masks(folder, split)
    annotations, images = coco_annotations(folder, split), coco_images(folder, split)
    if annotations.is_file():
        if not images.is_dir():
            raise FileNotFoundError(f"{annotations} is there, but the folder {images} with its images is not")
        return read_coco_labels(annotations, images, more_than=MIN_OBJECT_PIXELS if split == "train" else None)
    raise FileNotFoundError(
        f"no {split} label maps in {folder}{'' if folder.is_dir() else ' (no such folder)'}. Looked for\n"
        f"  {cityscapes_maps(folder, split)} and {cityscapes_images(folder, split)} (Cityscapes' layout)\n"
        f"  {voc_segmentation_list(folder, split)} (PASCAL VOC's layout)\n"
        f"  {mask_folder(folder, split)} and {image_folder(folder, split)} (masks, with a classes.txt)\n"
        f"  {annotations} and {images} (COCO's layout, for VOC's labels)\n"
        "Cityscapes is at https://www.cityscapes-dataset.com/downloads (register, then unpack "
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there), VOC 2012 at "
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012, COCO 2017 at https://cocodataset.org/#download. "
        "Or name another folder with --data. To try without any data, use --sample: it generates its own."
    )


def has_label_files(folder: Path) -> bool:
    """Whether there is a split with label maps as files, which COCO's outlines are not."""
    return any(cityscapes_maps(folder, split).is_dir() or voc_segmentation_list(folder, split).is_file()
               or mask_folder(folder, split).is_dir() for split in ("train", "val"))


class LabelAugment(Protocol):
    """What training does to an image and its label map. Everything random comes from `seed`."""

    def __call__(self, image: Pixels, labels: LabelPixels, *, seed: int) -> tuple[Pixels, LabelPixels]:
        """Both [H, W, ...] in original pixels; the same in the size of a training crop, which is always the same."""


class SegmentationDataset(Dataset[LabelTargets]):
    """The images and label maps of an index.

    Without `augment`, for evaluation: the image is float32 at the network's size, resized and not rounded, its label
    map the nearest label of each pixel. With it, for training: a uint8 crop of whatever size the augmentation gives,
    which may differ from the network's size in evaluation; what happens depends on (`seed`, epoch, item) alone.
    """

    def __init__(
        self, index: LabelIndex, resize: Resize, *, augment: LabelAugment | None = None, seed: int = 0
    ) -> None:
        if seed < 0:
            raise ValueError(f"the seed of the data must be at least 0, got {seed}")
        self.index, self.classes = index, index.classes
        self.resize, self.augment, self.seed = resize, augment, seed

    def __len__(self) -> int:
        return len(self.index)

    def original(self, item: int) -> Pixels:
        """The image file, turned as its label map is."""
        return self.index.image(item)

    def __getitem__(self, draw: Draw) -> Sample[LabelTargets]:
        pixels = self.original(draw.item)
        size = (pixels.shape[0], pixels.shape[1])
        labels = self.index.labels(draw.item, size)
        source = Source(int(self.index.image_ids[draw.item]), size, self.resize.place(size))
        if self.augment is None:
            image: Pixels | NDArray[np.float32] = self.resize.apply(pixels)
            labels = _placed(labels, source.placement, (image.shape[0], image.shape[1]))
        else:
            state = np.random.SeedSequence((self.seed, draw.epoch, draw.item)).generate_state(1)
            image, labels = self.augment(pixels, labels, seed=int(state[0]))
        channels_first = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return Sample(channels_first, LabelTargets(torch.from_numpy(np.ascontiguousarray(labels))), source)


def _placed(labels: LabelPixels, placement: Placement, size: Size) -> LabelPixels:
    """The label map as `placement` puts the image into one of `size`, VOID around it."""
    scale_y, scale_x, offset_y, offset_x = placement
    rows = np.floor((np.arange(size[0]) + 0.5 - offset_y) / scale_y).astype(np.int64)
    columns = np.floor((np.arange(size[1]) + 0.5 - offset_x) / scale_x).astype(np.int64)
    inside_y, inside_x = (rows >= 0) & (rows < labels.shape[0]), (columns >= 0) & (columns < labels.shape[1])
    placed = np.full(size, VOID, dtype=np.uint8)
    placed[np.ix_(inside_y, inside_x)] = labels[np.ix_(rows[inside_y], columns[inside_x])]
    return placed
