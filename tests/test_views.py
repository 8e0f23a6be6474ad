"""Test-time augmentation and tiles: with a network that finds exactly what is drawn, and with networks at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from detseg.interfaces import Task
from detseg.model import Predictor
from detseg.predict import Network, predict_image
from detseg.resize import AsItIs, Resize, Stretch
from detseg.structures import Classes, DenseLogits, Detections, ImageDetections, Pixels, Size
from detseg.tasks.classification import Classification
from detseg.tasks.detection import Detection
from detseg.tasks.segmentation import Segmentation
from detseg.views import Views, parse_tile, parse_tta, with_views
from tests import discovery, tiny_segmenter
from tests.conftest import ROOT

CLASSES = Classes(names=("red", "green"), source_ids=(1, 2))
TASK = Detection(score_threshold=0.01, iou_threshold=0.5)
SIDE = 64


@dataclass(frozen=True)
class Nearest(Stretch):
    """Makes no colours that are not there."""

    def apply(self, image: Pixels) -> NDArray[np.float32]:
        resized: NDArray[np.float32] = cv2.resize(
            image, (self.size[1], self.size[0]), interpolation=cv2.INTER_NEAREST).astype(np.float32)
        return resized


class Seer:
    """Finds the bounding box of every colour, cut where the image ends; tiles of 64 x 64 keep their size."""

    classes, device, form = CLASSES, torch.device("cpu"), "seer"
    resize: Resize = Nearest((SIDE, SIDE), fill=(0, 0, 0))

    def __init__(self) -> None:
        self.seen: list[Pixels] = []

    def ready(self) -> Self:
        return self

    def decode(self, images: Tensor, /, *, static: bool = False) -> Any:
        raise AssertionError("boxes are merged when they are final")

    def finished(self, images: Tensor, task: Task[Any, Any, Any, Any], /, *, static: bool = False) -> Detections:
        """Red tells the object's number (in steps of 20), green its class."""
        pixels = images[0].round().long()
        self.seen.append(pixels.permute(1, 2, 0).numpy().astype(np.uint8))
        boxes, scores, labels = [], [], []
        for number in range(20, 256, 20):
            rows, columns = (pixels[0] == number).nonzero(as_tuple=True)
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                scores.append(number / 256)
                labels.append(int(pixels[1, rows[0], columns[0]] > 100))
        found = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4)
        return Detections(found, torch.tensor([scores]).reshape(1, -1), torch.tensor([labels]).long().reshape(1, -1),
                          torch.tensor([len(boxes)]))


def painted(size: Size, boxes: list[tuple[int, int, int, int]]) -> Pixels:
    """Boxes (left, top, right, bottom) of their own red, and green for every other one."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    for k, (left, top, right, bottom) in enumerate(boxes):
        image[top:bottom, left:right] = (20 * (k + 1), 200 * (k % 2), 255)
    return image


def found_boxes(found: ImageDetections) -> list[tuple[float, ...]]:
    """As `painted` takes them, ordered by their colour's score."""
    order = found.scores.argsort()
    return [tuple(box) for box in found.boxes[order].tolist()]


def disjoint(boxes: list[tuple[int, int, int, int]]) -> bool:
    return all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
               for i, a in enumerate(boxes) for b in boxes[:i])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_object_that_fits_the_overlap_is_found_once_and_whole(data: st.DataObject) -> None:
    size = (data.draw(st.integers(SIDE, 200)), data.draw(st.integers(SIDE, 200)))
    overlap = data.draw(st.sampled_from([0.25, 0.4, 0.5]))
    views = Views(flip=data.draw(st.booleans()), tile=(SIDE, SIDE), overlap=overlap)
    most = int(7 / 8 * views.overlap * SIDE)
    boxes = []
    for _ in range(data.draw(st.integers(0, 6))):
        height, width = data.draw(st.integers(2, most)), data.draw(st.integers(2, most))
        left, top = data.draw(st.integers(0, size[1] - width)), data.draw(st.integers(0, size[0] - height))
        boxes.append((left, top, left + width, top + height))
    assume(disjoint(boxes))
    found = predict_image(with_views(Seer(), TASK, views), TASK, painted(size, boxes))
    assert found_boxes(found) == boxes
    assert found.labels[found.scores.argsort()].tolist() == [k % 2 for k in range(len(boxes))]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_object_of_any_size_is_found_once_and_whole(data: st.DataObject) -> None:
    """In one tile, in several, or in all of them: to the pixel, or to that of the image made smaller. Of thinner ones
    the smaller image would show another box, by suppression's measure."""
    size = (data.draw(st.integers(SIDE, 200)), data.draw(st.integers(SIDE, 200)))
    left, top = data.draw(st.integers(0, size[1] - 16)), data.draw(st.integers(0, size[0] - 16))
    right, bottom = data.draw(st.integers(left + 16, size[1])), data.draw(st.integers(top + 16, size[0]))
    views = Views(tile=(SIDE, SIDE), overlap=data.draw(st.sampled_from([0.2, 0.5])))
    found = predict_image(with_views(Seer(), TASK, views), TASK, painted(size, [(left, top, right, bottom)]))
    assert len(found.boxes) == 1
    assert found.boxes[0].tolist() == pytest.approx((left, top, right, bottom), abs=max(size) / SIDE)


