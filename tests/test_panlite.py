"""PANLite: what its neck and its cells are, by hand; what every head keeps is in test_heads."""

from __future__ import annotations

import re

import pytest
import torch

from detseg.benchmark.synthetic import OneConvolution
from detseg.interfaces import FeatureSpec
from detseg.model import Predictor, anchored_maps
from detseg.resize import Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from heads.panlite import FIRST_DISTANCE, PRIOR, PANLite

from .one_stage import assert_task_aligned_training_finds, box_targets

SIZE = (64, 96)
SPECS = {"c3": FeatureSpec(8, 8), "c4": FeatureSpec(12, 16), "c5": FeatureSpec(16, 32)}
TARGETS = box_targets([((4, 6, 30, 40), 0, False), ((50, 10, 90, 60), 1, False)], [((20, 20, 28, 29), 2, False)])


def _predictor() -> Predictor:
    torch.manual_seed(0)
    head = PANLite(SPECS, 3, channels=16)
    return Predictor(OneConvolution(SPECS), head, classes=Classes(("a", "b", "c"), (1, 2, 3)), resize=Stretch(SIZE),
                     mean=IMAGENET_MEAN, std=IMAGENET_STD)


def test_it_first_says_the_same_everywhere() -> None:
    """Of each cell that nothing is sure, and a box of so many cells to each side."""
    predictor = _predictor().eval()
    dense = predictor.decode(torch.zeros(1, 3, *SIZE))
    assert dense.scores.shape == (1, 8 * 12 + 4 * 6 + 2 * 3, 3)
    assert float((dense.scores - PRIOR).abs().max().detach()) < 0.5 * PRIOR
    half = FIRST_DISTANCE * 8
    cell = dense.boxes[0, 4 * 12 + 6]  # in the middle of the first map
    assert cell.tolist() == pytest.approx([52 - half, 36 - half, 52 + half, 36 + half], rel=0.1)


def test_every_map_hears_of_every_other() -> None:
    """A change of any one map changes the neck's every map."""
    head = _predictor().eval().head
    assert isinstance(head, PANLite)
    maps = [torch.rand(1, spec.channels, 64 // spec.stride, 96 // spec.stride) for spec in SPECS.values()]
    before = head.neck(maps)
    for k in range(3):
        changed = [x + (j == k) for j, x in enumerate(maps)]
        assert all(not torch.equal(old, new) for old, new in zip(before, head.neck(changed), strict=True))


def test_it_learns_to_say_how_well_its_boxes_fit() -> None:
    """The smallest object too, of which the first boxes cover a quarter."""
    assert_task_aligned_training_finds(TARGETS, _predictor(), steps=200)


def test_it_has_no_anchors_to_compare_data_with() -> None:
    assert anchored_maps(_predictor()) is None


def test_maps_that_do_not_double_their_stride_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("doubles the stride from map to map, got [8, 32]: choose other")):
        PANLite({"c3": SPECS["c3"], "c5": SPECS["c5"]}, 3)


def test_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one class, got 0"):
        PANLite(SPECS, 0)
