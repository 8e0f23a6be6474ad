"""What a student loses by not saying what its teacher says, summed over a batch.

The two may have other heads, anchors and necks. What detectors share are decoded boxes with the classes'
probabilities, what segmenters share are logits, and what all share are feature maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from detseg.interfaces import Losses, Term
from detseg.ops import boxes
from detseg.structures import DenseBoxes

CANDIDATES = 200
"""Predictions of a teacher in an image that count, the surest."""
MIN_IOU = 0.5
"""A prediction of the student that overlaps none of the teacher's so much is background to it."""
_SMALLEST = 1e-20
"""What a probability counts as at least: its logarithm's gradient stays finite, and a small probability is not cut off
from it, as it would be by a limit that float32's sigmoid and softmax reach."""
_EPS = 1e-5
"""Of the variance of a feature channel, which may be dead."""


class BoxLesson(NamedTuple):
    """What a teacher wants of the N predictions of a student."""

    boxes: Tensor
    """[B, N, 4] xyxy in the student's pixels."""
    scores: Tensor
    """[B, N, K] in 0..1."""
    weights: Tensor
    """[B, N]: how much the box counts; 0 where the teacher knows of none."""


def one_box_each(dense: DenseBoxes) -> DenseBoxes:
    """Of predictions with a box for each class, [B, N, K, 4], that of the surest class; others as they are."""
    if dense.boxes.ndim == 3:
        return dense
    surest = dense.scores.argmax(-1)[..., None, None].expand(-1, -1, 1, 4)
    return dense._replace(boxes=dense.boxes.gather(2, surest)[:, :, 0])


def lesson_of_rows(teacher: DenseBoxes, *, min_score: float) -> BoxLesson:
    """Of a teacher with the student's anchors, where each row wants what it says. Boxes of at least `min_score`
    count by their score."""
    best_BN = teacher.scores.amax(-1)
    return BoxLesson(teacher.boxes, teacher.scores, best_BN * (best_BN >= min_score))


def lesson_by_overlap(boxes_BN4: Tensor, teacher: DenseBoxes, *, min_score: float) -> BoxLesson:
    """Of any teacher, where each box of the student's wants what the teacher's best suited prediction says.

    That is the one with the highest product of score and overlap (IoU), among the CANDIDATES surest of at least
    `min_score` that overlap by MIN_IOU: the nearest alone would often be an unsure one, for a teacher says every object
    many times before suppression. As in the quality focal loss (Li et al. 2020, arXiv 2006.04388) the probabilities
    wanted are the teacher's times the overlap. A box without such a prediction is background.
    """
    best_BM = teacher.scores.amax(-1)
    best_BR, rows_BR = best_BM.topk(min(CANDIDATES, best_BM.shape[1]))
    sure_BR = _of_rows(teacher.boxes, rows_BR), _of_rows(teacher.scores, rows_BR)
    iou_BNR = boxes.iou(boxes_BN4, sure_BR[0])
    iou_BNR = torch.where((iou_BNR >= MIN_IOU) & (best_BR >= min_score)[:, None], iou_BNR, 0.0)
    suited_BN = (iou_BNR * best_BR[:, None]).argmax(-1)
    iou_BN1 = iou_BNR.gather(-1, suited_BN[..., None])
    wanted_BN4, scores_BNK = (_of_rows(x, suited_BN) for x in sure_BR)
    weights_BN = torch.where(iou_BN1[..., 0] > 0, best_BR.gather(1, suited_BN), 0.0)
    return BoxLesson(wanted_BN4, scores_BNK * iou_BN1, weights_BN)


def box_losses(student: DenseBoxes, lesson: BoxLesson) -> Losses:
    """The quality focal loss of all probabilities (beta 2), and the generalised IoU loss (Rezatofighi et al. 2019) of
    the boxes by their weights; the count of both is the sum of these.

    Probabilities are what heads with a sigmoid and with a softmax share. The entropy is written out: torch refuses its
    own of probabilities in mixed precision.
    """
    p = student.scores.float().clamp(_SMALLEST, 1.0 - torch.finfo(torch.float32).eps)
    wanted = lesson.scores
    entropy = -(wanted * p.log() + (1.0 - wanted) * torch.log1p(-p))
    classification = ((wanted - p).square() * entropy).sum()
    distance_BN = generalized_box_iou_loss(student.boxes.float(), lesson.boxes)
    count = lesson.weights.sum()
    return {"distill_class": Term(classification, count),
            "distill_box": Term((distance_BN * lesson.weights).sum(), count)}


def logits_losses(logits: Tensor, teacher: Tensor, *, temperature: float) -> Losses:
    """The Kullback-Leibler divergence of two segmenters' or classifiers' softmax, [B, K, h, w] or [B, K] each, times
    the temperature's square (Hinton et al. 2015, arXiv 1503.02531, section 2.1); the count is that of the cells, h w of
    each image, or of the images."""
    log_p, log_wanted = (F.log_softmax(x.float() / temperature, dim=1) for x in (logits, teacher))
    divergence = F.kl_div(log_p, log_wanted, reduction="sum", log_target=True) * temperature ** 2
    return {"distill_logits": Term(divergence, divergence.new_tensor(logits[:, 0].numel()))}


def feature_losses(maps: Sequence[Tensor], teacher: Sequence[Tensor]) -> Losses:
    """The mean squared error of maps, [B, C, h, w] each, whose channels have been normalised; the count is images times
    maps.

    Each channel of each image has mean 0 and variance 1 over its cells: so the scales of two networks do not matter,
    and, unlike with statistics of a batch, neither does how a batch is split. That is twice 1 less Pearson's
    correlation (Cao et al. 2022, arXiv 2207.02039, which takes it over the batch).
    """
    each = [(_normalised(x) - _normalised(wanted)).square().flatten(1).mean(1)
            for x, wanted in zip(maps, teacher, strict=True)]
    total = torch.stack(each)
    return {"distill_feature": Term(total.sum(), total.new_tensor(total.numel()))}


def _normalised(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x.float(), dim=(2, 3), correction=0, keepdim=True)
    return (x.float() - mean) * (variance + _EPS).rsqrt()


def _of_rows(values: Tensor, rows: Tensor) -> Tensor:
    """The rows [B, S] of values [B, N, C], [B, S, C]."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[2]))
