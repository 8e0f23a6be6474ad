"""Every config's whole prediction, and two heads on every backbone, exported strictly: ONNX Runtime gives the same.

Networks are small, but used: BatchNorm has seen pictures, and scores differ from anchor to anchor. One config of each
head is in the quick tests, the others are `slow`.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.benchmark.synthetic import calibrate
from detseg.data.images import read_image
from detseg.data.sample import draw_scene
from detseg.export.onnx import write_onnx
from detseg.export.program import ExportedPrediction, Until, export_program, output_names
from detseg.inference import fold
from detseg.interfaces import Backbone, Head, Task
from detseg.model import Predictor
from detseg.ops.anchors import SSDAnchors
from detseg.resize import Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, DenseBoxes, DenseLogits, LabelMaps, Pixels, Size
from detseg.tasks.detection import Detection
from detseg.tasks.segmentation import Segmentation
from heads.fcn import FCN
from heads.lraspp import LRASPP
from heads.ssd import SSD
from heads.ssdlite import SSDLite

from . import discovery

CONFIGS = {path.stem: path for path in discovery.configs()}

SCORE_TOLERANCE = 2e-5
"""Of the largest score or logit."""
BOX_TOLERANCE = 3e-3
"""Pixels."""
ROUNDING = 4.0
"""Random networks enlarge rounding more than trained ones. Folding BatchNorm changes only rounding: if that alone moves
an output by more than a quarter of its tolerance, ONNX Runtime may move it by four times as much."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def _slow(names: Any, quick: set[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


# ------------------------------------------------------------------------------------------ a used network


@cache
def _scenes(number: int, *, seed: int) -> list[Pixels]:
    return [draw_scene(np.random.default_rng((seed, k))).image for k in range(number)]


def _inputs(pictures: list[Pixels], size: Size) -> Tensor:
    """float32 [B, 3, H, W]."""
    return torch.from_numpy(np.stack([Stretch(size).apply(picture) for picture in pictures])).permute(0, 3, 1, 2)


def _use(network: nn.Module, size: Size) -> None:
    """With BatchNorm's first statistics activations vanish and all is equal."""
    calibrate(network, _inputs(_scenes(32, seed=0), size).chunk(2))


@torch.no_grad()
def _spread_scores(head: Head[Any, Any, Any], decode: Callable[[], Any]) -> None:
    """As in a trained network: larger class layers, until scores differ from anchor to anchor; or other biases, so that
    no class is ahead in all pixels."""
    layers = [layer for layer, num_rows in head.class_layers.items() if num_rows == 1]
    dense = decode()
    if isinstance(dense, DenseLogits):
        head.get_parameter(f"{layers[0]}.bias").sub_(dense.logits.mean((0, 2, 3)))
        return
    for _ in range(60):
        if float(dense.scores.std()) > 0.05:
            return
        for layer in layers:
            head.get_parameter(f"{layer}.weight").mul_(1.5)
        dense = decode()


def _used_predictor(name: str) -> tuple[Predictor, Task[Any, Any, Any, Any], Size]:
    """A config's network, small and used, its task, and a size that is not square."""
    small = discovery.small_config(CONFIGS[name])
    predictor = small.build_model(discovery.OWN)
    height, width = predictor.resize.size
    size = (height, width + 32)
    _use(predictor, size)
    _spread_scores(predictor.head, lambda: predictor.decode(_inputs(_scenes(2, seed=2), size)))
    return predictor, small.experiment.task, size


# ------------------------------------------------------------------------------------------ the same or not


class _Tolerance(NamedTuple):
    """How far an output may be from eager code's, by field."""

    of: dict[str, float]

    @classmethod
    def measured(cls, dense: Any, unfolded: Any) -> _Tolerance:
        of = {}
        for name, mine, other in zip(dense._fields, dense, unfolded, strict=True):
            usual = BOX_TOLERANCE if name == "boxes" else SCORE_TOLERANCE * float(mine.abs().max())
            of[name] = max(usual, ROUNDING * float((mine - other).abs().max()))
            assert of[name] < 50 * usual, f"{name}: folding alone moves them too far to compare anything"
        return cls(of)


