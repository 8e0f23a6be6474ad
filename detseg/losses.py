"""Detection losses, summed over a padded batch with no loop over images or classes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, sigmoid_focal_loss

from detseg import boxes
from detseg.interfaces import BoxTargets
from detseg.matching import IGNORED, gather_targets

_SMALLEST_SIDE = 0.01
"""Pixels: a predicted box counts as at least so wide and high in the complete IoU."""


def hard_negative_cross_entropy(
    logits_BNC: Tensor, targets_BN: Tensor, *, negatives_per_positive: float, min_negatives: int
) -> Tensor:
    """SSD's classification loss (Liu et al. 2016, section 2.2), a scalar sum.

    Class 0 is background. In each image all positives count, and of the negatives those with the highest loss:
    `negatives_per_positive` times as many as positives, at least `min_negatives`. Target IGNORED counts for nothing.
    """
    loss_BN = F.cross_entropy(logits_BNC.flatten(0, 1), targets_BN.flatten().clamp(min=0), reduction="none")
    loss_BN = loss_BN.view_as(targets_BN)
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


def box_loss(
    deltas_BN4: Tensor, anchors_N4: Tensor, targets: BoxTargets, matched_BN: Tensor, *,
    weights: tuple[float, float, float, float], kind: Literal["smooth_l1", "ciou"],
) -> Tensor:
    """The localisation loss of the matched anchors, a scalar sum.

    "smooth_l1" on the encoded deltas (SSD); "ciou" 1 - complete IoU of the decoded boxes (Zheng et al. 2020).
    """
    positive_BN = matched_BN >= 0
    wanted_BN4, _ = gather_targets(targets, matched_BN)
    wanted_BN4 = torch.where(positive_BN[..., None], wanted_BN4, anchors_N4)  # keeps the logarithm finite elsewhere
    if kind == "smooth_l1":
        loss_BN = F.smooth_l1_loss(deltas_BN4, boxes.encode(wanted_BN4, anchors_N4, weights), reduction="none").sum(-1)
    else:
        # Sides of 0 have no aspect ratio; the gradient would not be a number, and poison that of the other anchors.
        decoded_BN4 = boxes.decode(torch.where(positive_BN[..., None], deltas_BN4, 0.0), anchors_N4, weights)
        corners = decoded_BN4[..., :2], torch.maximum(decoded_BN4[..., 2:], decoded_BN4[..., :2] + _SMALLEST_SIDE)
        loss_BN = complete_box_iou_loss(torch.cat(corners, -1), wanted_BN4)
    return torch.where(positive_BN, loss_BN, 0.0).sum()
