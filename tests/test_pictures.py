"""Pictures: what is drawn where, sheets without distortion, files complete or absent."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detseg.interfaces import VOID, Classes, ImageDetections, LabelPixels, Pixels
from detseg.report.pictures import contact_sheet, draw_boxes, draw_labels, write_labels, write_picture

RED, BLUE = (250, 30, 20), (20, 40, 240)
CLASSES = Classes(("cat", "a class with quite a long name"), (1, 18), (RED, BLUE))


def plain(height: int, width: int, value: int = 127) -> Pixels:
    return np.full((height, width, 3), value, dtype=np.uint8)


def detections(*rows: tuple[float, float, float, float, float, int]) -> ImageDetections:
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return ImageDetections(1, table[:, :4].float(), table[:, 4].float(), table[:, 5].long())


def has(image: Pixels, colour: tuple[int, int, int]) -> bool:
    return bool((image == np.array(colour, dtype=np.uint8)).all(axis=2).any())


def test_the_box_lies_where_it_should_in_the_colour_of_its_class() -> None:
    image = plain(240, 320)
    picture = draw_boxes(image, detections((100, 80, 220, 160, 0.9, 0)), CLASSES, threshold=0.5)
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    for x, y in ((100, 120), (220, 120), (160, 80), (160, 160)):
        assert tuple(picture[y, x]) == RED, "RGB in and out, on all four sides"
    assert (picture[100:140, 120:200] == 127).all(), "nothing inside"
    assert (picture[190:] == 127).all()
    assert (picture[:, 240:] == 127).all()
    assert tuple(picture[74, 101]) == RED, "the label on top of the box"


def test_the_image_is_not_modified_even_if_it_is_a_view() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    mirrored = image[:, ::-1]
    before = image.copy()
    draw_boxes(mirrored, detections((10, 30, 60, 80, 0.9, 0)), CLASSES, threshold=0.5)
    assert (image == before).all()
    image.flags.writeable = False
    assert (draw_boxes(image, detections(), CLASSES, threshold=0.5) == image).all()


def test_only_boxes_of_at_least_the_threshold_are_drawn() -> None:
    prediction = detections((10, 30, 60, 80, 0.75, 0), (100, 30, 160, 80, 0.5, 1), (100, 100, 160, 140, 0.25, 1))
    image = plain(160, 200)
    assert (draw_boxes(image, prediction, CLASSES, threshold=0.8) == image).all()
    picture = draw_boxes(image, prediction, CLASSES, threshold=0.75)
    assert has(picture, RED)
    assert not has(picture, BLUE)
    picture = draw_boxes(image, prediction, CLASSES, threshold=0.5)
    assert has(picture, BLUE)
    assert (picture[110:] == 127).all()


def test_the_surest_lies_on_top() -> None:
    box = (20, 30, 120, 90)
    for first, second, colour in ((0.9, 0.8, RED), (0.8, 0.9, BLUE)):
        picture = draw_boxes(plain(120, 160), detections((*box, first, 0), (*box, second, 1)), CLASSES, threshold=0.5)
        assert tuple(picture[60, 20]) == colour


@pytest.mark.parametrize("value", [0, 127, 255, 250])
def test_a_box_is_seen_on_any_background(value: int) -> None:
    grey = Classes(("thing",), (1,), ((value, value, value),))
    picture = draw_boxes(plain(240, 320, value), detections((100, 80, 220, 160, 0.9, 0)), grey, threshold=0.5)
    across = picture[120, 90:110, 0].astype(int)
    assert across.max() - across.min() > 100 or value == 0
    label = picture[60:80, 100:160, 0].astype(int)
    assert label.max() - label.min() > 100, "letters that cannot be read"


def test_lines_and_letters_grow_with_the_image() -> None:
    def coloured(scale: int) -> float:
        box = (30.0 * scale, 40.0 * scale, 120.0 * scale, 90.0 * scale)
        picture = draw_boxes(plain(120 * scale, 160 * scale), detections((*box, 0.9, 0)), CLASSES, threshold=0.5)
        return float((picture != 127).any(axis=2).mean())

    assert coloured(4) == pytest.approx(coloured(12), rel=0.35)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(16, 200), width=st.integers(16, 200), left=st.floats(-300, 300), top=st.floats(-300, 300),
       box_width=st.floats(0, 300), box_height=st.floats(0, 300), label=st.integers(0, 1))
def test_every_label_is_complete_inside_the_image(
    height: int, width: int, left: float, top: float, box_width: float, box_height: float, label: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        filled: list[tuple[int, int, int, int]] = []
        written: list[tuple[int, int]] = []
        rectangle, put_text = cv2.rectangle, cv2.putText

        def watched(image: Pixels, start: tuple[int, int], stop: tuple[int, int], *rest: Any) -> None:
            if rest[1] == cv2.FILLED:
                filled.append((*start, *stop))
            rectangle(image, start, stop, *rest)

        def watched_text(image: Pixels, text: str, origin: tuple[int, int], *rest: Any) -> None:
            written.append(origin)
            put_text(image, text, origin, *rest)

        patch.setattr(cv2, "rectangle", watched)
        patch.setattr(cv2, "putText", watched_text)
        box = (left, top, left + box_width, top + box_height)
        draw_boxes(plain(height, width), detections((*box, 0.9, label)), CLASSES, threshold=0.5)

    [(x1, y1, x2, y2)], [(x, y)] = filled, written
    assert 0 <= x1 < x < x2 < width
    assert 0 <= y1 < y <= y2 < height


def test_a_label_hides_no_other_where_there_is_room() -> None:
    # Three boxes that touch: labels on top of each would cover each other.
    rows = [(100.0 + 12 * k, 100.0, 108.0 + 12 * k, 110.0, 0.9 - 0.1 * k, k % 2) for k in range(3)]
    picture = draw_boxes(plain(240, 320), detections(*rows), CLASSES, threshold=0.5)
    for k in range(3):
        inside = picture[103:107, 103 + 12 * k:105 + 12 * k]
        assert (inside == 127).all(), "an object is hidden behind a label"


MANY = Classes(tuple(f"class number {k}" for k in range(30)), tuple(range(30)))


def halves(height: int, width: int, *, left: int, right: int) -> LabelPixels:
    labels = np.full((height, width), left, dtype=np.uint8)
    labels[:, width // 2:] = right
    return labels


class Legend:
    """What is filled and written while it is watched: names, their rectangles (x1, y1, x2, y2), base lines, colours."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.words: list[str] = []
        self.places: list[tuple[int, int, int, int]] = []
        self.base_lines: list[int] = []
        self.colours: list[tuple[int, int, int]] = []
        rectangle, put_text = cv2.rectangle, cv2.putText

        def watched(image: Pixels, start: tuple[int, int], stop: tuple[int, int], *rest: Any) -> None:
            self.places.append((*start, *stop))
            self.colours.append(rest[0])
            rectangle(image, start, stop, *rest)

        def watched_text(image: Pixels, text: str, origin: tuple[int, int], *rest: Any) -> None:
            self.words.append(text)
            self.base_lines.append(origin[1])
            put_text(image, text, origin, *rest)

        patch.setattr(cv2, "rectangle", watched)
        patch.setattr(cv2, "putText", watched_text)


