"""torchvision's two Faster R-CNNs on MobileNetV3, their weights loaded here, give the same detections and losses."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_mobilenet_v3_large_fpn,
)
from torchvision.models.detection.image_list import ImageList

from detseg import config
from detseg.cost import count_parameters
from detseg.data.coco import COCO_90
from detseg.data.images import read_image
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.structures import BoxTargets, Classes, ImageDetections, Pixels
from detseg.weights.load import load_weights
from heads.faster_rcnn import FasterRCNN

from .conftest import ROOT


@pytest.fixture(scope="module")
@torch.no_grad()
def reference() -> Any:
    """torchvision's detector for 320 pixels with random weights, but with statistics of images, and outputs that differ
    from place to place as those of a trained network do."""
    torch.manual_seed(1)
    reference: Any = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5  # a few steps suffice for statistics under which activations do not vanish
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    coarse, fine = torch.rand(2, 3, 12, 16), torch.rand(2, 3, 60, 80)
    images = torch.stack([F.interpolate(x, (320, 416), mode="bilinear") for x in (coarse, fine)]).sum(0) - 0.5
    reference.backbone.train()
    for _ in range(4):
        reference.backbone(images)
    features = reference.eval().backbone(images)
    seen = [reference.rpn.head.conv(x) for x in features.values()]
    _spread(reference.rpn.head.cls_logits, seen, std=2.0)
    _spread(reference.rpn.head.bbox_pred, seen, std=0.3)
    regions = [torch.rand(200, 2, 2).sort(1).values.flatten(1) * 300 for _ in images]
    pooled = reference.roi_heads.box_head(reference.roi_heads.box_roi_pool(features, regions, [(320, 416)] * 2))
    _spread(reference.roi_heads.box_predictor.cls_score, [pooled], std=1.0)
    _spread(reference.roi_heads.box_predictor.bbox_pred, [pooled], std=1.0)
    return reference


def _spread(layer: Any, inputs: Sequence[Tensor], *, std: float) -> None:
    """Gives each output of the layer mean 0 and this std over the inputs' rows or pixels."""
    layer.bias.zero_()
    rows = torch.cat([layer(x).transpose(0, 1).flatten(1) for x in inputs], 1)
    scale = std / rows.std(1)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_(-rows.mean(1) * scale)


def _tensor(image: Pixels) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def _ours(reference: nn.Module, name: str, folder: Path) -> Predictor:
    file = folder / "fasterrcnn-random.pth"
    torch.save(reference.state_dict(), file)
    predictor = config.load(ROOT / "configs" / f"{name}.py").build_model(COCO_90)
    report = load_weights(predictor, str(file))
    assert report.title.endswith("(torchvision Faster R-CNN)")
    assert report.left_over == report.fresh == ()
    assert not report.renormalised
    return predictor.eval()


def _images(shared: Path, number: int) -> list[Pixels]:
    files = sorted((shared / "data" / "coco_mini" / "val2017").glob("*.jpg"))[:number]
    return [read_image(file) for file in files]


def _assert_same(predictor: Predictor, name: str, reference: Any, image: Pixels) -> None:
    """The same detections: label, score to 1e-4, box to 1e-4 of the image's longer side."""
    task = config.load(ROOT / "configs" / f"{name}.py").experiment.task
    found: ImageDetections = predict_image(predictor, task, image)
    with torch.inference_mode():
        theirs = reference([_tensor(image)])[0]
    assert len(found.scores) == len(theirs["scores"]) == 100
    assert len(set(theirs["scores"].tolist())) > 90, "too many ties to compare anything"
    assert len(set(theirs["labels"].tolist())) > 5, "too few classes to compare anything"
    near = ((found.labels[:, None] + 1 == theirs["labels"])
            & ((found.scores[:, None] - theirs["scores"]).abs() < 1e-4)
            & ((found.boxes[:, None] - theirs["boxes"]).abs().amax(-1) < 1e-4 * max(image.shape)))
    # Suppression may begin at either of two neighbours whose scores are equal to the last digit.
    assert int((~near.any(0)).sum()) + int((~near.any(1)).sum()) <= 2


@pytest.mark.real
@pytest.mark.parametrize("how", ["as it is", "folded"])
def test_detections_equal_torchvision_at_320_pixels(reference: Any, shared: Path, tmp_path: Path, how: str) -> None:
    name, images = "fasterrcnn_v3_large_320_fpn", _images(shared, 10)
    assert len({image.shape for image in images}) > 6
    predictor = _ours(reference, name, tmp_path)
    predictor = {"as it is": predictor, "folded": predictor.folded()}[how]
    for image in images if how == "as it is" else images[:2]:
        _assert_same(predictor, name, reference, image)


