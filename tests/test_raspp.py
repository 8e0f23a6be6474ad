"""R-ASPP: both papers' costs, what it computes, that it learns, and what its loss counts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from detseg.cost import count_macs, count_parameters
from detseg.interfaces import Backbone, FeatureSpec
from detseg.model import Predictor
from detseg.ops.resample import enlarge
from detseg.resize import Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, VOID, Classes, LabelTargets
from heads.raspp import RASPP, RASPPRaw

SIZE = (97, 161)
CLASSES = Classes(names=("road", "car", "sky"), source_ids=(7, 8, 9))


class Row(NamedTuple):
    """A row of Table 7 of the MobileNetV3 paper: parameters in millions, multiply-adds at 1025 x 2049 in billions."""

    parameters: float
    macs: float
    less: tuple[float, float]
    """By how many percent the multiply-adds of convolutions lie below the printed ones, which count more."""
    exact: tuple[int, int] | None
    """Parameters and multiply-adds of an independent recount."""


def _v2(**options: Any) -> Backbone:
    return mobilenet_v2(taps=("c5.bottleneck",), output_stride=16, **options)


def _large(**options: Any) -> Backbone:
    return mobilenet_v3_large(taps=("c5",), output_stride=16, **options)


def _predictor(backbone: Backbone, *, num_classes: int) -> Predictor:
    classes = Classes(names=tuple(map(str, range(num_classes))), source_ids=tuple(range(num_classes)))
    return Predictor(backbone, RASPP(backbone.specs, num_classes), classes=classes, resize=Stretch((64, 64)),
                     mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _macs(predictor: Predictor, size: tuple[int, int]) -> int:
    return count_macs(predictor, torch.empty(1, 3, *size, device="meta"))


@pytest.mark.parametrize(("backbone", "reduced", "row"), [
    (_v2, False, Row(2.11, 21.29, (0.2, 0.5), (2_113_043, 21_233_054_912))),
    (_v2, True, Row(1.15, 13.68, (0.2, 0.5), None)),
    (_large, False, Row(3.60, 18.43, (1.4, 2.2), None)),
    (_large, True, Row(1.76, 11.24, (1.4, 2.2), (1_762_435, 11_031_499_128))),
], ids=["1", "2", "5", "6"])
def test_table_7_of_the_v3_paper(backbone: Callable[..., Backbone], reduced: bool, row: Row) -> None:
    predictor = _predictor(backbone(reduced_tail="segmentation" if reduced else "none"), num_classes=19)
    parameters, macs = count_parameters(predictor), _macs(predictor, (1025, 2049))
    assert parameters / 1e6 == pytest.approx(row.parameters, abs=0.01)
    low, high = row.less
    assert low <= (1 - macs / 1e9 / row.macs) * 100 <= high
    if row.exact is not None:
        assert (parameters, macs) == row.exact


def test_table_7_of_the_v2_paper() -> None:
    """The bold row, without ASPP: 2.11 M and 2.75 B."""
    predictor = _predictor(_v2(), num_classes=21)
    assert count_parameters(predictor) == 2_113_557
    assert _macs(predictor, (513, 513)) == 2_740_709_056


# ------------------------------------------------------------------------------------------ the head alone

SPECS = {"c5": FeatureSpec(10, 16)}


def test_what_it_computes() -> None:
    """The mean of the whole map comes first, as in TensorFlow; scores are enlarged corner to corner."""
    head = RASPP(SPECS, 4, filters=6).eval()
    x = torch.randn(2, 10, 5, 9)
    with torch.inference_mode():
        raw = head({"c5": x})
        everywhere = head.pool(x.mean((2, 3), keepdim=True)) * torch.ones(1, 1, 5, 9)
        wanted = head.classify(head.project(torch.cat((everywhere, head.reduce(x)), 1)))
        torch.testing.assert_close(raw.logits, wanted)
        logits = enlarge(head.decode(raw, (33, 65)))
    assert logits.shape == (2, 4, 33, 65)
    torch.testing.assert_close(logits[:, :, ::8, ::8], raw.logits, rtol=1e-5, atol=1e-5)


def test_dropout_is_for_training_only() -> None:
    head = RASPP(SPECS, 4, filters=6, dropout=0.5)
    x = {"c5": torch.randn(2, 10, 5, 9)}
    assert not torch.equal(head(x).logits, head(x).logits)
    head.eval()
    assert torch.equal(head(x).logits, head(x).logits)


def _small_predictor() -> Predictor:
    backbone = mobilenet_v2(width=0.35, taps=("c3",))
    head = RASPP(backbone.specs, len(CLASSES), filters=16)
    return Predictor(backbone, head, classes=CLASSES, resize=Stretch(SIZE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def test_it_learns() -> None:
    predictor = _small_predictor().train()
    labels = torch.zeros(2, *SIZE, dtype=torch.uint8)
    labels[0, :, 80:], labels[1, 40:] = 1, 2
    images = torch.rand(2, 3, *SIZE) * 85 + 85 * labels[:, None]
    labels[:, :5] = VOID
    optimizer = torch.optim.SGD(predictor.parameters(), lr=0.02, momentum=0.9)
    history = []
    for _ in range(15):
        pixel = predictor.head.loss(predictor(images), LabelTargets(labels), SIZE)["pixel"]
        loss = pixel.sum / pixel.count
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        history.append(float(loss.detach()))
    assert int(pixel.count) == 2 * 92 * 161
    assert history[-1] < 0.5 * history[0], history


def test_the_loss_takes_weights_and_hard_examples() -> None:
    raw = RASPPRaw(torch.randn(2, 3, 3, 4))
    size = (33, 49)
    labels = torch.randint(0, 3, (2, *size), dtype=torch.uint8)
    plain = RASPP(SPECS, 3).loss(raw, LabelTargets(labels), size)["pixel"]
    enlarged = F.interpolate(raw.logits, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(plain.sum / plain.count, F.cross_entropy(enlarged, labels.long()))
    weighted = RASPP(SPECS, 3, class_weights=(1.0, 2.0, 3.0)).loss(raw, LabelTargets(labels), size)["pixel"]
    assert int(weighted.count) == sum((k + 1) * int((labels == k).sum()) for k in range(3))
    hard = RASPP(SPECS, 3, hardest=0.5).loss(raw, LabelTargets(labels), size)["pixel"]
    assert int(hard.count) == 2 * math.ceil(33 * 49 / 2)
    empty = RASPP(SPECS, 3).loss(raw, LabelTargets(torch.full_like(labels, VOID)), size)["pixel"]
    assert int(empty.count) == float(empty.sum) == 0


def test_bad_arguments_are_explained() -> None:
    with pytest.raises(ValueError, match=re.escape('R-ASPP takes one tap, such as "c5", got c4, c5')):
        RASPP({"c4": FeatureSpec(8, 16), "c5": FeatureSpec(8, 32)}, 3)
