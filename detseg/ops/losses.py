"""Losses of detection, segmentation and classification, summed over a batch with no loop over images or classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss, sigmoid_focal_loss

from detseg.interfaces import Losses, Term
from detseg.ops import boxes, matching
from detseg.ops.matching import IGNORED, gather_targets
from detseg.structures import VOID, BoxTargets, LabelTargets, Size

IoULoss: TypeAlias = Literal["ciou", "giou"]
BoxLoss: TypeAlias = Literal["smooth_l1", "l1", "huber", "ciou", "giou"]

_DELTA_LOSSES: dict[BoxLoss, Callable[..., Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "l1": F.l1_loss,
    "huber": partial(F.huber_loss, delta=0.1),
}
_SMALLEST_SIDE = 0.01
"""Pixels: a predicted box counts as at least so wide and high in the complete IoU."""


def hard_negative_cross_entropy(
    logits_BNC: Tensor, targets_BN: Tensor, *, negatives_per_positive: float, min_negatives: int,
    sigmoid: bool = False,
) -> Tensor:
    """SSD's classification loss (Liu et al. 2016, section 2.2), a scalar sum.

    Class 0 is background. In each image all positives count, and of the negatives those with the highest loss:
    `negatives_per_positive` times as many as positives, at least `min_negatives`. Target IGNORED counts for nothing.
    sigmoid: each output is a probability of its own, background's too, and an anchor's loss the sum over them
    (TensorFlow's weighted_sigmoid) instead of the softmax's.
    """
    wanted_BN = targets_BN.clamp(min=0)
    if sigmoid:
        wanted_BNC = torch.zeros_like(logits_BNC).scatter_(2, wanted_BN[..., None], 1.0)
        loss_BN = F.binary_cross_entropy_with_logits(logits_BNC, wanted_BNC, reduction="none").sum(-1)
    else:
        loss_BN = F.cross_entropy(logits_BNC.flatten(0, 1), wanted_BN.flatten(), reduction="none").view_as(targets_BN)
    positive_BN, negative_BN = targets_BN > 0, targets_BN == 0
    num_hard_B1 = (positive_BN.sum(1, keepdim=True) * negatives_per_positive).long().clamp(min=min_negatives)
    hardness_BN = loss_BN.detach().masked_fill(~negative_BN, -torch.inf)
    order_BN = hardness_BN.argsort(1, descending=True)
    ranks_BN = torch.empty_like(order_BN).scatter_(
        1, order_BN, torch.arange(order_BN.shape[1], device=order_BN.device).expand_as(order_BN))
    counted_BN = positive_BN | (negative_BN & (ranks_BN < num_hard_B1))
    return (loss_BN * counted_BN).sum()


def focal_loss(logits_BNC: Tensor, targets_BN: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017) over all classes of all anchors that are not IGNORED, a scalar sum.

    targets_BN: the column that should be 1; -1 for none.
    """
    wanted_BNC = torch.zeros_like(logits_BNC).scatter_(2, targets_BN.clamp(min=0)[..., None], 1.0)
    wanted_BNC = wanted_BNC * (targets_BN >= 0)[..., None]
    loss_BNC: Tensor = sigmoid_focal_loss(logits_BNC, wanted_BNC, alpha=alpha, gamma=gamma)
    return (loss_BNC * (targets_BN != IGNORED)[..., None]).sum()


def quality_focal_loss(logits_BNC: Tensor, wanted_BNC: Tensor, *, beta: float = 2.0) -> Tensor:
    """Cross entropy with a quality 0..1, times how far from it the probability is (Li et al. 2020, arXiv 2006.04388,
    equation 6), [B, N, C]."""
    entropy_BNC = F.binary_cross_entropy_with_logits(logits_BNC, wanted_BNC, reduction="none")
    return entropy_BNC * (wanted_BNC - logits_BNC.sigmoid()).abs().pow(beta)


def box_loss(
    deltas_BN4: Tensor, anchors_N4: Tensor, targets: BoxTargets, matched_BN: Tensor, *,
    weights: tuple[float, float, float, float], kind: BoxLoss,
) -> Tensor:
    """The localisation loss of the matched anchors, a scalar sum.

    On the encoded deltas: "smooth_l1" (SSD), "l1" (torchvision's RetinaNet) or "huber", Huber's loss with a bend at 0.1
    (TensorFlow's RetinaNet). "ciou": 1 - complete IoU of the decoded boxes (Zheng et al. 2020); "giou": the same of the
    generalised IoU (Rezatofighi et al. 2019).
    """
    if kind == "ciou" or kind == "giou":
        return _iou_loss(boxes.decode(deltas_BN4, anchors_N4, weights), targets, matched_BN, kind).sum()
    positive_BN = matched_BN >= 0
    wanted_BN4, _ = gather_targets(targets, matched_BN)
    wanted_BN4 = torch.where(positive_BN[..., None], wanted_BN4, anchors_N4)  # keeps the logarithm finite elsewhere
    loss_BN = _DELTA_LOSSES[kind](
        deltas_BN4, boxes.encode(wanted_BN4, anchors_N4, weights), reduction="none").sum(-1)
    return torch.where(positive_BN, loss_BN, 0.0).sum()


def _iou_loss(found_BN4: Tensor, targets: BoxTargets, matched_BN: Tensor, kind: IoULoss) -> Tensor:
    """1 - the complete or generalised IoU of the matched anchors' boxes, [B, N]; 0 where there is no match."""
    positive_BN1 = (matched_BN >= 0)[..., None]
    wanted_BN4, _ = gather_targets(targets, matched_BN)
    anything = found_BN4.new_tensor((0.0, 0.0, 1.0, 1.0))
    found_BN4, wanted_BN4 = (torch.where(positive_BN1, each, anything) for each in (found_BN4, wanted_BN4))
    # Sides of 0 have no aspect ratio; the gradient would not be a number, and poison that of the other anchors.
    corners = found_BN4[..., :2], torch.maximum(found_BN4[..., 2:], found_BN4[..., :2] + _SMALLEST_SIDE)
    measure = complete_box_iou_loss if kind == "ciou" else generalized_box_iou_loss
    loss_BN: Tensor = measure(torch.cat(corners, -1), wanted_BN4)
    return torch.where(positive_BN1[..., 0], loss_BN, 0.0)


def task_aligned_losses(
    logits_BNC: Tensor, found_BN4: Tensor, anchors_N4: Tensor, targets: BoxTargets, size: Size, *, first: int,
    kind: IoULoss, box_weight: float,
) -> Losses:
    """The losses "class" and "box" of anchors matched by `matching.align`: each learns to score as well as its box
    fits (Feng et al. 2021, section 3.3, with the quality focal loss of Li et al. 2020).

    The count of both is the sum of the qualities. Boxes count by `Alignment.weight`, so that every object counts alike;
    in the article they count by the quality too, and an object that nothing overlaps much is hardly learned: small ones
    stay behind (tests/test_panlite.py has one).

    Args:
        logits_BNC: scores are their sigmoids.
        found_BN4: decoded boxes.
        anchors_N4: their anchors, or cells.
        targets: true boxes.
        size: of the network's image.
        first: the column of the first class.
        kind: see `box_loss`.
        box_weight: the box loss counts so much.
    """
    scores_BNK = logits_BNC.detach()[..., first:].sigmoid()
    matched_BN, quality_BN, weight_BN = matching.align(scores_BNK, found_BN4.detach(), anchors_N4, targets, size)
    outputs_BN = matching.wanted_outputs(targets, matched_BN, first=first, negative=-1)
    wanted_BNC = torch.zeros_like(logits_BNC).scatter_(2, outputs_BN.clamp(min=0)[..., None], quality_BN[..., None])
    classification = quality_focal_loss(logits_BNC, wanted_BNC) * (matched_BN != IGNORED)[..., None]

    loss_BN = _iou_loss(found_BN4, targets, matched_BN, kind)
    count = quality_BN.sum()
    return {"class": Term(classification.sum(), count), "box": Term(box_weight * (loss_BN * weight_BN).sum(), count)}


def segmentation_cross_entropy(
    logits: Tensor, labels: Tensor, *, class_weights: Sequence[float] | None = None, hardest: float = 1.0,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of each pixel: the sum over those that count, and how many count, with their classes' weights.

    logits: [B, K, h, w], enlarged bilinearly to the labels' size. labels: [B, H, W]; VOID counts for nothing.
    class_weights: K factors; the second number is then the sum of the counted pixels' factors, as in a weighted mean.
    hardest: the share of each image's known pixels that counts, those with the highest loss (online hard example
    mining, Shrivastava et al. 2016; there of the whole batch, which would make the loss depend on how it is split).
    """
    num_classes = logits.shape[1]
    if class_weights is not None and len(class_weights) != num_classes:
        raise ValueError(f"{num_classes} classes need as many class_weights, got {len(class_weights)}")
    if not 0 < hardest <= 1:
        raise ValueError(f"hardest is a share of the pixels and must lie in (0, 1], got {hardest}")
    enlarged = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear", align_corners=align_corners)
    known_BHW, wanted_BHW = labels != VOID, labels.long()
    weights_K = enlarged.new_ones(num_classes) if class_weights is None else enlarged.new_tensor(class_weights)
    loss_BHW = F.cross_entropy(enlarged, wanted_BHW, weights_K, ignore_index=VOID, reduction="none")
    weights_BHW = weights_K[wanted_BHW.masked_fill(~known_BHW, 0)] * known_BHW
    if hardest < 1:
        order = loss_BHW.detach().masked_fill(~known_BHW, -torch.inf).flatten(1).argsort(1, descending=True)
        num_hard_B1 = (known_BHW.flatten(1).sum(1, keepdim=True) * hardest).ceil()
        counted = torch.zeros_like(known_BHW.flatten(1)).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device) < num_hard_B1).view_as(known_BHW)
        loss_BHW, weights_BHW = loss_BHW * counted, weights_BHW * counted
    return loss_BHW.sum(), weights_BHW.sum()


def segmentation_losses(
    logits: Tensor, targets: LabelTargets, *, class_weights: Sequence[float] | None, hardest: float,
    align_corners: bool = False, auxiliary: Sequence[Tensor] = (), auxiliary_weight: float = 0.0,
) -> Losses:
    """A segmenter's `segmentation_cross_entropy`, "pixel", and the same of its auxiliary classifiers times their
    weight, "auxiliary", where it has any; the count is that of the pixels that count."""
    entropies = [
        segmentation_cross_entropy(
            each, targets.labels, class_weights=class_weights, hardest=hardest, align_corners=align_corners)
        for each in (logits, *auxiliary)]
    (pixel, count), *others = entropies
    losses = {"pixel": Term(pixel, count)}
    if others:
        losses["auxiliary"] = Term(auxiliary_weight * torch.stack([total for total, _ in others]).sum(), count)
    return losses


def classification_losses(logits_BK: Tensor, labels_B: Tensor, *, label_smoothing: float = 0.0) -> Losses:
    """The cross entropy of whole images, "class"; the count is that of the images whose class is known, not -1.

    label_smoothing: the share of the true class's probability that all K classes get alike (Szegedy et al. 2016, arXiv
    1512.00567, section 7).
    """
    entropy = F.cross_entropy(
        logits_BK.float(), labels_B, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing)
    return {"class": Term(entropy, (labels_B >= 0).sum())}
