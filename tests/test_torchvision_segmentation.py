"""torchvision's segmenters, their weights loaded here, give the same logits and label maps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, lraspp_mobilenet_v3_large
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.transforms._presets import SemanticSegmentation
from torchvision.transforms.functional import resize

from detseg import config
from detseg.backbones.taps import tapped
from detseg.cost import count_parameters
from detseg.data.images import read_image
from detseg.data.voc import VOC_21
from detseg.interfaces import Head
from detseg.model import Predictor
from detseg.ops.resample import enlarge
from detseg.predict import predict_image
from detseg.resize import KeepAspect
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, VOID, Classes, LabelTargets, Pixels
from detseg.tasks.segmentation import Segmentation
from detseg.weights.load import DOWNLOADS, load_weights
from heads import deeplabv3, fcn

from .conftest import ROOT

PRESET = SemanticSegmentation(resize_size=520)
"""What torchvision's weights come with: `LRASPP_MobileNet_V3_Large_Weights.DEFAULT.transforms()` and the others'."""
PETS = Classes(names=("dog", "background", "cat"), source_ids=(5, 1, 2))
CELLS = Classes(names=("platelet", "red", "white"), source_ids=(1, 2, 3))


def _fcn_mobilenet(*, aux_loss: bool) -> Any:
    """torchvision's parts; its authors' FCN on MobileNetV3-Large, of which they published no weights."""
    trunk = torchvision.models.mobilenet_v3_large(weights=None, dilated=True).features
    backbone = IntermediateLayerGetter(trunk, {"4": "aux", "16": "out"})
    return FCN(backbone, FCNHead(960, 21), FCNHead(40, 21) if aux_loss else None)


def _build(name: str, *, aux_loss: bool = True) -> Any:
    torch.manual_seed(3)
    if name == "lraspp":
        return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    if name == "deeplabv3":
        return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, aux_loss=aux_loss)
    return _fcn_mobilenet(aux_loss=aux_loss)


CONFIGS = {"lraspp": "lraspp_v3_large_torchvision", "deeplabv3": "deeplabv3_v3_large", "fcn": "fcn_v3_large"}


def _as_trained(reference: Any) -> Any:
    """With statistics that fit its activations, and scores by which every image shows several classes."""
    generator = torch.Generator().manual_seed(5)
    for module in reference.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out" if module.groups == 1 else "fan_in")
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.3, 0.3, generator=generator)
    images = F.interpolate(torch.randn(2, 3, 6, 8, generator=generator), (128, 176), mode="bilinear")
    images += 0.3 * torch.randn(images.shape, generator=generator)
    reference.train()
    with torch.no_grad():
        for _ in range(4):
            reference(images)
        last = getattr(reference.classifier, "high_classifier", None) or reference.classifier[4]
        logits = reference.eval()(images)["out"]
        last.bias -= logits.mean((0, 2, 3))
    return reference


def _ours(name: str, reference: nn.Module, folder: Path, *, classes: Classes = VOC_21) -> Predictor:
    file = folder / f"{name}.pth"
    torch.save(reference.state_dict(), file)
    predictor = config.load(ROOT / "configs" / f"{CONFIGS[name]}.py").build_model(classes)
    report = load_weights(predictor, str(file))
    assert report.left_over == ()
    assert not report.renormalised
    return predictor.eval()


def _real_images(shared: Path) -> list[Pixels]:
    """Three of different sizes."""
    images: dict[tuple[int, ...], Pixels] = {}
    for file in sorted((shared / "data" / "coco_mini" / "val2017").glob("*.jpg"))[:8]:
        image = read_image(file)
        images.setdefault(image.shape, image)
    assert len(images) >= 3
    return list(images.values())[:3]


def _channels_first(image: NDArray[Any]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def _normalised(images: Tensor) -> Tensor:
    """Images in 0..1 as torchvision's presets give them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def _back(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """[h, w] to [H, W]: the label at each pixel's centre, in whole numbers."""
    rows, columns = ((2 * torch.arange(side) + 1) * given // (2 * side)
                     for side, given in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns]


@pytest.mark.real
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_label_maps_equal_torchvision_on_real_images(name: str, shared: Path, tmp_path: Path) -> None:
    """With torchvision's own resize, of the image in floating point."""
    reference = _as_trained(_build(name))
    predictor = _ours(name, reference, tmp_path).ready()
    for image in _real_images(shared):
        with torch.inference_mode():
            wanted = reference(PRESET(_channels_first(image).float() / 255)[None])["out"]
            found = enlarge(predictor.decode(_channels_first(predictor.resize.apply(image))[None]))
        torch.testing.assert_close(found, wanted, rtol=0, atol=5e-5 * float(wanted.abs().max()))
        labels = wanted.argmax(1)
        assert len(labels.unique()) > 10
        assert float((found.argmax(1) != labels).float().mean()) < 1e-4, "more than ties"
        original = torch.from_numpy(predict_image(predictor, Segmentation(), image).labels)
        assert original.shape == image.shape[:2]
        assert float((original != _back(labels[0], image.shape[:2])).float().mean()) < 1e-4


