"""One small data set in every layout, written in the form that its tool writes, read and found the same."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from detseg.config import load as load_config
from detseg.data.box_index import BoxIndex
from detseg.data.check import check_place
from detseg.data.label_index import LabelIndex
from detseg.data.layouts import LAYOUTS, read_boxes, read_labels
from detseg.data.layouts.layout import Layout, Part, PartName, Place, parts_of_tree, split_of
from detseg.data.location import Location, read_splits, read_validation
from detseg.data.voc import VOC_21
from detseg.structures import VOID
from detseg.train import fit  # noqa: F401

from . import tiny_segmenter
from .conftest import ROOT

# ---------------------------------------------------------------------------------------------- the data set

NAMES = ("cup", "fork", "plate")
BACKGROUND = "background"


class Thing(NamedTuple):
    name: str
    corners: tuple[tuple[int, int], ...]
    """x, y; whole numbers and right angles, so that every tool's rule for a polygon's pixels is the same."""

    @property
    def box_xywh(self) -> tuple[int, int, int, int]:
        x, y = zip(*self.corners, strict=True)
        return min(x), min(y), max(x) - min(x), max(y) - min(y)

    @property
    def area(self) -> float:
        x, y = (np.array(values) for values in zip(*self.corners, strict=True))
        return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


class Picture(NamedTuple):
    name: str
    size: tuple[int, int]
    things: tuple[Thing, ...]

    def array(self) -> NDArray[np.uint8]:
        pixels = np.random.default_rng(len(self.name) + self.size[0]).integers(0, 90, (*self.size, 3), dtype=np.uint8)
        pixels[self.labels() > 0] += 120
        return pixels

    def labels(self) -> NDArray[np.uint8]:
        """0 background, then the classes from 1; the smaller lies on top."""
        labels = np.zeros(self.size, np.uint8)
        for thing in sorted(self.things, key=lambda thing: -thing.area):
            labels[self.cover(thing)] = NAMES.index(thing.name) + 1
        return labels

    def cover(self, thing: Thing) -> NDArray[np.bool_]:
        """By counting the vertical edges to the left of each pixel's centre."""
        crossed = np.zeros(self.size, np.int64)
        for (x1, y1), (x2, y2) in zip(thing.corners, (*thing.corners[1:], thing.corners[0]), strict=True):
            if x1 == x2:
                crossed[min(y1, y2) : max(y1, y2), x1:] += 1
        return crossed % 2 == 1


def rectangle(name: str, left: int, top: int, right: int, bottom: int) -> Thing:
    return Thing(name, ((left, top), (right, top), (right, bottom), (left, bottom)))


HOOK = Thing("fork", ((10, 4), (40, 4), (40, 12), (20, 12), (20, 30), (10, 30)))
TRAIN = (
    Picture("table 1", (40, 64), (rectangle("plate", 4, 6, 44, 36), rectangle("cup", 10, 10, 20, 22))),
    Picture("shelf", (48, 56), (HOOK, rectangle("cup", 30, 20, 50, 44))),
    Picture("empty_room", (36, 60), ()),
    Picture("wall", (44, 52), (rectangle("fork", 0, 0, 26, 44),)),
)
VAL = (
    Picture("desk", (42, 66), (rectangle("cup", 8, 8, 30, 30), rectangle("plate", 34, 2, 60, 38))),
    Picture("drawer", (52, 44), (HOOK,)),
)


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------------------------------- the writers


def coco_json(
    pictures: Sequence[Picture], *, first_id: int = 1, first_category: int = 1, prefix: str = "", sparse: bool = False
) -> str:
    """sparse: without what Roboflow, CVAT and Label Studio leave out."""
    images, annotations = [], []
    for i, picture in enumerate(pictures):
        height, width = picture.size
        images.append({"id": first_id + i, "file_name": f"{prefix}{picture.name}.png", "width": width, "height": height})
        for thing in picture.things:
            annotation: dict[str, object] = {
                "id": len(annotations) + first_id, "image_id": first_id + i,
                "category_id": NAMES.index(thing.name) + first_category, "bbox": list(thing.box_xywh),
                "area": thing.area, "iscrowd": 0,
                "segmentation": [[value for corner in thing.corners for value in corner]]}
            annotations.append(annotation)
    categories = [{"id": k + first_category, "name": name, "supercategory": ""} for k, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content if sparse else {"info": {"year": 2017}, "licenses": [], **content})


def coco(folder: Path) -> None:
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        write(folder / f"annotations/instances_{split}2017.json", coco_json(pictures))
        for picture in pictures:
            save(folder / f"{split}2017/{picture.name}.png", picture.array())


