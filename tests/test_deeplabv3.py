"""DeepLabV3: the exact costs of both wirings, what its branches see, and what its loss counts."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.backbones.mobilenet_v1 import mobilenet_v1
from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from detseg.cost import count_macs, count_parameters
from detseg.interfaces import Backbone, FeatureSpec
from detseg.model import Predictor
from detseg.ops.resample import enlarge
from detseg.resize import Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, VOID, Classes, LabelTargets, Size
from heads.deeplabv3 import DeepLabV3, DeepLabV3Raw

SIZE = (64, 96)
CLASSES = Classes(names=("road", "sky", "car"), source_ids=(3, 5, 9))


def _predictor(backbone: Backbone, *, num_classes: int, **options: Any) -> Predictor:
    classes = Classes(names=tuple(map(str, range(num_classes))), source_ids=tuple(range(num_classes)))
    head = DeepLabV3(backbone.specs, num_classes, **options)
    return Predictor(backbone, head, classes=classes, resize=Stretch(SIZE), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _small(**options: Any) -> Any:
    """Statistics and scores that differ, as those of a trained network do, and an auxiliary classifier."""
    backbone = mobilenet_v1(width=0.25, taps=("c2", "c3"))
    predictor: Any = _predictor(backbone, num_classes=len(CLASSES), **({"rates": (1, 2, 9), "channels": 16} | options))
    for module in predictor.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out" if module.groups == 1 else "fan_in")
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    with torch.no_grad():
        logits = predictor.eval()(_images()[0]).logits
        predictor.head.classify.bias -= logits.mean((0, 2, 3))
    return predictor


def _images() -> Tensor:
    """[4, 1, 3, H, W] of different brightness and contrast."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.rand(4, 1, 3, 8, 12, generator=generator).flatten(0, 1)
    smooth = F.interpolate(noise, SIZE, mode="bilinear")[:, None]
    return 255 * smooth * torch.rand(4, 1, 3, 1, 1, generator=generator)


def _macs(predictor: Predictor, size: Size) -> int:
    return count_macs(predictor, torch.empty(1, 3, *size, device="meta"))


def test_the_costs_of_the_v2_papers_table_7_are_exact() -> None:
    """4.52 M parameters, and 5.8 B multiply-adds, of which convolutions at 513 x 513 are 5.36 B."""
    backbone = mobilenet_v2(taps=("c5.bottleneck",), output_stride=16)
    predictor = _predictor(backbone, num_classes=21, rates=(6, 12, 18), refine=False)
    assert count_parameters(predictor) == 4_523_541
    assert _macs(predictor, (513, 513)) == 5_363_508_928


def test_the_costs_of_torchvisions_wiring_are_exact() -> None:
    backbone = mobilenet_v3_large(taps=("c3.first", "c5"), output_stride=16, dilate_first=True)
    predictor = _predictor(backbone, num_classes=21)
    assert count_parameters(predictor) == 11_029_328
    assert _macs(predictor, (520, 520)) == 10_452_447_938  # torchvision prints 10.452
    predictor.head.drop_training_parts()
    assert count_parameters(predictor) == 11_025_477
    assert _macs(predictor, (520, 520)) == 10_452_447_938 - 65 * 65 * (40 * 10 * 9 + 10 * 21)


def test_what_comes_out() -> None:
    raw = _small()(torch.rand(2, 3, *SIZE) * 255)
    assert raw.logits.shape == (2, 3, 8, 12)
    assert [logits.shape for logits in raw.auxiliary] == [(2, 3, 16, 24)]
    assert enlarge(_small().head.decode(raw, SIZE)).shape == (2, 3, *SIZE)


def test_the_branches_are_what_the_paper_says() -> None:
    """By hand: weights that pick one thing from each branch, on a map that is a ramp."""
    head: Any = DeepLabV3({"c5": FeatureSpec(1, 8)}, 2, rates=(2,), channels=1, refine=False).eval()
    with torch.no_grad():
        for layer in (head.point, head.atrous[0], head.pooled):
            layer.conv.weight.fill_(1.0)
        head.project.conv.weight.copy_(torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1))
        head.classify.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        head.classify.bias.zero_()
    x = torch.arange(12.0).view(1, 1, 3, 4)
    with torch.no_grad():
        logits = head({"c5": x}).logits
    # At the top left: its own 0; the cells two steps right (2), down (8) and both (10), and itself; the mean 5.5.
    assert float(logits[0, 0, 0, 0]) == pytest.approx(0 + 10 * (0 + 2 + 8 + 10) + 100 * 5.5, rel=1e-4)
    # In the middle row only left and right are inside.
    assert float(logits[0, 0, 1, 1]) == pytest.approx(5 + 10 * (5 + 7) + 100 * 5.5, rel=1e-4)
    torch.testing.assert_close(logits[:, 1], -logits[:, 0])


