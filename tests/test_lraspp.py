"""LR-ASPP: the paper's costs, torchvision's outputs, what it computes, that it learns, and that windows export."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.backbones.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from detseg.cost import count_macs, count_parameters
from detseg.interfaces import Backbone, Features, FeatureSpec
from detseg.model import Predictor
from detseg.ops.resample import enlarge
from detseg.resize import Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, VOID, Classes, LabelTargets
from detseg.weights.torchvision import mobilenet_names
from heads.lraspp import LRASPP, LRASPPRaw

FULL, HALF = (1025, 2049), (513, 1025)
SIZE = (97, 161)
CLASSES = Classes(names=("road", "car", "sky"), source_ids=(7, 8, 9))


_TORCHVISION: Any = {"pooling": "global", "gate": "sigmoid", "gate_bias": False, "align_corners": False}


class Row(NamedTuple):
    """A row of Table 7 of the MobileNetV3 paper: parameters in millions, multiply-adds at 1025 x 2049 in billions."""

    filters: int
    parameters: float
    macs: float
    less: tuple[float, float]
    """By how many percent the multiply-adds of convolutions lie below the printed ones, which count more."""


def _v2(**options: Any) -> Backbone:
    return mobilenet_v2(taps=("c3.depthwise", "c5.bottleneck"), reduced_tail="segmentation", **options)


def _large(**options: Any) -> Backbone:
    return mobilenet_v3_large(taps=("c3.depthwise", "c5"), reduced_tail="segmentation", **options)


def _small(**options: Any) -> Backbone:
    return mobilenet_v3_small(taps=("c3.depthwise", "c5"), reduced_tail="segmentation", **options)


def _predictor(backbone: Backbone, *, num_classes: int = 19, **options: Any) -> Predictor:
    classes = Classes(names=tuple(map(str, range(num_classes))), source_ids=tuple(range(num_classes)))
    head = LRASPP(backbone.specs, num_classes, **options)
    return Predictor(backbone, head, classes=classes, resize=Stretch((64, 64)), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _macs(predictor: Predictor, size: tuple[int, int]) -> int:
    return count_macs(predictor, torch.empty(1, 3, *size, device="meta"))


# The exact numbers are those of an independent recount, which took the gate's means as one cell; over windows there
# are 2 x 5, each with the tail's channels x filters multiply-adds. A map of 33 x 65 has one window.
@pytest.mark.parametrize(("backbone", "width", "row", "tail", "exact"), [
    (_v2, 1.0, Row(256, 1.02, 12.83, (0.2, 0.5)), 160, (1_030_950, 12_775_224_928, 3_246_384_736)),
    (_v2, 1.0, Row(128, 0.98, 12.57, (0.2, 0.5)), 160, (987_174, 12_522_851_552, 3_182_042_336)),
    (_large, 1.0, Row(256, 1.63, 10.33, (1.4, 2.2)), 480, None),
    (_large, 1.0, Row(128, 1.51, 9.74, (1.4, 2.2)), 480, (1_507_198, 9_532_656_864, 2_425_355_232)),
    (_v2, 0.5, Row(128, 0.28, 4.00, (1.0, 1.7)), 80, None),
    (_v2, 0.35, Row(128, 0.16, 2.54, (1.0, 1.71)), 56, (168_502, 2_496_715_600, 632_988_496)),
    (_small, 1.0, Row(128, 0.47, 2.90, (4.0, 4.3)), 288, None),
], ids=["3", "4", "7", "8", "9", "10", "11"])
def test_table_7_of_the_v3_paper(
    backbone: Callable[..., Backbone], width: float, row: Row, tail: int, exact: tuple[int, int, int] | None
) -> None:
    predictor = _predictor(backbone(width=width, output_stride=16), filters=row.filters)
    parameters, macs = count_parameters(predictor), _macs(predictor, FULL)
    # Row 3 has 1,030,950: the paper cuts what it should round.
    assert parameters / 1e6 == pytest.approx(row.parameters, abs=0.0111)
    low, high = row.less
    assert low <= (1 - macs / 1e9 / row.macs) * 100 <= high
    if exact is not None:
        assert (parameters, macs - (2 * 5 - 1) * tail * row.filters, _macs(predictor, HALF)) == exact


def test_table_8_of_the_v3_paper_at_stride_32() -> None:
    """Windows of 25 x 25 in steps of 4 x 5: 3 x 9 of them on 33 x 65 cells, 1 x 2 on 17 x 33."""
    large, small = (_predictor(build(output_stride=32)) for build in (_large, _small))
    assert _macs(large, FULL) == 7_581_284_064 + (3 * 9 - 1) * 480 * 128
    assert _macs(large, HALF) == 1_930_006_752 + (1 * 2 - 1) * 480 * 128
    for predictor, size, printed, less in ((large, FULL, 7.74, 2.1), (large, HALF, 1.98, 2.6), (small, FULL, 2.06, 4.7),
                                           (small, HALF, 0.53, 5.6)):
        assert 0 < (1 - _macs(predictor, size) / 1e9 / printed) * 100 <= less


def test_torchvisions_cost_is_exact() -> None:
    backbone = mobilenet_v3_large(taps=("c3.first", "c5"), output_stride=16, dilate_first=True)
    predictor = _predictor(backbone, num_classes=21, **_TORCHVISION)
    assert count_parameters(predictor) == 3_221_538
    assert _macs(predictor, (520, 520)) == 2_086_219_688


# ------------------------------------------------------------------------------------------ torchvision


def _our_name(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's tensors under our names."""
    classification = {key.replace("backbone.", "features."): key for key in theirs if key.startswith("backbone.")}
    found = {f"backbone.{ours}": theirs[classification[name]] for name, ours in mobilenet_names(
        {name: theirs[key] for name, key in classification.items()}).items()}
    parts = {"cbr.0": "reduce.conv", "cbr.1": "reduce.norm", "scale.1": "gate", "low_classifier": "low",
             "high_classifier": "high"}
    for part, ours in parts.items():
        prefix = f"classifier.{part}."
        found |= {f"head.{ours}.{key.removeprefix(prefix)}": value for key, value in theirs.items()
                  if key.startswith(prefix)}
    assert len(found) == len(theirs)
    return found


