"""Which anchor stands for which true box, for a whole batch at once and with static shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from detseg import boxes
from detseg.interfaces import BoxTargets

NEGATIVE = -1
"""The anchor shows background."""
IGNORED = -2
"""The anchor teaches nothing: it lies in a crowd, or between the thresholds."""


def match(
    anchors: Tensor, targets: BoxTargets, *, limits: Tensor, positive: float, negative: float, keep_best: bool,
    crowd_coverage: float = 0.5,
) -> Tensor:
    """The number of the true box that each anchor stands for, or NEGATIVE, or IGNORED: int64 [B, N].

    An anchor takes the box it overlaps most if their IoU reaches `positive`; below `negative` it is NEGATIVE, between
    the two IGNORED. keep_best: every true box keeps the anchor that overlaps it most, however little (of two boxes
    with the same best anchor the later one gets it, as in torchvision). Padding and crowds are never matched; an
    anchor not taken of which `crowd_coverage` of the part inside the image lies in a crowd region is IGNORED.

    anchors: [N, 4]. targets: a padded batch; M may be 0. limits: [4], width, height, width, height of the image.
    """
    assert 0 <= negative <= positive <= 1, (negative, positive)
    assert positive > 0, "boxes that overlap nothing, such as padding, must not be matched"
    num_images, num_boxes = targets.labels.shape
    if num_boxes == 0:
        return torch.full((num_images, len(anchors)), NEGATIVE, device=anchors.device)
    real_BM = (targets.labels >= 0) & ~targets.crowd
    iou_BMN = boxes.iou(targets.boxes, anchors) * real_BM[..., None]

    best_iou_BN, best_box_BN = iou_BMN.max(1)
    unmatched_BN = torch.where(best_iou_BN < negative, NEGATIVE, IGNORED)
    matched_BN = torch.where(best_iou_BN >= positive, best_box_BN, unmatched_BN)
    if keep_best:
        best_iou_BM, best_anchor_BM = iou_BMN.max(2)
        claims_BM = torch.arange(num_boxes, device=anchors.device).expand(num_images, -1)
        claims_BM = torch.where(best_iou_BM > 0, claims_BM, -1)
        claimed_BN = torch.full_like(matched_BN, -1).scatter_reduce(1, best_anchor_BM, claims_BM, "amax")
        matched_BN = torch.where(claimed_BN >= 0, claimed_BN, matched_BN)

    crowd_BM = (targets.labels >= 0) & targets.crowd
    visible = torch.minimum(anchors.clamp(min=0.0), limits)
    inside_BMN = boxes.coverage(visible, targets.boxes).transpose(1, 2) >= crowd_coverage
    in_crowd_BN = (inside_BMN & crowd_BM[..., None]).any(1)
    return torch.where(in_crowd_BN & (matched_BN < 0), IGNORED, matched_BN)


def gather_targets(targets: BoxTargets, matched_BN: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes [B, N, 4] and labels [B, N] that matched anchors stand for; meaningless where there is no match."""
    num_images, num_anchors = matched_BN.shape
    if targets.labels.shape[1] == 0:
        return targets.boxes.new_zeros(num_images, num_anchors, 4), targets.labels.new_zeros(num_images, num_anchors)
    index_BN = matched_BN.clamp(min=0)
    return (targets.boxes.gather(1, index_BN[..., None].expand(-1, -1, 4)), targets.labels.gather(1, index_BN))
