"""torchvision's RetinaNet, its weights loaded here, gives the same detections and the same losses."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from detseg.backbones.taps import tapped
from detseg.data.coco import COCO_90
from detseg.data.images import read_image
from detseg.model import Predictor
from detseg.necks import FPN
from detseg.ops.anchors import AnchorRaw, GridAnchors
from detseg.predict import predict_image
from detseg.resize import KeepAspect
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, BoxTargets, Classes, Pixels
from detseg.tasks.detection import Detection
from detseg.weights.load import load_weights
from heads.retinanet import RetinaNet

SHORTER, LONGER = 128, 200
ANCHORS = GridAnchors(tuple(
    (size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in (32, 64, 128, 256, 512)))
TASK = Detection(score_threshold=0.05, iou_threshold=0.5, per_class=100_000, max_detections=300)


@pytest.fixture(scope="module")
def reference() -> Any:
    """torchvision's detector with statistics and scores that differ by image, as after training."""
    torch.manual_seed(1)
    reference: Any = retinanet_resnet50_fpn(weights=None, weights_backbone=None, min_size=SHORTER, max_size=LONGER)
    for module in reference.backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5  # a few images suffice for statistics under which activations do not explode
    for module in reference.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    reference.backbone.train()
    with torch.no_grad():
        for _ in range(3):
            reference.backbone(torch.randn(4, 3, 1, 1) + torch.randn(4, 3, 96, 128))
        logits = reference.head.classification_head.cls_logits
        logits.weight.mul_(0.3)
        logits.bias.view(9, 91)[:, 0] = -20.0  # nothing teaches torchvision's first output to fire
        reference.head.regression_head.bbox_reg.weight.mul_(0.1)
    return reference.eval()


