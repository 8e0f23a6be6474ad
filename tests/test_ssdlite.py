"""SSDLite: the papers' exact costs, what it learns from and what not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from detseg import config
from detseg.backbones.mnasnet import mnasnet_a1
from detseg.backbones.mobilenet_v1 import mobilenet_v1
from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.backbones.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from detseg.cost import count_macs, count_parameters
from detseg.data.coco import COCO_80
from detseg.interfaces import Backbone, FeatureSpec
from detseg.layers import ConvNormAct, Padding
from detseg.model import Predictor
from detseg.ops import boxes
from detseg.ops.anchors import AnchorRaw, SSDAnchors
from detseg.resize import Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, BoxTargets, Classes
from heads.ssdlite import BoxLoss, ClassLoss, SSDLite

from .conftest import ROOT
from .one_stage import assert_task_aligned_training_finds, box_targets, row_gradients

TAPS = ("c4.expansion", "c5")
SIZE = (96, 160)
MAPS = [(6, 10), (3, 5), (2, 3), (1, 2), (1, 1), (1, 1)]
NUM_ANCHORS = 6 * sum(rows * columns for rows, columns in MAPS)
CLASSES = Classes(names=("cat", "dog", "cow"), source_ids=(3, 5, 9))


class Cost(NamedTuple):
    """Parameters by kind, and multiply-adds at 320 x 320."""

    weights: int
    biases: int
    norms: int
    macs: int


def _whole(backbone: Backbone, *, outputs: int, three_on_first: bool, width: float = 1.0) -> Predictor:
    classes = Classes(names=tuple(map(str, range(outputs - 1))), source_ids=tuple(range(outputs - 1)))
    head = SSDLite(backbone.specs, len(classes), anchors=SSDAnchors(three_on_first=three_on_first), width=width)
    return Predictor(backbone, head, classes=classes, resize=Stretch((320, 320)), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _cost(predictor: Predictor) -> Cost:
    of_norms = {id(parameter) for module in predictor.modules() if isinstance(module, nn.BatchNorm2d)
                for parameter in module.parameters()}
    weights = biases = norms = 0
    for parameter in predictor.parameters():
        if id(parameter) in of_norms:
            norms += parameter.numel()
        elif parameter.dim() > 1:
            weights += parameter.numel()
        else:
            biases += parameter.numel()
    assert weights + biases + norms == count_parameters(predictor)
    return Cost(weights, biases, norms, count_macs(predictor, torch.empty(1, 3, 320, 320, device="meta")))


def _v1() -> Backbone:
    return mobilenet_v1(taps=("c4", "c5"))


def _v2(**options: Any) -> Backbone:
    return mobilenet_v2(taps=TAPS, scale_last=True, **options)


def _large(**options: Any) -> Backbone:
    return mobilenet_v3_large(taps=TAPS, **options)


def _small(**options: Any) -> Backbone:
    return mobilenet_v3_small(taps=TAPS, **options)


def _mnasnet(width: float = 1.0) -> Backbone:
    return mnasnet_a1(width=width, taps=TAPS, scale_last=True, squeeze_rounding="divisible")


@pytest.mark.parametrize(("build", "outputs", "three_on_first", "cost"), [
    (_v1, 81, True, Cost(5_060_608, 2_805, 37_248, 1_309_162_944)),
    (_v2, 81, True, Cost(4_283_456, 2_805, 50_752, 788_830_144)),
    (_v2, 91, True, Cost(4_446_656, 3_135, 50_752, 804_397_504)),
    (_v2, 91, False, Cost(4_610_816, 3_420, 50_752, 870_061_504)),
    (_large, 91, False, Cost(5_149_896, 8_500, 40_144, 689_751_104)),
    (lambda: _large(reduced_tail="detection"), 91, True, Cost(3_208_296, 7_015, 32_944, 506_563_904)),
    (lambda: _large(reduced_tail="detection"), 91, False, Cost(3_399_816, 7_300, 32_944, 583_171_904)),
    (lambda: _large(reduced_tail="detection"), 81, True, Cost(3_090_216, 6_685, 32_944, 494_644_544)),
    (lambda: _small(reduced_tail="detection"), 91, True, Cost(1_759_976, 5_303, 20_464, 162_303_424)),
])
def test_costs_at_320_are_exact(
    build: Callable[[], Backbone], outputs: int, three_on_first: bool, cost: Cost
) -> None:
    assert _cost(_whole(build(), outputs=outputs, three_on_first=three_on_first)) == cost


def test_the_cost_of_mmdetections_wiring_is_exact() -> None:
    """It taps the block output where the paper taps the expansion."""
    predictor = config.load(ROOT / "configs" / "ssdlite_v2_openmmlab.py").build_model(COCO_80)
    assert count_parameters(predictor) == 4_228_788
    assert _cost(predictor).macs == 746_206_144


# Table 6 of the MobileNetV3 paper counts weights and biases without BatchNorm, for 90 classes and background.
@pytest.mark.parametrize(("build", "width", "parameters", "printed"), [
    (_large, 1.0, 4_966_591, 4.97),
    (lambda: _large(reduced_tail="detection"), 1.0, 3_215_311, 3.22),
    (_small, 1.0, 2_493_487, 2.49),
    (lambda: _small(reduced_tail="detection"), 1.0, 1_765_279, 1.77),
    (_mnasnet, 1.0, 4_879_455, 4.88),
    (lambda: _mnasnet(0.5), 0.5, 1_678_775, 1.68),
    (lambda: _mnasnet(0.35), 0.35, 1_023_563, 1.02),
    (lambda: _v2(width=0.35), 0.35, 929_531, 0.93),
    (lambda: _v2(width=0.5), 0.5, 1_536_527, 1.54),
])
def test_table_6_of_the_v3_paper_is_exact(
    build: Callable[[], Backbone], width: float, parameters: int, printed: float
) -> None:
    cost = _cost(_whole(build(), outputs=91, three_on_first=True, width=width))
    assert cost.weights + cost.biases == parameters
    assert round(parameters / 1e6, 2) == printed


def test_the_head_alone_costs_what_table_5_of_the_v2_paper_says() -> None:
    head = SSDLite(_v2().specs, 80, anchors=SSDAnchors(three_on_first=True))
    features = {"c4.expansion": torch.empty(1, 576, 20, 20), "c5": torch.empty(1, 1280, 10, 10)}
    assert round(count_parameters(head) / 1e6, 1) == 2.1
    assert round(count_macs(head, features) / 1e9, 4) == 0.1776


# ------------------------------------------------------------------------------------------ a small one


def _predictor(
    *, class_loss: ClassLoss = "multibox", box_loss: BoxLoss = "smooth_l1", min_negatives: int = 3
) -> Predictor:
    backbone = mobilenet_v3_small(width=0.25, taps=TAPS)
    head = SSDLite(backbone.specs, len(CLASSES), anchors=SSDAnchors(), width=0.1, class_loss=class_loss,
                   box_loss=box_loss, min_negatives=min_negatives)
    return Predictor(backbone, head, classes=CLASSES, resize=Stretch(SIZE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _with_different_scores(predictor: Predictor) -> Predictor:
    """As after training: statistics that are not trivial, and scores that differ from anchor to anchor."""
    for module in predictor.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    predictor.train()
    with torch.no_grad():
        for _ in range(40):
            predictor(torch.rand(8, 3, 1, 1) * 255 * torch.rand(8, 3, *SIZE))
    return predictor.eval()


TWO_IMAGES = box_targets([((10, 10, 70, 60), 0, False), ((90, 20, 150, 90), 2, False)], [((40, 5, 60, 90), 1, False)])
EVERYWHERE = (0.0, 0.0, 160.0, 96.0)


@pytest.mark.parametrize("box_loss", ["smooth_l1", "ciou"])
@pytest.mark.parametrize("class_loss", ["multibox", "sigmoid", "focal"])
def test_it_learns(class_loss: ClassLoss, box_loss: BoxLoss) -> None:
    predictor = _predictor(class_loss=class_loss, box_loss=box_loss).train()
    images = torch.rand(2, 3, *SIZE) * 255
    optimizer = torch.optim.SGD(predictor.parameters(), lr=0.02, momentum=0.9)
    history = []
    for _ in range(30 if class_loss == "sigmoid" else 12):
        losses = predictor.head.loss(predictor(images), TWO_IMAGES, SIZE)
        terms = [term.sum / term.count for term in losses.values()]
        loss = torch.stack(terms).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        history.append([float(value.detach()) for value in (loss, *terms)])
    assert all(last < 0.7 * first for first, last in zip(history[0], history[-1], strict=True)), history
    dead = [name for name, parameter in predictor.named_parameters() if parameter.grad is None]
    assert not dead


def test_task_aligned_it_learns_to_say_how_well_its_boxes_fit() -> None:
    assert_task_aligned_training_finds(
        TWO_IMAGES, _predictor(class_loss="task_aligned", box_loss="giou"), steps=60)


def test_task_aligned_it_needs_a_loss_of_decoded_boxes() -> None:
    with pytest.raises(ValueError, match='box_loss must be "ciou" or "giou"'):
        _predictor(class_loss="task_aligned", box_loss="smooth_l1")


def test_shapes_and_ranges() -> None:
    predictor = _with_different_scores(_predictor())
    raw: AnchorRaw = predictor((torch.rand(2, 3, *SIZE) * 255).to(torch.uint8))
    assert [x.shape for x in raw.deltas] == [(2, 6 * 4, *size) for size in MAPS]
    assert [x.shape for x in raw.logits] == [(2, 6 * 4, *size) for size in MAPS]
    logits, deltas = raw.rows(4)
    assert deltas.shape == (2, NUM_ANCHORS, 4)
    assert logits.shape == (2, NUM_ANCHORS, 4)
    dense = predictor.head.decode(raw, SIZE)
    assert dense.scores.shape == (2, NUM_ANCHORS, 3)
    assert bool((dense.scores.sum(-1) <= 1 + 1e-6).all())
    torch.testing.assert_close(dense.scores, logits.softmax(-1)[..., 1:])
    assert bool((dense.boxes[..., [0, 2]] <= 160).all())
    assert bool((dense.boxes[..., [1, 3]] <= 96).all())
    assert bool((dense.boxes >= 0).all())
    assert bool((dense.boxes[..., 2:] >= dense.boxes[..., :2]).all())


def test_deltas_of_zero_mean_the_anchors() -> None:
    predictor = _predictor().eval()
    raw: AnchorRaw = predictor(torch.rand(2, 3, *SIZE) * 255)
    raw = raw._replace(deltas=tuple(map(torch.zeros_like, raw.deltas)))
    for size in (SIZE, (90, 155)):
        anchors = boxes.clip(SSDAnchors()(MAPS, size, device=predictor.device), size)
        for static in (False, True):
            found = predictor.head.decode(raw, size, static=static).boxes
            torch.testing.assert_close(found, anchors.expand(2, -1, -1), rtol=0, atol=1e-4)


def test_rows_are_in_the_order_of_the_anchors() -> None:
    """By map, row, column and anchor: what the third map's predictors say at row 1, column 2 of 2 x 3."""
    anchors = SSDAnchors(num_maps=3)
    head = SSDLite({"c4": FeatureSpec(8, 16), "c5": FeatureSpec(12, 32)}, 4, anchors=anchors,
                   extra_channels=(20,)).eval()
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
    features = {"c4": torch.rand(2, 8, 6, 10), "c5": torch.rand(2, 12, 3, 5)}
    found_logits, found_deltas = head(features).rows(5)
    last = head.extras[0](features["c5"])
    row = 6 * (60 + 15) + 6 * (1 * 3 + 2)
    deltas, logits = head.locate[2](last)[:, :, 1, 2], head.classify[2](last)[:, :, 1, 2]
    torch.testing.assert_close(found_deltas[:, row : row + 6], deltas.reshape(2, 6, 4))
    torch.testing.assert_close(found_logits[:, row : row + 6], logits.reshape(2, 6, 5))
    anchor = anchors(MAPS[:3], SIZE, device=torch.device("cpu"))[row]
    torch.testing.assert_close((anchor[:2] + anchor[2:]) / 2, torch.tensor([160 * 2.5 / 3, 96 * 1.5 / 2]))


