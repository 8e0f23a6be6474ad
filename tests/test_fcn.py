"""FCN: what it is by hand, what its loss counts, and copies for inference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.backbones.mobilenet_v1 import mobilenet_v1
from detseg.interfaces import FeatureSpec
from detseg.model import Predictor
from detseg.ops.resample import enlarge
from detseg.resize import Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, VOID, Classes, LabelTargets
from heads.fcn import FCN, FCNRaw

SIZE = (64, 96)
CLASSES = Classes(names=("road", "sky", "car"), source_ids=(3, 5, 9))
SPECS = {"c3.first": FeatureSpec(8, 8), "c5": FeatureSpec(8, 16)}


def _small() -> Any:
    """Statistics and scores that differ, as those of a trained network do, and an auxiliary classifier."""
    backbone = mobilenet_v1(width=0.25, taps=("c2", "c3"))
    predictor: Any = Predictor(
        backbone, FCN(backbone.specs, len(CLASSES)), classes=CLASSES, resize=Stretch(SIZE), mean=IMAGENET_MEAN,
        std=IMAGENET_STD)
    for module in predictor.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out" if module.groups == 1 else "fan_in")
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    with torch.no_grad():
        predictor.head.classify[2].bias -= predictor.eval()(_images()[0]).logits.mean((0, 2, 3))
    return predictor


def _images() -> Tensor:
    """[4, 1, 3, H, W] of different brightness and contrast."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.rand(4, 1, 3, 8, 12, generator=generator).flatten(0, 1)
    smooth = F.interpolate(noise, SIZE, mode="bilinear")[:, None]
    return 255 * smooth * torch.rand(4, 1, 3, 1, 1, generator=generator)


def test_it_sums_a_neighbourhood_and_classifies() -> None:
    """By hand, on a map that is a ramp: 4 channels become 1, whose 3 x 3 kernels of ones add up all that is around."""
    head: Any = FCN({"c5": FeatureSpec(4, 8)}, 2).eval()
    with torch.no_grad():
        head.classify[0].conv.weight.fill_(1.0)
        head.classify[2].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
        head.classify[2].bias.copy_(torch.tensor([0.5, 0.0]))
        raw = head({"c5": torch.arange(12.0).view(1, 1, 3, 4).expand(-1, 4, -1, -1)})
    assert raw.auxiliary == ()
    corner = 4 * (0 + 1 + 4 + 5) / (1 + 1e-5) ** 0.5
    assert raw.logits[0, :, 0, 0].tolist() == pytest.approx([corner + 0.5, -2 * corner])
    assert enlarge(head.decode(raw, (24, 32))).shape == (1, 2, 24, 32)


def test_maps_before_the_last_get_classifiers_of_their_own() -> None:
    predictor = _small()
    raw = predictor(torch.rand(2, 3, *SIZE) * 255)
    assert raw.logits.shape == (2, 3, 8, 12)
    assert [logits.shape for logits in raw.auxiliary] == [(2, 3, 16, 24)]
    assert predictor.head.class_layers == {"classify.2": 1, "auxiliary.0.2": 1}


def _raw() -> FCNRaw:
    return FCNRaw(torch.randn(2, 3, 4, 6), (torch.randn(2, 3, 8, 12),))


def test_the_loss_is_the_mean_cross_entropy_of_known_pixels() -> None:
    raw, labels = _raw(), torch.randint(0, 3, (2, *SIZE), dtype=torch.uint8)
    labels[0, :20] = VOID
    found = FCN(SPECS, 3, auxiliary_weight=0.4).loss(raw, LabelTargets(labels), SIZE)
    wanted = [F.cross_entropy(F.interpolate(logits, SIZE, mode="bilinear"), labels.long(), ignore_index=VOID)
              for logits in (raw.logits, raw.auxiliary[0])]
    for name, mean in {"pixel": wanted[0], "auxiliary": 0.4 * wanted[1]}.items():
        assert int(found[name].count) == 2 * 64 * 96 - 20 * 96
        torch.testing.assert_close(found[name].sum / found[name].count, mean)

    weighted = FCN(SPECS, 3, auxiliary_weight=0.4, class_weights=(3.0, 3.0, 3.0)).loss(
        raw, LabelTargets(labels), SIZE)
    hard = FCN(SPECS, 3, hardest=0.5).loss(raw, LabelTargets(labels), SIZE)
    for name, term in found.items():
        torch.testing.assert_close(weighted[name].sum, 3 * term.sum)
        torch.testing.assert_close(weighted[name].count, 3 * term.count)
        assert float(hard[name].count) == float(term.count) / 2


def test_copies_for_inference_have_no_auxiliary_classifier() -> None:
    predictor = _small()
    folded = predictor.folded()
    assert folded.head.class_layers == {"classify.2": 1}
    assert not [name for name, _ in folded.named_parameters() if "auxiliary" in name]
    images = torch.rand(2, 3, *SIZE) * 255
    with torch.inference_mode():
        plain, fast = predictor(images), folded(images)
    assert fast.auxiliary == ()
    torch.testing.assert_close(fast.logits, plain.logits, rtol=1e-4, atol=1e-4 * float(plain.logits.abs().max()))


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="a segmenter tells at least two classes apart, got 1"):
        FCN(SPECS, 1)