@pytest.fixture
def legend(monkeypatch: pytest.MonkeyPatch) -> Legend:
    return Legend(monkeypatch)


def test_classes_lie_over_the_image_with_a_line_between_them_and_void_stays() -> None:
    labels = halves(120, 160, left=0, right=1)
    labels[:40, :40] = VOID
    picture = draw_labels(plain(120, 160, 200), labels, CLASSES)
    assert picture.shape == (120, 160, 3)
    assert (picture[:39, :39] == 200).all()
    for (y, x), colour in (((60, 20), RED), ((60, 140), BLUE)):
        assert picture[y, x].tolist() == pytest.approx([0.45 * 200 + 0.55 * value for value in colour], abs=1)
    dark = (picture[:100] == 16).all(axis=2)
    rows, columns = dark.nonzero()
    assert set(columns[rows > 50].tolist()) == {80}, "one thin line between the classes"
    assert dark[20, 38:42].sum() == 1, "and around void"


def test_the_labelled_image_is_not_modified_even_if_it_is_a_view() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image.flags.writeable = False
    labels = np.full((90, 120), VOID, dtype=np.uint8)
    assert (draw_labels(image[:, ::-1], labels, CLASSES) == image[:, ::-1]).all(), "nothing is known, nothing is drawn"
    draw_labels(image[:, ::-1], halves(90, 120, left=0, right=1), CLASSES)


