"""Box arithmetic: by hand, against torchvision, and there and back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, clip_boxes_to_image

from detseg.ops import boxes

SSD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
WEIGHTS = st.sampled_from([SSD_WEIGHTS, (1.0, 1.0, 1.0, 1.0), (10.0, 8.0, 5.0, 4.0)])


@st.composite
def _boxes(draw: Any, *, number: int = 5) -> Tensor:
    """float64 [number, 4], sides 8..400: no two differ by more than the largest enlargement."""
    rows = []
    for _ in range(number):
        x, y = draw(st.floats(-100, 700)), draw(st.floats(-100, 700))
        rows.append((x, y, x + draw(st.floats(8, 400)), y + draw(st.floats(8, 400))))
    return torch.tensor(rows, dtype=torch.float64)


def _random_boxes(*shape: int, size: float = 300.0) -> Tensor:
    corner = torch.rand(*shape, 2) * size
    return torch.cat((corner, corner + 1 + torch.rand(*shape, 2) * size / 2), -1)


def test_areas_by_hand() -> None:
    given_boxes = torch.tensor([[0.0, 0, 10, 20], [5, 5, 5, 30], [10, 20, 0, 0], [-3, -4, 1, -1], [7, 3, 2, 9]])
    assert boxes.area(given_boxes).tolist() == [200, 0, 0, 12, 0]
    assert boxes.area(torch.zeros(2, 0, 4)).shape == (2, 0)


def test_overlaps_by_hand() -> None:
    # A wide box, and: the same; its right half; one that touches it; one elsewhere; one around it; a line; inside out.
    one = torch.tensor([[0.0, 0, 40, 10]])
    others = torch.tensor([[0.0, 0, 40, 10], [20, 0, 40, 10], [40, 0, 50, 10], [60, 60, 70, 70], [-10, -5, 50, 15],
                           [10, 2, 10, 8], [40, 10, 0, 0]])
    assert boxes.intersection(one, others).tolist() == [[400, 200, 0, 0, 400, 0, 0]]
    assert boxes.iou(one, others)[0].tolist() == pytest.approx([1, 0.5, 0, 0, 400 / 1200, 0, 0])
    assert boxes.coverage(one, others)[0].tolist() == pytest.approx([1, 0.5, 0, 0, 1, 0, 0])
    assert boxes.coverage(others, one)[:, 0].tolist() == pytest.approx([1, 1, 0, 0, 1 / 3, 0, 0])


def test_boxes_without_area_overlap_nothing_and_give_finite_gradients() -> None:
    lines = torch.tensor([[5.0, 5, 5, 5], [0, 0, 0, 9], [9, 9, 0, 0], [0, 0, 0, 0]], requires_grad=True)
    for measure in (boxes.iou, boxes.coverage):
        values = measure(lines, lines)
        assert bool((values == 0).all()), measure
        (gradient,) = torch.autograd.grad(values.sum(), lines)
        assert bool(gradient.isfinite().all()), measure


def test_iou_equals_torchvision_in_batches() -> None:
    first, second = _random_boxes(3, 17), _random_boxes(3, 11)
    found = boxes.iou(first, second)
    assert found.shape == (3, 17, 11)
    for image in range(3):
        torch.testing.assert_close(found[image], box_iou(first[image], second[image]))
    torch.testing.assert_close(boxes.iou(first, second[0]), torch.stack([box_iou(b, second[0]) for b in first]))
    assert boxes.iou(first[0], second[0, :0]).shape == (17, 0)


@given(_boxes(), _boxes())
@settings(max_examples=40, deadline=None)
def test_overlaps_are_fractions(first: Tensor, second: Tensor) -> None:
    iou = boxes.iou(first, second)
    torch.testing.assert_close(iou, boxes.iou(second, first).T)
    assert bool(((iou >= 0) & (iou <= 1)).all())
    assert bool((boxes.coverage(first, second) >= iou - 1e-12).all())
    torch.testing.assert_close(boxes.iou(first, first).diagonal(), torch.ones(len(first), dtype=torch.float64))


def test_clipping_keeps_height_and_width_apart() -> None:
    given_boxes = torch.tensor([[-5.0, -6, 700, 800], [10, 20, 30, 40], [650, 500, 660, 510]])
    clipped = boxes.clip(given_boxes, (480, 640))
    assert clipped.tolist() == [[0, 0, 640, 480], [10, 20, 30, 40], [640, 480, 640, 480]]
    torch.testing.assert_close(clipped, clip_boxes_to_image(given_boxes, (480, 640)))


def test_deltas_by_hand() -> None:
    anchor = torch.tensor([[10.0, 20, 30, 60]])  # 20 wide, 40 high, centre (20, 40)
    box = torch.tensor([[20.0, 20, 60, 40]])  # 40 wide, 20 high, centre (40, 30)
    wanted = [10 * 20 / 20, 10 * -10 / 40, 5 * math.log(2), 5 * math.log(0.5)]
    assert boxes.encode(box, anchor, SSD_WEIGHTS)[0].tolist() == pytest.approx(wanted)
    assert boxes.decode(torch.tensor([wanted]), anchor, SSD_WEIGHTS)[0].tolist() == pytest.approx(box[0].tolist())
    assert boxes.encode(anchor, anchor, SSD_WEIGHTS).tolist() == [[0, 0, 0, 0]]


@given(_boxes(), _boxes(), WEIGHTS)
@settings(max_examples=100, deadline=None)
def test_decoding_undoes_encoding(wanted: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> None:
    deltas = boxes.encode(wanted, anchors, weights)
    torch.testing.assert_close(boxes.decode(deltas, anchors, weights), wanted, rtol=0, atol=1e-9)
    single = boxes.decode(boxes.encode(wanted.float(), anchors.float(), weights), anchors.float(), weights)
    torch.testing.assert_close(single, wanted.float(), rtol=0, atol=0.01)


@given(_boxes(), _boxes(), WEIGHTS)
@settings(max_examples=40, deadline=None)
def test_the_coder_equals_torchvision(
    wanted: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]
) -> None:
    reference = BoxCoder(weights)
    deltas = boxes.encode(wanted, anchors, weights)
    torch.testing.assert_close(deltas, reference.encode_single(wanted, anchors))
    torch.testing.assert_close(boxes.decode(deltas, anchors, weights), reference.decode_single(deltas, anchors))


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_decoding_limits_enlargement_as_torchvision_does(scale: float) -> None:
    anchors, deltas = _random_boxes(50), torch.randn(50, 4) * scale
    found = boxes.decode(deltas, anchors, SSD_WEIGHTS)
    torch.testing.assert_close(found, BoxCoder(SSD_WEIGHTS).decode_single(deltas, anchors), rtol=1e-5, atol=1e-3)
    assert bool(found.isfinite().all())
    sides = (found[:, 2:] - found[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    assert float(sides.max()) <= 1000 / 16 * 1.01


def test_coding_broadcasts_over_a_batch() -> None:
    anchors, wanted = _random_boxes(9), _random_boxes(2, 9)
    deltas = boxes.encode(wanted, anchors, SSD_WEIGHTS)
    assert deltas.shape == (2, 9, 4)
    for image in range(2):
        torch.testing.assert_close(deltas[image], boxes.encode(wanted[image], anchors, SSD_WEIGHTS))
    torch.testing.assert_close(boxes.decode(deltas, anchors, SSD_WEIGHTS), wanted, rtol=0, atol=1e-3)
    assert boxes.decode(deltas[:, :0], anchors[:0], SSD_WEIGHTS).shape == (2, 0, 4)


def test_boxes_from_distances_by_hand() -> None:
    """From the middle (12, 4) of a cell of 8 pixels: 1, 2, 1/2 and 4 of them to the left, up, right and down."""
    found = boxes.from_distances(torch.tensor([1.0, 2, 0.5, 4]).log(), torch.tensor([8.0, 0, 16, 8]))
    assert found.tolist() == pytest.approx([4, -12, 16, 36])
    assert boxes.from_distances(torch.full((3, 4), 1e9), torch.tensor([[0.0, 0, 8, 8]])).isfinite().all()
