"""Faster R-CNN: what it proposes, what it learns from and what not, and that it exports whole."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detseg.anchors import GridAnchors
from detseg.data.transforms import KeepAspect, SSDAugment, Stretch
from detseg.interfaces import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    BoxTargets,
    Classes,
    DenseBoxes,
    Detections,
    Features,
    FeatureSpec,
    Losses,
)
from detseg.model import Predictor
from detseg.necks import FPN
from detseg.suppression import used_rows
from detseg.tasks import Detection
from heads.faster_rcnn import FasterRCNN, RCNNRaw

from . import discovery

SIZE = (96, 128)
SPECS = {"p3": FeatureSpec(8, 8), "p4": FeatureSpec(8, 16), "p5": FeatureSpec(8, 32)}
ANCHORS = GridAnchors(((16,), (32,), (64,)))
TASK = Detection(score_threshold=0.05, iou_threshold=0.5, per_class=100, max_detections=20, candidates=100)


def _head(**options: Any) -> FasterRCNN:
    """Small, for three classes, and saying something else of every place."""
    head = FasterRCNN(SPECS, 3, anchors=ANCHORS, **({"hidden": 16, "proposals": 30} | options))
    with torch.no_grad():
        for layer, factor in ((head.conv, 20.0), (head.objectness, 100.0), (head.shift, 20.0), (head.score, 8.0)):
            layer.weight.mul_(factor)
    return head


def _features(images: int) -> Features:
    return {name: torch.randn(images, 8, SIZE[0] // spec.stride, SIZE[1] // spec.stride)
            for name, spec in SPECS.items()}


def _targets(*images: list[tuple[float, float, float, float]], crowd: tuple[tuple[int, int], ...] = ()) -> BoxTargets:
    """A padded batch; box m of an image has label m modulo 3. `crowd` lists (image, box)."""
    most = max(map(len, images))
    batch = BoxTargets(torch.zeros(len(images), most, 4), torch.full((len(images), most), -1),
                       torch.zeros(len(images), most, dtype=torch.bool))
    for row, image in enumerate(images):
        for number, box in enumerate(image):
            batch.boxes[row, number] = torch.tensor(box)
            batch.labels[row, number] = number % 3
    for row, number in crowd:
        batch.crowd[row, number] = True
    return batch


def _raw(logits: dict[int, float], deltas: dict[int, tuple[float, ...]] | None = None) -> RCNNRaw:
    """Anchors of which only the named ones are sure of something, and maps of zeros."""
    raw: RCNNRaw = FasterRCNN(SPECS, 3, anchors=ANCHORS, hidden=16)(
        {name: torch.zeros_like(x) for name, x in _features(1).items()}, SIZE)
    said = torch.full_like(raw.logits, -10.0)
    for anchor, logit in logits.items():
        said[0, anchor] = logit
    shifts = torch.zeros_like(raw.deltas)
    for anchor, shift in (deltas or {}).items():
        shifts[0, anchor] = torch.tensor(shift)
    return raw._replace(logits=said, deltas=shifts)


# ------------------------------------------------------------------------------------------ forward and decode


def test_anchors_follow_what_the_maps_span_and_limits_the_image() -> None:
    raw = _head()(_features(2), (90, 121))
    num_anchors = 3 * (12 * 16 + 6 * 8 + 3 * 4)
    assert raw.logits.shape == (2, num_anchors)
    assert raw.deltas.shape == (2, num_anchors, 4)
    whole = ANCHORS([(12, 16), (6, 8), (3, 4)], SIZE, device=raw.anchors.device)
    assert torch.equal(raw.anchors, whole)
    assert raw.limits.tolist() == [121, 90, 121, 90]
    assert [x.shape[1] for x in raw.maps] == [8, 8, 8]


def test_proposals_by_hand() -> None:
    head = FasterRCNN(SPECS, 3, anchors=ANCHORS, hidden=16, min_objectness=0.5)
    first = 3 * (12 * 16)  # the first anchor of the second map
    # On the first map, cell (2, 3): 24 across and 16 down, anchors 22 x 12, 16 x 16 and 12 x 22.
    cell = 3 * (2 * 16 + 3)
    raw = _raw({cell: 2.0, cell + 1: 3.0, cell + 2: -0.1, 0: 4.0, first + 1: 1.0, first + 4: 5.0},
               {first + 4: (0.0, 0.0, -20.0, 0.0)})
    found, valid = head._propose(raw, 5)
    assert valid.tolist() == [[True, True, True, True, False]]
    expected = [[0, 0, 11, 6],  # the corner's, cut at the image
                [16, 8, 32, 24], [13, 10, 35, 22],  # of one cell; they overlap by too little for suppression
                [0, 0, 16, 16], [0, 0, 0, 0]]  # the one that its deltas made a line is gone
    assert found[0].tolist() == expected
    two, valid = head._propose(raw, 2)
    assert two[0].tolist() == expected[:2]
    assert bool(valid.all())


def test_proposals_of_one_map_suppress_each_other_and_those_of_others_do_not() -> None:
    head = FasterRCNN(SPECS, 3, anchors=ANCHORS, hidden=16)
    second = 3 * (12 * 16)
    centre, neighbour, coarse = 3 * (6 * 16 + 8) + 1, 3 * (6 * 16 + 9) + 1, second + 3 * (3 * 8 + 4) + 1
    # All three are moved onto the same 16 x 16 pixels, the neighbour 8 pixels back, the coarse one made half as large.
    raw = _raw({centre: 1.0, neighbour: 2.0, coarse: 0.5},
               {neighbour: (-0.5, 0.0, 0.0, 0.0), coarse: (0.0, 0.0, float(np.log(0.5)), float(np.log(0.5)))})
    found, valid = head._propose(raw, 4)
    assert int(valid.sum()) == 2
    torch.testing.assert_close(found[0, :2], torch.tensor([[56.0, 40.0, 72.0, 56.0]]).expand(2, 4))


def test_every_class_has_its_box_and_rows_without_a_region_have_none() -> None:
    head = FasterRCNN(SPECS, 3, anchors=ANCHORS, hidden=16, proposals=4)
    with torch.no_grad():
        head.box.weight.zero_()
        head.score.weight.zero_()
        head.score.bias.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]))
        head.box.bias.copy_(torch.tensor([[9.0] * 4, [1, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, -50.0, 0]]).flatten())
    cell = 3 * (6 * 16 + 8) + 1
    dense = head.decode(_raw({cell: 5.0}))
    assert dense.boxes.shape == (1, 4, 3, 4)
    # The region is (56, 40, 72, 56): the first class moves it by a tenth to the right, the second by two tenths down.
    torch.testing.assert_close(
        dense.boxes[0, 0, :2], torch.tensor([[57.6, 40.0, 73.6, 56.0], [56.0, 43.2, 72.0, 59.2]]))
    expected = torch.tensor([0.0, 1.0, 2.0, -1.0]).softmax(0)[1:]
    expected[2] = 0  # its box is narrower than a hundredth of a pixel
    torch.testing.assert_close(dense.scores[0, 0], expected)
    assert not dense.scores[0, 1:].any()
    found = TASK.finish(dense)
    assert found.num_valid.tolist() == [2]
    assert found.labels[0, :2].tolist() == [1, 0]


def test_nothing_is_found_where_nothing_is_proposed() -> None:
    found = TASK.finish(FasterRCNN(SPECS, 3, anchors=ANCHORS, hidden=16, proposals=10).decode(_raw({})))
    assert found.num_valid.tolist() == [0]
    assert found.boxes.shape == (1, 20, 4)


@pytest.mark.parametrize("options", [{}, {"min_objectness": 0.6}, {"proposals": 5000}])
def test_images_do_not_see_each_other(options: dict[str, Any]) -> None:
    head = _head(**options)
    features = _features(3)
    whole = head.decode(head(features, SIZE))
    for row in range(3):
        alone = head.decode(head({name: x[row : row + 1] for name, x in features.items()}, SIZE))
        torch.testing.assert_close(whole.boxes[row], alone.boxes[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(whole.scores[row], alone.scores[0], rtol=1e-4, atol=1e-5)


def test_the_way_of_exported_graphs_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    head = _head(min_objectness=0.9, proposals=200)
    with torch.no_grad():
        raw = head(_features(2), (90, 121))
        eager = head.decode(raw)
        assert 10 < used_rows((eager.scores > 0).any(2)) < 200, "some rows are to be left out"
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        static = head.decode(raw)
    meant = eager.scores > 0
    assert torch.equal(static.scores > 0, meant)
    torch.testing.assert_close(static.scores, eager.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(static.boxes[meant], eager.boxes[meant], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", discovery.backbones())
def test_every_backbone_carries_a_whole_pyramid(name: str) -> None:
    backbone: Backbone = discovery.backbones()[name](taps=("c2", "c3", "c4", "c5"), width=0.25)
    neck = FPN(backbone.specs, channels=16, coarser="pool")
    assert [spec.stride for spec in neck.specs.values()] == [4, 8, 16, 32, 64]
    head = FasterRCNN(neck.specs, 3, anchors=GridAnchors(((32,), (64,), (128,), (256,), (512,))), hidden=16)
    predictor = Predictor(backbone, head, classes=Classes(("a", "b", "c"), (1, 2, 3)), resize=Stretch((64, 96)),
                          mean=IMAGENET_MEAN, std=IMAGENET_STD, neck=neck, divisor=32)
    with torch.inference_mode():
        dense = head.decode(predictor.eval()(torch.rand(1, 3, 60, 90) * 255))
    assert dense.boxes.shape == (1, min(1000, 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)), 3, 4)
    assert bool((dense.boxes <= torch.tensor([90.0, 60.0, 90.0, 60.0])).all())


# ------------------------------------------------------------------------------------------ what it learns from


def _gradients(head: FasterRCNN, losses: Losses) -> dict[str, Tensor]:
    """By parameter, each there and finite."""
    head.zero_grad()
    torch.autograd.backward(torch.stack(list(losses.sums.values())).sum())
    found = {name: parameter.grad for name, parameter in head.named_parameters()}
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}


OBJECTS: list[tuple[float, float, float, float]] = [(10, 10, 40, 50), (60, 20, 120, 90), (5, 60, 20, 80)]


@pytest.mark.parametrize(("targets", "min_objectness"), [
    (_targets(OBJECTS, OBJECTS[:1]), 0.05),
    (_targets(OBJECTS, []), 0.05),
    (_targets([], []), 0.05),
    (_targets(OBJECTS, []), 0.999999),  # no proposals but the true boxes
    (_targets([], []), 0.999999),  # none at all
    (_targets([(20, 20, 20, 60), (5, 5, 5, 5)], []), 0.05),  # without area
])
def test_every_batch_gives_every_parameter_a_finite_gradient(targets: BoxTargets, min_objectness: float) -> None:
    head = _head(min_objectness=min_objectness)
    losses = head.loss(head(_features(2), SIZE), targets)
    assert set(losses.sums) == {"objectness", "proposal", "class", "box"}
    assert losses.divisor == 2 * 256
    gradients = _gradients(head, losses)
    real = bool((targets.labels[:, :1] == 0).any()) and float(targets.boxes.max()) == 120
    assert (float(losses.sums["box"].detach()) > 0) == (float(losses.sums["proposal"].detach()) > 0) == real
    nothing = not real and min_objectness > 0.9
    assert bool((gradients["score.weight"] == 0).all()) == nothing
    assert bool((gradients["objectness.weight"] != 0).any())


def test_the_samples_are_a_matter_of_the_random_state_alone() -> None:
    head, targets = _head(anchor_samples=20, region_samples=20), _targets(OBJECTS, OBJECTS[1:])
    with torch.no_grad():
        raw = head(_features(2), SIZE)
        found = []
        for seed in (7, 8, 7):
            torch.manual_seed(seed)
            found.append(torch.stack(list(head.loss(raw, targets).sums.values())))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_a_crowd_that_is_everywhere_teaches_nothing() -> None:
    head = _head()
    everywhere = (0.0, 0.0, 128.0, 96.0)
    losses = head.loss(head(_features(2), SIZE), _targets([everywhere], [everywhere], crowd=((0, 0), (1, 0))))
    assert losses.divisor == 0
    assert all(float(value.detach()) == 0 for value in losses.sums.values())
    assert all(not gradient.any() for gradient in _gradients(head, losses).values())


def test_anchors_and_regions_in_a_crowd_are_neither_objects_nor_background() -> None:
    head = _head(anchor_samples=10**6, region_samples=10**6)
    raw = head(_features(1), SIZE)
    left, crowd = (0.0, 0.0, 64.0, 96.0), _targets([(10, 10, 40, 50), (0, 0, 64, 96)], crowd=((0, 1),))
    with_crowd, without = head.loss(raw, crowd), head.loss(raw, _targets([(10, 10, 40, 50)]))
    assert 0 < with_crowd.divisor < without.divisor
    said = torch.autograd.grad(with_crowd.sums["objectness"], raw.logits, retain_graph=True)[0][0]
    inside = ((raw.anchors[:, :2] >= torch.tensor(left[:2])) & (raw.anchors[:, 2:] <= torch.tensor(left[2:]))).all(1)
    assert int(inside.sum()) > 50
    # Only anchors that stand for the object in the crowd are spoken to there, and none as background.
    assert int((said[inside] != 0).sum()) < 10
    assert bool((said[inside] <= 0).all())
    outside = raw.anchors[:, 0] >= 64
    assert bool((said[outside] != 0).all())


def test_losses_are_means_over_their_samples_times_the_divisor() -> None:
    """So that images of which few regions are sampled count as much as torchvision lets them."""
    head = _head(anchor_samples=40, region_samples=8, training_proposals=50)
    nn.init.zeros_(head.score.weight)
    nn.init.zeros_(head.score.bias)
    nn.init.zeros_(head.objectness.weight)
    losses = head.loss(head(_features(2), SIZE), _targets(OBJECTS, []))
    assert losses.divisor == 80
    # A classifier that says nothing loses log 4 on every region, and log 2 on every anchor.
    assert float(losses.sums["class"].detach() / losses.divisor) == pytest.approx(np.log(4))
    assert float(losses.sums["objectness"].detach() / losses.divisor) == pytest.approx(np.log(2))


def test_mirror_images_of_any_size_keep_their_boxes() -> None:
    resize = KeepAspect(60, 100)
    image = np.zeros((90, 120, 3), np.uint8)
    image[30:60, 30:90] = 255
    for size, scale in (((90, 120), 60 / 90), ((120, 90), 60 / 90), ((40, 120), 100 / 120)):
        boxes = np.array([[30, 10, 60, 40]], dtype=np.float32)
        augment = SSDAugment(resize, photometric=0.0, zoom_out=0.0, iou_crop=0.0, flip=1.0)
        labels, crowd = np.zeros(1, np.int64), np.zeros(1, np.bool_)
        out, found, _, _ = augment(np.zeros((*size, 3), np.uint8), boxes, labels, crowd, seed=0)
        width = out.shape[1]
        np.testing.assert_allclose(found, [[width - 60 * scale, 10 * scale, width - 30 * scale, 40 * scale]], atol=0.4)


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(("build", "message"), [
    (lambda: FasterRCNN(SPECS, 0, anchors=ANCHORS), "a detector needs at least one class, got 0"),
    (lambda: FasterRCNN(SPECS, 3, anchors=GridAnchors(((32,),) * 2)),
     "the pyramid has 3 maps (p3, p4, p5), but the anchors are for 2; they must be as many, and at least two"),
    (lambda: FasterRCNN({"p3": SPECS["p3"]}, 3, anchors=GridAnchors(((32,),))),
     "the pyramid has 1 maps (p3), but the anchors are for 1; they must be as many, and at least two"),
    (lambda: FasterRCNN(SPECS | {"p5": FeatureSpec(16, 32)}, 3, anchors=ANCHORS),
     "all maps share their predictors and need the same number of channels and of anchors a cell, got [8, 16] channels "
     "and [3] anchors"),
    (lambda: FasterRCNN(SPECS, 3, anchors=GridAnchors(((32,), (32,), (32, 64)))),
     "got [8] channels and [3, 6] anchors"),
    (lambda: FasterRCNN(SPECS | {"p4": FeatureSpec(8, 32)}, 3, anchors=ANCHORS),
     "regions are cut from maps of which each has twice the stride of the one before, got [8, 32]: choose other taps"),
    (lambda: FasterRCNN(SPECS, 3, anchors=ANCHORS, proposals=0),
     "must be at least 1, got (0, 2000, 256, 512), and min_objectness must lie in [0, 1), got 0.05"),
    (lambda: FasterRCNN(SPECS, 3, anchors=ANCHORS, min_objectness=1.0),
     "got (1000, 2000, 256, 512), and min_objectness must lie in [0, 1), got 1.0"),
])
def test_what_does_not_go_together_is_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


# ------------------------------------------------------------------------------------------ export


class Whole(nn.Module):
    """Maps to dense and to finished detections: one export proves both."""

    def __init__(self) -> None:
        super().__init__()
        self.head = _head(min_objectness=0.3)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[DenseBoxes, Detections]:
        dense = self.head.decode(self.head({"p3": p3, "p4": p4, "p5": p5}, (90, 121)))
        return dense, TASK.finish(dense)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exported_strictly_and_in_onnx_runtime_it_gives_the_same(tmp_path: Path) -> None:
    onnxruntime = importlib.import_module("onnxruntime")
    whole = Whole().eval().requires_grad_(requires_grad=False)
    first, second = (tuple(_features(1).values()) for _ in range(2))
    program = torch.export.export(whole, first, strict=True)
    assert "torchvision" not in str(program.graph)
    saved = torch.onnx.export(program, dynamo=True, verbose=False)
    assert saved is not None
    saved.save(str(tmp_path / "head.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "head.onnx"), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    for maps in (first, second):
        dense, finished = whole(*maps)
        assert int(finished.num_valid) > 5
        inner, outer = program.module()(*maps)
        there = session.run(None, dict(zip(names, (x.numpy() for x in maps), strict=True)))
        for found in ((*inner, *outer), tuple(map(torch.from_numpy, there))):
            meant = dense.scores > 0
            torch.testing.assert_close(found[1], dense.scores, rtol=0, atol=2e-5)
            torch.testing.assert_close(found[0][meant], dense.boxes[meant], rtol=0, atol=3e-3)
            for mine, other in zip(finished, found[2:], strict=True):
                torch.testing.assert_close(other, mine, rtol=0, atol=3e-3)
