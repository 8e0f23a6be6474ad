"""The tasks: batches without loops over them; boxes and label maps back in the pixels of the original image."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detseg.interfaces import Source
from detseg.ops.resample import enlarge
from detseg.ops.suppression import suppress
from detseg.resize import KeepAspect, Letterbox, Placement, Resize, Stretch
from detseg.structures import (
    VOID,
    BoxTargets,
    DenseBoxes,
    DenseLogits,
    Detections,
    LabelMaps,
    LabelPixels,
    LabelTargets,
    Size,
)
from detseg.tasks.detection import Detection
from detseg.tasks.segmentation import Segmentation


def _targets(number: int, *, seed: int = 0) -> BoxTargets:
    corner = torch.rand(number, 2) * 20
    return BoxTargets(torch.cat((corner, corner + 5), 1), torch.arange(number), torch.arange(number) % 3 == 1,
                      torch.tensor(seed))


def test_collating_pads_to_the_fullest_image() -> None:
    images = [_targets(2, seed=7), _targets(0, seed=8), _targets(4, seed=9)]
    boxes, labels, crowd, seed = Detection().collate_targets(images, (24, 40))
    assert seed is not None
    assert seed.tolist() == [7, 8, 9]
    assert (boxes.shape, labels.shape, crowd.shape) == ((3, 4, 4), (3, 4), (3, 4))
    assert (boxes.dtype, labels.dtype, crowd.dtype) == (torch.float32, torch.int64, torch.bool)
    assert labels.tolist() == [[0, 1, -1, -1], [-1] * 4, [0, 1, 2, 3]]
    assert crowd.tolist() == [[False, True, False, False], [False] * 4, [False, True, False, False]]
    for row, one in enumerate(images):
        number = len(one.labels)
        assert torch.equal(boxes[row, :number], one.boxes)
        assert not boxes[row, number:].any()


def test_collating_images_without_objects() -> None:
    batch = Detection().collate_targets([_targets(0), _targets(0)], (24, 40))
    assert batch.boxes.shape == (2, 0, 4)
    assert batch.labels.shape == batch.crowd.shape == (2, 0)


def _finished(*images: Tensor, rows: int = 5) -> Detections:
    """Boxes as finished rows, with falling scores."""
    found = Detections(torch.zeros(len(images), rows, 4), torch.zeros(len(images), rows),
                       torch.full((len(images), rows), -1), torch.tensor([len(boxes) for boxes in images]))
    for row, boxes in enumerate(images):
        found.boxes[row, : len(boxes)] = boxes
        found.scores[row, : len(boxes)] = torch.linspace(0.9, 0.5, len(boxes))
        found.labels[row, : len(boxes)] = torch.arange(len(boxes)) % 2
    return found


def test_to_original_from_a_stretched_image_by_hand() -> None:
    # An image 100 high and 400 wide, stretched to 200 x 200.
    source = Source(3, (100, 400), Stretch((200, 200)).place((100, 400)))
    (found,) = Detection().to_original(_finished(torch.tensor([[50.0, 20, 100, 60], [-10, 0, 300, 250]])), [source])
    assert found.image_id == 3
    assert found.boxes.tolist() == [[100, 10, 200, 30], [0, 0, 400, 100]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.labels.tolist() == [0, 1]


def test_to_original_from_a_letterboxed_image_by_hand() -> None:
    # The same image in a letterbox of 200 x 200 is 50 high, between bars of 75.
    source = Source(3, (100, 400), Letterbox((200, 200)).place((100, 400)))
    boxes = torch.tensor([[50.0, 85, 100, 105], [0, 0, 200, 200], [20, 0, 60, 70]])
    (found,) = Detection().to_original(_finished(boxes), [source])
    assert found.boxes.tolist() == [[100, 20, 200, 60], [0, 0, 400, 100], [40, 0, 120, 0]], "bars are outside the image"


def test_every_image_has_its_own_rows_and_placement() -> None:
    sources = [Source(1, (48, 80), Placement(0.5, 0.5, 0, 0)), Source(2, (10, 10), Placement(1, 1, 0, 0)),
               Source(9, (24, 40), Placement(1, 1, 4, 0))]
    box = torch.tensor([[4.0, 6, 20, 12]])
    found = Detection().to_original(_finished(box, box[:0], box.repeat(5, 1)), sources)
    assert [image.image_id for image in found] == [1, 2, 9]
    assert [len(image.boxes) for image in found] == [1, 0, 5]
    assert found[0].boxes.tolist() == [[8, 12, 40, 24]]
    assert found[1].boxes.shape == (0, 4)
    assert found[2].boxes[4].tolist() == [4, 2, 20, 8]


@st.composite
def _placed_boxes(draw: Any) -> tuple[Resize, Size, Tensor]:
    """A resize, the size of an image, and boxes in it."""
    height, width = draw(st.integers(2, 900)), draw(st.integers(2, 900))
    size = (draw(st.integers(8, 640)), draw(st.integers(8, 640)))
    rows = []
    for _ in range(3):
        (x1, x2), (y1, y2) = (sorted(draw(st.tuples(*[st.floats(0, side)] * 2))) for side in (width, height))
        rows.append((x1, y1, x2, y2))
    return draw(st.sampled_from([Stretch, Letterbox]))(size), (height, width), torch.tensor(rows)


@given(_placed_boxes())
@settings(max_examples=100, deadline=None)
def test_to_original_undoes_placing(placed: tuple[Resize, Size, Tensor]) -> None:
    resize, size, wanted = placed
    place = resize.place(size)
    scale = torch.tensor([place.scale_x, place.scale_y] * 2)
    network = wanted * scale + torch.tensor([place.offset_x, place.offset_y] * 2)
    assert bool((network >= -0.01).all())
    assert bool((network <= torch.tensor([resize.size[1], resize.size[0]] * 2) + 0.01).all())
    (found,) = Detection().to_original(_finished(network), [Source(0, size, place)])
    # float32 in the network's pixels, seen through the scale.
    torch.testing.assert_close(found.boxes, wanted, rtol=0, atol=1e-4 * max(1.0, float((1 / scale).max())))
    assert bool((found.boxes >= 0).all())
    assert bool((found.boxes <= torch.tensor([size[1], size[0]] * 2)).all())


def test_postprocessing_is_suppression_with_the_tasks_numbers() -> None:
    corner = torch.rand(2, 50, 2) * 40
    dense = DenseBoxes(torch.cat((corner, corner + 20), -1), torch.rand(2, 50, 3))
    task = Detection(score_threshold=0.3, iou_threshold=0.4, per_class=10, max_detections=12, candidates=150)
    found = task.postprocess(dense)
    wanted = suppress(
        dense, score_threshold=0.3, iou_threshold=0.4, per_class=10, max_detections=12, candidates=150)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert found.boxes.shape == (2, 12, 4)
    assert bool((found.scores[found.labels >= 0] > 0.3).all())
    (first, _) = task.to_original(found, [Source(1, (60, 60), Placement(1, 1, 0, 0))] * 2)
    assert first.scores.tolist() == sorted(first.scores.tolist(), reverse=True)


def test_what_kind_of_predictions_they_make() -> None:
    assert Detection.scored
    assert Segmentation.label_maps
    assert not Detection.label_maps
    assert not Segmentation.scored


@pytest.mark.parametrize(("options", "message"), [
    ({"score_threshold": -0.1}, "score_threshold must lie in [0, 1) and iou_threshold in (0, 1], got -0.1 and 0.55"),
    ({"score_threshold": 1.0}, "got 1.0 and 0.55"),
    ({"iou_threshold": 0.0}, "got 0.001 and 0.0"),
    ({"iou_threshold": float("nan")}, "got 0.001 and nan"),
    ({"max_detections": 0}, "need 1 <= max_detections <= candidates and 1 <= per_class, got 0, 300 and 300"),
    ({"max_detections": 50, "candidates": 40}, "got 50, 40 and 300"),
    ({"per_class": 0}, "got 300, 300 and 0"),
])
def test_bad_numbers_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Detection(**options)


def _labelled(size: Size, label: int) -> LabelTargets:
    return LabelTargets(torch.full(size, label, dtype=torch.uint8))


def test_collating_label_maps() -> None:
    labels = Segmentation().collate_targets([_labelled((24, 40), k) for k in (1, 2)], (24, 40)).labels
    assert (labels.shape, labels.dtype) == ((2, 24, 40), torch.uint8)
    assert labels[:, 0, 0].tolist() == [1, 2]


def test_collating_label_maps_of_different_sizes_adds_void() -> None:
    labels = Segmentation().collate_targets([_labelled((24, 40), 1), _labelled((32, 20), 2)], (32, 40)).labels
    assert labels.shape == (2, 32, 40)
    for row, (height, width) in enumerate(((24, 40), (32, 20))):
        assert bool((labels[row, :height, :width] == 1 + row).all())
        assert int((labels[row] == VOID).sum()) == 32 * 40 - height * width


def test_postprocessing_takes_the_highest_score_and_the_first_of_equals() -> None:
    logits = torch.tensor([[3.0, -1, 2], [1, -2, 2], [0, -1, 1]]).view(1, 3, 1, 3)
    for static in (False, True):
        found = Segmentation().postprocess(DenseLogits(logits, (1, 3)), static=static).labels
        assert found.tolist() == [[[0, 0, 0]]]
        assert found.dtype == torch.uint8
        other = Segmentation().postprocess(DenseLogits(-logits, (1, 3)), static=static)
        assert other.labels.tolist() == [[[2, 1, 2]]]


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_label_map_is_that_of_the_enlarged_scores(align_corners: bool) -> None:
    dense = DenseLogits(torch.randn(2, 7, 9, 12, generator=torch.Generator().manual_seed(0)), (70, 101), align_corners)
    wanted = F.interpolate(dense.logits, (70, 101), mode="bilinear", align_corners=align_corners)
    assert torch.equal(enlarge(dense), wanted)
    for static in (False, True):
        assert torch.equal(Segmentation().postprocess(dense, static=static).labels, wanted.argmax(1).to(torch.uint8))


def _restored(labels: Any, resize: Resize, size: Size) -> LabelPixels:
    found = LabelMaps(torch.as_tensor(labels).to(torch.uint8)[None])
    (restored,) = Segmentation().to_original(found, [Source(3, size, resize.place(size))])
    assert restored.image_id == 3
    assert restored.labels.shape == size
    assert restored.labels.dtype == np.uint8
    return restored.labels


def test_to_original_from_a_stretched_label_map_by_hand() -> None:
    # An image 2 high and 6 wide in 4 x 3: every other row, every column twice.
    network = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert _restored(network, Stretch((4, 3)), (2, 6)).tolist() == [[3, 3, 4, 4, 5, 5], [9, 9, 10, 10, 11, 11]]


def test_to_original_from_a_letterboxed_label_map_by_hand() -> None:
    # An image 3 high and 4 wide is 6 x 8 in a letterbox of 9 x 8: one row above it, two below.
    network = np.full((9, 8), 77)
    network[1:7] = np.repeat(np.repeat([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]], 2, axis=0), 2, axis=1)
    assert _restored(network, Letterbox((9, 8)), (3, 4)).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


def test_to_original_leaves_out_what_was_added_at_the_end_by_hand() -> None:
    # An image 2 high and 3 wide becomes 4 x 6, in 8 x 8.
    network = np.full((8, 8), 77)
    network[:4, :6] = np.repeat(np.repeat([[1, 2, 3], [4, 5, 6]], 2, axis=0), 2, axis=1)
    assert _restored(network, KeepAspect(4, 12), (2, 3)).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_every_label_map_has_its_own_size_and_placement() -> None:
    labels = torch.arange(2 * 4 * 6, dtype=torch.uint8).view(2, 4, 6)
    sources = [Source(9, (4, 6), Placement(1, 1, 0, 0)), Source(2, (2, 2), Placement(1, 1, 1, 3))]
    first, second = Segmentation().to_original(LabelMaps(labels), sources)
    assert (first.image_id, second.image_id) == (9, 2)
    assert first.labels.tolist() == labels[0].tolist()
    assert second.labels.tolist() == labels[1, 1:3, 3:5].tolist()


@st.composite
def _resized(draw: Any) -> tuple[Resize, Size]:
    """A resize, and the size of an image; odd bars among them."""
    size = (draw(st.integers(2, 120)), draw(st.integers(2, 120)))
    network = (draw(st.integers(8, 160)), draw(st.integers(8, 160)))
    shorter = min(network)
    return draw(st.sampled_from([Stretch(network), Letterbox(network), KeepAspect(shorter, 3 * shorter)])), size


@given(_resized())
@settings(max_examples=150, deadline=None)
def test_to_original_undoes_placing_to_the_pixel(resized: tuple[Resize, Size]) -> None:
    """Each original pixel gets the label that the network's image had where its centre came to lie."""
    resize, size = resized
    image = resize.apply(np.zeros((*size, 3), dtype=np.uint8))
    scale_y, scale_x, offset_y, offset_x = resize.place(size)
    # The network's map holds the original row, or the original column, of each pixel's centre.
    rows = np.floor((np.arange(image.shape[0]) + 0.5 - offset_y) / scale_y)
    columns = np.floor((np.arange(image.shape[1]) + 0.5 - offset_x) / scale_x)
    inside = (rows >= 0) & (rows < size[0]), (columns >= 0) & (columns < size[1])
    for axis, (values, known, scale) in enumerate(((rows, inside[0], scale_y), (columns, inside[1], scale_x))):
        line = np.where(known, values, VOID).astype(np.int64)
        network = np.broadcast_to(line[:, None] if axis == 0 else line, image.shape[:2])
        found = _restored(network.copy(), resize, size)
        wanted = np.arange(size[axis])[:, None] if axis == 0 else np.arange(size[axis])
        # Half a pixel of the network's, and none at all where it has one or more for each of the original's.
        away = np.abs(found.astype(int) - wanted).max()
        assert away <= (0 if scale > 1 else 0.5 / scale + 0.5), "no bar, and nothing shifted"


@given(_resized(), st.integers(0, 1))
@settings(max_examples=60, deadline=None)
def test_to_original_lies_where_the_image_lies(resized: tuple[Resize, Size], axis: int) -> None:
    """A network that sees bright and dark gives back the two halves of the picture."""
    resize, size = resized
    edge = size[axis] // 2
    picture = np.zeros((*size, 3), dtype=np.uint8)
    picture[(slice(edge, None), slice(None)) if axis == 0 else (slice(None), slice(edge, None))] = 255
    bright = resize.apply(picture)[..., 0] > 127.5
    found = _restored(bright.astype(np.int64), resize, size)
    scale = resize.place(size)[axis]
    wrong = (found != (picture[..., 0] > 0)).sum(axis=axis).max()
    assert wrong <= 0.5 / scale + 1.0
