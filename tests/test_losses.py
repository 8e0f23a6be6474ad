"""Losses: against torchvision, against plain Python, and what they must ignore or survive."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from detseg.ops import boxes
from detseg.ops.losses import (
    box_loss,
    focal_loss,
    hard_negative_cross_entropy,
    quality_focal_loss,
    task_aligned_losses,
)
from detseg.ops.matching import IGNORED, NEGATIVE
from detseg.structures import BoxTargets

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
Kind = Literal["smooth_l1", "ciou", "giou"]
KINDS: tuple[Kind, ...] = ("smooth_l1", "ciou", "giou")


def _labels(images: int = 3, anchors: int = 60, *, positives: tuple[int, ...] = (4, 0, 9)) -> Tensor:
    """Some positives of classes 1..5 and some ignored anchors, the rest background."""
    targets = torch.zeros(images, anchors, dtype=torch.int64)
    for row, number in enumerate(positives):
        order = torch.randperm(anchors)
        targets[row, order[:number]] = torch.randint(1, 6, (number,))
        targets[row, order[number : number + 5]] = IGNORED
    return targets


def _plain_hard_negatives(logits_BNC: Tensor, targets_BN: Tensor, *, ratio: float, least: int) -> float:
    """SSD's rule word for word, an anchor at a time."""
    total = 0.0
    for logits_NC, targets_N in zip(logits_BNC.double().tolist(), targets_BN.tolist(), strict=True):
        positive: list[float] = []
        negative: list[float] = []
        for logits, target in zip(logits_NC, targets_N, strict=True):
            if target == IGNORED:
                continue
            loss = math.log(sum(math.exp(value) for value in logits)) - logits[target]
            (positive if target > 0 else negative).append(loss)
        number = max(least, int(ratio * len(positive)))
        total += sum(positive) + sum(sorted(negative, reverse=True)[:number])
    return total


@pytest.mark.parametrize(("ratio", "least"), [(3.0, 0), (3.0, 3), (1.0, 7), (3.0, 1000), (0.0, 0)])
def test_hard_negatives_equal_plain_python(ratio: float, least: int) -> None:
    logits, targets = torch.randn(3, 60, 6) * 2, _labels()
    found = hard_negative_cross_entropy(logits, targets, negatives_per_positive=ratio, min_negatives=least)
    assert float(found) == pytest.approx(_plain_hard_negatives(logits, targets, ratio=ratio, least=least), rel=1e-5)


def test_hard_negatives_by_hand() -> None:
    # Two outputs with logits (0, x): background costs log(1 + e^x), the object log(1 + e^-x).
    x = torch.tensor([[0.0, 3.0, 2.0, 1.0, -1.0, 9.0]])
    targets = torch.tensor([[1, 0, 0, 0, 0, IGNORED]])
    found = hard_negative_cross_entropy(
        torch.stack((torch.zeros_like(x), x), -1), targets, negatives_per_positive=2, min_negatives=0)
    assert float(found) == pytest.approx(math.log(2) + math.log(1 + math.exp(3)) + math.log(1 + math.exp(2)))


def test_hard_negatives_of_sigmoids_by_hand() -> None:
    # Outputs (b, x) of every anchor: the object costs log(1 + e^b) + log(1 + e^-x), background what it costs reversed.
    b = torch.tensor([[1.0, 0.0, 2.0, -1.0, 9.0]])
    x = torch.tensor([[-0.5, 3.0, 0.0, 1.0, 9.0]])
    targets = torch.tensor([[1, 0, 0, 0, IGNORED]])
    found = hard_negative_cross_entropy(
        torch.stack((b, x), -1), targets, negatives_per_positive=2, min_negatives=0, sigmoid=True)

    def cost(value: float) -> float:
        return math.log(1 + math.exp(value))

    object_, hardest, next_ = cost(1.0) + cost(0.5), cost(0.0) + cost(3.0), cost(1.0) + cost(1.0)
    assert next_ > cost(-2.0) + cost(0.0)
    assert float(found) == pytest.approx(object_ + hardest + next_)


def test_a_batch_is_the_sum_of_its_images() -> None:
    logits, targets = torch.randn(3, 60, 6), _labels()
    single = [hard_negative_cross_entropy(logits[i : i + 1], targets[i : i + 1], negatives_per_positive=3.0,
                                          min_negatives=3) for i in range(3)]
    whole = hard_negative_cross_entropy(logits, targets, negatives_per_positive=3.0, min_negatives=3)
    torch.testing.assert_close(whole, torch.stack(single).sum())


