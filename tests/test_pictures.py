"""Pictures: what is drawn where, sheets without distortion, files complete or absent."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detseg.data.images import read_image
from detseg.report.pictures import (
    contact_sheet,
    draw,
    draw_boxes,
    draw_labels,
    write_labels,
    write_picture,
    write_small_picture,
)
from detseg.structures import VOID, Classes, ImageDetections, ImageLabels, LabelPixels, Pixels, Size

from .commands import run

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


def letters(picture: Pixels, colour: tuple[int, int, int]) -> tuple[NDArray[np.bool_], Pixels]:
    """The words of a label of `colour`, which are white, on a black picture: which pixels they have within the
    rectangle that they fill, and that rectangle with the pixels next to it."""
    darkest = int(np.argmin(colour))
    bright = picture[..., darkest] > colour[darkest] + 30
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert 0 < top < bottom < len(picture), "letters at the edge"
    assert 0 < left < right < picture.shape[1], "letters at the edge"
    return bright[top:bottom, left:right], picture[top - 1 : bottom + 1, left - 1 : right + 1]


@settings(max_examples=60, deadline=None)
@given(height=st.integers(16, 200), width=st.integers(64, 200), left=st.floats(-300, 300), top=st.floats(-300, 300),
       box_width=st.floats(0, 300), box_height=st.floats(0, 300), name=st.sampled_from(["cat", "a longer name"]))
def test_every_label_is_complete_inside_the_image(
    height: int, width: int, left: float, top: float, box_width: float, box_height: float, name: str
) -> None:
    """Wherever the box is, the same words are seen, on the colour of the class and not at the image's edge."""
    classes = Classes((name,), (1,), (RED,))

    def shape(box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
        picture = draw_boxes(plain(height, width, 0), detections((*box, 0.9, 0)), classes, threshold=0.5)
        found, around = letters(picture, RED)
        assert (around[..., 0] >= RED[0]).all(), "words beyond their label"
        return found

    somewhere = shape((left, top, left + box_width, top + box_height))
    np.testing.assert_array_equal(somewhere, shape((0.3 * width, 0.5 * height, 0.6 * width, height)))


def test_a_label_says_class_and_score() -> None:
    def words(name: str, score: float) -> bytes:
        classes = Classes((name,), (1,), (RED,))
        shape, _ = letters(draw_boxes(plain(240, 320, 0), detections((100, 80, 220, 160, score, 0)), classes,
                                      threshold=0.0), RED)
        return shape.tobytes()

    assert words("cat", 0.9) == words("cat", 0.9)
    assert words("cat", 0.899) == words("cat", 0.9), "two digits"
    assert len({words("cat", 0.9), words("cow", 0.9), words("cat", 0.8), words("cat", 0.91)}) == 4


def test_a_label_hides_no_other_where_there_is_room() -> None:
    # Three boxes that touch: labels on top of each would cover each other.
    rows = [(100.0 + 12 * k, 100.0, 108.0 + 12 * k, 110.0, 0.9 - 0.1 * k, k % 2) for k in range(3)]
    picture = draw_boxes(plain(240, 320), detections(*rows), CLASSES, threshold=0.5)
    for k in range(3):
        inside = picture[103:107, 103 + 12 * k:105 + 12 * k]
        assert (inside == 127).all(), "an object is hidden behind a label"


MANY = Classes(tuple(f"class number {k}" for k in range(30)), tuple(range(30)),
               tuple((200 + k, 255 - 3 * k, 120) for k in range(30)))
"""Of bright colours, so that their names are dark and only what is left out stands on white."""


def halves(height: int, width: int, *, left: int, right: int) -> LabelPixels:
    labels = np.full((height, width), left, dtype=np.uint8)
    labels[:, width // 2:] = right
    return labels


class Tile(NamedTuple):
    """The rectangle of a name in a legend, the last pixels included."""

    left: int
    top: int
    right: int
    bottom: int

    def of(self, picture: Pixels) -> Pixels:
        return picture[self.top : self.bottom + 1, self.left : self.right + 1]


WHITE = (255, 255, 255)


def tile(picture: Pixels, colour: tuple[int, int, int]) -> Tile | None:
    """Where the legend has a name on this colour; None where it has not. Beside the legend all colours are mixed."""
    pure = (picture == np.array(colour, dtype=np.uint8)).all(axis=2)
    rows, columns = np.flatnonzero(pure.any(axis=1)), np.flatnonzero(pure.any(axis=0))
    return Tile(int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])) if len(rows) else None