def test_width_leaves_at_least_16_channels_in_the_made_maps() -> None:
    extras = dict(_predictor().head.named_children())["extras"]
    assert isinstance(extras, nn.ModuleList)
    convolutions = [module for module in extras.modules() if isinstance(module, nn.Conv2d)]
    assert [module.out_channels for module in convolutions[2::3]] == [51, 25, 25, 16]


def test_focal_scores_are_sigmoids_that_start_low() -> None:
    predictor = _predictor(class_loss="focal").eval()
    raw: AnchorRaw = predictor(torch.rand(1, 3, *SIZE) * 255)
    scores = predictor.head.decode(raw, SIZE).scores
    torch.testing.assert_close(scores, raw.rows(4)[0].sigmoid()[..., 1:])
    assert float(scores.detach().mean()) == pytest.approx(0.01, abs=0.003)


def test_sigmoid_scores_are_sigmoids_without_background() -> None:
    predictor = _predictor(class_loss="sigmoid").eval()
    raw: AnchorRaw = predictor(torch.rand(1, 3, *SIZE) * 255)
    scores = predictor.head.decode(raw, SIZE).scores
    torch.testing.assert_close(scores, raw.rows(4)[0].sigmoid()[..., 1:])


def test_a_negative_wants_the_background_column_of_sigmoids_and_a_positive_its_own() -> None:
    """TensorFlow's V1 and V2 configs do not encode background as zeros."""
    _, deltas, logits = row_gradients(_predictor(class_loss="sigmoid").eval(), TWO_IMAGES)
    positive = (deltas != 0).any(-1)
    negative = (logits != 0).any(-1) & ~positive
    assert bool((logits[negative][:, 0] < 0).all())
    assert bool((logits[negative][:, 1:] > 0).all())
    assert (logits[positive] < 0).sum(1).tolist() == [1] * int(positive.sum())
    assert bool((logits[positive][:, 0] > 0).all())
    assert negative.sum(1).tolist() == [3 * count for count in positive.sum(1).tolist()]