# ------------------------------------------------------------------------------------------ loss


SPECS = {"c3.first": FeatureSpec(8, 8), "c5": FeatureSpec(8, 16)}


def _raw() -> DeepLabV3Raw:
    return DeepLabV3Raw(torch.randn(2, 3, 4, 6), (torch.randn(2, 3, 8, 12),))


def _labels() -> LabelTargets:
    labels = torch.randint(0, 3, (2, *SIZE), dtype=torch.uint8)
    labels[0, :20] = VOID
    return LabelTargets(labels)


def test_the_loss_is_the_mean_cross_entropy_of_known_pixels() -> None:
    raw, targets = _raw(), _labels()
    found = DeepLabV3(SPECS, 3, auxiliary_weight=0.4).loss(raw, targets, SIZE)
    wanted = [F.cross_entropy(F.interpolate(logits, SIZE, mode="bilinear"), targets.labels.long(), ignore_index=VOID)
              for logits in (raw.logits, raw.auxiliary[0])]
    for name, mean in {"pixel": wanted[0], "auxiliary": 0.4 * wanted[1]}.items():
        assert int(found[name].count) == 2 * 64 * 96 - 20 * 96
        torch.testing.assert_close(found[name].sum / found[name].count, mean)


def test_weights_and_hard_pixels_reach_both_classifiers() -> None:
    raw, targets = _raw(), _labels()
    plain, weighted, hard = (DeepLabV3(SPECS, 3, **options).loss(raw, targets, SIZE) for options in (
        {}, {"class_weights": (2.0, 2.0, 2.0)}, {"hardest": 0.25}))
    for name in ("pixel", "auxiliary"):
        torch.testing.assert_close(weighted[name].sum, 2 * plain[name].sum)
        assert 0.25 * plain[name].sum < hard[name].sum < plain[name].sum
        torch.testing.assert_close(weighted[name].count, 2.0 * plain[name].count)
        assert float(hard[name].count) == float(plain[name].count) / 4


# ------------------------------------------------------------------------------------------ inference


def test_copies_for_inference_have_no_auxiliary_classifier() -> None:
    predictor = _small()
    folded = predictor.folded()
    assert folded.head.class_layers == {"classify": 1}
    assert not [name for name, _ in folded.named_parameters() if "auxiliary" in name]
    assert [name for name, _ in predictor.named_parameters() if "auxiliary" in name]
    images = torch.rand(2, 3, *SIZE) * 255
    with torch.inference_mode():
        plain, fast = predictor(images), folded(images)
    assert fast.auxiliary == ()
    torch.testing.assert_close(fast.logits, plain.logits, rtol=1e-4, atol=1e-4 * float(plain.logits.abs().max()))
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_pyramid_keeps_channels_last() -> None:
    predictor = _small().folded()
    images = torch.rand(1, 3, *SIZE).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        raw = predictor(images)
        features = predictor.backbone(images)
        pyramid = predictor.head._pyramid(features["c3"])
    for tensor in (pyramid, raw.logits, predictor.head.decode(raw, SIZE).logits):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("num_classes", "options", "message"), [
    (1, {}, "a segmenter tells at least two classes apart, got 1"),
    (2, {"rates": ()}, "rates are dilations of at least 1, and at least one of them, got ()"),
    (2, {"rates": (6, 0)}, "rates are dilations of at least 1, and at least one of them, got (6, 0)"),
])
def test_bad_arguments_are_explained(num_classes: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DeepLabV3({"c5": FeatureSpec(8, 16)}, num_classes, **options)


def test_training_on_one_image_is_explained() -> None:
    predictor = _small()
    image = torch.rand(1, 3, *SIZE)
    assert predictor(image).logits.shape[0] == 1
    with pytest.raises(ValueError, match=r"BatchNorm behind the pooling .* raise batch_size, or lower accumulate"):
        predictor.train()(image)
