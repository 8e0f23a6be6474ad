"""ImageNet's folders: those of a split are its classes.

    train/CLASS/NAME.jpg   images of a class (any extension, at any depth)
    val/CLASS/NAME.jpg

The classes are the names of the folders, in their order; their ids count from 0, as torchvision's ImageFolder has them.
Those of `train` count for all splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from detseg.data.class_index import ClassIndex
from detseg.data.class_index import listed as listed_names
from detseg.data.faults import Fault
from detseg.data.files import has_images, list_images, sub_folders
from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place, listed, split_folders
from detseg.structures import Classes


def find(place: Place) -> Found | None:
    """Folders of splits with folders of images in them; without splits, at least two folders of images. ValueError
    where the images of a split lie in no folders of classes."""
    if not place.path.is_dir():
        return None
    splits: dict[PartName, Path] = {}
    for split, folder in split_folders(place.path).items():
        if class_names(folder):
            splits[split] = folder
        elif split != "test" and list_images(folder):
            raise ValueError(_without_classes(folder))
    if not splits:
        if len(class_names(place.path)) < 2:
            return None
        return Found("its folders are classes with images", {"whole": _part(place.path, place.path)})
    defining = splits.get("train") or next(iter(splits.values()))
    return Found(f"it has {listed(splits, place.path)} with folders of images", {
        split: _part(folder, defining) for split, folder in splits.items()})


LAYOUT = Layout("class folders", __doc__, "train/CLASS/ and val/CLASS/ with images, as ImageNet's", find,
                ids_are_names=True)


def class_names(folder: Path) -> list[str]:
    """The folders in a split's folder that hold images, at any depth."""
    return [name for name in sub_folders(folder) if has_images(folder / name)]


def read_class_folders(folder: Path, names: Sequence[str]) -> ClassIndex:
    """The images of a split, in the order of their names.

    Folders of other classes than `names`, with or without images, and images in no folder are faults. A class without
    images here is noted. ValueError where there are fewer than two classes.
    """
    if len(names) < 2:
        raise ValueError(f"{folder} has the images of one class, {names[0]}; a classifier tells at least two apart: "
                         "put those of another one into a folder beside it")
    position = {name: k for k, name in enumerate(names)}
    by_class: dict[str, list[str]] = {name: [] for name in sub_folders(folder)}
    loose: list[str] = []
    for name in list_images(folder, recursive=True):
        head, slash, _ = name.partition("/")
        (by_class[head] if slash else loose).append(name)
    images = [(name, position[head]) for head, inside in by_class.items() if head in position for name in inside]
    classes = Classes(tuple(names), tuple(range(len(names))))
    return ClassIndex.of(
        classes, folder, [name for name, _ in images], [label for _, label in images],
        notes=_notes(folder, names, by_class), faults=tuple(_faults(folder, position, by_class, loose)))


def _part(folder: Path, defining: Path) -> Part:
    return Part(folder, classes=partial(_read, folder, defining))


def _read(folder: Path, defining: Path) -> ClassIndex:
    return read_class_folders(folder, class_names(defining))


def _without_classes(folder: Path) -> str:
    return (f"the images of {folder} lie directly in it, and nothing says their classes: put those of each class into "
            f"a folder of its name, {folder.name}/CLASS/NAME.jpg. For ImageNet's validation images the script "
            "extract_ILSVRC.sh does it (github.com/pytorch/examples, imagenet/)")


def _faults(
    folder: Path, position: Mapping[str, int], by_class: Mapping[str, Sequence[str]], loose: Sequence[str]
) -> list[Fault]:
    found = []
    if loose:
        number = "1 image lies" if len(loose) == 1 else f"{len(loose)} images lie"
        found.append(Fault(str(folder), f"{number} in no class's folder, {loose[0]} is the first; move or remove them"))
    for name, inside in by_class.items():
        if name in position:  # without images here it is noted
            continue
        if not inside:
            found.append(Fault(str(folder / name), "a class's folder without images; add some, or remove the folder"))
        else:
            found.append(Fault(str(folder / name), "a class without a training image, which nothing can learn; add "
                               "some to the training folder, or remove this one"))
    return found


def _notes(folder: Path, names: Sequence[str], by_class: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    absent = [name for name in names if not by_class.get(name)]
    if not absent:
        return ()
    return (f"{folder} has no image of {len(absent)} of the {len(names)} classes: {listed_names(absent)}",)