@pytest.mark.real
def test_what_the_preset_rounds(shared: Path) -> None:
    """Of an image of bytes torchvision's preset rounds what it resized, of a PIL image after each axis."""
    own = config.load(ROOT / "configs" / "lraspp_v3_large_torchvision.py").build_model(VOC_21).resize
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for image in _real_images(shared):
        resized = _channels_first(own.apply(image))
        of_bytes, of_pil = (255 * (PRESET(given) * std + mean) for given in (
            _channels_first(image), Image.fromarray(image)))
        ties = (resized - resized.floor() - 0.5).abs() < 1e-3
        torch.testing.assert_close(of_bytes[~ties], resized.round()[~ties], rtol=0, atol=1e-3)
        assert float((of_pil - resized).abs().max()) < 1.51


@pytest.mark.parametrize("size", [(32, 64), (480, 780), (333, 500), (427, 640), (640, 427), (35, 35)])
def test_images_come_to_the_size_that_torchvision_gives(size: tuple[int, int]) -> None:
    own = config.load(ROOT / "configs" / "fcn_v3_large.py").build_model(VOC_21).resize
    assert isinstance(own, KeepAspect)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    wanted = resize(image.float(), [520], antialias=True)
    found = _channels_first(own.apply(image.permute(1, 2, 0).contiguous().numpy()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "with_auxiliary", "without"), [
    ("lraspp", 3_221_538, 3_221_538), ("deeplabv3", 11_029_328, 11_025_477), ("fcn", 5_054_944, 5_051_093)])
def test_parameters_are_torchvisions(name: str, with_auxiliary: int, without: int) -> None:
    predictor = config.load(ROOT / "configs" / f"{CONFIGS[name]}.py").build_model(VOC_21)
    assert count_parameters(predictor) == with_auxiliary == sum(p.numel() for p in _build(name).parameters())
    predictor.head.drop_training_parts()
    assert count_parameters(predictor) == without