@pytest.mark.parametrize("size", [(96, 160), (129, 97)])
def test_outputs_equal_torchvisions(size: tuple[int, int]) -> None:
    reference = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=7)
    _with_statistics(reference, size)
    backbone = mobilenet_v3_large(taps=("c3.first", "c5"), output_stride=16, dilate_first=True)
    predictor = _predictor(backbone, num_classes=7, **_TORCHVISION).eval()
    own = predictor.state_dict()
    predictor.load_state_dict({"scale": own["scale"], "shift": own["shift"]} | _our_name(reference.state_dict()))
    images = torch.rand(2, 3, *size) * 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        wanted = reference((images / 255 - mean) / std)["out"]
        for model in (predictor, predictor.folded()):
            found = enlarge(model.head.decode(model(images), size))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert float(wanted.std()) > 0.01, "outputs that do not depend on the image prove nothing"


def _with_statistics(network: nn.Module, size: tuple[int, int]) -> None:
    """As after training: statistics under which activations neither vanish nor grow."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.2
    network.train()
    with torch.no_grad():
        for _ in range(8):
            network(torch.rand(4, 3, 1, 1) * torch.rand(4, 3, *size))
    network.eval()


# ------------------------------------------------------------------------------------------ the head alone

SPECS = {"c3.depthwise": FeatureSpec(6, 8), "c5": FeatureSpec(10, 16)}


def _features(rows: int, columns: int) -> Features:
    """Maps at stride 8 and 16 of which the second has so many cells."""
    return {"c3.depthwise": torch.randn(2, 6, 2 * rows - 1, 2 * columns - 1), "c5": torch.randn(2, 10, rows, columns)}


@pytest.mark.parametrize(("rows", "columns", "grid"), [(65, 129, (2, 5)), (49, 49, (1, 1)), (9, 70, (1, 2))])
def test_the_gate_looks_through_windows(rows: int, columns: int, grid: tuple[int, int]) -> None:
    """49 x 49 cells in steps of 16 x 20, or less high and wide where the map is."""
    head = LRASPP(SPECS, 4, filters=5).eval()
    features = _features(rows, columns)
    with torch.inference_mode():
        raw = head(features)
        high = features["c5"]
        side = min(rows, 49), min(columns, 49)
        means = torch.stack([torch.stack([
            high[:, :, 16 * i : 16 * i + side[0], 20 * j : 20 * j + side[1]].mean((2, 3))
            for j in range(grid[1])], -1) for i in range(grid[0])], -2)
        gate = F.interpolate(((head.gate(means) + 3) / 6).clamp(0, 1), (rows, columns), mode="bilinear",
                             align_corners=True)
        x = F.interpolate(head.reduce(high) * gate, (2 * rows - 1, 2 * columns - 1), mode="bilinear",
                          align_corners=True)
        wanted = head.high(x) + head.low(features["c3.depthwise"])
    torch.testing.assert_close(raw.logits, wanted, rtol=1e-4, atol=1e-5)


def test_decoded_scores_have_the_images_size() -> None:
    """Corner to corner: the scores at the corners are those of the corner cells."""
    head = LRASPP(SPECS, 4)
    raw = LRASPPRaw(torch.randn(2, 4, 5, 9))
    logits = enlarge(head.decode(raw, (33, 65)))
    assert logits.shape == (2, 4, 33, 65)
    torch.testing.assert_close(logits[:, :, ::8, ::8], raw.logits, rtol=1e-5, atol=1e-5)
    assert head.num_outputs == 4


def _small_predictor() -> Predictor:
    backbone = mobilenet_v2(width=0.35, taps=("c2.depthwise", "c3"))
    head = LRASPP(backbone.specs, len(CLASSES), filters=16)
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
    raw, size = LRASPPRaw(torch.randn(2, 3, 4, 6)), (32, 48)
    labels = torch.randint(0, 3, (2, *size), dtype=torch.uint8)
    weighted = LRASPP(SPECS, 3, class_weights=(1.0, 2.0, 3.0)).loss(raw, LabelTargets(labels), size)["pixel"]
    assert int(weighted.count) == sum((k + 1) * int((labels == k).sum()) for k in range(3))
    hard = LRASPP(SPECS, 3, hardest=0.25).loss(raw, LabelTargets(labels), size)["pixel"]
    assert int(hard.count) == 2 * 32 * 48 // 4
    empty = LRASPP(SPECS, 3).loss(raw, LabelTargets(torch.full_like(labels, VOID)), size)["pixel"]
    assert int(empty.count) == float(empty.sum) == 0


@pytest.mark.parametrize(("specs", "message"), [
    ({"c5": FeatureSpec(8, 16)}, 'LR-ASPP takes two taps, such as "c3.depthwise" and "c5", got c5'),
    ({"c5": FeatureSpec(8, 16), "c3": FeatureSpec(8, 8)}, "low-level tap first and then the last one"),
    ({"c1": FeatureSpec(8, 2), "c2": FeatureSpec(8, 4)}, "got c1 at stride 2, c2 at stride 4"),
])
def test_bad_arguments_are_explained(specs: dict[str, FeatureSpec], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LRASPP(specs, 3)


# ------------------------------------------------------------------------------------------ export


class Windowed(nn.Module):
    """The head alone, on maps with several windows."""

    def __init__(self) -> None:
        super().__init__()
        self.head = LRASPP(SPECS, 3, filters=8)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return enlarge(self.head.decode(self.head({"c3.depthwise": low, "c5": high}), (1025, 257), static=True))


def _onnx(program: torch.export.ExportedProgram, given: tuple[Tensor, ...], folder: Path) -> list[Tensor]:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    file = folder / "lraspp.onnx"
    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    assert converted is not None
    converted.save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    fed = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, fed)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_windows_export(tmp_path: Path) -> None:
    head = Windowed().eval()
    given = torch.randn(1, 6, 129, 33), torch.randn(1, 10, 65, 17)
    program = torch.export.export(head, given, strict=True)
    with torch.inference_mode():
        wanted = head(*given)
        torch.testing.assert_close(program.module()(*given), wanted)
    (found,) = _onnx(program, given, tmp_path)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
