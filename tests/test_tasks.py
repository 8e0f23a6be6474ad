"""The detection task: batches without loops over them, and boxes back in the pixels of the original image."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detseg.data.transforms import Letterbox, Stretch
from detseg.interfaces import (
    BoxTargets,
    Classes,
    DenseBoxes,
    Detections,
    ImageDetections,
    Placement,
    Resize,
    Sample,
    Size,
    Source,
)
from detseg.suppression import suppress
from detseg.tasks import Detection

CLASSES = Classes(names=("cat", "dog"), source_ids=(17, 18))


def _sample(number: int, *, image_id: int = 1, dtype: torch.dtype = torch.uint8) -> Sample[BoxTargets]:
    corner = torch.rand(number, 2) * 20
    targets = BoxTargets(torch.cat((corner, corner + 5), 1), torch.arange(number), torch.arange(number) % 3 == 1)
    source = Source(image_id, (48, 60), Placement(1, 1, 0, 0))
    return Sample(torch.full((3, 24, 40), image_id).to(dtype), targets, source)


def test_collating_pads_to_the_fullest_image() -> None:
    samples = [_sample(2, image_id=7), _sample(0, image_id=8), _sample(4, image_id=9)]
    batch = Detection().collate(samples)
    assert batch.images.shape == (3, 3, 24, 40)
    assert batch.images.dtype == torch.uint8
    assert batch.images[:, 0, 0, 0].tolist() == [7, 8, 9]
    assert [source.image_id for source in batch.sources] == [7, 8, 9]
    boxes, labels, crowd = batch.targets
    assert (boxes.shape, labels.shape, crowd.shape) == ((3, 4, 4), (3, 4), (3, 4))
    assert (boxes.dtype, labels.dtype, crowd.dtype) == (torch.float32, torch.int64, torch.bool)
    assert labels.tolist() == [[0, 1, -1, -1], [-1] * 4, [0, 1, 2, 3]]
    assert crowd.tolist() == [[False, True, False, False], [False] * 4, [False, True, False, False]]
    for row, sample in enumerate(samples):
        number = len(sample.targets.labels)
        assert torch.equal(boxes[row, :number], sample.targets.boxes)
        assert not boxes[row, number:].any()


def test_collating_images_without_objects() -> None:
    batch = Detection().collate([_sample(0, dtype=torch.float32), _sample(0, dtype=torch.float32)])
    assert batch.images.dtype == torch.float32
    assert batch.targets.boxes.shape == (2, 0, 4)
    assert batch.targets.labels.shape == batch.targets.crowd.shape == (2, 0)


def _finished(*images: Tensor, rows: int = 5) -> Detections:
    """Boxes as finished rows, with falling scores."""
    found = Detections(torch.zeros(len(images), rows, 4), torch.zeros(len(images), rows),
                       torch.full((len(images), rows), -1), torch.tensor([len(boxes) for boxes in images]))
    for row, boxes in enumerate(images):
        found.boxes[row, : len(boxes)] = boxes
        found.scores[row, : len(boxes)] = torch.linspace(0.9, 0.5, len(boxes))
        found.labels[row, : len(boxes)] = torch.arange(len(boxes)) % 2
    return found


def test_restoring_a_stretched_image_by_hand() -> None:
    # An image 100 high and 400 wide, stretched to 200 x 200.
    source = Source(3, (100, 400), Stretch((200, 200)).place((100, 400)))
    (found,) = Detection().restore(_finished(torch.tensor([[50.0, 20, 100, 60], [-10, 0, 300, 250]])), [source])
    assert found.image_id == 3
    assert found.boxes.tolist() == [[100, 10, 200, 30], [0, 0, 400, 100]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.labels.tolist() == [0, 1]


def test_restoring_a_letterboxed_image_by_hand() -> None:
    # The same image in a letterbox of 200 x 200 is 50 high, between bars of 75.
    source = Source(3, (100, 400), Letterbox((200, 200)).place((100, 400)))
    boxes = torch.tensor([[50.0, 85, 100, 105], [0, 0, 200, 200], [20, 0, 60, 70]])
    (found,) = Detection().restore(_finished(boxes), [source])
    assert found.boxes.tolist() == [[100, 20, 200, 60], [0, 0, 400, 100], [40, 0, 120, 0]], "bars are outside the image"


def test_every_image_has_its_own_rows_and_placement() -> None:
    sources = [Source(1, (48, 80), Placement(0.5, 0.5, 0, 0)), Source(2, (10, 10), Placement(1, 1, 0, 0)),
               Source(9, (24, 40), Placement(1, 1, 4, 0))]
    box = torch.tensor([[4.0, 6, 20, 12]])
    found = Detection().restore(_finished(box, box[:0], box.repeat(5, 1)), sources)
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
def test_restoring_undoes_placing(placed: tuple[Resize, Size, Tensor]) -> None:
    resize, size, wanted = placed
    place = resize.place(size)
    scale = torch.tensor([place.scale_x, place.scale_y] * 2)
    network = wanted * scale + torch.tensor([place.offset_x, place.offset_y] * 2)
    assert bool((network >= -0.01).all())
    assert bool((network <= torch.tensor([resize.size[1], resize.size[0]] * 2) + 0.01).all())
    (found,) = Detection().restore(_finished(network), [Source(0, size, place)])
    # float32 in the network's pixels, seen through the scale.
    torch.testing.assert_close(found.boxes, wanted, rtol=0, atol=1e-4 * max(1.0, float((1 / scale).max())))
    assert bool((found.boxes >= 0).all())
    assert bool((found.boxes <= torch.tensor([size[1], size[0]] * 2)).all())


def test_finishing_is_suppression_with_the_tasks_numbers() -> None:
    corner = torch.rand(2, 50, 2) * 40
    dense = DenseBoxes(torch.cat((corner, corner + 20), -1), torch.rand(2, 50, 3))
    task = Detection(score_threshold=0.3, iou_threshold=0.4, per_class=10, max_detections=12, candidates=150)
    found = task.finish(dense)
    wanted = suppress(
        dense, score_threshold=0.3, iou_threshold=0.4, per_class=10, max_detections=12, candidates=150)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert found.boxes.shape == (2, 12, 4)
    assert bool((found.scores[found.labels >= 0] > 0.3).all())
    (first, _) = task.restore(found, [Source(1, (60, 60), Placement(1, 1, 0, 0))] * 2)
    assert first.scores.tolist() == sorted(first.scores.tolist(), reverse=True)


def test_records_and_summary() -> None:
    prediction = ImageDetections(5, torch.tensor([[1.0, 2, 11, 22], [0, 0, 4, 5], [0, 0, 9, 9]]),
                                 torch.tensor([0.75, 0.5, 0.25]), torch.tensor([1, 0, 1]))
    task = Detection()
    records = task.records(prediction, CLASSES)
    assert [dict(record) for record in records] == [
        {"image_id": 5, "category_id": 18, "bbox": [1, 2, 10, 20], "score": 0.75},
        {"image_id": 5, "category_id": 17, "bbox": [0, 0, 4, 5], "score": 0.5},
        {"image_id": 5, "category_id": 18, "bbox": [0, 0, 9, 9], "score": 0.25}]
    assert task.summary(prediction, CLASSES, threshold=0.2) == "2 dog, 1 cat"
    assert task.summary(prediction, CLASSES, threshold=0.9) == "nothing"


@pytest.mark.parametrize(("options", "message"), [
    ({"score_threshold": -0.1}, "score_threshold must lie in [0, 1) and iou_threshold in (0, 1], got -0.1 and 0.55"),
    ({"score_threshold": 1.0}, "got 1.0 and 0.55"),
    ({"iou_threshold": 0.0}, "got 0.001 and 0.0"),
    ({"iou_threshold": float("nan")}, "got 0.001 and nan"),
    ({"max_detections": 0}, "need 1 <= max_detections <= candidates and 1 <= per_class, got 0, 1000 and 300"),
    ({"max_detections": 50, "candidates": 40}, "got 50, 40 and 300"),
    ({"per_class": 0}, "got 300, 1000 and 0"),
])
def test_bad_numbers_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Detection(**options)
