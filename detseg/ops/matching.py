"""Which anchor stands for which true box, for a whole batch at once and with static shapes."""

from __future__ import annotations

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

    crowd_BM = (targets.labels >= 0) & targets.crowd
    visible = boxes.clip(anchors, size)
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
