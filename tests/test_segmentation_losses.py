"""Cross entropy of label maps: by hand, against PyTorch's, and what void pixels and hard examples do."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detseg.ops.losses import segmentation_cross_entropy
from detseg.structures import VOID


def _labels(*rows: list[int]) -> Tensor:
    """[1, H, W] uint8."""
    return torch.tensor(rows, dtype=torch.uint8)[None]


def test_by_hand() -> None:
    """Two classes, logits (0, log 3): the second has probability 3/4. Void counts for nothing."""
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    labels = _labels([0, 1, VOID], [1, 1, VOID])
    total, counted = segmentation_cross_entropy(logits, labels)
    assert float(total) == pytest.approx(math.log(4) + 3 * math.log(4 / 3))
    assert float(counted) == 4

    total, counted = segmentation_cross_entropy(logits, labels, class_weights=(5.0, 0.5))
    assert float(total) == pytest.approx(5 * math.log(4) + 1.5 * math.log(4 / 3))
    assert float(counted) == 5 + 3 * 0.5

    # Half of the four known pixels: the hard one and one of the others.
    total, counted = segmentation_cross_entropy(logits, labels, hardest=0.5)
    assert float(total) == pytest.approx(math.log(4) + math.log(4 / 3))
    assert float(counted) == 2


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_pytorchs_mean_on_enlarged_logits(align_corners: bool, weighted: bool) -> None:
    logits = torch.randn(2, 5, 3, 7)
    labels = torch.randint(0, 5, (2, 21, 30), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < 0.2] = VOID
    weights = (0.5, 2.0, 1.0, 7.0, 0.1) if weighted else None
    total, counted = segmentation_cross_entropy(logits, labels, class_weights=weights, align_corners=align_corners)
    wanted = F.cross_entropy(
        F.interpolate(logits, (21, 30), mode="bilinear", align_corners=align_corners), labels.long(),
        torch.tensor(weights) if weights else None, ignore_index=VOID)
    torch.testing.assert_close(total / counted, wanted)


def test_the_hardest_pixels_are_those_of_each_image() -> None:
    """The first image is right everywhere, the second wrong: each keeps its share, so that how a batch is split does
    not matter."""
    labels = torch.randint(0, 3, (2, 10, 14), dtype=torch.uint8)
    right = F.one_hot(labels.long(), 3).permute(0, 3, 1, 2).float()
    logits = (right * torch.tensor([5.0, -5.0]).view(2, 1, 1, 1) + 0.01 * torch.randn(2, 3, 10, 14)).requires_grad_()
    total, counted = segmentation_cross_entropy(logits, labels, hardest=0.3)
    assert float(counted) == 2 * math.ceil(0.3 * 140)
    (gradient,) = torch.autograd.grad(total, logits)
    learnt = (gradient != 0).any(1)
    assert learnt.sum((1, 2)).tolist() == [42, 42]
    loss = F.cross_entropy(logits, labels.long(), reduction="none")
    torch.testing.assert_close(total, loss.flatten(1).sort(1, descending=True).values[:, :42].sum())


def test_hard_examples_count_with_their_weights() -> None:
    logits, labels = torch.zeros(1, 2, 2, 2), _labels([0, 0], [1, 1])
    total, counted = segmentation_cross_entropy(logits, labels, class_weights=(3.0, 1.0), hardest=0.5)
    assert float(counted) == 6
    assert float(total) == pytest.approx(6 * math.log(2))


@pytest.mark.parametrize("hardest", [1.0, 0.2])
def test_void_is_ignored(hardest: float) -> None:
    logits = torch.randn(2, 4, 6, 8, requires_grad=True)
    labels = torch.randint(0, 4, (2, 6, 8), dtype=torch.uint8)
    labels[:, 2:] = VOID
    total, counted = segmentation_cross_entropy(logits, labels, hardest=hardest)
    assert float(counted) == 2 * math.ceil(hardest * 2 * 8)
    (gradient,) = torch.autograd.grad(total, logits)
    assert bool((gradient[:, :, 2:] == 0).all())
    assert bool((gradient[:, :, :2] != 0).any())

    total, counted = segmentation_cross_entropy(logits, torch.full_like(labels, VOID), hardest=hardest)
    (gradient,) = torch.autograd.grad(total, logits)
    assert float(total.detach()) == float(counted) == 0
    assert bool((gradient == 0).all())


def test_half_precision_scores_are_summed_in_full() -> None:
    logits = torch.randn(1, 3, 40, 50)
    labels = torch.randint(0, 3, (1, 160, 200), dtype=torch.uint8)
    total, counted = segmentation_cross_entropy(logits.bfloat16(), labels)
    assert total.dtype == counted.dtype == torch.float32
    assert float(counted) == 160 * 200
    torch.testing.assert_close(total, segmentation_cross_entropy(logits, labels)[0], rtol=1e-2, atol=0)


def test_bad_arguments_are_explained() -> None:
    logits, labels = torch.zeros(1, 3, 2, 2), _labels([0, 1], [2, 2])
    with pytest.raises(ValueError, match="3 classes need as many class_weights, got 2"):
        segmentation_cross_entropy(logits, labels, class_weights=(1.0, 2.0))
    for hardest in (0.0, 1.5):
        with pytest.raises(ValueError, match=re.escape(f"must lie in (0, 1], got {hardest}")):
            segmentation_cross_entropy(logits, labels, hardest=hardest)