def test_tiles_by_hand() -> None:
    """130 pixels in tiles of 64 that overlap by 13 at least: from 0, 33 and 66; 64 are one tile."""
    seer, image, starts = Seer(), noise((130, 64)), (0, 33, 66)
    predict_image(with_views(seer, TASK, Views(tile=(SIDE, SIDE))), TASK, image)
    *tiles, whole = seer.seen
    assert all(np.array_equal(tile, image[top : top + 64]) for top, tile in zip(starts, tiles, strict=True))
    assert np.array_equal(whole, seer.resize.apply(image))


def test_scales_by_hand() -> None:
    """Seen twice as small, an image fills a quarter, and the rest has the network's colour; seen 1.6 times as large, it
    is in four tiles of 40."""
    seer, image = Seer(), noise((64, 64))
    predict_image(with_views(seer, TASK, Views(flip=True, scales=(0.5, 1.0, 1.6))), TASK, image)
    assert len(seer.seen) == 12
    for side, (own, small, *tiles) in ((image, seer.seen[:6]), (image[:, ::-1], seer.seen[6:])):
        assert np.array_equal(own, side)
        assert np.array_equal(small[:32, :32], side[::2, ::2])
        assert not small[32:].any()
        assert not small[:, 32:].any()
        corners = [(top, left) for top in (0, 24) for left in (0, 24)]
        assert all(np.array_equal(tile, seer.resize.apply(np.ascontiguousarray(side[top : top + 40, left : left + 40])))
                   for (top, left), tile in zip(corners, tiles, strict=True))


@pytest.mark.parametrize("views", [Views(flip=True), Views(scales=(0.5, 2.0)), Views(flip=True, scales=(0.5, 1.6))])
def test_what_several_views_show_is_one_object(views: Views) -> None:
    boxes = [(8, 16, 24, 40), (60, 50, 170, 120)]
    found = predict_image(with_views(Seer(), TASK, views), TASK, painted((128, 192), boxes))
    assert np.array(found_boxes(found)) == pytest.approx(np.array(boxes), abs=6)


def detector() -> Predictor:
    """SSDLite at random, whose scores differ."""
    torch.manual_seed(3)
    config = discovery.small_config(ROOT / "configs" / "ssdlite_v2.py")
    model = config.build_model(config.experiment.classes)
    with torch.no_grad():
        for layer in model.head.class_layers:
            # Scores of a network at random are equal up to rounding.
            model.get_parameter(f"head.{layer}.weight").mul_(1e6)
    return model.ready()


@pytest.fixture(scope="module", params=["boxes", "labels"])
def network(request: pytest.FixtureRequest) -> tuple[Network, Task[Any, Any, Any, Any]]:
    if request.param == "boxes":
        return detector(), Detection(score_threshold=0.01)
    return tiny_segmenter.untrained().ready(), Segmentation()


def noise(size: Size, *, seed: int = 0) -> Pixels:
    """Blots, of which a network at random makes something."""
    small = np.random.default_rng(seed).integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(small.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]])


def same(mine: Any, other: Any) -> bool:
    return all(np.array_equal(np.asarray(one), np.asarray(two)) for one, two in zip(mine, other, strict=True))


@pytest.mark.parametrize("static", [False, True])
def test_an_image_that_fits_one_tile_is_predicted_as_without_tiles(network: Any, static: bool) -> None:
    plain, task = network
    tiled = with_views(plain, task, Views(tile=(100, 100)))
    for size in ((100, 90), (53, 100)):
        mine, wanted = (predict_image(one, task, noise(size), static=static) for one in (tiled, plain))
        assert same(mine, wanted)
    assert not same(predict_image(tiled, task, noise((101, 90))), predict_image(plain, task, noise((101, 90))))


@pytest.mark.parametrize("views", [Views(flip=True), Views(flip=True, scales=(1.5,)), Views(flip=True, tile=(64, 64))])
@pytest.mark.parametrize("width", [90, 91])
def test_a_mirrored_image_has_the_mirrored_prediction(network: Any, views: Views, width: int) -> None:
    plain, task = network
    both = with_views(plain, task, views)
    image = noise((70, width))
    here, there = (predict_image(both, task, np.ascontiguousarray(one)) for one in (image, image[:, ::-1]))
    if task.label_maps:
        assert np.mean(here.labels != there.labels[:, ::-1]) < 0.01, "where two classes are equal up to rounding"
        assert np.mean(here.labels != here.labels[0, 0]) > 0.05, "a map of one class would show nothing"
        return
    assert len(here.boxes) == len(there.boxes) > 5
    left, top, right, bottom = there.boxes.unbind(1)
    torch.testing.assert_close(here.scores, there.scores)
    mirrored = torch.stack((width - right, top, width - left, bottom), dim=1)
    torch.testing.assert_close(here.boxes, mirrored, atol=1e-3, rtol=0)


