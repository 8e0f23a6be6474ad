"""Anchors: against torchvision's generator, the papers' counts, and the first map of TensorFlow's scheme by hand; how
outputs become rows in their order, and how they are kept."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from detseg import config
from detseg.data.coco import COCO_80
from detseg.ops.anchors import AnchorRaw, CachedAnchors, SSDAnchors, TensorFlowAnchors, to_rows
from detseg.structures import Size

from .conftest import ROOT

CPU = torch.device("cpu")
SQUARE: list[Size] = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
WIDE: list[Size] = [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2), (1, 1)]


def _torchvision(map_sizes: list[Size], size: Size, *, clip: bool, ratios: list[int]) -> Tensor:
    reference = DefaultBoxGenerator([ratios] * len(map_sizes), min_ratio=0.2, max_ratio=0.95, clip=clip)
    images = ImageList(torch.zeros(1, 3, *size), [size])
    found: Tensor = reference(images, [torch.zeros(1, 1, *map_size) for map_size in map_sizes])[0]
    return found


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("map_sizes", "size"), [(SQUARE, (320, 320)), (WIDE, (192, 320)), (WIDE, (320, 160))])
def test_anchors_equal_torchvision(map_sizes: list[Size], size: Size, clip: bool) -> None:
    found = SSDAnchors(clip_sizes=clip)(map_sizes, size, device=CPU)
    torch.testing.assert_close(found, _torchvision(map_sizes, size, clip=clip, ratios=[2, 3]), rtol=0, atol=1e-4)


def test_other_ratios_and_fewer_maps_equal_torchvision() -> None:
    found = SSDAnchors(num_maps=3, ratios=(2.0,))(WIDE[:3], (192, 320), device=CPU)
    torch.testing.assert_close(found, _torchvision(WIDE[:3], (192, 320), clip=True, ratios=[2]), rtol=0, atol=1e-4)


def test_given_scales_equal_torchvision() -> None:
    scales = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87)
    reference = DefaultBoxGenerator([[2, 3]] * 6, scales=[*scales, 1.0])
    images, maps = ImageList(torch.zeros(1, 3, 192, 320), [(192, 320)]), [torch.zeros(1, 1, *size) for size in WIDE]
    wanted = reference(images, maps)[0]
    torch.testing.assert_close(SSDAnchors(scales=scales)(WIDE, (192, 320), device=CPU), wanted, rtol=0, atol=1e-4)
    first = SSDAnchors(scales=scales, three_on_first=True).relative_sizes()[0]
    assert first[0] == pytest.approx((0.035, 0.035))
    assert first[1] == pytest.approx((0.07 * math.sqrt(2), 0.07 / math.sqrt(2)))


def test_the_papers_counts() -> None:
    papers, torchvision = SSDAnchors(three_on_first=True), SSDAnchors()
    assert papers(SQUARE, (320, 320), device=CPU).shape == (2034, 4)
    assert torchvision(SQUARE, (320, 320), device=CPU).shape == (3234, 4)
    assert papers.num_per_cell == (3, 6, 6, 6, 6, 6)
    assert torchvision.num_per_cell == (6,) * 6


def test_the_first_map_of_tensorflow_by_hand() -> None:
    # 0.1 of the image, square; 0.2 at aspect ratio 2 and at 1/2. Image 200 high, 400 wide; first map 2 x 4.
    found = SSDAnchors(three_on_first=True, clip_sizes=False)([(2, 4), *WIDE[1:]], (200, 400), device=CPU)
    wide, narrow = 0.2 * math.sqrt(2), 0.2 / math.sqrt(2)
    for cell, (x, y) in ((0, (50, 50)), (3, (350, 50)), (4, (50, 150))):
        wanted = [(x - w * 200, y - h * 100, x + w * 200, y + h * 100)
                  for w, h in ((0.1, 0.1), (wide, narrow), (narrow, wide))]
        torch.testing.assert_close(found[cell * 3 : cell * 3 + 3], torch.tensor(wanted), rtol=0, atol=1e-4)


def test_the_other_maps_by_hand() -> None:
    sizes = SSDAnchors(three_on_first=True, clip_sizes=False).relative_sizes()
    assert [len(cell) for cell in sizes] == [3, 6, 6, 6, 6, 6]
    second, last = sizes[1], sizes[5]
    between = math.sqrt(0.35 * 0.5)
    assert second[:2] == [pytest.approx((0.35, 0.35)), pytest.approx((between, between))]
    assert last[1] == pytest.approx((math.sqrt(0.95), math.sqrt(0.95)))
    assert last[4] == pytest.approx((0.95 * math.sqrt(3), 0.95 / math.sqrt(3)))
    assert {round(w / h, 6) for w, h in second} == {1, 2, 0.5, 3, round(1 / 3, 6)}
    clipped = SSDAnchors().relative_sizes()
    assert max(side for cell in clipped for pair in cell for side in pair) == 1.0
    assert clipped[5][4] == pytest.approx((1.0, 0.95 / math.sqrt(3)))


def test_anchors_are_ordered_by_map_row_column() -> None:
    found = SSDAnchors(ratios=())([(2, 3), *WIDE[1:]], (100, 300), device=CPU)
    centres = (found[:12:2, :2] + found[:12:2, 2:]) / 2
    torch.testing.assert_close(
        centres, torch.tensor([[50.0, 25], [150, 25], [250, 25], [50, 75], [150, 75], [250, 75]]))


def _openmmlab(map_sizes: list[Size]) -> Tensor:
    """What SSDAnchorGenerator gives for ssdlite_mobilenetv2-scratch_8xb24-600e_coco, from its pixels."""
    smallest, largest = (48, 100, 150, 202, 253, 304), (100, 150, 202, 253, 304, 320)
    strides = (16, 32, 64, 107, 160, 320)
    rows = []
    for (height, width), small, large, stride in zip(map_sizes, smallest, largest, strides, strict=True):
        sides = [(small * math.sqrt(ratio), small / math.sqrt(ratio)) for ratio in (1, 2, 1 / 2, 3, 1 / 3)]
        sides.insert(1, (math.sqrt(small * large),) * 2)
        for y in range(height):
            for x in range(width):
                rows += [(stride * (x + 0.5) - w / 2, stride * (y + 0.5) - h / 2,
                          stride * (x + 0.5) + w / 2, stride * (y + 0.5) + h / 2) for w, h in sides]
    return torch.tensor(rows)


def test_spacing_and_scales_make_openmmlabs_anchors() -> None:
    model = config.load(ROOT / "configs" / "ssdlite_v2_openmmlab.py").build_model(COCO_80)
    anchors = getattr(model.head, "anchors", None)
    assert isinstance(anchors, SSDAnchors)
    found = anchors(SQUARE, (320, 320), device=CPU)
    assert found.shape == (3234, 4)
    torch.testing.assert_close(found, _openmmlab(SQUARE), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("options", "message"), [
    ({"num_maps": 1}, "SSD anchors need at least 2 maps, got 1"),
    ({"min_scale": 0.0}, "anchor scales must satisfy 0 < min < max, got 0.0 and 0.95"),
    ({"scales": (0.1, 0.2)}, "scales needs a positive number for each of the 6 maps, got (0.1, 0.2)"),
    ({"num_maps": 2, "scales": (0.1, 0.0)}, "for each of the 2 maps, got (0.1, 0.0)"),
    ({"num_maps": 2, "spacing": (1.0, -1.0)}, "spacing needs a positive number for each of the 2 maps, got"),
    ({"scales": ()}, "for each of the 6 maps, got ()"),
    ({"min_scale": 0.95}, "anchor scales must satisfy 0 < min < max, got 0.95 and 0.95"),
])
def test_bad_arguments_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SSDAnchors(**options)


def test_another_number_of_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="anchors for 6 maps were asked for 5"):
        SSDAnchors()(SQUARE[:5], (320, 320), device=CPU)


# ------------------------------------------------------------------------------------------ rows


def test_rows_run_by_map_row_column_and_anchor() -> None:
    """Each output says where it is: map, anchor, column, y and x."""
    def of_map(number: int, height: int, width: int) -> Tensor:
        anchor, column, y, x = torch.meshgrid(
            torch.arange(2), torch.arange(3), torch.arange(height), torch.arange(width), indexing="ij")
        place = torch.stack((torch.full_like(x, number), y, x, anchor, column))
        return place.reshape(5, 6, height, width)  # as a batch of five

    rows = to_rows([of_map(0, 2, 3), of_map(1, 1, 2)], columns=3)
    wanted = [(number, y, x, anchor) for number, height, width in ((0, 2, 3), (1, 1, 2))
              for y in range(height) for x in range(width) for anchor in range(2)]
    assert rows.shape == (5, len(wanted), 3)
    assert rows[:4, :, 0].T.tolist() == [list(place) for place in wanted]
    assert rows[4].tolist() == [[0, 1, 2]] * len(wanted)


def test_raw_predictions_become_rows_in_float32() -> None:
    maps = [(2, 3), (1, 2)]
    deltas = tuple(torch.randn(2, 6 * 4, *size).half() for size in maps)
    logits = tuple(torch.randn(2, 6 * 5, *size).half() for size in maps)
    found_logits, found_deltas = AnchorRaw(deltas=deltas, logits=logits).rows(5)
    assert found_logits.dtype == found_deltas.dtype == torch.float32
    assert torch.equal(found_logits, to_rows(logits, columns=5).float())
    assert torch.equal(found_deltas, to_rows(deltas, columns=4).float())
    assert found_logits.shape == (2, 6 * 8, 5)


# ------------------------------------------------------------------------------------------ cached anchors


class _Counted:
    """Anchors of one map, and how often they were computed."""

    def __init__(self) -> None:
        self.anchors, self.calls = SSDAnchors(num_maps=2), 0

    def __call__(self, map_sizes: Sequence[Size], size: Size, *, device: torch.device) -> Tensor:
        self.calls += 1
        return self.anchors(map_sizes, size, device=device)


def _maps(*sizes: Size) -> list[Tensor]:
    return [torch.zeros(1, 8, *size) for size in sizes]


def test_anchors_are_computed_once_for_the_same_sizes() -> None:
    counted = _Counted()
    cached = CachedAnchors(counted)
    maps = _maps((4, 6), (2, 3))
    found = cached(maps, (64, 96))
    assert torch.equal(found, counted.anchors([(4, 6), (2, 3)], (64, 96), device=CPU))
    assert cached([*map(torch.ones_like, maps)], (64, 96)) is found
    assert counted.calls == 1
    for others, size in ((maps, (60, 96)), (_maps((4, 6), (2, 2)), (64, 96))):
        sizes = [(x.shape[2], x.shape[3]) for x in others]
        assert torch.equal(cached(others, size), counted.anchors(sizes, size, device=CPU))
    assert counted.calls == 3
    assert cached([x.to("meta") for x in maps], (64, 96)).device.type == "meta"
    assert cached(maps, (64, 96)) is found


def test_a_program_that_is_recorded_computes_its_anchors() -> None:
    counted = _Counted()
    cached = CachedAnchors(counted)
    maps = _maps((4, 6), (2, 3))
    kept = cached(maps, (64, 96))
    computed = cached(maps, (64, 96), static=True)
    assert computed is not kept
    assert torch.equal(computed, kept)
    assert counted.calls == 2


def test_images_of_any_size_do_not_fill_the_memory() -> None:
    counted = _Counted()
    cached, maps = CachedAnchors(counted), _maps((4, 6), (2, 3))
    for width in range(100):
        cached(maps, (64, 90 + width))
    assert len(cached._kept) < 30
    calls = counted.calls
    cached(maps, (64, 189))
    assert counted.calls == calls, "the newest are kept"
    cached(maps, (64, 90))
    assert counted.calls == calls + 1, "the oldest are not"


def test_anchors_kept_in_evaluation_serve_training_and_copies_start_anew() -> None:
    cached, maps = CachedAnchors(SSDAnchors(num_maps=2)), _maps((4, 6), (2, 3))
    with torch.inference_mode():
        found = cached(maps, (64, 96))
    assert not found.is_inference()
    factor = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad((cached(maps, (64, 96)) * factor).sum(), factor)  # refused by inference tensors
    assert float(gradient) == float(found.sum())
    copied = copy.deepcopy(cached)
    assert not copied._kept
    assert torch.equal(copied(maps, (64, 96)), found)


# ------------------------------------------------------------------------------------------ TensorFlow's


def test_tensorflows_anchors_by_hand() -> None:
    maps: list[Size] = [(19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    found = TensorFlowAnchors()(maps, (300, 300), device=CPU)
    assert len(found) == 1917
    sides = found[:, 2:] - found[:, :2]
    first = [(30, 30), (60 * 2**0.5, 60 / 2**0.5), (60 / 2**0.5, 60 * 2**0.5)]
    torch.testing.assert_close(sides[:3], torch.tensor(first), rtol=1e-5, atol=1e-3)
    second = [(105, 105), (105 * 2**0.5, 105 / 2**0.5), (105 / 2**0.5, 105 * 2**0.5), (105 * 3**0.5, 105 / 3**0.5),
              (105 * 0.3333**0.5, 105 / 0.3333**0.5), ((105 * 150) ** 0.5, (105 * 150) ** 0.5)]
    torch.testing.assert_close(sides[3 * 361 : 3 * 361 + 6], torch.tensor(second), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found[0], torch.tensor([150 / 19 - 15, 150 / 19 - 15, 150 / 19 + 15, 150 / 19 + 15]))
    torch.testing.assert_close(sides[-1], torch.full((2,), 300 * 0.95**0.5))


def test_tensorflows_anchors_are_the_others_in_another_order() -> None:
    theirs = TensorFlowAnchors(ratios=(1.0, 2.0, 0.5, 3.0, 1 / 3), reduced=False)(SQUARE, (320, 320), device=CPU)
    ours = SSDAnchors(clip_sizes=False)(SQUARE, (320, 320), device=CPU)
    torch.testing.assert_close(theirs.view(-1, 6, 4)[:, [0, 5, 1, 2, 3, 4]], ours.view(-1, 6, 4), rtol=0, atol=1e-3)
    assert TensorFlowAnchors(reduced=False).num_per_cell == (6,) * 6
    assert TensorFlowAnchors().num_per_cell == (3, 6, 6, 6, 6, 6)


def test_tensorflows_squares_are_squares_in_images_that_are_none() -> None:
    found = TensorFlowAnchors()(WIDE, (192, 320), device=CPU)
    sides = found[:, 2:] - found[:, :2]
    torch.testing.assert_close(sides[0], torch.tensor([19.2, 19.2]))
    torch.testing.assert_close(sides[1], torch.tensor([38.4 * 2**0.5, 38.4 / 2**0.5]))


@pytest.mark.parametrize(("options", "message"), [
    ({"num_maps": 1}, "SSD anchors need at least 2 maps, got 1"),
    ({"min_scale": 0.9, "max_scale": 0.2}, "anchor scales must satisfy 0 < min < max, got 0.9 and 0.2"),
    ({"ratios": (1.0, 0.0)}, "anchors need positive ratios of width to height, got (1.0, 0.0)"),
    ({"ratios": ()}, "anchors need positive ratios of width to height, got ()"),
])
def test_impossible_anchors_of_tensorflow(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TensorFlowAnchors(**options)
