"""From dense scored boxes to final detections: threshold, greedy suppression within each class, the best R.

Two ways, tested equal. Eager code runs torchvision's kernel on each image. The static form, which is exported, has
fixed shapes and no step that depends on a value: greedy suppression is the fixed point of "kept unless a kept better
box of the same class overlaps". Iterated from "all kept", step s settles the s best, so that as many steps as there are
candidates are exact, however long a chain "a beats b, which would have beaten c, ..." is. It is taken block by block,
so that a step costs a product with a small matrix. The steps are one operator of torch's, `detseg::greedily_kept`, for
which a format may have one of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from detseg.ops.arithmetic import is_positive
from detseg.ops.boxes import iou
from detseg.structures import DenseBoxes, Detections

BLOCK = 25
"""Candidates that are settled together in the static form."""


def used_rows(valid_BR: Tensor) -> int:
    """How many leading rows are worth working on: as many as the fullest image uses, at least one."""
    return max(1, int(valid_BR.sum(1).max()))


def suppress(
    dense: DenseBoxes, *, score_threshold: float, iou_threshold: float, per_class: int, max_detections: int,
    candidates: int, static: bool = False,
) -> Detections:
    """The `max_detections` best boxes left after suppression, as fixed rows; fewer only where fewer scores may enter.

    Args:
        dense: boxes and scores of a batch.
        score_threshold: scores must exceed it.
        iou_threshold: a box falls if it overlaps a kept better one of its class by more.
        per_class: of each class so many of the best enter.
        max_detections: rows of the result.
        candidates: caps how many boxes of all classes enter the static form together; eager code starts with as many
            and takes more only while rows would stay empty.
        static: the form that is exported.
    """
    max_detections = min(max_detections, dense.scores.shape[1] * dense.scores.shape[2])
    if static:
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
    """A batch with fixed shapes and no step that depends on a value; in float32."""
    num_classes = dense.scores.shape[2]
    flat = dense.scores.flatten(1)
    scores_BT, index_BT = flat.topk(min(candidates, flat.shape[1]))
    anchors_BT = index_BT.div(num_classes, rounding_mode="floor")
    labels_BT = index_BT - anchors_BT * num_classes
    boxes, row_BT = (dense.boxes, anchors_BT) if dense.boxes.dim() == 3 else (dense.boxes.flatten(1, 2), index_BT)
    boxes_BT4 = boxes.gather(1, row_BT[..., None].expand(-1, -1, 4))

    num_candidates = scores_BT.shape[1]
    entered_BT = is_positive((scores_BT - score_threshold).relu())
    if per_class < num_candidates:
        entered_BT = entered_BT * (per_class - _better_of_class(labels_BT).sum(1)).relu().clamp(-1.0, 1.0)
    kept_BT = torch.ops.detseg.greedily_kept(boxes_BT4, labels_BT, entered_BT, iou_threshold)

    kept_scores_BT = scores_BT * kept_BT + (kept_BT - 1.0)
    scores_BR, rank_BR = kept_scores_BT.topk(min(max_detections, num_candidates))
    valid_BR = (scores_BR > 0.0).long()
    return Detections(
        boxes_BT4.gather(1, rank_BR[..., None].expand(-1, -1, 4)) * valid_BR[..., None].to(boxes_BT4.dtype),
        scores_BR.clamp(min=0.0),
        (labels_BT.gather(1, rank_BR) + 1) * valid_BR - 1,
        valid_BR.sum(1),
    )


def _better_of_class(labels_BT: Tensor) -> Tensor:
    """[B, T, T]: 1 where the row's candidate comes before the column's and is of the same class."""
    num_candidates, classes_BT = labels_BT.shape[1], labels_BT.float()
    before_TT = torch.ones(num_candidates, num_candidates, device=labels_BT.device).triu(1)
    return before_TT * (1.0 - (classes_BT[:, :, None] - classes_BT[:, None, :]).abs()).clamp(min=0.0)


def greedily_kept(boxes_BT4: Tensor, labels_BT: Tensor, entered_BT: Tensor, iou_threshold: float) -> Tensor:
    """[B, T]: 1 for the candidates that entered (1, not 0) and that no better one of their class, which is kept,
    overlaps by more than the threshold; 0 for the others. The best come first."""
    overlap_BTT = _better_of_class(labels_BT) * is_positive((iou(boxes_BT4, boxes_BT4) - iou_threshold).relu())
    return _fixed_point(entered_BT, overlap_BTT)


torch.library.custom_op("detseg::greedily_kept", greedily_kept, mutates_args=()).register_fake(
    lambda _boxes, _labels, entered, _iou_threshold: torch.empty_like(entered))


def _fixed_point(entered_BT: Tensor, overlap_BTT: Tensor) -> Tensor:
    """Which candidates stay, 0 or 1: those that entered and that no better one which stays overlaps.

    overlap_BTT: 1 where the row's candidate is better than the column's and overlaps it.
    """
    entered_B1T, kept, num_candidates = entered_BT[:, None], [], entered_BT.shape[1]
    for first in range(0, num_candidates, BLOCK):
        last = min(first + BLOCK, num_candidates)
        here = entered_B1T[:, :, first:last]
        among = overlap_BTT[:, first:last, first:last]
        now = here
        for _ in range(last - first - 1):
            now = torch.relu(here - torch.bmm(now, among))
        kept.append(now)
        if last < num_candidates:
            fallen = torch.bmm(now, overlap_BTT[:, first:last])
            entered_B1T = torch.relu(entered_B1T - fallen)
    return torch.cat(kept, 2)[:, 0]
