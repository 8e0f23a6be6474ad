"""labelme's files: which shapes are objects, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from detseg.data.layouts import read_boxes, read_labels
from detseg.data.layouts.layout import Place

from .crockery import save, write


def shape(
    label: str, points: Sequence[Sequence[object]], kind: str = "polygon", *, group: int | None = None
) -> dict[str, object]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": {}}


def labelme_file(folder: Path, name: str, *shapes: dict[str, object], size: bool = True) -> None:
    """An image of 40 x 80 and its file."""
    save(folder / f"{name}.png", np.zeros((40, 80, 3), np.uint8))
    write(folder / f"{name}.json", json.dumps({
        "version": "5.0.1", "shapes": list(shapes), "imagePath": f"{name}.png",
        "imageData": None, "imageHeight": 40 if size else None, "imageWidth": 80 if size else None}))


def test_labelmes_shapes_are_objects(tmp_path: Path) -> None:
    labelme_file(
        tmp_path, "a", shape("cup", [[30, 5], [10, 25]], "rectangle"), shape("cup", [[40, 20], [40, 30]], "circle"),
        shape("fork", [[0, 0], [4, 0], [4, 8]], group=3), shape("fork", [[10, 0], [14, 0], [14, 8]], group=3),
        shape("fork", [[1, 1]], "point"), shape("nothing", [[1, 1], [2, 2]], "line"), size=False)
    labelme_file(tmp_path, "b")
    (tmp_path / "b.json").write_text(json.dumps({"shapes": [{"label": "cup", "points": [[0, 0], [4, 0], [4, 4]]}],
                                                 "imagePath": "..\\photos\\B.PNG", "imageData": None}))
    save(tmp_path / "unlabelled.png", np.zeros((4, 4, 3), np.uint8))
    index = read_boxes.find(Place(tmp_path)).parts["whole"]()
    assert index.classes.names == ("cup", "fork")
    assert index.boxes[0].tolist() == [10, 5, 20, 20]
    assert index.boxes[1].tolist() == pytest.approx([30, 10, 20, 20], abs=0.2)
    assert index.areas[1] == pytest.approx(np.pi * 100, rel=0.05)
    assert index.boxes[2:].tolist() == [[0, 0, 14, 8], [0, 0, 4, 4]]
    assert index.size(0) == (40, 80)
    assert not index.faults
    assert {"1 of 3 images have no JSON file, and are left out: one without objects needs a file without shapes",
            "1 shapes of the kind line are no objects", "1 shapes of the kind point are no objects"} <= {*index.notes}
    labels = read_labels.find(Place(tmp_path)).parts["whole"]()
    drawn = labels.labels(0, (40, 80))
    assert (drawn[15, 20], drawn[20, 40], drawn[1, 3], drawn[1, 13], drawn[35, 70]) == (1, 1, 2, 2, 0)


@pytest.mark.parametrize(("content", "reasons"), [
    ("{", ["broken JSON at line 1, column 2"]),
    ('{"imagePath": "x", "shapes": {}}', ["it has no list of 'shapes'; is it a file of labelme?"]),
    ([shape("", [[0, 0], [1, 0], [1, 1]]), 3], ["shape 1: it has no label", "shape 2: need an object {...}, got 3"]),
    ([shape("cup", [[0, 0], [1, 0]])], ["shape 1: a polygon has at least 3 points that are numbers"]),
    ([shape("cup", [[0, "x"]])], ["shape 1: its points must be [[x, y], ...]"]),
    ([shape("cup", [[0, 0]], "star")], ["shape 1: its kind is 'star'; known are rectangle, polygon, circle, mask"]),
])
def test_what_is_wrong_with_a_file_of_labelme_is_a_fault(tmp_path: Path, content: object, reasons: list[str]) -> None:
    labelme_file(tmp_path, "a", shape("cup", [[0, 0], [4, 0], [4, 4]]))
    labelme_file(tmp_path, "b")
    text = content if isinstance(content, str) else json.dumps({"shapes": content, "imagePath": "b.png"})
    write(tmp_path / "b.json", text if '"shapes"' in text else '{"shapes" "imagePath"')
    index = read_boxes.find(Place(tmp_path)).parts["whole"]()
    assert len(index) == 1
    assert [fault.where for fault in index.faults] == [str(tmp_path / "b.json")] * len(reasons)
    for fault, reason in zip(index.faults, reasons, strict=True):
        assert fault.reason.startswith(reason[:24])


def test_a_file_of_labelme_without_its_image_is_a_fault(tmp_path: Path) -> None:
    labelme_file(tmp_path, "a", shape("cup", [[0, 0], [4, 0], [4, 4]]))
    labelme_file(tmp_path, "b", shape("fork", [[0, 0], [4, 0], [4, 4]]))
    (tmp_path / "b.png").unlink()
    index = read_boxes.find(Place(tmp_path)).parts["whole"]()
    assert index.classes.names == ("cup", "fork")
    (fault,) = index.faults
    assert fault.where == str(tmp_path / "b.json")
    assert fault.reason.endswith("labelme's own copy in the file is not read. Add the image, or remove the file")


def test_labelme_without_objects_or_outlines_is_refused(tmp_path: Path) -> None:
    labelme_file(tmp_path, "a")
    with pytest.raises(ValueError, match=r"none of the 1 files of labelme in .* has an object; nothing to learn"):
        read_boxes.find(Place(tmp_path)).parts["whole"]()
    labelme_file(tmp_path, "a", shape("cup", [[0, 0], [4, 4]], "rectangle"))
    with pytest.raises(ValueError, match=r"labelme's files of .* has boxes only, no outlines"):
        read_labels.find(Place(tmp_path)).parts["whole"]()