def test_same_padding_of_the_made_maps_by_hand() -> None:
    """TensorFlow pads an even map by nothing before and one cell behind; the sizes of maps are the same."""
    outputs = {}
    paddings: tuple[Padding, ...] = ("symmetric", "same")
    for padding in paddings:
        specs = {"c4": FeatureSpec(8, 16), "c5": FeatureSpec(8, 32)}
        head = SSDLite(specs, 2, anchors=SSDAnchors(), padding=padding).eval()
        depthwise = head.get_submodule("extras.0.1")
        assert isinstance(depthwise, ConvNormAct)
        assert isinstance(depthwise.conv, nn.Conv2d)
        nn.init.constant_(depthwise.conv.weight, 0.0)
        depthwise.conv.weight.data[:, :, 0, 0] = 1.0  # takes the upper left of each window
        x = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 256, 4, 4) / 16
        outputs[padding] = (depthwise(x)[0, 0] * 16 * math.sqrt(1 + 1e-3)).round().tolist()
        raw = head({"c4": torch.rand(1, 8, 7, 10), "c5": torch.rand(1, 8, 4, 5)})
        assert [tuple(one.shape[2:]) for one in raw.deltas] == [(7, 10), (4, 5), (2, 3), (1, 2), (1, 1), (1, 1)]
    assert outputs == {"symmetric": [[0, 0], [0, 5]], "same": [[0, 2], [8, 10]]}


