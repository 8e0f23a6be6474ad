"""Masks in colours, with a file that names them: CamVid's class_dict.csv, or labelmap.txt of CVAT and Datumaro.

    labelmap.txt
    JPEGImages/
      street.jpg
    SegmentationClass/
      street.png
    ImageSets/
      Segmentation/
        default.txt

Or train/ and train_labels/, val/ and val_labels/, with class_dict.csv; the folders of other masks are known too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath

from detseg.data.colour_masks import ColourLabels, read_class_dict, read_labelmap
from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place, split_of
from detseg.data.layouts.mask_folders import MaskFolders, mask_folders, pairs, said

_LISTINGS = {"class_dict.csv": read_class_dict, "classes.csv": read_class_dict, "labelmap.txt": read_labelmap,
             "label_colors.csv": read_class_dict}


def find(place: Place) -> Found | None:
    """By the file with the colours."""
    root = place.path
    listing = next((root / name for name in _LISTINGS if (root / name).is_file()), None)
    folders = mask_folders(root)
    if listing is None or not folders:
        return None
    why = f"it has {listing.name} and {said(folders, root)}"
    lists = _lists(root)
    if "whole" in folders and lists:
        parts = {split: Part(path, labels=partial(_read, root, listing, folders["whole"], path))
                 for split, path in lists.items()}
        return Found(why, parts)
    return Found(why, {split: Part(pair.masks, labels=partial(_read, root, listing, pair, None))
                       for split, pair in folders.items()})


def _lists(root: Path) -> dict[PartName, Path]:
    """CVAT's lists of the images of each subset."""
    files = sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
    told = {split_of(path.stem) or "whole": path for path in files if path.stem != "trainval"}
    return {split: path for split, path in told.items() if split != "whole"} or told


def _read(root: Path, listing: Path, folders: MaskFolders, only: Path | None) -> ColourLabels:
    found, faults = pairs(root, folders)
    if only is not None:
        names = {line.strip() for line in only.read_text("utf-8-sig").splitlines() if line.strip()}
        found = [pair for pair in found if _stem(root, folders, pair) in names]
        faults = tuple(fault for fault in faults if Path(fault.where).stem in names)
        if not found:
            raise ValueError(f"{only} lists no image that has a mask in {folders.masks}")
    return ColourLabels.of(_LISTINGS[listing.name](listing), root, found, listing=listing, faults=faults)


def _stem(root: Path, folders: MaskFolders, pair: tuple[str, str]) -> str:
    """The name of an image as lists have it: without its folder and suffix."""
    return PurePosixPath((root / pair[0]).relative_to(folders.images).as_posix()).with_suffix("").as_posix()


LAYOUT = Layout("colour masks", __doc__, "class_dict.csv or labelmap.txt, with folders of images and masks", find,
                label_maps="files")