def test_the_legend_names_the_classes_of_the_picture_largest_first(legend: Legend) -> None:
    labels = halves(240, 320, left=7, right=2)
    labels[:, 200:] = 11
    draw_labels(plain(240, 320), labels, MANY)
    assert legend.words == ["class number 7", "class number 11", "class number 2"]
    assert legend.colours == [MANY.colours[k] for k in (7, 11, 2)]
    assert len(set(legend.base_lines)) == 1
    assert [place[0] for place in legend.places[1:]] == [place[2] + 1 for place in legend.places[:-1]], "no gaps"
    assert {place[3] for place in legend.places} == {239}, "at the lower edge"


def test_the_legend_goes_where_it_hides_fewer_borders(legend: Legend) -> None:
    labels = np.zeros((240, 320), dtype=np.uint8)
    labels[200:, ::9] = 1
    draw_labels(plain(240, 320), labels, CLASSES)
    assert legend.words == list(CLASSES.names)
    assert {place[1] for place in legend.places} == {0}, "at the upper edge"


def test_a_legend_that_would_hide_too_much_tells_how_many_are_left_out(legend: Legend) -> None:
    labels = (np.arange(240 * 320).reshape(240, 320) % 30).astype(np.uint8)
    draw_labels(plain(240, 320), labels, MANY)
    named = len(legend.words) - 1
    assert legend.words == [*(f"class number {k}" for k in range(named)), f"+{30 - named}"]
    assert legend.colours[-1] == (255, 255, 255)
    assert 3 < named < 30
    top, bottom = min(place[1] for place in legend.places), max(place[3] for place in legend.places)
    assert bottom - top < 240 / 3


@settings(max_examples=40, deadline=None)
@given(height=st.integers(8, 200), width=st.integers(8, 200), seed=st.integers(0, 99))
@example(height=11, width=65, seed=0)  # a size of letters that was a pixel too wide, and stayed so
def test_the_legend_is_complete_inside_the_image(height: int, width: int, seed: int) -> None:
    labels = np.random.default_rng(seed).choice(np.array([1, 4, 29, VOID], dtype=np.uint8), size=(height, width))
    with pytest.MonkeyPatch.context() as patch:
        legend = Legend(patch)
        draw_labels(plain(height, width), labels, MANY)
    assert legend.words
    for (x1, y1, x2, y2), base_line in zip(legend.places, legend.base_lines, strict=True):
        assert 0 <= x1 < x2 < width
        assert 0 <= y1 < base_line <= y2 < height
    for (_, y1, x2, _), (x1, other, *_) in zip(legend.places, legend.places[1:], strict=False):
        assert (x1 == x2 + 1 and other == y1) or (x1 == 0 and other > y1)


def test_lines_between_classes_grow_with_the_image() -> None:
    def thickness(scale: int) -> int:
        labels = halves(360 * scale, 480 * scale, left=0, right=1)
        picture = draw_labels(plain(360 * scale, 480 * scale, 200), labels, CLASSES)
        return int((picture[180 * scale] == 16).all(axis=1).sum())

    assert (thickness(1), thickness(4)) == (1, 3)