def words(picture: Pixels, colour: tuple[int, int, int]) -> Pixels:
    """What is written on this colour of the legend, without its margin."""
    found = tile(picture, colour)
    assert found is not None, f"nothing stands on {colour}"
    shown = found.of(picture)
    ink = (shown != np.array(colour, dtype=np.uint8)).any(axis=2)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def alone(text: str, colour: tuple[int, int, int], size: Size) -> Pixels:
    """How the legend of an image of this size writes the only name there is."""
    return words(draw_labels(plain(*size), np.zeros(size, dtype=np.uint8), Classes((text,), (0,), (colour,))), colour)


def assert_says(picture: Pixels, text: str, colour: tuple[int, int, int]) -> Tile:
    """The legend has the text on this colour, and nothing else on it."""
    np.testing.assert_array_equal(words(picture, colour), alone(text, colour, (picture.shape[0], picture.shape[1])))
    found = tile(picture, colour)
    assert found is not None
    return found


def assert_name(picture: Pixels, classes: Classes, k: int) -> Tile:
    """The legend has the name of class k, on its colour."""
    return assert_says(picture, classes.names[k], classes.colours[k])


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


def test_words_are_told_apart() -> None:
    """What the tests of the legend rely on."""
    texts = ["class number 7", "class number 2", "class number 27", "+7", "+2"]
    assert len({alone(text, RED, (240, 320)).tobytes() for text in texts}) == len(texts)


def test_the_legend_names_the_classes_of_the_picture_largest_first() -> None:
    labels = halves(240, 320, left=7, right=2)
    labels[:, 200:] = 11
    picture = draw_labels(plain(240, 320), labels, MANY)
    tiles = [assert_name(picture, MANY, k) for k in (7, 11, 2)]
    assert [one.left for one in tiles] == [0, *(one.right + 1 for one in tiles[:-1])], "no gaps"
    assert {one.bottom for one in tiles} == {239}, "at the lower edge"
    assert len({one.top for one in tiles}) == 1
    assert [k for k, colour in enumerate(MANY.colours) if has(picture, colour)] == [2, 7, 11]


def test_the_legend_goes_where_it_hides_fewer_borders() -> None:
    labels = np.zeros((240, 320), dtype=np.uint8)
    labels[200:, ::9] = 1
    picture = draw_labels(plain(240, 320), labels, CLASSES)
    assert {assert_name(picture, CLASSES, k).top for k in (0, 1)} == {0}, "at the upper edge"


def test_a_legend_that_would_hide_too_much_tells_how_many_are_left_out() -> None:
    labels = (np.arange(240 * 320).reshape(240, 320) % 30).astype(np.uint8)
    picture = draw_labels(plain(240, 320), labels, MANY)
    named = [k for k, colour in enumerate(MANY.colours) if has(picture, colour)]
    assert named == list(range(len(named)))
    assert 3 < len(named) < 30
    tiles = [assert_name(picture, MANY, k) for k in named]
    tiles.append(assert_says(picture, f"+{30 - len(named)}", WHITE))
    assert max(one.bottom for one in tiles) - min(one.top for one in tiles) + 1 <= 240 / 3
    assert tiles[-1].bottom == tiles[-2].bottom, "the last of the last line"
    assert tiles[-1].left == tiles[-2].right + 1


