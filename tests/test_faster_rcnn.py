"""Faster R-CNN: what it proposes, what it learns from and what not, and that it exports whole."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from detseg.benchmark import synthetic
from detseg.data.augment import BoxSample, Context, SSDAugment
from detseg.interfaces import Backbone, Features, FeatureSpec, Losses
from detseg.model import Predictor
from detseg.necks import FPN
from detseg.ops.anchors import GridAnchors, to_rows
from detseg.ops.suppression import used_rows
from detseg.resize import KeepAspect, Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, BoxTargets, Classes, DenseBoxes, Detections
from detseg.tasks.detection import Detection
from detseg.training_step import TrainingStep
from heads.faster_rcnn import FasterRCNN, RCNNRaw

from . import discovery
from .conftest import ROOT

SIZE = (96, 128)
MAPS = [(12, 16), (6, 8), (3, 4)]
SPECS = {"p3": FeatureSpec(8, 8), "p4": FeatureSpec(8, 16), "p5": FeatureSpec(8, 32)}
ANCHORS = GridAnchors(((16,), (32,), (64,)))
TASK = Detection(score_threshold=0.05, iou_threshold=0.5, per_class=100, max_detections=20, candidates=100)


def _head(**options: Any) -> FasterRCNN:
    """Small, for three classes, and saying something else of every place."""
    head = FasterRCNN(SPECS, 3, anchors=ANCHORS, **({"hidden": 16, "proposals": 30} | options))
    with torch.no_grad():
        for layer, factor in ((head.conv, 20.0), (head.objectness, 100.0), (head.shift, 20.0),
                              (head.second_stage.score, 8.0)):
            assert isinstance(layer.weight, Tensor)
            layer.weight.mul_(factor)
    return head


def _features(images: int) -> Features:
    return {name: torch.randn(images, 8, *size) for name, size in zip(SPECS, MAPS, strict=True)}


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


def _maps_of(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows [1, N, columns] of the anchors to outputs [1, A * columns, H, W] of each map."""
    parts = rows.split_with_sizes([3 * height * width for height, width in MAPS], 1)
    return tuple(part.reshape(1, *size, -1).permute(0, 3, 1, 2) for part, size in zip(parts, MAPS, strict=True))


def _raw(logits: dict[int, float], deltas: dict[int, tuple[float, ...]] | None = None) -> RCNNRaw:
    """Anchors of which only the named ones are sure of something, and maps of zeros."""
    num_anchors = 3 * sum(height * width for height, width in MAPS)
    objectness, shifts = torch.full((1, num_anchors, 1), -10.0), torch.zeros(1, num_anchors, 4)
    for anchor, logit in logits.items():
        objectness[0, anchor] = logit
    for anchor, shift in (deltas or {}).items():
        shifts[0, anchor] = torch.tensor(shift)
    return RCNNRaw(_maps_of(objectness), _maps_of(shifts), tuple(torch.zeros(1, 8, *size) for size in MAPS))


# ------------------------------------------------------------------------------------------ forward and decode


def test_shapes() -> None:
    features = _features(2)
    raw = _head()(features)
    assert [x.shape for x in raw.logits] == [(2, 3, *size) for size in MAPS]
    assert [x.shape for x in raw.deltas] == [(2, 3 * 4, *size) for size in MAPS]
    assert all(one is other for one, other in zip(raw.maps, features.values(), strict=True))


def test_anchors_follow_what_the_maps_span_and_boxes_end_with_the_image() -> None:
    head = _head()
    anchors = ANCHORS(MAPS, SIZE, device=torch.device("cpu"))
    assert torch.equal(head._anchors(head(_features(2)).maps, SIZE), anchors)
    # Sure of an anchor in the middle and of one at the lower right corner of the image, not of the maps.
    middle, corner = 3 * (6 * 16 + 8) + 1, 3 * (11 * 16 + 15) + 1
    found, valid = head._propose(_raw({middle: 5.0, corner: 4.0}), (90, 121), 3, static=False)
    assert int(valid.sum()) == 2
    assert anchors[corner].tolist() == [112.0, 80.0, 128.0, 96.0]
    assert found[0, :2].tolist() == [anchors[middle].tolist(), [112.0, 80.0, 121.0, 90.0]]
    with torch.no_grad():
        dense = head.decode(head(_features(2)), (90, 121))
    assert dense.boxes.amax((0, 1, 2)).tolist()[2:] == [121.0, 90.0]
    assert float(dense.boxes.min()) == 0


