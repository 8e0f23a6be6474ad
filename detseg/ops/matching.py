"""Which anchor stands for which true box, for a whole batch at once and with static shapes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detseg.ops import boxes
from detseg.structures import BoxTargets, Size

NEGATIVE = -1
"""The anchor shows background."""
IGNORED = -2
"""The anchor is ignored by the loss: it lies in a crowd, or between the thresholds."""


def match(
    anchors: Tensor, targets: BoxTargets, size: Size, *, positive: float, negative: float, keep_best: bool,
    keep_ties: bool = False, crowd_coverage: float = 0.5,
) -> Tensor:
    """The number of the true box that each anchor stands for, or NEGATIVE, or IGNORED: int64 [B, N].

    An anchor takes the box it overlaps most if their IoU reaches `positive`; below `negative` it is NEGATIVE, between
    the two IGNORED. keep_best: every true box keeps the anchor that overlaps it most, however little (of two boxes
    with the same best anchor the later one gets it, as in torchvision's SSD). keep_ties: every anchor that some true
    box overlaps as much as any other anchor stands for the box it overlaps most itself, however little (Faster R-CNN
    and RetinaNet; torchvision's allow_low_quality_matches). Padding and crowds are never matched; an anchor not taken
    of which `crowd_coverage` of the part inside the image lies in a crowd region is IGNORED.

    Args:
        anchors: [N, 4], or [B, N, 4] where each image has its own.
        targets: a padded batch; M may be 0.
        size: of the network's image.
        positive, negative: see above.
        keep_best, keep_ties: see above.
        crowd_coverage: see above.
    """
    assert 0 <= negative <= positive <= 1, (negative, positive)
    assert positive > 0, "boxes that overlap nothing, such as padding, must not be matched"
    num_images, num_boxes = targets.labels.shape
    if num_boxes == 0:
        return torch.full((num_images, anchors.shape[-2]), NEGATIVE, device=anchors.device)
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

    if keep_ties:
        most_BM1 = iou_BMN.amax(2, keepdim=True)
        tied_BN = ((iou_BMN == most_BM1) & (most_BM1 > 0)).any(1)
        matched_BN = torch.where(tied_BN, best_box_BN, matched_BN)

    return _without_crowds(matched_BN, anchors, targets, size, crowd_coverage)


def _without_crowds(
    matched_BN: Tensor, anchors: Tensor, targets: BoxTargets, size: Size, crowd_coverage: float
) -> Tensor:
    """What is not matched and lies in a crowd region is IGNORED."""
    crowd_BM = (targets.labels >= 0) & targets.crowd
    visible = boxes.clip(anchors, size)
    inside_BMN = boxes.coverage(visible, targets.boxes).transpose(1, 2) >= crowd_coverage
    in_crowd_BN = (inside_BMN & crowd_BM[..., None]).any(1)
    return torch.where(in_crowd_BN & (matched_BN < 0), IGNORED, matched_BN)


class Alignment(NamedTuple):
    """Which anchors stand for which true boxes, and how well they should say so."""

    matched: Tensor
    """The number of the true box, or NEGATIVE, or IGNORED: int64 [B, N]."""
    quality: Tensor
    """The score that a matched anchor should give, 0..1; 0 where there is no match: [B, N]."""
    weight: Tensor
    """By what the box of a matched anchor counts: 1 for the best anchor of a true box, less for the others; 0 where
    there is no match: [B, N]."""


@torch.no_grad()
def align(
    scores_BNK: Tensor, boxes_BN4: Tensor, anchors: Tensor, targets: BoxTargets, size: Size, *, most: int = 13,
    score_power: float = 1.0, iou_power: float = 6.0, crowd_coverage: float = 0.5,
) -> Alignment:
    """Task-aligned assignment (Feng et al. 2021, arXiv 2108.07755, section 3.2): a true box takes the anchors that
    already say it best, in class and place together.

    Candidates of a box are the anchors whose centre lies in it, and the one that overlaps it most, so that a box
    between two cells has one too. Of these it takes the `most` with the highest score ** `score_power` * IoU **
    `iou_power`; where two boxes want an anchor, it stands for the one it overlaps more. The quality is that number,
    scaled so that each box's best anchor has the largest IoU among its anchors. Crowds as in `match`.

    Args:
        scores_BNK: what the network says now, 0..1.
        boxes_BN4: the same, decoded.
        anchors: [N, 4].
        targets: a padded batch; M may be 0.
        size: of the network's image.
        most: see above.
        score_power, iou_power: see above.
        crowd_coverage: see `match`.
    """
    num_boxes = targets.labels.shape[1]
    if num_boxes == 0:
        negative_BN = torch.full(scores_BNK.shape[:2], NEGATIVE, device=anchors.device)
        nothing_BN = scores_BNK.new_zeros(scores_BNK.shape[:2])
        return Alignment(negative_BN, nothing_BN, nothing_BN)
    real_BM = (targets.labels >= 0) & ~targets.crowd
    centres_N2 = (anchors[:, :2] + anchors[:, 2:]) / 2
    inside_BMN = ((centres_N2 > targets.boxes[:, :, None, :2]) & (centres_N2 < targets.boxes[:, :, None, 2:])).all(-1)
    nearest_BM1 = boxes.iou(targets.boxes, anchors).argmax(2, keepdim=True)
    candidate_BMN = inside_BMN.scatter(2, nearest_BM1, True) & real_BM[..., None]

    iou_BMN = boxes.iou(targets.boxes, boxes_BN4)
    labels_BM1 = targets.labels.clamp(min=0)[..., None].expand(-1, -1, scores_BNK.shape[1])
    said_BMN = scores_BNK.transpose(1, 2).gather(1, labels_BM1)
    fit_BMN = said_BMN.pow(score_power) * iou_BMN.pow(iou_power) * candidate_BMN
    best_fit, best_BMR = fit_BMN.topk(min(most, fit_BMN.shape[2]))
    chosen_BMN = torch.zeros_like(candidate_BMN).scatter(2, best_BMR, best_fit > 0)
    owner_BN = (iou_BMN * chosen_BMN).argmax(1)
    matched_BN = torch.where(chosen_BMN.any(1), owner_BN, NEGATIVE)

    own_BMN = chosen_BMN & (owner_BN[:, None] == torch.arange(num_boxes, device=anchors.device)[:, None])
    fit_BMN, iou_BMN = fit_BMN * own_BMN, iou_BMN * own_BMN
    weight_BMN = fit_BMN / fit_BMN.amax(2, keepdim=True).clamp(min=torch.finfo(fit_BMN.dtype).tiny)
    quality_BMN = weight_BMN * iou_BMN.amax(2, keepdim=True)
    return Alignment(_without_crowds(matched_BN, anchors, targets, size, crowd_coverage), quality_BMN.sum(1),
                     weight_BMN.sum(1))


def gather_targets(targets: BoxTargets, matched_BN: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes [B, N, 4] and labels [B, N] that matched anchors stand for; meaningless where there is no match."""
    num_images, num_anchors = matched_BN.shape
    if targets.labels.shape[1] == 0:
        return targets.boxes.new_zeros(num_images, num_anchors, 4), targets.labels.new_zeros(num_images, num_anchors)
    index_BN = matched_BN.clamp(min=0)
    return (targets.boxes.gather(1, index_BN[..., None].expand(-1, -1, 4)), targets.labels.gather(1, index_BN))


def wanted_outputs(targets: BoxTargets, matched_BN: Tensor, *, first: int, negative: int) -> Tensor:
    """The output that each anchor should give, int64 [B, N]: `first` + label where it is matched, `negative` where it
    shows background, and IGNORED."""
    _, labels_BN = gather_targets(targets, matched_BN)
    unmatched_BN = torch.where(matched_BN == NEGATIVE, negative, IGNORED)
    return torch.where(matched_BN >= 0, labels_BN + first, unmatched_BN)


def subsample(
    matched_BN: Tensor, number: int, *, positive_share: float, seed_B: Tensor | None, stream: int
) -> tuple[Tensor, Tensor]:
    """Random anchors of each image to learn from: their positions, int64 [B, S], and which of them count, bool [B, S].

    S is `number`, or N where there are fewer. At most `positive_share` of `number` are matched anchors, the others show
    background; those that count come first.

    Args:
        matched_BN: as `match` gives it.
        number: see above.
        positive_share: see above.
        seed_B: what is drawn for an image follows from its seed and `stream`, whatever images are beside it; None draws
            from torch's random state.
        stream: another number draws others with the same seeds.
    """
    num_rows = min(number, matched_BN.shape[1])
    chance_BN = (torch.rand(matched_BN.shape, device=matched_BN.device) if seed_B is None
                 else _uniform(seed_B, matched_BN.shape[1], stream=stream))
    found, rows = torch.where(matched_BN >= 0, chance_BN, -1.0).topk(min(int(number * positive_share), num_rows))
    taken_BN = torch.zeros_like(matched_BN, dtype=torch.bool).scatter(1, rows, found >= 0)
    background_BN = torch.where(matched_BN == NEGATIVE, chance_BN, -1.0)
    found, rows = torch.where(taken_BN, 2.0, background_BN).topk(num_rows)
    return rows, found >= 0


def _uniform(seed_B: Tensor, number: int, *, stream: int) -> Tensor:
    """float64 [B, number] in 0..1, by the mixing function of SplitMix64 (Steele et al. 2014) on counters, of which each
    stream has its own."""
    counter = torch.arange(1, number + 1, device=seed_B.device) + (stream << 32)
    x = seed_B[:, None] * _MIX[0] + counter * _GOLDEN
    for shift, factor in ((30, _MIX[0]), (27, _MIX[1]), (31, 1)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return (x >> 11 & (1 << 53) - 1).double() / (1 << 53)


_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
"""SplitMix64's constants as signed integers; products wrap around."""
