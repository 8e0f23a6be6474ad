"""OpenMMLab's checkpoints load, give what its networks give, and run nothing; its LR-ASPP head.

Neither mmsegmentation nor mmdetection is needed: their networks are stated again here, from their tensors' names.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from torch import Tensor

from detseg import checkpoint, config
from detseg.backbones.mobilenet_v3 import mobilenet_v3_small
from detseg.cost import count_parameters
from detseg.data.cityscapes import CITYSCAPES
from detseg.data.coco import COCO_80
from detseg.interfaces import FeatureSpec
from detseg.model import Predictor
from detseg.ops.anchors import to_rows
from detseg.ops.resample import enlarge
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, VOID, Classes, LabelTargets
from detseg.weights.load import load_weights
from detseg.weights.openmmlab import metadata_left_out
from heads.lraspp_openmmlab import NORM, OpenMMLabLRASPP, OpenMMLabLRASPPRaw

from .conftest import ROOT

State = dict[str, Tensor]
Act = Callable[[Tensor], Tensor]

_LARGE = ((3, 16, 16, 0, "RE", 1, 1), (3, 64, 24, 0, "RE", 2, 1), (3, 72, 24, 0, "RE", 1, 1),
          (5, 72, 40, 24, "RE", 2, 1), (5, 120, 40, 32, "RE", 1, 1), (5, 120, 40, 32, "RE", 1, 1),
          (3, 240, 80, 0, "HS", 1, 2), (3, 200, 80, 0, "HS", 1, 2), (3, 184, 80, 0, "HS", 1, 2),
          (3, 184, 80, 0, "HS", 1, 2), (3, 480, 112, 120, "HS", 1, 2), (3, 672, 112, 168, "HS", 1, 2),
          (5, 672, 160, 168, "HS", 1, 4), (5, 960, 160, 240, "HS", 1, 4), (5, 960, 160, 240, "HS", 1, 4))
_SMALL = ((3, 16, 16, 8, "RE", 2, 1), (3, 72, 24, 0, "RE", 2, 1), (3, 88, 24, 0, "RE", 1, 1),
          (5, 96, 40, 24, "HS", 1, 2), (5, 240, 40, 64, "HS", 1, 2), (5, 240, 40, 64, "HS", 1, 2),
          (5, 120, 48, 32, "HS", 1, 2), (5, 144, 48, 40, "HS", 1, 2), (5, 288, 96, 72, "HS", 1, 4),
          (5, 576, 96, 144, "HS", 1, 4), (5, 576, 96, 144, "HS", 1, 4))
"""mmsegmentation's MobileNetV3 at stride 8: kernel, expanded, out, squeezed (or 0), activation, stride, dilation."""