def test_the_gradient_of_matched_anchors() -> None:
    """The right class goes up, all others down, background first; unmatched anchors move no box."""
    losses, deltas, logits = row_gradients(_predictor().eval(), TWO_IMAGES)
    number = int(losses["box"].count)
    assert number >= 4
    positive = (deltas != 0).any(-1)
    assert int(positive.sum()) == number
    assert sorted(set((-logits[positive]).argmax(-1).tolist())) == [1, 2, 3], "label + 1"
    negative = (logits != 0).any(-1) & ~positive
    assert negative.sum(1).tolist() == [3 * count for count in positive.sum(1).tolist()]
    assert bool((logits[negative].argmin(-1) == 0).all())


def test_the_focal_loss_encodes_background_as_zeros() -> None:
    """As encode_background_as_zeros in TensorFlow's V3 configs: no anchor ever wants the background column."""
    losses, deltas, logits = row_gradients(_predictor(class_loss="focal").eval(), TWO_IMAGES)
    number = int(losses["class"].count)
    positive = (deltas != 0).any(-1)
    assert bool((logits[~positive] > 0).all())
    assert bool((logits[positive][:, 0] > 0).all())
    assert (logits[positive] < 0).sum(1).tolist() == [1] * number
    # At the prior of 0.01, (1 - p)^2 * -log(p) of each positive and next to nothing of all negatives.
    assert float(losses["class"].sum.detach()) == pytest.approx(number * 0.75 * 0.99**2 * 4.6, rel=0.1)


