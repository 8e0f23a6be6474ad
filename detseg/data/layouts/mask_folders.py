"""What layouts with images and masks in two folders have in common: finding the folders, and pairing the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detseg.data.faults import Fault
from detseg.data.files import image_files
from detseg.data.layouts.layout import PartName, split_folders

_IMAGES = ("images", "JPEGImages", "imgs", "image", "img")
_MASKS = ("masks", "SegmentationClass", "annotations", "labels", "mask", "labelmaps", "gt")
_BESIDE = ("_labels", "_masks", "annot", "_annot", "_mask", "_label")
"""What the name of a split's folder of masks adds to that of its images: CamVid's train_labels, SegNet's trainannot."""
_ENDS = ("_L", "_mask", "-mask", "_label", "_labels", "_gt", "_seg", "_segmentation", "_labelIds")
"""What the name of a mask adds to that of its image."""
_PROBED = 16


class MaskFolders(NamedTuple):
    """Where the images and masks of a split lie, below the data set's folder."""

    images: Path
    masks: Path


def mask_folders(root: Path) -> dict[PartName, MaskFolders]:
    """The folders of images and masks of each split: images/train and masks/train, train/images and train/masks,
    train and train_labels, or images and masks; under the names that are usual. Empty where there are none."""
    if not root.is_dir():
        return {}
    for images in (root / name for name in _IMAGES):
        for masks in (root / name for name in _MASKS):
            if images.is_dir() and masks.is_dir():
                inside, theirs = split_folders(images), split_folders(masks)
                both = {split: MaskFolders(inside[split], theirs[split]) for split in inside if split in theirs}
                return both or {"whole": MaskFolders(images, masks)}
    around = {}
    for split, folder in split_folders(root).items():
        beside = [root / f"{folder.name}{end}" for end in _BESIDE]
        pairs = [(folder / images, folder / masks) for images in _IMAGES for masks in _MASKS]
        pairs += [(folder, masks) for masks in beside]
        if found := next((pair for pair in pairs if all(part.is_dir() for part in pair)), None):
            around[split] = MaskFolders(*found)
    return around


def pairs(root: Path, folders: MaskFolders) -> tuple[list[tuple[str, str]], tuple[Fault, ...]]:
    """The images and masks of a split, relative to the data set's folder, in the order of their names. An image
    without a mask, or the reverse, is a fault. FileNotFoundError where there is no pair."""
    images, masks = (image_files(folder, recursive=True) for folder in folders)
    stripped = _stripped(images.names, masks.names)
    faults = [*images.faults, *masks.faults]
    faults += (Fault(str(folders.images / name), f"there is no mask for it in {folders.masks}; add it, or remove the "
                     "image") for key, name in images.names.items() if key not in stripped)
    faults += (Fault(str(folders.masks / name), f"there is no image for it in {folders.images}; add it, or remove the "
                     "mask") for key, name in stripped.items() if key not in images.names)
    found = [(_below(root, folders.images / images.names[key]), _below(root, folders.masks / stripped[key]))
             for key in sorted(images.names.keys() & stripped.keys())]
    if not found:
        raise FileNotFoundError(f"no image in {folders.images} has a mask of its name in {folders.masks}")
    return found, tuple(faults)


def probed_masks(folders: MaskFolders) -> Iterator[Path]:
    """A few masks, spread over all of them."""
    names = list(image_files(folders.masks, recursive=True).names.values())
    for i in np.unique(np.linspace(0, len(names) - 1, _PROBED).round().astype(int)) if names else ():
        yield folders.masks / names[i]


def said(folders: Mapping[PartName, MaskFolders], root: Path) -> str:
    """The folders for a sentence."""
    return ", ".join(f"{_below(root, pair.images)}/ and {_below(root, pair.masks)}/" for pair in folders.values())


def _stripped(images: Mapping[str, str], masks: Mapping[str, str]) -> dict[str, str]:
    """Masks by the names of their images: as they are, or without an end that all of them have."""
    ends = ("", *_ENDS)
    best = max(ends, key=lambda end: sum(key.removesuffix(end) in images for key in masks if key.endswith(end)))
    return {key.removesuffix(best): name for key, name in masks.items()}


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
