"""Images with boxes, ready for a detector: from a folder to samples."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from detseg.data.box_index import BoxIndex, ImageBoxes
from detseg.data.coco import coco_annotations, coco_images, read_coco
from detseg.data.images import read_image
from detseg.data.transforms import Augment
from detseg.data.voc import read_voc, voc_list
from detseg.interfaces import BoxTargets, Dataset, Draw, Pixels, Placement, Resize, Sample, Source


def read_boxes(folder: Path, split: Literal["train", "val"]) -> BoxIndex:
    """A split of a data set in COCO's layout or in PASCAL VOC's, whichever is found.

    Raises FileNotFoundError that says what was looked for and how to get data, and what the readers raise.
    """
    annotations, images = coco_annotations(folder, split), coco_images(folder, split)
    if annotations.is_file():
        if not images.is_dir():
            raise FileNotFoundError(f"{annotations} is there, but the folder {images} with its images is not")
        return read_coco(annotations, images)
    if voc_list(folder, split).is_file():
        return read_voc(folder, split)
    raise FileNotFoundError(
        f"no {split} data in {folder}{'' if folder.is_dir() else ' (no such folder)'}. Looked for\n"
        f"  {annotations} and {images} (COCO's layout)\n"
        f"  {voc_list(folder, split)} (PASCAL VOC's layout)\n"
        "COCO 2017 is at https://cocodataset.org/#download: unpack train2017.zip, val2017.zip and "
        "annotations_trainval2017.zip there, or name another folder with --data. "
        "To try without any data, use --sample: it generates its own."
    )


def has_boxes(folder: Path) -> bool:
    """Whether there is a split that `read_boxes` would read."""
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    return any(coco_annotations(folder, split).is_file() or voc_list(folder, split).is_file() for split in splits)


class DetectionDataset(Dataset[BoxTargets]):
    """The images and boxes of an index at the network's size.

    Without `augment`, for evaluation: the image is float32, resized and not rounded. With it, for training: uint8, and
    what happens depends on (`seed`, epoch, item) alone. In both, boxes of no area are left out and the rest clipped.
    `Source.placement` is that of `resize`; it does not know what `augment` did.
    """

    def __init__(self, index: BoxIndex, resize: Resize, *, augment: Augment | None = None, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"the seed of the data must be at least 0, got {seed}")
        self.index = index
        self.classes = index.classes
        self.resize = resize
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.index)

    def original(self, item: int) -> Pixels:
        """The image file, turned as its annotations are."""
        return read_image(self.index.path(item), size=self.index.size(item))

    def __getitem__(self, draw: Draw) -> Sample[BoxTargets]:
        size = self.index.size(draw.item)
        pixels = self.original(draw.item)
        source = Source(int(self.index.image_ids[draw.item]), size, self.resize.place(size))
        found = self.index.targets(draw.item)
        if self.augment is None:
            placed = found._replace(boxes=_placed(found.boxes, source.placement))
            return Sample(_channels_first(self.resize.apply(pixels)), _tensors(placed), source)
        state = np.random.SeedSequence((self.seed, draw.epoch, draw.item)).generate_state(1)
        image, boxes, labels, crowd = self.augment(pixels, *found, seed=int(state[0]))
        assert not self.resize.fixed or image.shape == (*self.resize.size, 3), (
            f"augmented to {image.shape}, the network's is {self.resize.size}")
        return Sample(_channels_first(image), _tensors(ImageBoxes(boxes, labels, crowd)), source)


def _placed(boxes_xyxy: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    scale = np.array([placement.scale_x, placement.scale_y] * 2)
    offset = np.array([placement.offset_x, placement.offset_y] * 2)
    placed: NDArray[np.float32] = (boxes_xyxy * scale + offset).astype(np.float32)
    return placed


def _channels_first(image: Pixels | NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _tensors(targets: ImageBoxes) -> BoxTargets:
    return BoxTargets(*(torch.from_numpy(np.ascontiguousarray(values)) for values in targets))