@settings(max_examples=40, deadline=None)
@given(height=st.integers(8, 200), width=st.integers(8, 200), seed=st.integers(0, 99))
@example(height=11, width=65, seed=0)  # a size of letters that was a pixel too wide, and stayed so
def test_the_legend_is_complete_inside_the_image(height: int, width: int, seed: int) -> None:
    labels = np.random.default_rng(seed).choice(np.array([1, 4, 29, VOID], dtype=np.uint8), size=(height, width))
    picture = draw_labels(plain(height, width), labels, MANY)
    largest_first = sorted((1, 4, 29), key=lambda k: (-int((labels == k).sum()), k))
    colours = [*(MANY.colours[k] for k in largest_first), WHITE]
    tiles = [one for colour in colours if (one := tile(picture, colour)) is not None]
    assert tiles
    for one in tiles:
        shown = one.of(picture)
        colour = shown[-1, 0]
        # The words have a margin all around, so nothing of them is cut off. Nobody reads letters of three pixels.
        for edge in (shown[0], shown[-1], shown[:, 0], shown[:, -1]):
            assert (edge == colour).all() or len(shown) < 7
    for before, after in pairwise(tiles):
        assert (after.left == before.right + 1 and after.top == before.top) or (
            after.left == 0 and after.top == before.bottom + 1)


def test_lines_between_classes_grow_with_the_image() -> None:
    def thickness(scale: int) -> int:
        labels = halves(360 * scale, 480 * scale, left=0, right=1)
        picture = draw_labels(plain(360 * scale, 480 * scale, 200), labels, CLASSES)
        return int((picture[180 * scale] == 16).all(axis=1).sum())

    assert (thickness(1), thickness(4)) == (1, 3)


def test_every_prediction_is_drawn_as_its_kind_is() -> None:
    image, boxes = plain(120, 160), detections((20, 30, 120, 90, 0.9, 0), (20, 40, 120, 100, 0.4, 1))
    drawn = draw(boxes, image, CLASSES, threshold=0.5)
    assert np.array_equal(drawn, draw_boxes(image, boxes, CLASSES, threshold=0.5))
    assert has(drawn, RED)
    assert not has(drawn, BLUE), "below the threshold"
    labels = halves(120, 160, left=0, right=1)
    drawn = draw(ImageLabels(1, labels), image, CLASSES, threshold=1.0)
    assert np.array_equal(drawn, draw_labels(image, labels, CLASSES)), "label maps have no scores"
    assert not np.array_equal(drawn, image)
    with pytest.raises(TypeError, match="nobody knows how to draw a dict"):
        draw({}, image, CLASSES, threshold=0.5)


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


def test_a_small_picture_needs_no_more_bytes_than_allowed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 800, 3), dtype=np.uint8)
    path = tmp_path / "docs" / "small.jpg"
    write_small_picture(path, noise, width=400, most_bytes=10**6)
    assert read_image(path).shape == (150, 400, 3)
    write_small_picture(path, noise, width=400, most_bytes=12_000)
    assert path.stat().st_size <= 12_000
    assert 160 <= read_image(path).shape[1] < 400
    write_small_picture(path, noise[:, :200], width=400, most_bytes=10**6)
    assert read_image(path).shape == (300, 200, 3), "never larger than it was"
    with pytest.raises(ValueError, match="500 bytes are not enough for a picture 160 pixels wide; allow more"):
        write_small_picture(path, noise, width=400, most_bytes=500)
    with pytest.raises(ValueError, match=r"a small picture is a JPEG; name .*a\.png \.jpg"):
        write_small_picture(tmp_path / "a.png", noise, width=400, most_bytes=500)


def test_a_small_picture_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(tmp_path / "run" / "predictions.jpg", np.zeros((300, 600, 3), np.uint8))
    out = tmp_path / "small.jpg"
    code, said, _ = run("small_picture", str(tmp_path / "run"), str(out), "--width", "300", capsys=capsys)
    assert (code, said) == (0, f"written: {out}, {out.stat().st_size / 1024:.0f} KB\n")
    assert read_image(out).shape == (150, 300, 3)
    code, _, error = run("small_picture", str(tmp_path), str(out), capsys=capsys)
    assert code == 2
    assert "no image predictions.jpg" in error
