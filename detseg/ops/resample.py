"""Class scores enlarged to the image, and the label map that follows from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detseg.ops.arithmetic import is_positive
from detseg.structures import DenseLogits


def enlarge(dense: DenseLogits) -> Tensor:
    """The scores of every class at every pixel, float32 [B, K, H, W]."""
    return _enlarged(dense.logits.float(), dense)


def label_map(dense: DenseLogits, *, static: bool = False) -> Tensor:
    """The class of the highest score at each pixel, the first of equals, uint8 [B, H, W].

    One class is enlarged after the other: the scores of all at full size are never in memory together.
    """
    logits = dense.logits.float()
    best = _enlarged(logits[:, :1], dense)
    labels = torch.zeros_like(best, dtype=best.dtype if static else torch.uint8)
    for label in range(1, logits.shape[1]):
        score = _enlarged(logits[:, label : label + 1], dense)
        better = torch.maximum(best, score)
        if static:
            labels = labels + is_positive(better - best) * (label - labels)
        else:
            labels.masked_fill_(score > best, label)
        best = better
    return labels[:, 0].to(torch.uint8)


def _enlarged(scores: Tensor, dense: DenseLogits) -> Tensor:
    if (scores.shape[2], scores.shape[3]) == tuple(dense.size):
        return scores
    return F.interpolate(scores, dense.size, mode="bilinear", align_corners=dense.align_corners)