def roboflow_coco(folder: Path) -> None:
    for split, pictures in (("train", TRAIN), ("valid", VAL)):
        write(folder / split / "_annotations.coco.json", coco_json(pictures, first_id=0))
        for picture in pictures:
            save(folder / split / f"{picture.name}.png", picture.array())
    write(folder / "README.roboflow.txt", "crockery - v1\n")


def cvat_coco(folder: Path) -> None:
    write(folder / "annotations/instances_default.json", coco_json((*TRAIN, *VAL)))
    for picture in (*TRAIN, *VAL):
        save(folder / f"images/{picture.name}.png", picture.array())


def label_studio(folder: Path) -> None:
    write(folder / "result.json", coco_json((*TRAIN, *VAL), first_id=0, first_category=0, prefix="images/", sparse=True))
    for picture in (*TRAIN, *VAL):
        save(folder / f"images/{picture.name}.png", picture.array())


def coco_files(folder: Path) -> None:
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        write(folder / f"{split}.json", coco_json(pictures, sparse=True))
        for picture in pictures:
            save(folder / f"photos/{split}/{picture.name}.png", picture.array())


def voc_xml(picture: Picture) -> str:
    objects = ""
    for thing in picture.things:
        x, y, width, height = thing.box_xywh
        objects += (f"<object><name>{thing.name}</name><pose>Unspecified</pose><truncated>0</truncated>"
                    f"<difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax>"
                    f"<ymax>{y + height}</ymax></bndbox></object>")
    height, width = picture.size
    return (f"<annotation><folder>images</folder><filename>{picture.name}.png</filename><size><width>{width}</width>"
            f"<height>{height}</height><depth>3</depth></size><segmented>0</segmented>{objects}</annotation>")


def voc(folder: Path) -> None:
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        write(folder / f"ImageSets/Main/{split}.txt", "".join(f"{picture.name}\n" for picture in pictures))
        for picture in pictures:
            write(folder / f"Annotations/{picture.name}.xml", voc_xml(picture))
            save(folder / f"JPEGImages/{picture.name}.png", picture.array())


def roboflow_voc(folder: Path) -> None:
    for split, pictures in (("train", TRAIN), ("valid", VAL)):
        for picture in pictures:
            write(folder / split / f"{picture.name}.xml", voc_xml(picture))
            save(folder / split / f"{picture.name}.png", picture.array())


def xml_apart(folder: Path) -> None:
    for picture in (*TRAIN, *VAL):
        write(folder / f"annotations/{picture.name}.xml", voc_xml(picture))
        save(folder / f"images/{picture.name}.png", picture.array())


def labelme(folder: Path) -> None:
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        for number, picture in enumerate(pictures):
            save(folder / split / f"{picture.name}.png", picture.array())
            shapes = []
            for thing in picture.things:
                points, kind = [list(corner) for corner in thing.corners], "polygon"
                if len(points) == 4:  # a rectangle is two corners, in the order in which the mouse met them
                    points, kind = [points[2], points[0]], "rectangle"
                shapes.append({"label": thing.name, "points": points, "group_id": None, "description": "",
                               "shape_type": kind, "flags": {}, "mask": None})
            data = base64.b64encode((folder / split / f"{picture.name}.png").read_bytes()).decode() if number else None
            write(folder / split / f"{picture.name}.json", json.dumps({
                "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{picture.name}.png",
                "imageData": data, "imageHeight": picture.size[0], "imageWidth": picture.size[1]}, indent=2))


def yolo_lines(picture: Picture) -> str:
    height, width = picture.size
    lines = []
    for thing in picture.things:
        shares = [f"{x / width:.6f} {y / height:.6f}" for x, y in thing.corners]
        lines.append(" ".join([str(NAMES.index(thing.name)), *shares]))
    return "\n".join(lines)


def yolo(folder: Path) -> None:
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        for picture in pictures:
            save(folder / f"images/{split}/{picture.name}.png", picture.array())
            if picture.things:
                write(folder / f"labels/{split}/{picture.name}.txt", yolo_lines(picture))
    write(folder / "data.yaml", "path: ../datasets/crockery  # dataset root dir\ntrain: images/train\nval: images/val\n"
                                "test:\n\nnames:\n  0: cup\n  1: fork\n  2: plate\n")


def yolo_of_label_studio(folder: Path) -> None:
    for picture in (*TRAIN, *VAL):
        save(folder / f"images/{picture.name}.png", picture.array())
        write(folder / f"labels/{picture.name}.txt", yolo_lines(picture))
    write(folder / "classes.txt", "cup\nfork\nplate")
    write(folder / "notes.json", json.dumps({"categories": [{"id": 0, "name": "cup"}], "info": {"year": 2024}}))