@pytest.mark.real
def test_detections_equal_torchvision_at_800_pixels(reference: Any, shared: Path, tmp_path: Path) -> None:
    name, image = "fasterrcnn_v3_large_fpn", _images(shared, 2)[1]
    assert image.shape[0] > image.shape[1]
    larger: Any = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None).eval()
    larger.load_state_dict(reference.state_dict())
    _assert_same(_ours(larger, name, tmp_path), name, larger, image)


def test_a_file_as_torchvision_published_it_loads(reference: Any, tmp_path: Path) -> None:
    """With frozen BatchNorm, which counts no batches, and with the names of the code before version 2."""
    predictor = _ours(reference, "fasterrcnn_v3_large_320_fpn", tmp_path)
    assert count_parameters(predictor) == count_parameters(reference) == 19_410_754
    old = {re.sub(r"(_blocks\.\d|rpn\.head\.conv)(\.0)+", r"\1", key): tensor
           for key, tensor in reference.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert {"rpn.head.conv.weight", "backbone.fpn.inner_blocks.1.bias"} <= old.keys()
    file = tmp_path / "old.pth"
    torch.save(old, file)
    other = config.load(ROOT / "configs" / "fasterrcnn_v3_large_320_fpn.py").build_model(COCO_90)
    report = load_weights(other, str(file))
    assert report.left_over == report.fresh == ()
    for name, tensor in predictor.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert not other.state_dict()[name], name
            continue
        assert torch.equal(other.state_dict()[name], tensor), name


def test_other_classes_take_their_rows(reference: Any, tmp_path: Path) -> None:
    file = tmp_path / "whole.pth"
    torch.save(reference.state_dict(), file)
    some = Classes(names=("zebra", "person"), source_ids=(24, 1))
    predictor = config.load(ROOT / "configs" / "fasterrcnn_v3_large_320_fpn.py").build_model(some)
    load_weights(predictor, str(file))
    kept = reference.roi_heads.box_predictor
    for layer, rows, theirs in (("score", 1, kept.cls_score), ("box", 4, kept.bbox_pred)):
        mine = predictor.head.get_parameter(f"second_stage.{layer}.weight")
        assert torch.equal(mine.view(3, rows, -1), theirs.weight.view(91, rows, -1)[[0, 24, 1]])


def test_the_losses_equal_torchvision(reference: Any, tmp_path: Path) -> None:
    """With as many samples as there are, so that chance decides nothing; the proposals are those of training."""
    reference = copy.deepcopy(reference)
    images = list(torch.randint(0, 256, (3, 256, 320, 3), dtype=torch.uint8).numpy())
    predictor = _ours(reference, "fasterrcnn_v3_large_320_fpn", tmp_path)
    head = predictor.head
    assert isinstance(head, FasterRCNN)
    head.anchor_samples = head.region_samples = 1_000_000
    for part in (reference.rpn, reference.roi_heads):
        part.train().fg_bg_sampler.batch_size_per_image = 1_000_000
    boxes = torch.tensor([[10.0, 20.0, 150.0, 180.0], [50.0, 60.0, 260.0, 120.0], [5.0, 5.0, 30.0, 20.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 5, 90])}, {"boxes": boxes[:1], "labels": torch.tensor([7])},
               {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)}]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        normalised = torch.stack([reference.transform.normalize(_tensor(image)) for image in images])
        given = ImageList(normalised, [(256, 320)] * 3)
        features = reference.backbone(given.tensors)
        proposals, theirs = reference.rpn(given, features, targets)
        theirs |= reference.roi_heads(features, proposals, given.image_sizes, targets)[1]
        ours = head.loss(predictor(batch), _padded(targets), (256, 320))
    names = {"objectness": "loss_objectness", "proposal": "loss_rpn_box_reg", "class": "loss_classifier",
             "box": "loss_box_reg"}
    for name, other in names.items():
        torch.testing.assert_close(ours[name].sum / ours[name].count, theirs[other], rtol=1e-4, atol=1e-6)


def _padded(targets: Sequence[dict[str, Tensor]]) -> BoxTargets:
    padded = BoxTargets(torch.zeros(3, 3, 4), torch.full((3, 3), -1), torch.zeros(3, 3, dtype=torch.bool))
    for row, target in enumerate(targets):
        padded.boxes[row, : len(target["labels"])] = target["boxes"]
        padded.labels[row, : len(target["labels"])] = target["labels"] - 1
    return padded