@pytest.mark.parametrize("static", [False, True])
def test_proposals_by_hand(static: bool) -> None:
    head = FasterRCNN(SPECS, 3, anchors=ANCHORS, hidden=16, min_objectness=0.5)
    first = 3 * (12 * 16)  # the first anchor of the second map
    # On the first map, cell (2, 3): 24 across and 16 down, anchors 22 x 12, 16 x 16 and 12 x 22.
    cell = 3 * (2 * 16 + 3)
    raw = _raw({cell: 2.0, cell + 1: 3.0, cell + 2: -0.1, 0: 4.0, first + 1: 1.0, first + 4: 5.0},
               {first + 4: (0.0, 0.0, -20.0, 0.0)})
    found, valid = head._propose(raw, SIZE, 5, static=static)
    assert valid.tolist() == [[True, True, True, True, False]]
    expected = [[0, 0, 11, 6],  # the corner's, cut at the image
                [16, 8, 32, 24], [13, 10, 35, 22],  # of one cell; they overlap by too little for suppression
                [0, 0, 16, 16], [0, 0, 0, 0]]  # the one that its deltas made a line is gone
    assert found[0].tolist() == expected
    two, valid = head._propose(raw, SIZE, 2, static=static)
    assert two[0].tolist() == expected[:2]
    assert bool(valid.all())


@pytest.mark.parametrize("static", [False, True])
def test_proposals_of_one_map_suppress_each_other_and_those_of_others_do_not(static: bool) -> None:
    head = FasterRCNN(SPECS, 3, anchors=ANCHORS, hidden=16)
    second = 3 * (12 * 16)
    centre, neighbour, coarse = 3 * (6 * 16 + 8) + 1, 3 * (6 * 16 + 9) + 1, second + 3 * (3 * 8 + 4) + 1
    # All three are moved onto the same 16 x 16 pixels, the neighbour 8 pixels back, the coarse one made half as large.
    raw = _raw({centre: 1.0, neighbour: 2.0, coarse: 0.5},
               {neighbour: (-0.5, 0.0, 0.0, 0.0), coarse: (0.0, 0.0, float(np.log(0.5)), float(np.log(0.5)))})
    found, valid = head._propose(raw, SIZE, 4, static=static)
    assert int(valid.sum()) == 2
    torch.testing.assert_close(found[0, :2], torch.tensor([[56.0, 40.0, 72.0, 56.0]]).expand(2, 4))


def test_every_class_has_its_box_and_rows_without_a_region_have_none() -> None:
    head = FasterRCNN(SPECS, 3, anchors=ANCHORS, hidden=16, proposals=4)
    with torch.no_grad():
        stage = head.second_stage
        stage.box.weight.zero_()
        stage.score.weight.zero_()
        stage.score.bias.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]))
        stage.box.bias.copy_(torch.tensor([[9.0] * 4, [1, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, -50.0, 0]]).flatten())
    cell = 3 * (6 * 16 + 8) + 1
    dense = head.decode(_raw({cell: 5.0}), SIZE)
    assert dense.boxes.shape == (1, 4, 3, 4)
    # The region is (56, 40, 72, 56): the first class moves it by a tenth to the right, the second by two tenths down.
    torch.testing.assert_close(
        dense.boxes[0, 0, :2], torch.tensor([[57.6, 40.0, 73.6, 56.0], [56.0, 43.2, 72.0, 59.2]]))
    expected = torch.tensor([0.0, 1.0, 2.0, -1.0]).softmax(0)[1:]
    expected[2] = 0  # its box is narrower than a hundredth of a pixel
    torch.testing.assert_close(dense.scores[0, 0], expected)
    assert not dense.scores[0, 1:].any()
    found = TASK.postprocess(dense)
    assert found.num_valid.tolist() == [2]
    assert found.labels[0, :2].tolist() == [1, 0]