_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNetV2: factor of the expansion, out, blocks, stride of the first."""


class _Net:
    """A state dict that is written by the same code that computes with it: tensors are made when first asked for, and
    BatchNorm's statistics from what it is given, so that neither values nor rounding errors grow."""

    def __init__(self, *, eps: float) -> None:
        self.eps = eps
        self.state: State = {}
        self.random = torch.Generator().manual_seed(5)

    def get(self, name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
        if name not in self.state:
            self.state[name] = low + (high - low) * torch.rand(shape, generator=self.random)
        return self.state[name]

    def conv(self, x: Tensor, name: str, out: int, kernel: int = 1, *, bias: bool = False, groups: int = 1,
             **options: Any) -> Tensor:
        inner = x.shape[1] // groups
        bound = (6 / (inner * kernel * kernel)) ** 0.5
        weight = self.get(f"{name}.weight", (out, inner, kernel, kernel), -bound, bound)
        offset = self.get(f"{name}.bias", (out,), -0.5, 0.5) if bias else None
        return F.conv2d(x, weight, offset, groups=groups, **options)

    def norm(self, x: Tensor, name: str) -> Tensor:
        size = (x.shape[1],)
        mean = self.state.setdefault(f"{name}.running_mean", x.mean((0, 2, 3)))
        var = self.state.setdefault(f"{name}.running_var", 2 * x.var((0, 2, 3), unbiased=False) + 0.3)
        weight, bias = self.get(f"{name}.weight", size, 0.6, 1.4), self.get(f"{name}.bias", size, -0.5, 0.5)
        self.state.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        return F.batch_norm(x, mean, var, weight, bias, eps=self.eps)

    def module(self, x: Tensor, name: str, out: int, kernel: int = 1, *, act: Act = F.relu, stride: int = 1,
               dilation: int = 1, groups: int = 1, adaptive: bool = False) -> Tensor:
        """mmcv's ConvModule, with zeros as TensorFlow adds them where it is `adaptive`."""
        padding = dilation * (kernel - 1) // 2
        if adaptive:
            spans = [(-(-side // stride) - 1) * stride + kernel - side for side in x.shape[2:]]
            top, left = (max(span, 0) // 2 for span in spans)
            x = F.pad(x, (left, max(spans[1], 0) - left, top, max(spans[0], 0) - top))
            padding = 0
        x = self.conv(x, f"{name}.conv", out, kernel, stride=stride, dilation=dilation, groups=groups, padding=padding)
        return act(self.norm(x, f"{name}.bn"))


def _linear(x: Tensor) -> Tensor:
    return x


def _v3(net: _Net, x: Tensor, table: tuple[Any, ...], taps: tuple[int, ...]) -> list[Tensor]:
    maps = [net.module(x, "backbone.layer0", 16, 3, stride=2, act=F.hardswish, adaptive=True)]
    for number, (kernel, expanded, out, squeezed, kind, stride, dilation) in enumerate(table, start=1):
        name, before = f"backbone.layer{number}", maps[-1]
        act: Act = F.relu if kind == "RE" else F.hardswish
        x = before
        if expanded != x.shape[1]:
            x = net.module(x, f"{name}.expand_conv", expanded, act=act)
        x = net.module(x, f"{name}.depthwise_conv", expanded, kernel, act=act, stride=stride, dilation=dilation,
                       groups=expanded, adaptive=stride == 2)
        if squeezed:
            gate = F.relu(net.conv(x.mean((2, 3), keepdim=True), f"{name}.se.conv1.conv", squeezed, bias=True))
            x = x * ((net.conv(gate, f"{name}.se.conv2.conv", expanded, bias=True) + 3) / 6).clamp(0, 1)
        x = net.module(x, f"{name}.linear_conv", out, act=_linear)
        # A block whose stride became dilation has no shortcut; it changes the channels, too.
        maps.append(x + before if x.shape == before.shape else x)
    maps.append(net.module(maps[-1], f"backbone.layer{len(table) + 1}", 6 * maps[-1].shape[1], act=F.hardswish))
    return [maps[tap] for tap in taps]


def _lraspp(net: _Net, x: Tensor, table: tuple[Any, ...], taps: tuple[int, ...]) -> Tensor:
    """mmsegmentation's EncoderDecoder of normalised images, its 19 logits at stride 2."""
    *earlier, x = _v3(net, x, table, taps)
    gate = net.conv(F.avg_pool2d(x, 49, (16, 20)), "decode_head.image_pool.1.conv", 128).sigmoid()
    gate = F.interpolate(gate, x.shape[2:], mode="bilinear", align_corners=False)
    x = net.module(x, "decode_head.aspp_conv", 128) * gate
    x = net.conv(x, "decode_head.conv_up_input", 128, bias=True)
    for k in (1, 0):
        x = F.interpolate(x, earlier[k].shape[2:], mode="bilinear", align_corners=False)
        x = torch.cat((x, net.conv(earlier[k], f"decode_head.convs.conv{k}", (32, 64)[k])), 1)
        x = net.module(x, f"decode_head.conv_ups.conv_up{k}", 128)
    return net.conv(x, "decode_head.conv_seg", 19, bias=True)


def _ssdlite(net: _Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """mmdetection's SingleStageDetector of normalised images: scores [B, N, 81], background last, and deltas."""
    x = net.module(x, "backbone.conv1", 32, 3, stride=2, act=F.relu6)
    maps = []
    for stage, (factor, out, num_blocks, stride) in enumerate(_V2, start=1):
        for k in range(num_blocks):
            name, before, expanded = f"backbone.layer{stage}.{k}", x, factor * x.shape[1]
            if factor > 1:
                x = net.module(x, f"{name}.expand_conv", expanded, act=F.relu6)
            x = net.module(x, f"{name}.depthwise_conv", expanded, 3, act=F.relu6, groups=expanded,
                           stride=stride if k == 0 else 1)
            x = net.module(x, f"{name}.linear_conv", out, act=_linear)
            x = x + before if x.shape == before.shape else x
        maps.append(x)
    maps = [maps[4], net.module(x, "backbone.conv2", 1280, act=F.relu6)]
    for k, out in enumerate((512, 256, 256, 128)):
        name = f"neck.extra_layers.{k}"
        x = net.module(maps[-1], f"{name}.0", out // 2, act=F.relu6)
        x = net.module(x, f"{name}.1.depthwise_conv", out // 2, 3, stride=2, groups=out // 2, act=F.relu6)
        maps.append(net.module(x, f"{name}.1.pointwise_conv", out, act=F.relu6))
    found: dict[str, list[Tensor]] = {"cls": [], "reg": []}
    for k, x in enumerate(maps):
        for kind, columns in (("cls", 81), ("reg", 4)):
            name = f"bbox_head.{kind}_convs.{k}"
            inner = net.module(x, f"{name}.0", x.shape[1], 3, groups=x.shape[1], act=F.relu6)
            rows = net.conv(inner, f"{name}.1", 6 * columns, bias=True)
            found[kind].append(rows.permute(0, 2, 3, 1).reshape(len(x), -1, columns))
    return torch.cat(found["cls"], 1), torch.cat(found["reg"], 1)


def _normalised(images: Tensor) -> Tensor:
    """What OpenMMLab's data preprocessors do to RGB images."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    return (images - mean) / std


def _images(size: tuple[int, int], *, number: int) -> Tensor:
    """Coloured blots under noise, 0..255."""
    random = torch.Generator().manual_seed(number)
    blots = F.interpolate(torch.rand(number, 3, 9, 7, generator=random), size, mode="bilinear", align_corners=False)
    return (blots + torch.rand(number, 3, *size, generator=random)) / 2 * 255


@pytest.fixture(scope="module")
def detector() -> State:
    """The tensors of an ssdlite_mobilenetv2."""
    net = _Net(eps=1e-3)
    _ssdlite(net, _normalised(_images((320, 320), number=2)))
    return net.state


def _config(name: str, classes: Classes) -> Predictor:
    return config.load(ROOT / "configs" / f"{name}.py").build_model(classes).eval()


def _small() -> Predictor:
    """lraspp_m-v3s-d8."""
    backbone = mobilenet_v3_small(
        taps=("c1", "c2", "c5"), output_stride=8, dilate_first=True, padding="same", norm=NORM)
    large = _config("lraspp_v3_large_openmmlab", CITYSCAPES)
    return Predictor(backbone, OpenMMLabLRASPP(backbone.specs, 19), classes=CITYSCAPES, resize=large.resize,
                     mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()


def _saved(file: Path, state: State, **beside: Any) -> str:
    """Written as OpenMMLab publishes, in torch's old format."""
    meta = {"mmseg_version": "0.11.0", "config": "norm_cfg = dict(type='SyncBN')", "CLASSES": ("road", "sidewalk"),
            "PALETTE": [[128, 64, 128], [244, 35, 232]]}
    torch.save({"meta": meta, "state_dict": state, **beside}, file, _use_new_zipfile_serialization=False)
    return str(file)


# ------------------------------------------------------------------------------------------ what they compute


@pytest.mark.parametrize(("arch", "size"), [("large", (521, 553)), ("small", (521, 553)), ("small", (400, 440))])
def test_lraspp_equals_mmsegmentations(arch: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Odd sizes are padded as TensorFlow does, and are the first of which there are two windows each way."""
    table, taps = (_LARGE, (1, 3, 16)) if arch == "large" else (_SMALL, (0, 1, 12))
    net, images = _Net(eps=1e-3), _images(size, number=1)
    with torch.inference_mode():
        theirs = _lraspp(net, _normalised(images), table, taps)
    predictor = _config("lraspp_v3_large_openmmlab", CITYSCAPES) if arch == "large" else _small()
    file = _saved(tmp_path / "lraspp_m-v3-d8.pth", net.state)
    report = load_weights(predictor, file)
    assert (report.title, report.left_over, report.fresh) == (f"{file} (OpenMMLab LR-ASPP)", (), ())
    assert report.num_loaded == len(net.state) == len(predictor.state_dict()) - 2
    with torch.inference_mode():
        for model in (predictor, predictor.folded()) if arch == "small" else (predictor,):
            raw = model(images)
            torch.testing.assert_close(raw.logits, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
        assert enlarge(predictor.head.decode(raw, size)).shape == (1, 19, *size)
    assert len(torch.unique(theirs.argmax(1))) > 3, "too much the same to compare anything"


def test_ssdlite_equals_mmdetections(detector: State, tmp_path: Path) -> None:
    net = _Net(eps=1e-3)
    predictor, images = _config("ssdlite_v2_openmmlab", COCO_80), _images((320, 320), number=2)
    file = _saved(tmp_path / "ssdlite_mobilenetv2.pth", detector)
    report = load_weights(predictor, file)
    assert (report.title, report.left_over, report.fresh) == (f"{file} (OpenMMLab SSDLite)", (), ())
    assert report.num_loaded == len(detector)
    # In double precision: a random network of so many layers makes much of rounding errors.
    net.state = {key: value.double() if value.is_floating_point() else value for key, value in detector.items()}
    with torch.inference_mode():
        scores, deltas = _ssdlite(net, _normalised(images.double()))
        assert net.state.keys() == detector.keys()
        predictor = predictor.double()
        raw = predictor.head(predictor.backbone(_normalised(images.double())))
        torch.testing.assert_close(to_rows(raw.deltas, columns=4), deltas, rtol=0, atol=1e-9)
        logits = to_rows(raw.logits, columns=81)
        torch.testing.assert_close(logits, scores.roll(1, -1), rtol=0, atol=1e-9)
        # Mean and std are kept in single precision, and decoding is in it.
        found = predictor.decode(images).scores
        torch.testing.assert_close(found, scores.softmax(-1)[..., :80].float(), rtol=0, atol=1e-4)
    assert logits.shape == (2, 3234, 81)


def test_the_costs_are_those_of_openmmlabs_networks() -> None:
    """Counted on mmsegmentation 1.2.2 and mmdetection 3.3.0."""
    assert count_parameters(_config("lraspp_v3_large_openmmlab", CITYSCAPES)) == 3_284_547
    assert count_parameters(_small()) == 1_140_787
    assert count_parameters(_config("ssdlite_v2_openmmlab", COCO_80)) == 4_228_788


def test_some_of_the_classes_are_taken_over(detector: State, tmp_path: Path) -> None:
    """With the background, which mmdetection has last."""
    pets = Classes(names=("dog", "person", "cat"), source_ids=(5, 1, 2))
    predictor = _config("ssdlite_v2_openmmlab", pets)
    load_weights(predictor, _saved(tmp_path / "a.pth", detector))
    theirs = detector["bbox_head.cls_convs.2.1.bias"].reshape(6, 81)
    ours = predictor.state_dict()["head.classify.2.1.bias"].reshape(6, 4)
    names = COCO_80.names
    assert torch.equal(ours, theirs[:, [80, names.index("dog"), names.index("person"), names.index("cat")]])


def test_a_network_that_does_not_fit_is_refused(detector: State, tmp_path: Path) -> None:
    file = _saved(tmp_path / "a.pth", detector)
    with pytest.raises(ValueError, match=r"this OpenMMLab SSDLite file does not fit the network(.|\n)*"
                       r"head\.classify\.0\.0\.conv\.weight is \[96, 1, 3, 3\], the network has \[576, 1, 3, 3\]"):
        load_weights(_config("ssdlite_v2", COCO_80), file)
    short = {key: value for key, value in detector.items() if not key.startswith("neck.extra_layers.3.")}
    with pytest.raises(ValueError, match=r"18 tensors are missing: head\.extras\.3\.0\.conv\.weight"):
        load_weights(_config("ssdlite_v2_openmmlab", COCO_80), _saved(tmp_path / "b.pth", short))


# ------------------------------------------------------------------------------------------ what lies beside


def _message_hub() -> dict[str, Any]:
    """What mmengine's runner keeps of the course of the training."""
    hub = MessageHub.get_instance("test_openmmlab_weights")
    for value in (3.0, 2.5):
        hub.update_scalar("train/loss", value)
    hub.update_info("iter", np.int64(2))
    state: dict[str, Any] = hub.state_dict()
    assert type(state["log_scalars"]["train/loss"]).__name__ == "HistoryBuffer"
    return state


@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_runs_checkpoint_loads(zipped: bool, detector: State, tmp_path: Path) -> None:
    """mmengine's runner saves NumPy's numbers and objects of its own, which `weights_only` refuses by itself."""
    file = tmp_path / "epoch_1.pth"
    content = {"meta": {"epoch": np.int64(3), "best": np.float32(21.3), "areas": np.arange(3), "seed": 0},
               "state_dict": detector, "message_hub": _message_hub(), "optimizer": {"state": {}, "param_groups": []}}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="was refused: it asks for "):
        checkpoint.read_tensors(file)
    predictor = _config("ssdlite_v2_openmmlab", COCO_80)
    assert load_weights(predictor, str(file)).num_loaded == len(detector)
    with metadata_left_out():
        read = checkpoint.read_tensors(file)
    assert read["meta"]["seed"] == 0
    for left_out in (read["meta"]["epoch"], read["meta"]["areas"], read["message_hub"]["log_scalars"]["train/loss"]):
        assert type(left_out).__name__ == "_LeftOut"
        assert vars(left_out) == {}, "nothing of it is kept"
    with pytest.raises(ValueError, match="was refused"):
        checkpoint.read_tensors(file)  # what was allowed is so no longer


class _Mischief:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path, call: Callable[[str], None]) -> None:
        self.path, self.call = path, call

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return self.call, (str(self.path),)


class _MischiefByName:
    """The same by way of a name that OpenMMLab's checkpoints have, too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (_Mischief(self.path, os.mkdir), "anything")


@pytest.mark.parametrize("kind", ["system", "getattr"])
def test_what_wants_to_run_code_is_refused(kind: str, detector: State, tmp_path: Path) -> None:
    file, made = tmp_path / "bad.pth", tmp_path / "made"
    bad = _Mischief(made, os.mkdir) if kind == "system" else _MischiefByName(made)
    torch.save({"meta": {"x": bad}, "state_dict": detector}, file)
    predictor = _config("ssdlite_v2_openmmlab", COCO_80)
    with pytest.raises(ValueError, match=r"bad\.pth was refused: .*Nothing in it was run"):
        load_weights(predictor, str(file))
    assert not made.exists()
    file.write_bytes(pickle.dumps({"meta": bad, "state_dict": {}}))
    with pytest.raises(ValueError, match=r"bad\.pth (was refused|cannot be read)"):
        load_weights(predictor, str(file))
    assert not made.exists()


def test_the_stand_in_for_getattr_gets_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"x": _GetsAttribute()}, file)
    with metadata_left_out():
        assert type(checkpoint.read_tensors(file)["x"]).__name__ == "_LeftOut"


class _GetsAttribute:
    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (1, "__class__")


# ------------------------------------------------------------------------------------------ the head


def _head(**options: Any) -> OpenMMLabLRASPP:
    specs = {"c1": FeatureSpec(4, 2), "c2": FeatureSpec(5, 4), "c5": FeatureSpec(6, 8)}
    return OpenMMLabLRASPP(specs, 3, filters=8, skip_channels=(2, 3), **options)


def _features(size: tuple[int, int]) -> dict[str, Tensor]:
    return {name: torch.rand(2, channels, -(-size[0] // stride), -(-size[1] // stride))
            for name, channels, stride in (("c1", 4, 2), ("c2", 5, 4), ("c5", 6, 8))}


@pytest.mark.parametrize("size", [(40, 56), (33, 47), (8, 8), (400, 200)])
def test_logits_have_the_first_maps_cells(size: tuple[int, int]) -> None:
    head = _head().eval()
    raw = head(_features(size))
    assert raw.logits.shape == (2, 3, -(-size[0] // 2), -(-size[1] // 2))
    assert enlarge(head.decode(raw, size)).shape == (2, 3, *size)


def test_void_is_ignored_by_the_loss() -> None:
    head = _head(dropout=0.0)
    labels = torch.randint(0, 3, (2, 40, 56), dtype=torch.uint8)
    labels[1] = VOID
    raw = head(_features((40, 56)))
    assert isinstance(raw, OpenMMLabLRASPPRaw)
    term = head.loss(raw, LabelTargets(labels), (40, 56))["pixel"]
    enlarged = F.interpolate(raw.logits[:1], (40, 56), mode="bilinear", align_corners=False)
    assert float(term.count) == 40 * 56
    torch.testing.assert_close(term.sum, F.cross_entropy(enlarged, labels[:1].long(), reduction="sum"))
    nothing = head.loss(raw, LabelTargets(torch.full_like(labels, VOID)), (40, 56))["pixel"]
    assert (float(nothing.sum.detach()), float(nothing.count)) == (0.0, 0.0)


def test_class_weights_and_the_hardest_pixels_reach_the_loss() -> None:
    labels, features = LabelTargets(torch.zeros(2, 40, 56, dtype=torch.uint8)), _features((40, 56))
    head = _head(dropout=0.0, class_weights=(2.0, 1.0, 1.0))
    assert float(head.loss(head(features), labels, (40, 56))["pixel"].count) == 2 * 2 * 40 * 56
    head = _head(dropout=0.0, hardest=0.25)
    assert float(head.loss(head(features), labels, (40, 56))["pixel"].count) == 2 * 40 * 56 / 4


@pytest.mark.parametrize(("specs", "message"), [
    ({"c5": FeatureSpec(6, 8)}, "a tap for each of its 2 skip_channels.*; got c5 at stride 8"),
    ({"c2": FeatureSpec(5, 4), "c1": FeatureSpec(4, 2), "c5": FeatureSpec(6, 8)},
     r'from fine to coarse, and then the last one, such as "c1", "c2" and "c5"; got c2 at stride 4, c1 at stride 2'),
])
def test_other_taps_are_refused(specs: dict[str, FeatureSpec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenMMLabLRASPP(specs, 3)


def test_one_class_is_none() -> None:
    with pytest.raises(ValueError, match="a segmenter tells at least two classes apart, got 1"):
        OpenMMLabLRASPP({"c1": FeatureSpec(4, 2), "c2": FeatureSpec(5, 4), "c5": FeatureSpec(6, 8)}, 1)