def _ours(file: Path, *, norm: Any = nn.BatchNorm2d, classes: Classes = COCO_90) -> Predictor:
    backbone = tapped(resnet50(norm_layer=norm), {"c3": "layer2", "c4": "layer3", "c5": "layer4"}, size=(64, 96))
    neck = FPN(backbone.specs, coarser="convolutions")
    predictor = Predictor(
        backbone, RetinaNet(neck.specs, len(classes), anchors=ANCHORS), neck=neck, classes=classes, size_divisor=32,
        resize=KeepAspect(SHORTER, LONGER), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    report = load_weights(predictor, str(file))
    assert report.left_over == ()
    if classes == COCO_90:
        assert report.fresh == ()
    return predictor.eval()


def _saved(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "retinanet.pth")
    return folder / "retinanet.pth"


@pytest.fixture(scope="module")
def ours(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return _ours(_saved(reference.state_dict(), tmp_path_factory.mktemp("weights")))


def _assert_same_detections(predictor: Predictor, reference: Any, image: Pixels) -> None:
    found = predict_image(predictor, TASK, image)
    with torch.inference_mode():
        (theirs,) = reference([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
    assert len(found.scores) == len(theirs["scores"]) > 50
    near = ((found.labels[:, None] + 1 == theirs["labels"])
            & ((found.scores[:, None] - theirs["scores"]).abs() < 1e-4)
            & ((found.boxes[:, None] - theirs["boxes"]).abs().amax(-1) < 1e-4 * max(image.shape)))
    assert int((~near.any(0)).sum()) <= 1, "one pair of equal scores may stand on both sides of the last row"


@pytest.mark.parametrize("size", [(120, 170), (210, 90), (128, 128)])
def test_detections_equal_torchvision(reference: Any, ours: Predictor, size: tuple[int, int]) -> None:
    image = (torch.rand(*size, 3) * 255 * torch.rand(1, 1, 3)).to(torch.uint8).numpy()
    _assert_same_detections(ours, reference, image)


@pytest.mark.real
def test_detections_equal_torchvision_on_a_real_image(shared: Path, reference: Any, ours: Predictor) -> None:
    file = sorted((shared / "data" / "coco_mini" / "val2017").glob("*.jpg"))[0]
    image = read_image(file)
    _assert_same_detections(ours, reference, image)
    _assert_same_detections(ours.folded(), reference, image)


def test_raw_outputs_and_losses_equal_torchvision(reference: Any, ours: Predictor) -> None:
    images = torch.rand(3, 3, 128, 192)
    boxes = torch.tensor([[10.0, 20.0, 100.0, 118.0], [50.0, 60.0, 160.0, 120.0], [5.0, 5.0, 33.0, 30.0]])
    truth = [{"boxes": boxes, "labels": torch.tensor([1, 5, 90])}, {"boxes": boxes[:1], "labels": torch.tensor([7])},
             {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)}]
    with torch.no_grad():
        given, _ = reference.transform(list(images))
        features = list(reference.backbone(given.tensors).values())
        outputs, anchors = reference.head(features), reference.anchor_generator(given, features)
        wanted = reference.compute_loss(truth, outputs, anchors)
        raw = ours(given.tensors * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
                   + torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255)
        head = ours.head
        assert isinstance(head, RetinaNet)
        logits, deltas = raw.rows(head.num_outputs)
        own_anchors = head.anchors([(x.shape[2], x.shape[3]) for x in raw.logits], (128, 192), device=logits.device)
        torch.testing.assert_close(own_anchors, anchors[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(logits, outputs["cls_logits"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(deltas, outputs["bbox_regression"], rtol=1e-4, atol=1e-3)
        # torchvision divides each image by its own positives, and then by the number of images.
        found = []
        for i, target in enumerate(truth):
            labels = target["labels"][None] - 1
            losses = head.loss(
                AnchorRaw(*(tuple(x[i : i + 1] for x in maps) for maps in raw)),
                BoxTargets(target["boxes"][None], labels, torch.zeros_like(labels, dtype=torch.bool)), (128, 192))
            found.append({name: term.sum / term.count.clamp(min=1) for name, term in losses.items()})
    for name, theirs in (("class", "classification"), ("box", "bbox_regression")):
        mean = torch.stack([losses[name] for losses in found]).mean()
        torch.testing.assert_close(mean, wanted[theirs], rtol=1e-4, atol=1e-5)


def test_older_files_with_frozen_norms_load_too(reference: Any, ours: Predictor, tmp_path: Path) -> None:
    """The published one: no counters, layers of the head numbered with their activations, shorter pyramid names."""
    old = {}
    for key, tensor in reference.state_dict().items():
        name = re.sub(r"(head\.\w+\.conv\.)(\d)\.0\.", lambda found: f"{found[1]}{2 * int(found[2])}.", key)
        if not name.endswith("num_batches_tracked"):
            old[re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", name)] = tensor
    assert "head.regression_head.conv.6.weight" in old
    assert "backbone.fpn.layer_blocks.2.weight" in old
    file = _saved(old, tmp_path)
    thawed, frozen = _ours(file), _ours(file, norm=partial(FrozenBatchNorm2d, eps=1e-5))
    for key, value in ours.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(thawed.state_dict()[key], value), key
            assert torch.equal(frozen.state_dict()[key], value), key


def test_other_classes_take_their_rows_or_start_anew(reference: Any, tmp_path: Path) -> None:
    file = _saved(reference.state_dict(), tmp_path)
    theirs = reference.head.classification_head.cls_logits.weight.detach().view(9, 91, 256, 3, 3)
    head = _ours(file, classes=Classes(names=("dog", "cat"), source_ids=(1, 2))).head
    weight = head.get_parameter("classify.predict.0.weight").detach().view(9, 3, 256, 3, 3)
    assert torch.equal(weight, theirs[:, [0, 18, 17]])
    head = _ours(file, classes=Classes(names=("nut", "dog"), source_ids=(1, 2))).head
    assert float(head.get_parameter("classify.predict.0.weight").detach().std()) == pytest.approx(0.01, rel=0.1)


def test_the_second_version_is_not_taken_for_it(tmp_path: Path) -> None:
    """Its head has group normalisation."""
    state = {"head.classification_head.cls_logits.weight": torch.zeros(1),
             "head.classification_head.conv.0.1.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="not a known kind of weight file"):
        _ours(_saved(state, tmp_path))