def _torchvision_losses(
    logits: Tensor, deltas: Tensor, anchors: Tensor, *, images: list[tuple[Tensor, Tensor]], matched: Tensor
) -> dict[str, Tensor]:
    """torchvision's SSD.compute_loss, which wants labels from 1 and divides by the number of matched anchors."""
    reference = SimpleNamespace(box_coder=BoxCoder(WEIGHTS), neg_to_pos_ratio=3.0)
    found: dict[str, Tensor] = SSD.compute_loss(
        reference, [{"boxes": image_boxes, "labels": labels + 1} for image_boxes, labels in images],
        {"bbox_regression": deltas, "cls_logits": logits}, [anchors] * len(images), list(matched))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_both_losses_equal_torchvision(seed: int) -> None:
    torch.manual_seed(seed)
    anchors = _boxes(200)
    images = [(_boxes(number), torch.randint(0, 5, (number,))) for number in (3, 7)]
    matched = torch.full((2, 200), NEGATIVE)
    padded = BoxTargets(torch.zeros(2, 7, 4), torch.full((2, 7), -1), torch.zeros(2, 7, dtype=torch.bool))
    for row, (image_boxes, labels) in enumerate(images):
        matched[row, ::9] = torch.arange(23) % len(labels)
        padded.boxes[row, : len(labels)] = image_boxes
        padded.labels[row, : len(labels)] = labels
    logits, deltas = torch.randn(2, 200, 6), torch.randn(2, 200, 4) * 3
    theirs = _torchvision_losses(logits, deltas, anchors, images=images, matched=matched)
    outputs = torch.where(matched >= 0, padded.labels.gather(1, matched.clamp(min=0)) + 1, 0)
    found = hard_negative_cross_entropy(logits, outputs, negatives_per_positive=3.0, min_negatives=0)
    located = box_loss(deltas, anchors, padded, matched, weights=WEIGHTS, kind="smooth_l1")
    torch.testing.assert_close(found / 46, theirs["classification"])
    torch.testing.assert_close(located / 46, theirs["bbox_regression"])


def _boxes(number: int) -> Tensor:
    corner = torch.rand(number, 2) * torch.tensor([280.0, 160.0])
    return torch.cat((corner, corner + 8 + torch.rand(number, 2) * 80), -1)


def test_focal_loss_equals_the_plain_formula() -> None:
    logits, targets = torch.randn(2, 40, 6, dtype=torch.float64) * 3, _labels(2, 40, positives=(3, 0))
    targets[0, :3] = -1  # nothing at all, not even background
    total = 0.0
    for row, target in zip(logits.flatten(0, 1).tolist(), targets.flatten().tolist(), strict=True):
        for column, x in enumerate(row if target != IGNORED else []):
            p, alpha = (1 / (1 + math.exp(-x)), 0.75) if column == target else (1 / (1 + math.exp(x)), 0.25)
            total -= alpha * (1 - p) ** 2 * math.log(p)
    assert float(focal_loss(logits, targets, alpha=0.75, gamma=2.0)) == pytest.approx(total)


def test_focal_loss_without_focus_is_half_of_cross_entropy() -> None:
    logits, targets = torch.randn(2, 10, 4), torch.randint(0, 4, (2, 10))
    wanted = F.binary_cross_entropy_with_logits(logits, F.one_hot(targets, 4).float(), reduction="sum")
    torch.testing.assert_close(focal_loss(logits, targets, alpha=0.5, gamma=0.0), wanted / 2)


def test_ignored_anchors_get_no_gradient() -> None:
    targets = _labels()
    ignored = targets == IGNORED
    for loud in (1.0, 1e4):  # an ignored anchor's loss may be the largest of all
        logits = torch.randn(3, 60, 6)
        logits[ignored] *= loud
        logits.requires_grad_()
        for loss in (hard_negative_cross_entropy(logits, targets, negatives_per_positive=3.0, min_negatives=10),
                     focal_loss(logits, targets, alpha=0.75, gamma=2.0)):
            (gradient,) = torch.autograd.grad(loss, logits)
            assert bool((gradient[ignored] == 0).all())
            assert bool(gradient.isfinite().all())
            assert bool((gradient[targets > 0] != 0).any(-1).all())


