"""RetinaNet: the costs of the MobileNetV4 paper's table, what it learns from and what not; it exports whole."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from detseg import config
from detseg.backbones.mobilenet_v1 import mobilenet_v1
from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from detseg.backbones.mobilenet_v4 import mobilenet_v4_conv_medium, mobilenet_v4_hybrid_medium
from detseg.cost import count_macs, count_parameters
from detseg.data.coco import COCO_90
from detseg.export.contract import ExportedNetwork, Input, outputs_of
from detseg.interfaces import Backbone, Features, FeatureSpec
from detseg.layers import ConvNormAct, Norm, SharedConv
from detseg.model import Predictor
from detseg.necks import FPN, SeparableFPN
from detseg.ops import boxes
from detseg.ops.anchors import AnchorRaw, GridAnchors
from detseg.ops.losses import box_loss
from detseg.resize import Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, BoxTargets, Classes, Size
from detseg.tasks.detection import Detection
from heads.retinanet import NORM, RetinaNet

from .conftest import ROOT
from .one_stage import assert_task_aligned_training_finds, box_targets, row_gradients

Wiring: TypeAlias = Literal["torchvision", "tensorflow"]
WIRINGS: tuple[Wiring, ...] = ("torchvision", "tensorflow")

TENSORFLOW_ANCHORS = GridAnchors(
    tuple(tuple(3 * stride * 2 ** (k / 3) for k in range(3)) for stride in (8, 16, 32, 64, 128)), rounded=False,
    centred=True)
SIZE = (96, 160)
MAPS = [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
SPECS = {f"p{k}": FeatureSpec(16, 2**k) for k in range(3, 8)}
NUM_ANCHORS = 9 * sum(rows * columns for rows, columns in MAPS)
CLASSES = Classes(names=("cat", "dog", "cow"), source_ids=(3, 5, 9))


# ------------------------------------------------------------------------------------------ costs

TO_BLOCKS = ("c3", "c4", "c5.bottleneck")


class Row(NamedTuple):
    """A row of the paper's table: how to build it, and what is printed."""

    build: Callable[..., Backbone]
    taps: tuple[str, ...]
    second_conv: int
    """Parameters of the classifier's second convolution (1280 channels at width 1), as Keras counts them."""
    keras_total: int
    million_parameters: float
    macs: int
    billion_macs: float


def _v1(taps: tuple[str, ...]) -> Backbone:
    return mobilenet_v1(width=1.5, taps=taps)


def _v2(taps: tuple[str, ...]) -> Backbone:
    return mobilenet_v2(width=2.0, taps=taps)


def _v3(taps: tuple[str, ...]) -> Backbone:
    return mobilenet_v3_large(width=2.0, taps=taps)


def _v4(taps: tuple[str, ...]) -> Backbone:
    return mobilenet_v4_conv_medium(taps=taps)


def _v4_hybrid(taps: tuple[str, ...]) -> Backbone:
    return mobilenet_v4_hybrid_medium(taps=taps)


# V1 has no classifier of convolutions and V2 one; V3's second has a bias, V4's a BatchNorm of four numbers a channel.
TABLE_6 = {
    "V1 x 1.5": Row(_v1, ("c3", "c4", "c5"), 0, 9_045_239, 9.05, 6_649_274_880, 6.68),
    "V2 x 2": Row(_v2, TO_BLOCKS, 0, 10_152_023, 10.15, 5_748_890_112, 5.81),
    "V3-L x 2": Row(_v3, TO_BLOCKS, 1920 * 2560 + 2560, 17_925_823, 17.92, 4_928_490_240, 4.99),
    "V4-Conv-M": Row(_v4, TO_BLOCKS, 960 * 1280 + 4 * 1280, 9_786_327, 9.79, 5_029_737_984, 5.06),
    "V4-Hybrid-M": Row(_v4_hybrid, TO_BLOCKS, 960 * 1280 + 4 * 1280, 11_153_399, 11.15, 5_577_315_840, 5.62),
}