@pytest.mark.parametrize("name", ["deeplabv3", "fcn"])
def test_the_loss_equals_torchvisions_reference(name: str, tmp_path: Path) -> None:
    reference = _as_trained(_build(name))
    predictor = _ours(name, reference, tmp_path)
    images = torch.rand(2, 3, 96, 128)
    labels = torch.randint(0, 21, (2, 96, 128), dtype=torch.uint8)
    labels[1, 30:] = VOID
    with torch.no_grad():
        outputs = reference(_normalised(images))
        found = predictor.head.loss(predictor(images * 255), LabelTargets(labels), (96, 128))
    # references/segmentation/train.py, criterion
    theirs = {name: F.cross_entropy(x, labels.long(), ignore_index=255) for name, x in outputs.items()}
    torch.testing.assert_close(torch.stack([term.sum / term.count for term in found.values()]).sum(),
                               theirs["out"] + 0.5 * theirs["aux"], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ what loads


@pytest.mark.parametrize("name", ["deeplabv3", "fcn"])
def test_a_file_without_auxiliary_classifier_loads(name: str, tmp_path: Path) -> None:
    file = tmp_path / "without.pth"
    reference = _build(name, aux_loss=False)
    torch.save(reference.state_dict(), file)
    predictor = config.load(ROOT / "configs" / f"{CONFIGS[name]}.py").build_model(VOC_21)
    report = load_weights(predictor, str(file))
    assert report.left_over == ()
    assert report.num_loaded == len(reference.state_dict())
    assert set(report.fresh) == {f"head.auxiliary.0.{leaf}" for leaf in (
        "0.conv.weight", "0.norm.weight", "0.norm.bias", "0.norm.running_mean", "0.norm.running_var",
        "0.norm.num_batches_tracked", "2.weight", "2.bias")}


def test_an_auxiliary_classifier_that_a_network_has_no_place_for_is_left_over(tmp_path: Path) -> None:
    file = tmp_path / "with.pth"
    torch.save(_build("deeplabv3").state_dict(), file)
    predictor = config.load(ROOT / "configs" / "deeplabv3_v3_large.py").build_model(VOC_21)
    predictor.head = deeplabv3.DeepLabV3({"c5": predictor.backbone.specs["c5"]}, 21)
    report = load_weights(predictor, str(file))
    assert len(report.left_over) == 8
    assert all(key.startswith("aux_classifier.") for key in report.left_over)


@pytest.mark.parametrize(("name", "layers"), [
    ("lraspp", {"low": "low_classifier", "high": "high_classifier"}),
    ("deeplabv3", {"classify": "4", "auxiliary.0.2": "4"}),
    ("fcn", {"classify.2": "4", "auxiliary.0.2": "4"}),
])
def test_known_classes_take_their_rows(name: str, layers: dict[str, str], tmp_path: Path) -> None:
    reference = _build(name)
    predictor = _ours(name, reference, tmp_path, classes=PETS)
    own, theirs = predictor.head.state_dict(), reference.state_dict()
    rows = [VOC_21.names.index(known) for known in PETS.names]
    for layer, position in layers.items():
        classifier = "aux_classifier" if layer.startswith("auxiliary") else "classifier"
        for leaf in ("weight", "bias"):
            assert torch.equal(own[f"{layer}.{leaf}"], theirs[f"{classifier}.{position}.{leaf}"][rows])


@pytest.mark.parametrize("name", CONFIGS)
def test_other_classes_start_anew(name: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(_build(name).state_dict(), file)
    predictor = config.load(ROOT / "configs" / f"{CONFIGS[name]}.py").build_model(CELLS)
    report = load_weights(predictor, str(file))
    assert set(report.fresh) == {f"head.{layer}.{leaf}" for layer in predictor.head.class_layers
                                 for leaf in ("weight", "bias")}
    with torch.inference_mode():
        assert enlarge(predictor.eval().decode(torch.rand(1, 3, 64, 96))).shape == (1, 3, 64, 96)


def test_a_file_for_another_head_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(_build("lraspp").state_dict(), file)
    predictor = config.load(ROOT / "configs" / "deeplabv3_v3_large.py").build_model(VOC_21)
    with pytest.raises(ValueError, match=re.escape("this torchvision LR-ASPP file does not fit the network")):
        load_weights(predictor, str(file))


def _deeplabv3(trunk: nn.Module) -> Any:
    return DeepLabV3(trunk, DeepLabHead(2048, 21), FCNHead(1024, 21))


def _fcn(trunk: nn.Module) -> Any:
    return FCN(trunk, FCNHead(2048, 21), FCNHead(1024, 21))


@pytest.mark.parametrize(("assemble", "head"), [(_deeplabv3, deeplabv3.DeepLabV3), (_fcn, fcn.FCN)])
def test_the_heads_of_resnets_load_on_a_tapped_trunk(
    assemble: Callable[[nn.Module], Any], head: type[Any], tmp_path: Path
) -> None:
    """deeplabv3_resnet50 and its kin, here with one block a stage."""
    resnet = ResNet(Bottleneck, [1, 1, 1, 1], replace_stride_with_dilation=[False, True, True]).eval()
    backbone = tapped(resnet, {"c4": "layer3", "c5": "layer4"}, size=(96, 96))
    reference = assemble(IntermediateLayerGetter(resnet, {"layer3": "aux", "layer4": "out"})).eval()
    torch.save(reference.state_dict(), tmp_path / "resnet.pth")
    made: Head[Any, Any, Any] = head(backbone.specs, 21)
    predictor = Predictor(backbone, made, classes=VOC_21, resize=KeepAspect(520, 52_000, antialias=True),
                          mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).eval()
    for parameter in backbone.parameters():
        nn.init.zeros_(parameter)
    report = load_weights(predictor, str(tmp_path / "resnet.pth"))
    assert report.left_over == report.fresh == ()
    assert report.renormalised
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        wanted = reference(_normalised(images))
        found = predictor.decode(images * 255)
    torch.testing.assert_close(enlarge(found), wanted["out"], rtol=1e-3, atol=1e-4)


def test_published_segmenters_have_vocs_classes() -> None:
    names = [name for name in DOWNLOADS if name.startswith(("lraspp", "deeplabv3", "fcn"))]
    assert {"lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"} < set(names)
    for name in names:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        assert tuple(category.strip("_") for category in weights.meta["categories"]) == VOC_21.names
        preset = weights.transforms()
        assert (preset.resize_size, tuple(preset.mean), tuple(preset.std)) == ([520], IMAGENET_MEAN, IMAGENET_STD)