def cityscapes(folder: Path, *, kind: str = "gtFine") -> Mapping[str, str | None]:
    ids = np.array([7, 26, 24, 23], np.uint8)
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        for number, picture in enumerate(pictures):
            stem = f"{split}/jena/jena_{number:06}_000019"
            save(folder / f"leftImg8bit/{stem}_leftImg8bit.png", picture.array())
            save(folder / f"{kind}/{stem}_{kind}_labelIds.png", ids[picture.labels()])
    return {BACKGROUND: "road", "cup": "car", "fork": "person", "plate": "sky"}


def cityscapes_coarse(folder: Path) -> Mapping[str, str | None]:
    return cityscapes(folder, kind="gtCoarse")


def ade20k(folder: Path) -> Mapping[str, str | None]:
    for split, pictures in (("training", TRAIN), ("validation", VAL)):
        for picture in pictures:
            save(folder / f"images/{split}/{picture.name}.jpg", picture.array())
            save(folder / f"annotations/{split}/{picture.name}.png", picture.labels())
    write(folder / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t3\t1\t0\tcup\n"
                                        "2\t0.1\t3\t1\t0\tfork, pitchfork\n3\t0.1\t3\t1\t1\tplate\n")
    return {BACKGROUND: None}


def masks(folder: Path) -> None:
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        for picture in pictures:
            save(folder / f"images/{split}/{picture.name}.jpg", picture.array())
            save(folder / f"masks/{split}/{picture.name}.png", picture.labels())
    write(folder / "classes.txt", "0 background\n1 cup\n2 fork\n3 plate\n")


def binary_masks(folder: Path) -> Mapping[str, str | None]:
    for picture in (*TRAIN, *VAL):
        save(folder / f"images/{picture.name}.jpg", picture.array())
        save(folder / f"masks/{picture.name}.png", np.where(picture.labels() > 0, 255, 0).astype(np.uint8))
    return dict.fromkeys(NAMES, "foreground")


COLOURS = np.array([(0, 0, 0), (250, 50, 83), (36, 179, 83), (51, 221, 255)], np.uint8)


def colour_masks(folder: Path) -> None:
    """As CVAT writes them."""
    write(folder / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncup:250,50,83::\n"
                                   "fork:36,179,83::\nplate:51,221,255::\n")
    write(folder / "ImageSets/Segmentation/default.txt", "".join(f"{p.name}\n" for p in (*TRAIN, *VAL)))
    for picture in (*TRAIN, *VAL):
        save(folder / f"JPEGImages/{picture.name}.jpg", picture.array())
        save(folder / f"SegmentationClass/{picture.name}.png", COLOURS[picture.labels()])
        save(folder / f"SegmentationObject/{picture.name}.png", COLOURS[picture.labels()])


def voc_labels(folder: Path) -> Mapping[str, str | None]:
    ids = np.array([0, 5, 15, 11], np.uint8)
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        write(folder / f"ImageSets/Segmentation/{split}.txt", "".join(f"{picture.name}\n" for picture in pictures))
        for picture in pictures:
            save(folder / f"JPEGImages/{picture.name}.jpg", picture.array())
            stored = Image.fromarray(ids[picture.labels()], mode="P")
            stored.putpalette([value for colour in VOC_21.colours for value in colour])
            path = folder / f"SegmentationClass/{picture.name}.png"
            path.parent.mkdir(exist_ok=True)
            stored.save(path)
    return {"cup": "bottle", "fork": "person", "plate": "diningtable"}


Writer = Callable[[Path], Mapping[str, str | None] | None]
"""Writes the data set, and gives what the layout calls our classes, None for void, where it has names of its own."""

WRITERS: dict[str, Writer] = {
    "COCO": coco, "Roboflow, COCO": roboflow_coco, "CVAT, COCO": cvat_coco, "Label Studio, COCO": label_studio,
    "COCO's files": coco_files, "PASCAL VOC": voc, "Roboflow, PASCAL VOC": roboflow_voc, "XML files": xml_apart,
    "labelme": labelme, "YOLO": yolo, "YOLO, no data.yaml": yolo_of_label_studio, "Cityscapes": cityscapes,
    "Cityscapes, coarse": cityscapes_coarse, "ADE20K": ade20k, "masks": masks, "black and white masks": binary_masks,
    "colour masks": colour_masks, "PASCAL VOC's label maps": voc_labels,
}