def _detector(backbone: Backbone, *, channels: int = 256, size: int = 384) -> Predictor:
    neck = SeparableFPN(backbone.specs, channels=channels, norm=NORM)
    head = RetinaNet(neck.specs, len(COCO_90), anchors=TENSORFLOW_ANCHORS, separable=True, norm=NORM)
    return Predictor(backbone, head, neck=neck, classes=COCO_90, resize=Stretch((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def _keras_total(module: nn.Module) -> int:
    """With BatchNorm's moving mean and variance, as `Model.count_params` has it."""
    return count_parameters(module) + sum(
        2 * norm.num_features for norm in module.modules() if isinstance(norm, nn.BatchNorm2d))


@pytest.mark.parametrize("name", TABLE_6)
def test_table_6_of_the_v4_paper(name: str) -> None:
    """Its parameters are Keras's total with the classifier's convolutions, which no detector uses; its multiply-adds
    are by about a hundredth more than those of the convolutions."""
    row = TABLE_6[name]
    with torch.device("meta"):
        backbone, whole = row.build(row.taps), row.build(("c5",))
        predictor = _detector(backbone)
    unused = _keras_total(whole) - _keras_total(backbone) + row.second_conv
    assert _keras_total(predictor) + unused == row.keras_total
    assert row.keras_total / 1e6 == pytest.approx(row.million_parameters, abs=0.006)
    assert count_macs(predictor, torch.empty(1, 3, 384, 384, device="meta")) == row.macs
    assert 0.004 < 1 - row.macs / 1e9 / row.billion_macs < 0.013


def test_the_parameters_of_the_detector_alone() -> None:
    with torch.device("meta"):
        assert count_parameters(_detector(_v4(TO_BLOCKS))) == 8_216_343
        assert count_parameters(_detector(_v2(TO_BLOCKS))) == 8_417_239


def test_the_cost_of_tensorflows_256_px_network() -> None:
    with torch.device("meta"):
        predictor = _detector(mobilenet_v2(taps=TO_BLOCKS), channels=128, size=256)
    assert round(_keras_total(predictor) / 1e6, 3) == 2.267
    assert round(count_macs(predictor, torch.empty(1, 3, 256, 256, device="meta")) / 1e9, 3) == 0.743


@pytest.mark.parametrize("name", ["retinanet_v4_conv_medium", "retinanet_v4_hybrid_medium", "retinanet_v2_256"])
def test_configs_cost_what_they_say(name: str) -> None:
    path = ROOT / "configs" / f"{name}.py"
    with torch.device("meta"):
        predictor = config.load(path).build_model(COCO_90)
    size = predictor.resize.size
    macs = count_macs(predictor, torch.empty(1, 3, *size, device="meta"))
    assert f"Cost: {count_parameters(predictor):,} parameters, {macs:,} multiply-adds" in path.read_text()
    num_boxes = 9 * sum(math.ceil(size[0] / stride) * math.ceil(size[1] / stride) for stride in (8, 16, 32, 64, 128))
    assert f"{num_boxes:,} boxes" in path.read_text()


# ------------------------------------------------------------------------------------------ small ones


def _head(wiring: Wiring, specs: dict[str, FeatureSpec], *, num_classes: int = 3) -> RetinaNet:
    if wiring == "torchvision":
        return RetinaNet(specs, num_classes, anchors=TENSORFLOW_ANCHORS, num_convs=2)
    return RetinaNet(
        specs, num_classes, anchors=TENSORFLOW_ANCHORS, num_convs=2, separable=True, norm=Norm(0.1, 1e-3),
        activation="relu6", gamma=1.5, box_loss="huber", box_weight=12.5, max_negative_iou=0.5)


class Trunk(Backbone):
    """A few convolutions down to strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.specs = {f"c{k}": FeatureSpec(8 * k, 2**k) for k in (3, 4, 5)}
        norm = Norm(0.1, 1e-3)
        self.stem = nn.Sequential(*(
            ConvNormAct(channels, 16, kernel=3, stride=2, norm=norm, activation="relu") for channels in (3, 16)))
        self.stages = nn.ModuleList(
            ConvNormAct(channels, 8 * k, kernel=3, stride=2, norm=norm, activation="relu")
            for k, channels in ((3, 16), (4, 24), (5, 32)))

    def forward(self, images: Tensor) -> Features:
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return dict(zip(self.specs, maps[1:], strict=True))


def _predictor(wiring: Wiring = "tensorflow") -> Predictor:
    backbone = Trunk()
    neck: FPN | SeparableFPN
    if wiring == "torchvision":
        neck = FPN(backbone.specs, channels=16, coarser="convolutions")
    else:
        neck = SeparableFPN(backbone.specs, channels=16, norm=Norm(0.1, 1e-3), activation="relu6")
    return Predictor(backbone, _head(wiring, neck.specs), neck=neck, classes=CLASSES, resize=Stretch(SIZE),
                     mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _with_different_scores(predictor: Predictor) -> Predictor:
    """As after training: statistics that are not trivial and not the same on every map, and scores that differ."""
    for module in predictor.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    predictor.train()
    with torch.no_grad():
        for _ in range(40):
            predictor(torch.rand(8, 3, 1, 1) * 255 * torch.rand(8, 3, *SIZE))
    return predictor.eval()


TWO_IMAGES = box_targets([((10, 10, 70, 60), 0, False), ((90, 20, 150, 90), 2, False)], [((40, 5, 60, 90), 1, False)])
EVERYWHERE = (0.0, 0.0, 160.0, 96.0)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_it_learns(wiring: Wiring) -> None:
    predictor = _predictor(wiring).train()
    images = torch.rand(2, 3, *SIZE) * 255
    optimizer = torch.optim.Adam(predictor.parameters(), lr=0.001 if wiring == "torchvision" else 0.01)
    history = []
    for _ in range(25):
        losses = predictor.head.loss(predictor(images), TWO_IMAGES, SIZE)
        terms = [term.sum / term.count for term in losses.values()]
        loss = torch.stack(terms).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        history.append([float(value.detach()) for value in (loss, *terms)])
    assert all(last < 0.6 * first for first, last in zip(history[0], history[-1], strict=True)), history
    dead = [name for name, parameter in predictor.named_parameters() if parameter.grad is None]
    assert not dead


def test_task_aligned_it_learns_to_say_how_well_its_boxes_fit() -> None:
    predictor = _predictor()
    predictor.head = RetinaNet(
        {f"p{k}": FeatureSpec(16, 2**k) for k in range(3, 8)}, 3, anchors=TENSORFLOW_ANCHORS, num_convs=1,
        separable=True, norm=Norm(0.1, 1e-3), class_loss="task_aligned", box_loss="giou", box_weight=2.0)
    assert_task_aligned_training_finds(TWO_IMAGES, predictor, steps=80)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_shapes_and_ranges(wiring: Wiring) -> None:
    predictor = _with_different_scores(_predictor(wiring))
    raw: AnchorRaw = predictor((torch.rand(2, 3, *SIZE) * 255).to(torch.uint8))
    assert [x.shape for x in raw.deltas] == [(2, 9 * 4, *size) for size in MAPS]
    assert [x.shape for x in raw.logits] == [(2, 9 * 4, *size) for size in MAPS]
    logits, deltas = raw.rows(4)
    assert deltas.shape == (2, NUM_ANCHORS, 4)
    assert logits.shape == (2, NUM_ANCHORS, 4)
    dense = predictor.head.decode(raw, SIZE)
    assert dense.scores.shape == (2, NUM_ANCHORS, 3)
    torch.testing.assert_close(dense.scores, logits.sigmoid()[..., 1:])
    assert bool((dense.boxes[..., [0, 2]] <= 160).all())
    assert bool((dense.boxes[..., [1, 3]] <= 96).all())
    assert bool((dense.boxes >= 0).all())
    assert bool((dense.boxes[..., 2:] >= dense.boxes[..., :2]).all())


@pytest.mark.parametrize("wiring", WIRINGS)
def test_rows_are_in_the_order_of_the_anchors(wiring: Wiring) -> None:
    """By map, row, column and anchor: what the second map's cell at row 1, column 2 of 6 x 10 says."""
    head = _head(wiring, SPECS, num_classes=4).eval()
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    maps = {name: torch.rand(2, 16, *size) for name, size in zip(SPECS, MAPS, strict=True)}
    found_logits, found_deltas = head(maps).rows(5)
    parts = dict(head.named_children())
    row = 9 * (12 * 20 + 1 * 10 + 2)
    for tower, found, columns in ((parts["locate"], found_deltas, 4), (parts["classify"], found_logits, 5)):
        x = maps["p4"]
        layers = dict(tower.named_children())
        for conv in layers["convs"].children():
            assert isinstance(conv, SharedConv)
            x = conv.blocks[1](conv.conv(x))
        cell = layers["predict"](x)[:, :, 1, 2]
        torch.testing.assert_close(found[:, row : row + 9], cell.reshape(2, 9, columns))
    anchor = TENSORFLOW_ANCHORS(MAPS, SIZE, device=torch.device("cpu"))[row]
    torch.testing.assert_close((anchor[:2] + anchor[2:]) / 2, torch.tensor([16 * 2.5, 16 * 1.5]))


@pytest.mark.parametrize("size", [SIZE, (90, 155)])
def test_anchors_lie_by_the_strides_where_maps_span_more_than_the_image(size: Size) -> None:
    """Deltas of zero mean the anchors; boxes end with the image."""
    head = _head("tensorflow", SPECS).eval()
    raw = head({name: torch.rand(1, 16, *map_size) for name, map_size in zip(head.maps, MAPS, strict=True)})
    raw = raw._replace(deltas=tuple(map(torch.zeros_like, raw.deltas)))
    anchors = boxes.clip(TENSORFLOW_ANCHORS(MAPS, SIZE, device=torch.device("cpu")), size)
    assert anchors[:, 2:].amax(0).tolist() == [size[1], size[0]]
    for static in (False, True):
        torch.testing.assert_close(head.decode(raw, size, static=static).boxes[0], anchors, rtol=0, atol=1e-4)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_scores_start_at_the_prior(wiring: Wiring) -> None:
    predictor = _predictor(wiring).eval()
    scores = predictor.decode(torch.rand(1, 3, *SIZE) * 255).scores
    assert float(scores.detach().mean()) == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_gradient_of_matched_anchors(wiring: Wiring) -> None:
    """The right class goes up, all others down, the unused first output always; unmatched anchors move no box."""
    losses, deltas, logits = row_gradients(_predictor(wiring).eval(), TWO_IMAGES)
    number = int(losses["box"].count)
    positive = (deltas != 0).any(-1)
    assert int(positive.sum()) == number >= 4
    assert sorted(set((-logits[positive]).argmax(-1).tolist())) == [1, 2, 3], "label + 1"
    assert (logits[positive] < 0).sum(1).tolist() == [1] * number
    left_alone = (logits == 0).all(-1)
    assert bool((logits[~positive & ~left_alone] > 0).all())
    # Only torchvision leaves out what overlaps an object by 0.4 to 0.5.
    assert bool(left_alone.any()) == (wiring == "torchvision")
    # At the prior of 0.01, (1 - p) ** gamma * -log(p) of each positive and next to nothing of all negatives.
    gamma = 2.0 if wiring == "torchvision" else 1.5
    wanted = number * 0.25 * 0.99**gamma * math.log(100)
    assert float(losses["class"].sum.detach()) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("targets", [
    box_targets([], []), box_targets([], [((3, 3, 3, 30), 1, False), ((9, 9, 9, 9), 0, False)])],
    ids=["none", "without area"])
def test_images_without_objects_show_background_alone(targets: BoxTargets, wiring: Wiring) -> None:
    losses, deltas, logits = row_gradients(_predictor(wiring).eval(), targets)
    assert int(losses["class"].count) == 0
    assert float(losses["box"].sum.detach()) == 0
    assert bool((deltas == 0).all())
    assert bool((logits > 0).all()), "all is background"


@pytest.mark.parametrize("wiring", WIRINGS)
def test_anchors_in_a_crowd_are_ignored_and_an_object_in_it_is_not(wiring: Wiring) -> None:
    predictor = _predictor(wiring).eval()
    losses, deltas, logits = row_gradients(predictor, box_targets([(EVERYWHERE, 1, True)], [(EVERYWHERE, 1, True)]))
    assert int(losses["class"].count) == 0
    assert bool((deltas == 0).all())
    assert bool((logits == 0).all())

    both = box_targets([(EVERYWHERE, 1, True), ((10, 10, 70, 60), 0, False)], [((10, 10, 70, 60), 0, False)])
    _, deltas, logits = row_gradients(predictor, both)
    with_gradient, positive = (logits != 0).any(-1), (deltas != 0).any(-1)
    assert torch.equal(positive[0], positive[1])
    assert bool(positive[0].any())
    assert torch.equal(with_gradient[0], positive[0]), "an object inside the crowd is still learnt"
    assert int(with_gradient[1].sum()) > int(with_gradient[0].sum()), "the crowd is another image's"


def test_box_losses_by_hand() -> None:
    """An anchor of 10 x 20 and the box 1 px to its right and twice as high: deltas 0.1, 0, 0 and log 2."""
    anchors = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    targets = box_targets([((1.0, -10.0, 11.0, 30.0), 0, False)])
    deltas = torch.tensor([[[0.05, 0.0, 0.3, 0.0]]])
    differences = (0.05, 0.0, 0.3, math.log(2))
    for kind, wanted in (
        ("l1", sum(differences)),
        ("huber", 0.5 * 0.05**2 + 0.1 * (0.3 - 0.05) + 0.1 * (math.log(2) - 0.05)),
    ):
        found = box_loss(deltas, anchors, targets, torch.tensor([[0]]), weights=(1.0, 1.0, 1.0, 1.0),
                         kind="l1" if kind == "l1" else "huber")
        assert float(found) == pytest.approx(wanted, rel=1e-5), kind


def test_box_weight_multiplies_the_box_loss() -> None:
    head = _head("tensorflow", SPECS).eval()
    raw = head({name: torch.rand(2, 16, *size) for name, size in zip(head.maps, MAPS, strict=True)})
    heavy = head.loss(raw, TWO_IMAGES, SIZE)["box"]
    head.box_weight = 1.0
    light = head.loss(raw, TWO_IMAGES, SIZE)["box"]
    torch.testing.assert_close(heavy.sum, 12.5 * light.sum)
    assert int(heavy.count) == int(light.count)


# ------------------------------------------------------------------------------------------ inference


@pytest.mark.parametrize("wiring", WIRINGS)
def test_folding_gives_the_same(wiring: Wiring) -> None:
    predictor = _with_different_scores(_predictor(wiring))
    images = torch.rand(2, 3, *SIZE) * 255
    folded = predictor.folded()
    with torch.inference_mode():
        plain, others = predictor(images), [folded(images), folded.folded()(images)]
    assert not [module for module in folded.head.modules() if isinstance(module, nn.BatchNorm2d)]
    for other in others:
        for wanted, found in zip(plain.rows(4), other.rows(4), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_a_shared_full_convolution_with_norms_folds_too() -> None:
    shared = SharedConv(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)), 6, num_maps=2, norm=NORM, activation="relu")
    for module in shared.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    shared.eval()
    maps = [torch.rand(1, 4, 5, 7), torch.rand(1, 4, 3, 4)]
    with torch.no_grad():
        wanted = shared(maps)
        shared.fold()
        shared.fold()
        found = shared(maps)
    assert [type(block.conv) for block in shared.blocks if isinstance(block, ConvNormAct)] == [nn.Conv2d, nn.Conv2d]
    assert not torch.allclose(wanted[0][..., :3, :4], wanted[1])
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_without_norms_sharing_goes_on() -> None:
    predictor = _predictor("torchvision")
    assert count_parameters(predictor.folded().head) == count_parameters(predictor.head)


@pytest.mark.parametrize(("change", "message"), [
    ({"num_classes": 0}, "a detector needs at least one class, got 0"),
    ({"specs": {"p3": FeatureSpec(8, 8)}}, "the pyramid has 1 maps (p3), but the anchors are for 2"),
    ({"specs": {"p3": FeatureSpec(8, 8), "p4": FeatureSpec(16, 16)}},
     "all maps share their predictors and need the same number of channels and of anchors a cell, got [8, 16] channels "
     "and [1] anchors"),
    ({"anchors": GridAnchors(((32.0,), (64.0, 80.0)), ratios=(1.0,))}, "got [8] channels and [1, 2] anchors"),
    ({"class_loss": "task_aligned"}, 'box_loss must be "ciou" or "giou"'),
    ({"max_negative_iou": 0.6}, "max_negative_iou must lie in 0..0.5, got 0.6"),
])
def test_bad_arguments_are_explained(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "specs": {"p3": FeatureSpec(8, 8), "p4": FeatureSpec(8, 16)}, "num_classes": 3,
        "anchors": GridAnchors(((32.0,), (64.0,)), ratios=(1.0,))}
    with pytest.raises(ValueError, match=re.escape(message)):
        RetinaNet(**(given | change))


@pytest.mark.slow
@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_wiring_exports_strictly(wiring: Wiring) -> None:
    torch.manual_seed(0)
    predictor = _with_different_scores(_predictor(wiring))
    task = Detection(score_threshold=0.05, iou_threshold=0.5, per_class=100, max_detections=30, candidates=200)
    given = Input(SIZE, "float", "nchw")
    module = ExportedNetwork(predictor, task, contract="final", given=given).program().module()
    torch.manual_seed(7)
    for _ in range(2):
        images = torch.rand(1, 3, 1, 1) * 255 * torch.rand(1, 3, *SIZE)
        with torch.inference_mode():
            found, wanted = outputs_of(task).finished(module(images)), task.postprocess(predictor.decode(images))
        assert torch.equal(found.num_valid, wanted.num_valid)
        assert int(wanted.num_valid) > 5
        assert torch.equal(found.labels, wanted.labels)
        torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes, wanted.boxes, rtol=1e-4, atol=1e-2)
