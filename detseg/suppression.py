"""From dense scored boxes to final detections: threshold, greedy suppression within each class, the best R.

Two ways, tested equal. Eager code runs torchvision's kernel on each image. Exported and compiled graphs have fixed
shapes: greedy suppression is the fixed point of "kept unless a kept better box of the same class overlaps", reached
by iterating over the matrix of overlaps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from detseg.boxes import iou
from detseg.interfaces import DenseBoxes, Detections

FIXED_POINT_STEPS = 32
"""As long as a chain "a beats b, which would have beaten c, ..." may be. A search over smooth score fields on grids of
anchors found at most 28, and 39 on a pyramid's finest map if the 1,000 best of it enter. After an even number of steps
a longer chain leaves boxes too many and loses none."""


def used_rows(valid_BR: Tensor) -> int:
    """How many leading rows are worth working on: as many as the fullest image uses, at least one; in exported and
    compiled graphs, whose shapes are fixed, all."""
    if torch.compiler.is_exporting() or torch.compiler.is_compiling():
        return valid_BR.shape[1]
    return max(1, int(valid_BR.sum(1).max()))


def suppress(
    dense: DenseBoxes, *, score_threshold: float, iou_threshold: float, per_class: int, max_detections: int,
    candidates: int,
) -> Detections:
    """The `max_detections` best boxes left after suppression, as fixed rows; fewer only where there are fewer scores.

    Scores must exceed `score_threshold`; of each class the best `per_class` enter; a box falls if it overlaps a kept
    better one of its class by an IoU above `iou_threshold`. `candidates` caps how many boxes of all classes enter
    together in exported graphs; eager code starts with as many and takes more only while rows would stay empty.
    """
    max_detections = min(max_detections, dense.scores.shape[1] * dense.scores.shape[2])
    if torch.compiler.is_exporting() or torch.compiler.is_compiling():
        return _suppress_static(
            dense, score_threshold=score_threshold, iou_threshold=iou_threshold, per_class=per_class,
            max_detections=max_detections, candidates=candidates)
    rows = [
        _suppress_image(
            image_boxes, scores, score_threshold=score_threshold, iou_threshold=iou_threshold, per_class=per_class,
            max_detections=max_detections, candidates=candidates)
        for image_boxes, scores in zip(dense.boxes, dense.scores, strict=True)
    ]
    found_boxes, found_scores, found_labels, num_valid = zip(*rows, strict=True)
    return Detections(
        torch.stack(found_boxes), torch.stack(found_scores), torch.stack(found_labels), torch.stack(num_valid))


def _suppress_image(
    boxes: Tensor, scores_NK: Tensor, *, score_threshold: float, iou_threshold: float, per_class: int,
    max_detections: int, candidates: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One image by torchvision's kernel; rows as in Detections, without B. Of equal
    scores the lower class goes first."""
    scores_KN = scores_NK.T.contiguous()
    above_KN = scores_KN > score_threshold
    if scores_KN.shape[1] and int(above_KN.sum(1).max()) > per_class:
        scores_KP, anchors_KP = scores_KN.topk(min(per_class, scores_KN.shape[1]))
        labels, column = (scores_KP > score_threshold).nonzero(as_tuple=True)
        scores, anchors = scores_KP[labels, column], anchors_KP[labels, column]
    else:
        labels, anchors = above_KN.nonzero(as_tuple=True)
        scores = scores_KN[labels, anchors]
    scores, order = scores.sort(descending=True, stable=True)
    labels = labels[order]
    chosen = boxes[anchors[order]] if boxes.dim() == 2 else boxes[anchors[order], labels]
    # Classes are moved apart so that one call serves all; in double precision, or the shift would eat digits.
    extent = chosen.double().max() + 1 if len(chosen) else 1.0
    apart = chosen.double() + labels[:, None].double() * extent
    taken = min(candidates, len(scores))
    while True:
        kept = nms(apart[:taken], scores[:taken].double(), iou_threshold)
        if len(kept) >= max_detections or taken == len(scores):
            break
        taken = min(2 * taken, len(scores))
    kept = kept[:max_detections]
    empty = max_detections - len(kept)
    return (
        torch.cat((chosen[kept], chosen.new_zeros(empty, 4))),
        torch.cat((scores[kept], scores.new_zeros(empty))),
        torch.cat((labels[kept], labels.new_full((empty,), -1))),
        torch.tensor(len(kept), device=labels.device),
    )


def _suppress_static(
    dense: DenseBoxes, *, score_threshold: float, iou_threshold: float, per_class: int, max_detections: int,
    candidates: int,
) -> Detections:
    """A batch with fixed shapes and no step that depends on a value."""
    num_classes = dense.scores.shape[2]
    flat = dense.scores.flatten(1)
    scores_BT, index_BT = flat.topk(min(candidates, flat.shape[1]))
    anchors_BT = index_BT.div(num_classes, rounding_mode="floor")
    labels_BT = index_BT - anchors_BT * num_classes
    boxes, row_BT = (dense.boxes, anchors_BT) if dense.boxes.dim() == 3 else (dense.boxes.flatten(1, 2), index_BT)
    boxes_BT4 = boxes.gather(1, row_BT[..., None].expand(-1, -1, 4))

    before_TT = torch.ones(scores_BT.shape[1], scores_BT.shape[1], device=flat.device).tril(-1)
    rivals_BTT = before_TT * (labels_BT[:, :, None] == labels_BT[:, None, :]).to(before_TT.dtype)
    entered_BT1 = ((scores_BT > score_threshold) & (rivals_BTT.sum(2) < per_class)).to(before_TT.dtype)[..., None]
    overlap_BTT = rivals_BTT * (iou(boxes_BT4, boxes_BT4) > iou_threshold).to(before_TT.dtype)
    kept_BT1 = entered_BT1
    for _ in range(FIXED_POINT_STEPS):  # with few operations: exporters take their time for each
        kept_BT1 = entered_BT1 * (torch.bmm(overlap_BTT, kept_BT1) < 0.5).to(before_TT.dtype)

    rows = min(max_detections, scores_BT.shape[1])
    kept_scores_BT = torch.where(kept_BT1[..., 0] > 0.5, scores_BT, -1.0)
    scores_BR, rank_BR = kept_scores_BT.topk(rows)
    valid_BR = scores_BR > 0.0
    return Detections(
        boxes_BT4.gather(1, rank_BR[..., None].expand(-1, -1, 4)) * valid_BR[..., None].to(boxes_BT4.dtype),
        torch.where(valid_BR, scores_BR, 0.0),
        torch.where(valid_BR, labels_BT.gather(1, rank_BR), -1),
        valid_BR.sum(1),
    )