@pytest.mark.parametrize("class_loss", ["multibox", "sigmoid", "focal"])
@pytest.mark.parametrize("targets", [
    box_targets([], []), box_targets([], [((3, 3, 3, 30), 1, False), ((9, 9, 9, 9), 0, False)])],
    ids=["none", "without area"])
def test_which_anchors_show_background_in_images_without_objects(targets: BoxTargets, class_loss: ClassLoss) -> None:
    losses, deltas, logits = row_gradients(_predictor(class_loss=class_loss).eval(), targets)
    assert int(losses["class"].count) == 0
    assert float(losses["box"].sum.detach()) == 0
    assert bool((deltas == 0).all())
    assert bool(logits.isfinite().all())
    with_gradient = (logits != 0).any(-1).sum(1).tolist()
    assert with_gradient == ([NUM_ANCHORS] * 2 if class_loss == "focal" else [3, 3])


def test_min_negatives_0_is_torchvisions_silence_on_empty_images() -> None:
    losses, _, logits = row_gradients(_predictor(min_negatives=0).eval(), box_targets([], []))
    assert float(losses["class"].sum.detach()) == 0
    assert bool((logits == 0).all())


@pytest.mark.parametrize("class_loss", ["multibox", "sigmoid", "focal"])
def test_anchors_in_a_crowd_are_ignored_and_an_object_in_it_is_not(class_loss: ClassLoss) -> None:
    predictor = _predictor(class_loss=class_loss, min_negatives=10_000).eval()
    losses, deltas, logits = row_gradients(predictor, box_targets([(EVERYWHERE, 1, True)], [(EVERYWHERE, 1, True)]))
    assert int(losses["class"].count) == 0
    assert bool((deltas == 0).all())
    assert bool((logits == 0).all())

    right_half = (80.0, 0.0, 160.0, 96.0)
    _, _, logits = row_gradients(predictor, box_targets([(right_half, 1, True)], [((10, 10, 70, 60), 0, False)]))
    anchors = boxes.clip(SSDAnchors()(MAPS, SIZE, device=predictor.device), SIZE)
    centres = (anchors[:, 0] + anchors[:, 2]) / 2
    with_gradient = (logits != 0).any(-1)
    assert not with_gradient[0, centres > 81].any()
    assert bool(with_gradient[0, centres < 79].all())
    assert bool(with_gradient[1].all()), "the crowd is another image's"

    both = box_targets([(EVERYWHERE, 1, True), ((10, 10, 70, 60), 0, False)])
    losses, deltas, logits = row_gradients(predictor, both)
    number = int(losses["class"].count)
    assert number > 0
    assert int((deltas != 0).any(-1).sum()) == int((logits != 0).any(-1).sum()) == number


def test_folding_leaves_no_norms_and_gives_the_same() -> None:
    predictor = _with_different_scores(_predictor())
    images = torch.rand(2, 3, *SIZE) * 255
    folded = predictor.folded()
    with torch.inference_mode():
        plain, other = predictor(images), folded(images)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    for wanted, found in zip(plain.rows(4), other.rows(4), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(("classes", "options", "message"), [
    (0, {}, "a detector needs at least one class, got 0"),
    (3, {"extra_channels": (64, 32)}, "2 taps and 2 extra maps make 4, but the anchors are for 6: give as many "
                                      "extra_channels or set num_maps"),
])
def test_bad_arguments_are_explained(classes: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SSDLite({"c4": FeatureSpec(8, 16), "c5": FeatureSpec(8, 32)}, classes, anchors=SSDAnchors(), **options)


def test_fewer_maps() -> None:
    head = SSDLite({"c4": FeatureSpec(8, 16), "c5": FeatureSpec(12, 32)}, 2, anchors=SSDAnchors(num_maps=3),
                   extra_channels=(20,))
    raw = head({"c4": torch.rand(1, 8, 6, 10), "c5": torch.rand(1, 12, 3, 5)})
    assert raw.rows(3)[0].shape == (1, 6 * (60 + 15 + 6), 3)
    assert len(head.class_layers) == 3
    layers = dict(head.named_modules())
    for name in head.class_layers:
        layer = layers[name]
        assert isinstance(layer, nn.Conv2d)
        assert layer.out_channels == 6 * 3