def _assert_same_dense(found: Any, wanted: Any, tolerance: _Tolerance) -> None:
    for name, mine, theirs in zip(wanted._fields, found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        assert float(theirs.std()) > 1e-3, "what is equal everywhere proves nothing"
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance.of[name])


def _assert_same_finished(found: Any, wanted: Any) -> None:
    """Exactly the same; but detections whose scores are equal may stand in any order."""
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    if isinstance(wanted, LabelMaps):
        assert torch.equal(found.labels, wanted.labels)
    else:
        assert torch.equal(found.num_valid, wanted.num_valid)
        assert torch.equal(found.scores, wanted.scores)
        scores = wanted.scores[0, : int(wanted.num_valid)].tolist()
        distinct = [k for k, score in enumerate(scores) if scores.count(score) == 1]
        assert len(distinct) > 5, "all scores tie"
        assert torch.equal(found.labels[0, distinct], wanted.labels[0, distinct])
        assert torch.equal(found.boxes[0, distinct], wanted.boxes[0, distinct])
        assert not found.boxes[0, len(scores) :].any()
        assert bool((found.labels[0, len(scores) :] == -1).all())


# ------------------------------------------------------------------------------------------ every config


class _Both(nn.Module):
    """Dense and finished predictions at once: one export proves both."""

    def __init__(self, predictor: Predictor, task: Task[Any, Any, Any, Any]) -> None:
        super().__init__()
        self.predictor, self.task = predictor, task

    def forward(self, images: Tensor) -> tuple[Any, Any]:
        dense = self.predictor.decode(images, static=True)
        return dense, self.task.postprocess(dense, static=True)


class _Exported(NamedTuple):
    unfolded: _Both
    eager: _Both
    run: Callable[[Tensor], list[Tensor]]
    """ONNX Runtime's outputs, flat."""
    size: Size


def _session(network: nn.Module, size: Size, file: Path) -> Callable[[Tensor], list[Tensor]]:
    """Strictly exported, through a file to ONNX Runtime."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    program = torch.export.export(network, (torch.zeros(1, 3, *size),), strict=True)
    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    assert converted is not None
    converted.save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda images: [torch.from_numpy(value) for value in session.run(None, {given.name: images.numpy()})]


@pytest.fixture(scope="module")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Exported:
    """A config's network as ONNX Runtime has it; exported once for all tests."""
    torch.manual_seed(0)
    predictor, task, size = _used_predictor(request.param)
    eager = _Both(predictor.folded(), task)
    return _Exported(
        _Both(predictor, task), eager, _session(eager, size, tmp_path_factory.mktemp("onnx") / "both.onnx"), size)


every_config = pytest.mark.parametrize(
    "exported", _slow(CONFIGS, set(discovery.one_config_a_head().values())), indirect=True)


def _assert_onnx_runtime_agrees(exported: _Exported, pictures: list[Pixels]) -> None:
    """Dense predictions up to rounding, and of its own dense predictions the same finished ones as eager code."""
    classes = set[int]()
    for picture in pictures:
        images = _inputs([picture], exported.size)
        with torch.inference_mode():
            dense, finished = exported.eager(images)
            tolerance = _Tolerance.measured(dense, exported.unfolded(images)[0])
        outputs = exported.run(images)
        found = type(dense)(*outputs[: len(dense)])
        _assert_same_dense(found, dense, tolerance)
        expected = exported.eager.task.postprocess(found, static=True)
        _assert_same_finished(type(finished)(*outputs[len(dense) :]), expected)
        classes |= set(finished.labels.flatten().tolist()) - {-1}
    assert len(classes) > 1, "one class everywhere proves nothing"


@every_config
def test_onnx_runtime_gives_the_same_on_generated_pictures(exported: _Exported) -> None:
    _assert_onnx_runtime_agrees(exported, _scenes(3, seed=1))


@pytest.mark.slow
@pytest.mark.real
@every_config
def test_onnx_runtime_gives_the_same_on_photographs(exported: _Exported, shared: Path) -> None:
    files = sorted((shared / "data" / "coco_mini" / "val2017").glob("*.jpg"))[:6]
    _assert_onnx_runtime_agrees(exported, [read_image(file) for file in files])


# ------------------------------------------------------------------------------------------ every backbone