def test_images_without_objects() -> None:
    logits, targets = torch.randn(2, 50, 6, requires_grad=True), torch.zeros(2, 50, dtype=torch.int64)
    none = hard_negative_cross_entropy(logits, targets, negatives_per_positive=3.0, min_negatives=0)
    assert float(none.detach()) == 0
    some = hard_negative_cross_entropy(logits, targets, negatives_per_positive=3.0, min_negatives=3)
    (gradient,) = torch.autograd.grad(some, logits)
    assert (gradient != 0).any(-1).sum(1).tolist() == [3, 3]
    (gradient,) = torch.autograd.grad(focal_loss(logits, targets, alpha=0.75, gamma=2.0), logits)
    assert bool((gradient != 0).all())


def _located(kind: Kind, deltas: Tensor, *, matched: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The loss of six anchors, of which the first, the third and the fourth are matched to boxes; and its gradient."""
    anchors = torch.tensor([[0.0, 0, 40, 20], [100, 0, 140, 20], [50, 60, 70, 100], [10, 10, 30, 30], [0, 0, 9, 9],
                            [80, 80, 90, 99]])
    targets = BoxTargets(torch.tensor([[[4.0, 0, 44, 20], [50, 50, 80, 100], [0, 0, 0, 0]]]),
                         torch.tensor([[1, 0, -1]]), torch.zeros(1, 3, dtype=torch.bool))
    if matched is None:
        matched = torch.tensor([[0, NEGATIVE, 1, 0, IGNORED, NEGATIVE]])
    deltas = deltas.expand(1, 6, 4).clone().requires_grad_()
    loss = box_loss(deltas, anchors, targets, matched, weights=WEIGHTS, kind=kind)
    (gradient,) = torch.autograd.grad(loss, deltas)
    return loss.detach(), gradient


def test_smooth_l1_by_hand() -> None:
    # First anchor: 4 to the right of 40, a delta of 10 * 0.1 = 1, so 0.5. Third: 5 of 20 to the right and 5 of 40 up,
    # 30 for 20 wide, 50 for 40 high. Fourth: centre (24, 10) for (20, 20), 40 for 20 wide, 20 for 20 high.
    def smooth(*deltas: float) -> float:
        return sum(0.5 * d * d if abs(d) < 1 else abs(d) - 0.5 for d in deltas)

    wanted = 0.5 + smooth(10 * 5 / 20, -10 * 5 / 40, 5 * math.log(1.5), 5 * math.log(1.25))
    wanted += smooth(10 * 4 / 20, -10 * 10 / 20, 5 * math.log(2), 0)
    assert float(_located("smooth_l1", torch.zeros(4))[0]) == pytest.approx(wanted)


def test_complete_iou_by_hand() -> None:
    # Anchor [0, 0, 40, 20] for [4, 0, 44, 20]: IoU 36/44, centres 4 apart, enclosing diagonal of 44 x 20, same aspect.
    matched = torch.tensor([[0, *[NEGATIVE] * 5]])
    loss, _ = _located("ciou", torch.zeros(4), matched=matched)
    assert float(loss) == pytest.approx(1 - 36 / 44 + 16 / (44**2 + 20**2))
    # The third anchor, 20 x 40, for 30 x 50: the aspect ratios differ too.
    loss, _ = _located("ciou", torch.zeros(4), matched=torch.tensor([[NEGATIVE, NEGATIVE, 1, *[NEGATIVE] * 3]]))
    iou = float(box_iou(torch.tensor([[50.0, 60, 70, 100]]), torch.tensor([[50.0, 50, 80, 100]])))
    aspect = 4 / math.pi**2 * (math.atan(30 / 50) - math.atan(20 / 40)) ** 2
    distance = (5**2 + 5**2) / (30**2 + 50**2)
    assert float(loss) == pytest.approx(1 - iou + distance + aspect * aspect / (1 - iou + aspect), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_box_costs_nothing(kind: Kind) -> None:
    anchors, wanted = _boxes(30), _boxes(30)
    targets = BoxTargets(wanted[None], torch.zeros(1, 30, dtype=torch.int64), torch.zeros(1, 30, dtype=torch.bool))
    deltas = boxes.encode(wanted, anchors, WEIGHTS)[None]
    loss = box_loss(deltas, anchors, targets, torch.arange(30)[None], weights=WEIGHTS, kind=kind)
    assert float(loss) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("size", [0.0, 1.0, 50.0, 500.0, 1e4])
@pytest.mark.parametrize("sign", [(1, 1, 1, 1), (-1, -1, -1, -1), (1, 1, -1, -1), (1, -1, 1, -1), (0, 0, -1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_for_absurd_boxes(kind: Kind, sign: tuple[int, ...], size: float) -> None:
    """Boxes far away, blown up, or shrunk until nothing is left."""
    loss, gradient = _located(kind, torch.tensor(sign) * size)
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())
    assert bool((gradient[0, [1, 4, 5]] == 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_unmatched_anchors_get_no_gradient_and_change_no_other(kind: Kind) -> None:
    deltas = torch.zeros(6, 4)
    quiet_loss, quiet = _located(kind, deltas)
    deltas[[1, 4, 5]] = torch.tensor([[1e9, -1e9, -1e9, 1e9], [torch.inf] * 4, [-1e30] * 4])
    loss, gradient = _located(kind, deltas)
    torch.testing.assert_close(loss, quiet_loss)
    torch.testing.assert_close(gradient, quiet)


@pytest.mark.parametrize("kind", KINDS)
def test_no_boxes_cost_nothing(kind: Kind) -> None:
    deltas = torch.randn(2, 30, 4, requires_grad=True)
    targets = BoxTargets(torch.zeros(2, 0, 4), torch.zeros(2, 0).long(), torch.zeros(2, 0).bool())
    loss = box_loss(deltas, _boxes(30), targets, torch.full((2, 30), NEGATIVE), weights=WEIGHTS, kind=kind)
    (gradient,) = torch.autograd.grad(loss, deltas)
    assert float(loss.detach()) == 0
    assert bool((gradient == 0).all())


def test_the_quality_focal_loss_by_hand() -> None:
    """Probability 1/2: the cross entropy is ln 2 for any quality, and half a step away from 0 and 1, and none from 1/2.
    """
    loss = quality_focal_loss(torch.zeros(1, 1, 3), torch.tensor([[[0.0, 0.5, 1.0]]]))
    assert loss.flatten().tolist() == pytest.approx([math.log(2) / 4, 0.0, math.log(2) / 4])
    assert float(quality_focal_loss(torch.full((1, 1, 1), 60.0), torch.ones(1, 1, 1))) == 0


def test_task_aligned_losses_by_hand() -> None:
    """Two anchors on one box, of which the second says another; a third shows background, a fourth lies in a crowd."""
    anchors = torch.tensor([[0.0, 0, 20, 10], [0, 0, 20, 10], [50, 50, 60, 60], [80, 80, 90, 90]])
    targets = BoxTargets(torch.tensor([[[0.0, 0, 20, 10], [78, 78, 92, 92]]]), torch.tensor([[1, 0]]),
                         torch.tensor([[False, True]]))
    found = torch.tensor([[[0.0, 0, 20, 10], [0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]]])
    deltas = boxes.encode(found, anchors, WEIGHTS).requires_grad_()
    logits = torch.zeros(1, 4, 3, requires_grad=True)  # background, which nobody asks, and two classes
    losses = task_aligned_losses(
        logits, boxes.decode(deltas, anchors, WEIGHTS), anchors, targets, (100, 100), first=1, kind="giou",
        box_weight=2.0)
    qualities = [1.0, 1 / 64]
    assert float(losses["class"].count) == float(losses["box"].count) == pytest.approx(sum(qualities))
    wanted = sum((0.5 - quality) ** 2 for quality in [*qualities, *[0.0] * 7]) * math.log(2)
    assert float(losses["class"].sum.detach()) == pytest.approx(wanted, rel=1e-5)
    assert float(losses["box"].sum.detach()) == pytest.approx(2 * 0.5 / 64, rel=1e-5)
    torch.autograd.backward(torch.stack([term.sum for term in losses.values()]).sum())
    assert logits.grad is not None
    assert deltas.grad is not None
    assert logits.grad[0, 3].eq(0).all(), "in the crowd"
    assert logits.grad[0, :3].ne(0).all()
    assert deltas.grad[0, 2:].eq(0).all()
    assert deltas.grad[0, 1].ne(0).any()


def test_task_aligned_losses_of_a_batch_without_boxes() -> None:
    anchors = torch.tensor([[0.0, 0, 20, 10]])
    labels = torch.zeros(2, 0, dtype=torch.int64)
    nothing = BoxTargets(torch.zeros(2, 0, 4), labels, labels > 0)
    logits = torch.zeros(2, 1, 3, requires_grad=True)
    losses = task_aligned_losses(
        logits, anchors.expand(2, 1, 4), anchors, nothing, (100, 100), first=1, kind="ciou", box_weight=1.0)
    assert float(losses["box"].sum.detach()) == float(losses["box"].count) == 0
    assert float(losses["class"].sum.detach()) == pytest.approx(6 * math.log(2) / 4)