def test_nothing_is_found_where_nothing_is_proposed() -> None:
    head = FasterRCNN(SPECS, 3, anchors=ANCHORS, hidden=16, proposals=10)
    for static in (False, True):
        found = TASK.postprocess(head.decode(_raw({}), SIZE, static=static), static=static)
        assert found.num_valid.tolist() == [0]
        assert found.boxes.shape == (1, 20, 4)


@pytest.mark.parametrize("options", [{}, {"min_objectness": 0.6}, {"proposals": 5000}])
def test_images_do_not_see_each_other(options: dict[str, Any]) -> None:
    head = _head(**options)
    features = _features(3)
    whole = head.decode(head(features), SIZE)
    for row in range(3):
        alone = head.decode(head({name: x[row : row + 1] for name, x in features.items()}), SIZE)
        torch.testing.assert_close(whole.boxes[row], alone.boxes[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(whole.scores[row], alone.scores[0], rtol=1e-4, atol=1e-5)


def test_the_static_form_gives_the_same_where_rows_are_left_out() -> None:
    head = _head(min_objectness=0.9, proposals=200)
    with torch.no_grad():
        raw = head(_features(2))
        eager, static = (head.decode(raw, (90, 121), static=form) for form in (False, True))
    valid = eager.scores > 0
    assert 10 < used_rows(valid.any(2)) < 200, "some rows are to be left out"
    assert torch.equal(static.scores > 0, valid)
    torch.testing.assert_close(static.scores, eager.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(static.boxes[valid], eager.boxes[valid], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", discovery.backbones())
def test_every_backbone_carries_a_whole_pyramid(name: str) -> None:
    backbone: Backbone = discovery.backbones()[name](taps=("c2", "c3", "c4", "c5"), width=0.25)
    neck = FPN(backbone.specs, channels=16, coarser="pool")
    assert [spec.stride for spec in neck.specs.values()] == [4, 8, 16, 32, 64]
    head = FasterRCNN(neck.specs, 3, anchors=GridAnchors(((32,), (64,), (128,), (256,), (512,))), hidden=16)
    predictor = Predictor(backbone, head, classes=Classes(("a", "b", "c"), (1, 2, 3)), resize=Stretch((64, 96)),
                          mean=IMAGENET_MEAN, std=IMAGENET_STD, neck=neck, size_divisor=32)
    with torch.inference_mode():
        dense = predictor.eval().decode(torch.rand(1, 3, 60, 90) * 255)
    assert dense.boxes.shape == (1, min(1000, 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)), 3, 4)
    assert bool((dense.boxes <= torch.tensor([90.0, 60.0, 90.0, 60.0])).all())


# ------------------------------------------------------------------------------------------ what it learns from


def _gradients(head: FasterRCNN, losses: Losses) -> dict[str, Tensor]:
    """By parameter, each there and finite."""
    head.zero_grad()
    torch.autograd.backward(torch.stack([term.sum for term in losses.values()]).sum())
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
    losses = head.loss(head(_features(2)), targets, SIZE)
    assert losses.keys() == {"objectness", "proposal", "class", "box"}
    assert int(losses["objectness"].count) == 2 * 256
    gradients = _gradients(head, losses)
    has_objects = bool((targets.labels[:, :1] == 0).any()) and float(targets.boxes.max()) == 120
    assert (float(losses["box"].sum.detach()) > 0) == (float(losses["proposal"].sum.detach()) > 0) == has_objects
    nothing = not has_objects and min_objectness > 0.9
    assert bool((gradients["second_stage.score.weight"] == 0).all()) == (int(losses["class"].count) == 0) == nothing
    assert bool((gradients["objectness.weight"] != 0).any())


def _sums(losses: Losses) -> Tensor:
    """Every term's."""
    return torch.stack([term.sum for term in losses.values()])


def test_without_seeds_the_samples_are_a_matter_of_the_random_state_alone() -> None:
    head, targets = _head(anchor_samples=20, region_samples=20), _targets(OBJECTS, OBJECTS[1:])
    with torch.no_grad():
        raw = head(_features(2))
        found = []
        for seed in (7, 8, 7):
            torch.manual_seed(seed)
            found.append(_sums(head.loss(raw, targets, SIZE)))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_with_seeds_they_are_a_matter_of_these_alone_however_a_batch_is_split() -> None:
    """Also where the targets of the other image are padded further, or not at all."""
    head, targets = _head(anchor_samples=20, region_samples=20), _targets(OBJECTS, OBJECTS[1:2])
    with torch.no_grad():
        raw = head(_features(2))
        found = []
        for random_state, seeds in ((7, [3, 4]), (8, [3, 4]), (7, [3, 5])):
            torch.manual_seed(random_state)
            found.append(_sums(head.loss(raw, targets._replace(seed=torch.tensor(seeds)), SIZE)))
        alone = []
        for row, (objects, seed) in enumerate(((OBJECTS, 3), (OBJECTS[1:2], 4))):
            one = RCNNRaw(*(tuple(x[row : row + 1] for x in maps) for maps in raw))
            alone.append(_sums(head.loss(one, _targets(objects)._replace(seed=torch.tensor([seed])), SIZE)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0], alone[0] + alone[1], rtol=1e-4, atol=1e-5)


def test_a_crowd_that_is_everywhere_leaves_no_loss_and_no_gradient() -> None:
    head = _head()
    everywhere = (0.0, 0.0, 128.0, 96.0)
    losses = head.loss(head(_features(2)), _targets([everywhere], [everywhere], crowd=((0, 0), (1, 0))), SIZE)
    for term in losses.values():
        assert (float(term.sum.detach()), int(term.count)) == (0, 0)
    assert all(not gradient.any() for gradient in _gradients(head, losses).values())


def test_anchors_and_regions_in_a_crowd_are_neither_objects_nor_background() -> None:
    head = _head(anchor_samples=10**6, region_samples=10**6)
    raw = head(_features(1))
    left, crowd = (0.0, 0.0, 64.0, 96.0), _targets([(10, 10, 40, 50), (0, 0, 64, 96)], crowd=((0, 1),))
    with_crowd, without = head.loss(raw, crowd, SIZE), head.loss(raw, _targets([(10, 10, 40, 50)]), SIZE)
    for name, term in with_crowd.items():
        assert 0 < int(term.count) < int(without[name].count), name
    gradients = torch.autograd.grad(with_crowd["objectness"].sum, raw.logits, retain_graph=True)
    gradient = to_rows(gradients, columns=1)[0, :, 0]
    anchors = ANCHORS(MAPS, SIZE, device=gradient.device)
    inside = ((anchors[:, :2] >= torch.tensor(left[:2])) & (anchors[:, 2:] <= torch.tensor(left[2:]))).all(1)
    assert int(inside.sum()) > 50
    # Only anchors that stand for the object in the crowd have a gradient there, and none as background.
    assert 0 < int((gradient[inside] != 0).sum()) < 10
    assert bool((gradient[inside] <= 0).all())
    outside = anchors[:, 0] >= 64
    assert bool((gradient[outside] != 0).all())


def test_losses_are_sums_over_their_own_samples() -> None:
    """Anchors and regions each have their count, so that images of which few regions are sampled count as much as
    torchvision lets them."""
    head = _head(anchor_samples=40, region_samples=8, training_proposals=50)
    for layer in (head.second_stage.score, head.objectness):
        nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    losses = head.loss(head(_features(2)), _targets(OBJECTS, []), SIZE)
    assert {name: int(term.count) for name, term in losses.items()} == {
        "objectness": 80, "proposal": 80, "class": 16, "box": 16}
    assert losses["objectness"].count is losses["proposal"].count
    assert losses["class"].count is losses["box"].count
    # A classifier that knows nothing loses log 4 on every region, and log 2 on every anchor.
    assert float(losses["class"].sum.detach()) / 16 == pytest.approx(np.log(4))
    assert float(losses["objectness"].sum.detach()) / 80 == pytest.approx(np.log(2))


def test_mirror_images_of_any_size_keep_their_boxes() -> None:
    resize = KeepAspect(60, 100)
    for size, scale in (((90, 120), 60 / 90), ((120, 90), 60 / 90), ((40, 120), 100 / 120)):
        sample = BoxSample(np.zeros((*size, 3), np.uint8), np.array([[30, 10, 60, 40]], dtype=np.float32),
                           np.zeros(1, np.int64), np.zeros(1, np.bool_))
        augment = SSDAugment(resize, photometric=0.0, zoom_out=0.0, iou_crop=0.0, flip=1.0)
        out = augment(sample, Context(seed=0, epoch=0, num_items=1, read=[sample].__getitem__))
        width = out.image.shape[1]
        wanted = [[width - 60 * scale, 10 * scale, width - 30 * scale, 40 * scale]]
        np.testing.assert_allclose(out.boxes, wanted, atol=0.4)


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

    def __init__(self, head: FasterRCNN, *, static: bool) -> None:
        super().__init__()
        self.head, self.static = head, static

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[DenseBoxes, Detections]:
        dense = self.head.decode(self.head({"p3": p3, "p4": p4, "p5": p5}), (90, 121), static=self.static)
        return dense, TASK.postprocess(dense, static=self.static)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exported_strictly_and_in_onnx_runtime_it_gives_the_same(tmp_path: Path) -> None:
    onnxruntime = importlib.import_module("onnxruntime")
    head = _head(min_objectness=0.3).eval().requires_grad_(requires_grad=False)
    first, second = (tuple(_features(1).values()) for _ in range(2))
    program = torch.export.export(Whole(head, static=True), first, strict=True)
    assert "torchvision" not in str(program.graph)
    saved = torch.onnx.export(program, dynamo=True, verbose=False)
    assert saved is not None
    saved.save(str(tmp_path / "head.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "head.onnx"), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    for maps in (first, second):
        dense, finished = Whole(head, static=False)(*maps)
        assert int(finished.num_valid) > 5
        inner, outer = program.module()(*maps)
        there = session.run(None, dict(zip(names, (x.numpy() for x in maps), strict=True)))
        for found in ((*inner, *outer), tuple(map(torch.from_numpy, there))):
            valid = dense.scores > 0
            torch.testing.assert_close(found[1], dense.scores, rtol=0, atol=2e-5)
            torch.testing.assert_close(found[0][valid], dense.boxes[valid], rtol=0, atol=3e-3)
            for mine, other in zip(finished, found[2:], strict=True):
                torch.testing.assert_close(other, mine, rtol=0, atol=3e-3)


def test_mixed_precision_reaches_the_second_stage() -> None:
    """It runs in the loss, outside `forward`."""
    small = discovery.small_config(ROOT / "configs" / "fasterrcnn_v3_large_320_fpn.py")
    model = small.build_model(discovery.OWN)
    step = TrainingStep(model, small.experiment.changed("precision", "bf16-mixed"),
                        fabric=Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
    seen: set[torch.dtype] = set()
    assert model.head.second_stage is not None
    model.head.second_stage.register_forward_hook(lambda _, __, out: seen.update(one.dtype for one in out))
    losses = step.gradient(synthetic.batch(model, small.experiment.task, 2))
    assert seen == {torch.bfloat16}
    assert all(math.isfinite(value) for value in losses.values())