class _TwoHeads(nn.Module):
    """A backbone under a detection and a segmentation head, to dense predictions."""

    def __init__(self, build: Callable[..., Backbone]) -> None:
        super().__init__()
        self.backbone = build(width=0.25, taps=("c3", "c4", "c5"))
        specs = self.backbone.specs
        self.detect = SSDLite({tap: specs[tap] for tap in ("c4", "c5")}, 3, anchors=SSDAnchors(), width=0.1)
        self.segment = LRASPP({tap: specs[tap] for tap in ("c3", "c5")}, 3, filters=16)

    def forward(self, images: Tensor) -> tuple[DenseBoxes, DenseLogits]:
        features, size = self.backbone(images / 255), (images.shape[2], images.shape[3])
        return (self.detect.decode(self.detect(features), size, static=True),
                self.segment.decode(self.segment(features), size, static=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", discovery.backbones())
def test_every_backbone_under_two_heads(name: str, tmp_path: Path) -> None:
    size = (96, 128)
    network = _TwoHeads(discovery.backbones()[name])
    _use(network, size)
    _spread_scores(network.detect, lambda: network(_inputs(_scenes(2, seed=2), size))[0])
    run = _session(network, size, tmp_path / "two.onnx")
    folded = copy.deepcopy(network)
    fold(folded)
    for picture in _scenes(2, seed=1):
        images = _inputs([picture], size)
        boxes, scores, logits = run(images)
        with torch.inference_mode():
            both = zip((DenseBoxes(boxes, scores), DenseLogits(logits)), network(images), folded(images), strict=True)
        for found, wanted, other in both:
            _assert_same_dense(found, wanted, _Tolerance.measured(wanted, other))


# ------------------------------------------------------------------------------------------ programs and files


def _tiny(kind: str) -> tuple[Predictor, Task[Any, Any, Any, Any]]:
    """Few layers, quickly exported; used."""
    backbone = mobilenet_v2(width=0.25, taps=("c2", "c3"))
    head: Head[Any, Any, Any] = FCN(backbone.specs, 3)
    task: Task[Any, Any, Any, Any] = Segmentation()
    if kind == "detector":
        head, task = SSD(backbone.specs, 3, anchors=SSDAnchors(num_maps=3), extra_channels=(16,)), Detection(
            max_detections=20, candidates=30)
    size = (32, 48)
    predictor = Predictor(
        backbone, head, classes=discovery.OWN, resize=Stretch(size), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    _use(predictor, size)
    _spread_scores(head, lambda: predictor.decode(_inputs(_scenes(2, seed=2), size)))
    return predictor, task


@pytest.mark.parametrize(("kind", "until", "shapes"), [
    ("detector", "decode", {"boxes": (1, 756, 4), "scores": (1, 756, 3)}),
    ("detector", "postprocess", {"boxes": (1, 20, 4), "scores": (1, 20), "labels": (1, 20), "num_valid": (1,)}),
    ("segmenter", "decode", {"logits": (1, 3, 32, 48)}),
    ("segmenter", "postprocess", {"labels": (1, 32, 48)}),
])
def test_a_program_and_its_file_name_what_they_take_and_give(
    kind: str, until: Until, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    predictor, task = _tiny(kind)
    program = export_program(predictor, task, until=until)
    assert output_names(program) == list(shapes)
    images = _inputs(_scenes(1, seed=1), (32, 48))
    with torch.inference_mode():
        wanted = ExportedPrediction(predictor, task, until=until)(images)
        found = program.module()(images)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)

    write_onnx(program, tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"], "the weights are inside"
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == ("images", [1, 3, 32, 48], "tensor(float)")
    assert {one.name: tuple(one.shape) for one in session.get_outputs()} == shapes
    assert [value.shape for value in session.run(None, {"images": images.numpy()})] == list(shapes.values())


def test_a_program_can_be_of_another_size() -> None:
    predictor, task = _tiny("segmenter")
    predictor.train()
    program = export_program(predictor, task, until="postprocess", size=(64, 32))
    assert program.module()(torch.zeros(1, 3, 64, 32))["labels"].shape == (1, 64, 32)
    assert predictor.training, "the network itself is left as it is"
