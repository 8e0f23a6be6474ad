"""TensorFlow's DeepLab weights: the layouts and folded norms by a file made here, and the published one on images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from detseg import api, config
from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.data.layouts import read_labels
from detseg.data.segmentation import SegmentationDataset
from detseg.data.voc import VOC_21
from detseg.evaluate import evaluate
from detseg.layers import ConvNormAct
from detseg.metrics.mean_iou import MeanIoU
from detseg.model import Predictor
from detseg.resize import Letterbox, Placement, Resize
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Size
from detseg.tasks.segmentation import Segmentation
from detseg.weights.load import load_weights
from heads.lraspp import LRASPP
from heads.raspp import RASPP

from .conftest import ROOT

PUBLISHED = "deeplabv3_mnv2_pascal_tf.safetensors"


def _predictor() -> Predictor:
    return config.load(ROOT / "configs" / "raspp_v2.py").build_model(VOC_21).eval()


def _theirs(name: str) -> tuple[str, str]:
    """TensorFlow's names of a layer's kernel and offset."""
    known = {"backbone.stem": "MobilenetV2_Conv", "head.reduce": "aspp0", "head.pool": "image_pooling",
             "head.project": "concat_projection"}
    if name in known:
        return f"{known[name]}_Conv2D", f"{known[name]}_Conv2D_bn_offset"
    *_, number, part = name.split(".")
    layer = f"MobilenetV2_expanded_conv{'' if number == '0' else f'_{number}'}_{part}"
    if part != "depthwise":
        return f"{layer}_Conv2D", f"{layer}_Conv2D_bn_offset"
    dilated = int(number) >= 7  # TensorFlow folds these otherwise
    return f"{layer}_depthwise", f"{layer}_{'BatchNorm_FusedBatchNorm' if dilated else 'depthwise_bn_offset'}"


def _in_tensorflows_form(predictor: Predictor) -> dict[str, Tensor]:
    """The tensors of a predictor with random statistics, as the published file has them."""
    state = {}
    for module in predictor.modules():
        if isinstance(module, ConvNormAct):
            assert isinstance(module.norm, nn.BatchNorm2d)
            assert isinstance(module.conv, nn.Conv2d)
            assert module.norm.running_mean is not None
            assert module.norm.running_var is not None
            nn.init.uniform_(module.norm.weight, 0.5, 1.5)
            nn.init.normal_(module.norm.bias, std=0.3)
            nn.init.normal_(module.norm.running_mean, std=0.1)
            nn.init.uniform_(module.norm.running_var, 0.5, 1.5)
    for name, module in predictor.folded().named_modules():
        if isinstance(module, ConvNormAct):
            assert isinstance(module.conv, nn.Conv2d)
            assert module.conv.bias is not None
            kernel, offset = _theirs(name)
            depthwise = module.conv.groups > 1
            last = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
            state[kernel] = module.conv.weight.detach().permute(last).contiguous()
            state[offset] = module.conv.bias.detach()
    classify = dict(predictor.head.named_modules())["classify"]
    assert isinstance(classify, nn.Conv2d)
    assert classify.bias is not None
    state["logits_semantic_Conv2D"] = classify.weight.detach().permute(0, 2, 3, 1).contiguous()
    state["logits_semantic_biases"] = classify.bias.detach()
    return state


@pytest.fixture(scope="module")
def original() -> Predictor:
    torch.manual_seed(3)
    return _predictor()


@pytest.fixture(scope="module")
def state(original: Predictor) -> dict[str, Tensor]:
    return _in_tensorflows_form(original)


def test_outputs_are_those_of_the_folded_network(
    original: Predictor, state: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(state, tmp_path / "deeplab.safetensors")
    loaded = _predictor()
    report = load_weights(loaded, str(tmp_path / "deeplab.safetensors"))
    assert report.left_over == report.fresh == ()
    assert report.num_loaded == len(loaded.state_dict()) - 2
    assert report.renormalised
    assert "TensorFlow DeepLab" in str(report)
    original.set_normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    images = torch.rand(2, 3, 97, 129) * 255
    with torch.inference_mode():
        wanted = original(images).logits
        for model in (loaded, loaded.folded()):
            found = model(images).logits
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert float(wanted.std()) > 0.01, "outputs that do not depend on the image prove nothing"


def test_the_norms_add_whatever_their_epsilon(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "deeplab.safetensors")
    loaded = _predictor()
    for module in loaded.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    load_weights(loaded, str(tmp_path / "deeplab.safetensors"))
    norm = loaded.get_submodule("backbone.stem.norm")
    x = torch.randn(2, 32, 4, 5)
    with torch.inference_mode():
        torch.testing.assert_close(norm(x), x + state["MobilenetV2_Conv_Conv2D_bn_offset"].view(1, -1, 1, 1))


@pytest.mark.real
def test_the_published_file_has_the_names_assumed_here(shared: Path, state: dict[str, Tensor]) -> None:
    with safe_open(shared / "weights" / PUBLISHED, "pt") as file:
        published = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert published == {name: list(tensor.shape) for name, tensor in state.items()}


def test_other_networks_are_refused_and_strange_tensors_reported(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "deeplab.safetensors")
    backbone = mobilenet_v2(taps=("c3.depthwise", "c5.bottleneck"))
    other = Predictor(backbone, LRASPP(backbone.specs, 21), classes=VOC_21, resize=Letterbox((64, 64)),
                      mean=IMAGENET_MEAN, std=IMAGENET_STD)
    message = r"this TensorFlow DeepLab file does not fit the network.*\n.*6 tensors are missing: head.gate.weight"
    with pytest.raises(ValueError, match=message):
        load_weights(other, str(tmp_path / "deeplab.safetensors"))
    backbone = mobilenet_v2(taps=("c5.bottleneck",), width=0.5)
    narrow = Predictor(backbone, RASPP(backbone.specs, 21), classes=VOC_21, resize=Letterbox((64, 64)),
                       mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with pytest.raises(ValueError, match=re.escape("have another shape: backbone.stem.conv.weight is [32, 3, 3, 3]")):
        load_weights(narrow, str(tmp_path / "deeplab.safetensors"))
    save_file(state | {"global_step": torch.zeros(1)}, tmp_path / "more.safetensors")
    assert load_weights(_predictor(), str(tmp_path / "more.safetensors")).left_over == ("global_step",)


class _TopLeft(Letterbox):
    """TensorFlow pads at the end."""

    def place(self, original: Size) -> Placement:
        return super().place(original)._replace(offset_y=0.0, offset_x=0.0)


# An independent script, which pads at the end, measured 0.545.
@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("resize", "expected"), [
    (_TopLeft((513, 513), fill=(127, 127, 127)), 0.545),
    (None, 0.560),
], ids=["at the top left", "between the config's bars"])
def test_the_published_network_on_real_images(shared: Path, resize: Resize | None, expected: float) -> None:
    predictor = config.load(ROOT / "configs" / "raspp_v2.py", ["model.output_stride=8"]).build_model(VOC_21)
    load_weights(predictor, str(shared / "weights" / PUBLISHED))
    predictor.resize = resize or predictor.resize
    index = read_labels(shared / "data" / "coco_mini", "val").relabel(VOC_21)
    dataset = SegmentationDataset(index, predictor.resize)
    assert len(dataset) == 84
    numbers = evaluate(predictor, Segmentation(), dataset, metric=MeanIoU(index), batch_size=2, workers=0).numbers
    assert numbers["mIoU_present"] == pytest.approx(expected, abs=0.005)


def test_the_published_output_stride_is_a_setting(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "deeplab.safetensors")
    model = api.load(ROOT / "configs" / "raspp_v2.py", tmp_path / "deeplab.safetensors",
                     settings=["model.output_stride=8"])
    assert isinstance(model.loaded, Predictor)
    assert [spec.stride for spec in model.loaded.backbone.specs.values()] == [8]