def test_written_labels_read_back_as_they_are(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    write_labels(tmp_path / "new" / "labels.png", labels)
    read = cv2.imread(str(tmp_path / "new" / "labels.png"), cv2.IMREAD_UNCHANGED)
    assert read is not None
    assert read.dtype == np.uint8
    assert np.array_equal(read, labels)
    with pytest.raises(AssertionError, match="other formats change values"):
        write_labels(tmp_path / "labels.jpg", labels)


def test_a_sheet_keeps_every_aspect_ratio() -> None:
    sizes = [(100, 200), (200, 100), (64, 64), (480, 640), (30, 300)]
    images = [plain(*size, value=10 + 40 * k) for k, size in enumerate(sizes)]
    sheet = contact_sheet(images, columns=3, width=900)
    assert sheet.shape[1] == 900
    for k, (height, width) in enumerate(sizes):
        rows, columns = (sheet == 10 + 40 * k).all(axis=2).nonzero()
        shown_height, shown_width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == shown_height * shown_width, "not a rectangle"
        assert shown_width / shown_height == pytest.approx(width / height, rel=1.5 / min(shown_width, shown_height))
    top = (sheet[:, :, 0] == 10).nonzero()
    assert (top[0].min(), top[1].min()) == (8, 8), "the first in the upper left"
    assert (sheet[-8:] == 255).all()
    assert (sheet[:, -8:] == 255).all()


def test_a_row_fills_the_width_and_a_short_last_row_is_no_higher() -> None:
    sheet = contact_sheet([plain(60, 80, 9)] * 7, columns=4, width=640)
    full, last = sheet[10], sheet[-20]
    assert np.count_nonzero((full == 9).all(axis=1)) == 640 - 5 * 8
    assert np.count_nonzero((last == 9).all(axis=1)) == pytest.approx(3 * (640 - 5 * 8) / 4, abs=2)


def test_one_image_is_a_sheet() -> None:
    sheet = contact_sheet([plain(60, 80, 9)], columns=4, width=96)
    assert sheet.shape == (8 + 60 + 8, 96, 3)
    assert (sheet[8:68, 8:88] == 9).all()


def test_what_a_sheet_refuses() -> None:
    with pytest.raises(ValueError, match="a sheet needs at least one image, got none"):
        contact_sheet([], columns=4)
    for columns in (0, 5):
        with pytest.raises(ValueError, match=f"a sheet 120 pixels wide has 1 to 4 columns, not {columns}; ask for"):
            contact_sheet([plain(4, 4)] * 9, columns=columns, width=120)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_written_picture_reads_back(suffix: str, tmp_path: Path) -> None:
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    image[..., 0] = np.linspace(0, 255, 30)
    path = tmp_path / "new" / f"picture{suffix}"
    write_picture(path, image)
    write_picture(path, image)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    read = cv2.imread(str(path))
    assert read is not None
    assert np.abs(read[..., ::-1].astype(int) - image).max() <= (0 if suffix == ".png" else 12)


@pytest.mark.parametrize("name", ["picture", "picture.txt", "picture.unknown"])
def test_a_suffix_without_a_format_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no picture format has the suffix '.*' of .*; name it .png or .jpg"):
        write_picture(tmp_path / name, plain(4, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["write_bytes", "replace", "mkdir"])
def test_a_failed_write_leaves_what_was_there(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    path.write_text("before")
    original: Callable[..., object] = getattr(Path, failing)

    def full(self: Path, *arguments: object, **options: object) -> None:
        if failing == "write_bytes":
            original(self, b"half a pict")
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, failing, full)
    with pytest.raises(OSError, match=r"the picture was not written \(Read-only .*\); the one from .*/picture.png"):
        write_picture(path, plain(4, 4))
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["before"]


@pytest.mark.real
def test_real_images_with_their_true_boxes(shared: Path) -> None:
    folder = shared / "data" / "coco_mini"
    truth = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    classes = Classes(tuple(c["name"] for c in truth["categories"]), tuple(c["id"] for c in truth["categories"]))
    pictures = []
    for entry in truth["images"][:8]:
        image = cv2.imread(str(folder / "val2017" / entry["file_name"]))
        assert image is not None
        boxes = [(x, y, x + w, y + h, 1.0, classes.source_ids.index(a["category_id"]))
                 for a in truth["annotations"] if a["image_id"] == entry["id"] for x, y, w, h in [a["bbox"]]]
        pictures.append(draw_boxes(image[..., ::-1], detections(*boxes), classes, threshold=0.5))
    assert contact_sheet(pictures, columns=4).shape[1] == 1600


@pytest.mark.real
def test_real_images_with_their_true_labels(shared: Path) -> None:
    folder = shared / "data" / "camvid"
    names = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
    classes, pictures = Classes(names, tuple(range(11))), []
    for path in sorted((folder / "masks" / "val").iterdir())[:4]:
        image = cv2.imread(str(folder / "images" / "val" / f"{path.stem}.jpg"))
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert stored is not None
        labels = np.where(stored == 11, VOID, stored).astype(np.uint8)
        pictures.append(draw_labels(image[..., ::-1], labels, classes))
        assert pictures[-1].shape == (360, 480, 3)
    assert contact_sheet(pictures, columns=4).shape[1] == 1600