def test_probabilities_are_averaged_over_views() -> None:
    """By hand: the softmax of an image and of its mirrored one at the network's size, where nothing is interpolated."""
    plain = tiny_segmenter.untrained().ready()
    image = noise(tiny_segmenter.NETWORK_SIZE, seed=2)
    total = torch.zeros(3, *tiny_segmenter.NETWORK_SIZE)
    with torch.inference_mode():
        for mirrored in (False, True):
            pixels = torch.from_numpy(image[:, ::-1].copy() if mirrored else image).permute(2, 0, 1)[None].float()
            cells = plain.decode(pixels).logits
            shares = torch.nn.functional.interpolate(cells, tiny_segmenter.NETWORK_SIZE, mode="bilinear").softmax(1)[0]
            total += shares.flip(-1) if mirrored else shares
    found = predict_image(with_views(plain, Segmentation(), Views(flip=True)), Segmentation(), image)
    assert np.array_equal(found.labels, total.argmax(0).numpy())


@settings(max_examples=30, deadline=None)
@given(height=st.integers(33, 150), width=st.integers(33, 150), tile=st.integers(32, 80),
       overlap=st.sampled_from([0.1, 0.3, 0.5]))
def test_tiles_of_a_pixelwise_network_give_the_whole_image(height: int, width: int, tile: int, overlap: float) -> None:
    """A network that looks at single pixels says the same in any tile: the blend leaves it as it is."""
    views = Views(tile=(tile, tile + 8), overlap=overlap)
    image = noise((height, width), seed=height * width)
    found = predict_image(with_views(Pixelwise(), Segmentation(), views), Segmentation(), image)
    assert found.labels.shape == (height, width)
    clear = np.sort(image, axis=2)[..., -1] > np.sort(image, axis=2)[..., -2]
    assert np.array_equal(found.labels[clear], image.argmax(2)[clear])


class Pixelwise:
    """A segmenter that takes images at any size as they are; a pixel's logits are its colour."""

    classes, device, form = tiny_segmenter.CLASSES, torch.device("cpu"), "pixelwise"
    resize: Resize = AsItIs((64, 64))

    def ready(self) -> Self:
        return self

    def decode(self, images: Tensor, /, *, static: bool = False) -> Any:
        return DenseLogits(images / 8, (images.shape[2], images.shape[3]))

    def finished(self, images: Tensor, task: Task[Any, Any, Any, Any], /, *, static: bool = False) -> Any:
        return task.postprocess(self.decode(images), static=static)


def test_words_of_the_command_line() -> None:
    assert parse_tta([]) == (False, ())
    assert parse_tta(["0.75", "flip", "1.25"]) == (True, (0.75, 1.25))
    with pytest.raises(ValueError, match=r"--tta takes flip and scales such as 0.75, got 'photo.jpg'; put files and"):
        parse_tta(["flip", "photo.jpg"])
    assert (parse_tile("640"), parse_tile("480x640")) == ((640, 640), (480, 640))
    for text in ("0.5", "640x", "1x2x3", "large"):
        with pytest.raises(ValueError, match=f"a number of pixels, or height and width as 480x640, got '{text}'"):
            parse_tile(text)


def test_an_image_in_tiles_has_room_for_what_its_tiles_hold() -> None:
    """Four objects in four tiles, of a task that keeps one of an image."""
    boxes = [(2, 2, 10, 10), (110, 2, 118, 10), (2, 110, 10, 118), (110, 110, 118, 118)]
    task = Detection(score_threshold=0.01, max_detections=1, candidates=1, per_class=1)
    views = Views(tile=(SIDE, SIDE), overlap=0.1)
    assert found_boxes(predict_image(with_views(Seer(), task, views), task, painted((120, 120), boxes))) == boxes


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Views(scales=(8.0,)), "a scale of test-time augmentation lies between 0.25 and 4, got 8"),
    (lambda: Views(scales=(float("nan"),)), "lies between 0.25 and 4, got nan"),
    (lambda: Views(tile=(64, 10)), "a tile's sides have at least 32 pixels, got 64 x 10"),
    (lambda: Views(tile=(64, 64), overlap=0.9), "tiles overlap by more than 0 and up to 0.5 of their side, got 0.9"),
    (lambda: with_views(detector(), Classification(), Views(flip=True)),
     "predictions of Classification are not merged; leave out test-time augmentation and tiles"),
])
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