BOXES = [layout for layout in LAYOUTS if layout.boxes]
LABEL_MAPS = [layout for layout in LAYOUTS if layout.label_maps]


def title(layout: Layout) -> str:
    return layout.title


# ---------------------------------------------------------------------------------------------- all layouts


def test_every_layout_has_a_writer() -> None:
    assert len(LAYOUTS) >= 18
    assert sorted(WRITERS) == sorted(layout.title for layout in LAYOUTS)


def found_boxes(index: BoxIndex) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """By image: the class and the box of each object."""
    found = {}
    for i in range(len(index)):
        rows = range(index.offsets[i], index.offsets[i + 1])
        assert index.path(i).is_file()
        with Image.open(index.path(i)) as image:
            assert index.size(i) == (image.height, image.width)
        found[index.path(i).stem] = sorted(
            (index.classes.names[index.labels[row]], tuple(index.boxes[row].round(3).tolist())) for row in rows)
    return found


def expected_boxes(pictures: Sequence[Picture]) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    return {picture.name: sorted((thing.name, tuple(map(float, thing.box_xywh))) for thing in picture.things)
            for picture in pictures}


def sides(part_names: Sequence[PartName]) -> dict[PartName, tuple[Picture, ...]]:
    if "whole" in part_names:
        return {"whole": (*TRAIN, *VAL)}
    return {"train": TRAIN, "val": VAL}


@pytest.mark.parametrize("layout", BOXES, ids=title)
def test_the_same_boxes_are_found_in_every_layout(layout: Layout, tmp_path: Path) -> None:
    WRITERS[layout.title](tmp_path)
    found = read_boxes.find(Place(tmp_path))
    assert found.layout.title == layout.title
    assert found.why
    expected = sides(tuple(found.parts))
    assert found.parts.keys() == expected.keys()
    for name, pictures in expected.items():
        index = found.parts[name]()
        assert index.classes.names == NAMES
        assert not index.faults
        boxes, wanted = found_boxes(index), expected_boxes(pictures)
        assert boxes.keys() == wanted.keys()
        for picture, things in wanted.items():
            assert [name for name, _ in boxes[picture]] == [name for name, _ in things]
            for (_, box), (_, true) in zip(boxes[picture], things, strict=True):
                assert box == pytest.approx(true, abs=1e-3)


@pytest.mark.parametrize("layout", LABEL_MAPS, ids=title)
def test_the_same_label_maps_are_found_in_every_layout(layout: Layout, tmp_path: Path) -> None:
    called = WRITERS[layout.title](tmp_path) or {}
    found = read_labels.find(Place(tmp_path))
    assert found.layout.title == layout.title
    expected = sides(tuple(found.parts))
    assert found.parts.keys() == expected.keys()
    for name, pictures in expected.items():
        index = found.parts[name]()
        assert not index.faults
        assert len(index) == len(pictures)
        by_size = {picture.size: picture for picture in pictures}
        for i in range(len(index)):
            picture = by_size[index.size(i)]
            wanted = [called.get(name, name) for name in (BACKGROUND, *NAMES)]
            table = np.array([VOID if name is None else index.classes.names.index(name) for name in wanted], np.uint8)
            np.testing.assert_array_equal(index.labels(i, picture.size), table[picture.labels()])
            assert index.image(i).shape == (*picture.size, 3)
    if layout.label_maps == "outlines":
        assert index.classes.names == (BACKGROUND, *NAMES)


@pytest.mark.parametrize("layout", LAYOUTS, ids=title)
def test_every_layout_has_a_page_with_its_tree(layout: Layout) -> None:
    assert layout.boxes or layout.label_maps
    assert layout.page.splitlines()[0].endswith(".")
    tree = layout.tree.splitlines()
    assert len(tree) >= 3
    assert not tree[0].startswith(" ")
    assert any(line.startswith("  ") for line in tree) or layout.title == "YOLO, no data.yaml"


@pytest.mark.parametrize("layout", LAYOUTS, ids=title)
def test_the_check_names_the_layout_and_finds_no_problem(layout: Layout, tmp_path: Path) -> None:
    WRITERS[layout.title](tmp_path)
    findings = list(check_place(Place(tmp_path)))
    assert findings[0].text.startswith(f"layout: {layout.title}, because ")
    assert not [finding for finding in findings if finding.level == "problem"]
    notes = [text for level, text in findings if level == "note" and "--val-share" in text]
    whole = "whole" in (read_boxes if layout.boxes else read_labels).find(Place(tmp_path)).parts
    assert len(notes) == whole
