"""torchvision's SSDLite, its weights loaded here, gives the same detections."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from detseg import config
from detseg.data.coco import COCO_90
from detseg.data.images import read_image
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.structures import BoxTargets, ImageDetections, Pixels
from detseg.tasks.detection import Detection
from detseg.weights.load import load_weights
from heads.ssdlite import SSDLite

from .conftest import ROOT


@cache
def _reference(*, how: str) -> Any:
    """torchvision's detector: "initial" as it is built, "trained" with statistics and scores that differ by image."""
    torch.manual_seed(1)
    reference: Any = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    if how == "initial":
        return reference.eval()
    for module in reference.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # a few steps suffice for statistics under which activations do not vanish
    reference.train()
    optimizer = torch.optim.SGD(reference.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(4):
        images = [torch.rand(3, 1, 1) * torch.rand(3, 200, 300) for _ in range(8)]
        boxes = torch.tensor([[10.0, 20.0, 150.0, 180.0], [50.0, 60.0, 260.0, 120.0]])
        losses = reference(images, [{"boxes": boxes, "labels": torch.tensor([1, 5])}] * 8)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():  # few steps teach little: let the scores differ, as those of a trained network do
        for predictor in reference.head.classification_head.module_list:
            predictor[1].weight.mul_(50)
    return reference.eval()


def _ours(reference: nn.Module, folder: Path) -> Predictor:
    file = folder / "ssdlite320_mobilenet_v3_large_coco-random.pth"
    torch.save(reference.state_dict(), file)
    predictor = config.load(ROOT / "configs" / "ssdlite_v3_large.py").build_model(COCO_90)
    report = load_weights(predictor, str(file))
    assert report.left_over == ()
    assert report.fresh == ()
    return predictor.eval()


def _theirs(reference: nn.Module, image: Pixels) -> dict[str, Tensor]:
    with torch.inference_mode():
        found: list[dict[str, Tensor]] = reference([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
    return found[0]


def _unmatched(found: ImageDetections, theirs: dict[str, Tensor]) -> int:
    """How many of torchvision's detections have no match here: same label, score to 1e-4, box to 1e-4 of 640."""
    near = ((found.labels[:, None] + 1 == theirs["labels"])
            & ((found.scores[:, None] - theirs["scores"]).abs() < 1e-4)
            & ((found.boxes[:, None] - theirs["boxes"]).abs().amax(-1) < 1e-4 * 640))
    return int((~near.any(0)).sum())


@pytest.mark.real
@pytest.mark.parametrize("folded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_detections_equal_torchvision_on_real_images(shared: Path, tmp_path: Path, folded: bool) -> None:
    reference = _reference(how="trained")
    predictor = _ours(reference, tmp_path)
    predictor = predictor.folded() if folded else predictor
    files = sorted((shared / "data" / "coco_mini" / "val2017").glob("*.jpg"))[:8]
    images = [read_image(file) for file in files]
    assert len({image.shape for image in images}) > 4
    for image in images:
        found, theirs = predict_image(predictor, Detection(), image), _theirs(reference, image)
        assert len(found.scores) == len(theirs["scores"]) == 300
        assert len(set(theirs["scores"].tolist())) > 100, "too many ties to compare anything"
        # Folding and the number of threads move the last digits, and this network gives neighbouring anchors scores
        # that differ by less: greedy suppression may then begin at either.
        assert _unmatched(found, theirs) <= 3


@pytest.mark.real
def test_raw_outputs_equal_torchvision_where_scores_tie(shared: Path, tmp_path: Path) -> None:
    """An untrained network gives one score to all; which rows come first is then arbitrary, the outputs are not."""
    reference = _reference(how="initial")
    predictor = _ours(reference, tmp_path)
    image = read_image(sorted((shared / "data" / "coco_mini" / "val2017").glob("*.jpg"))[0])
    with torch.inference_mode():
        given, _ = reference.transform([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
        features = list(reference.backbone(given.tensors).values())
        theirs, anchors = reference.head(features), reference.anchor_generator(given, features)[0]
        raw = predictor(torch.from_numpy(predictor.resize.apply(image)).permute(2, 0, 1)[None])
    head = predictor.head
    assert isinstance(head, SSDLite)
    logits, deltas = raw.rows(head.num_outputs)
    own_anchors = head.anchors([(x.shape[2], x.shape[3]) for x in raw.logits], (320, 320), device=logits.device)
    torch.testing.assert_close(logits, theirs["cls_logits"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deltas, theirs["bbox_regression"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own_anchors, anchors, rtol=0, atol=1e-4)
    found = predict_image(predictor, Detection(), image)
    torch.testing.assert_close(found.scores, _theirs(reference, image)["scores"], rtol=0, atol=1e-4)


def test_the_loss_equals_torchvision(tmp_path: Path) -> None:
    reference = _reference(how="trained")
    predictor = _ours(reference, tmp_path)
    head = predictor.head
    assert isinstance(head, SSDLite)
    head.min_negatives = 0
    images = torch.rand(3, 3, 320, 320)
    boxes = torch.tensor([[10.0, 20.0, 150.0, 180.0], [50.0, 60.0, 260.0, 120.0], [5.0, 5.0, 30.0, 20.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 5, 90])}, {"boxes": boxes[:1], "labels": torch.tensor([7])},
               {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)}]
    batch = Detection().collate_targets([_box_targets(target) for target in targets], (320, 320))
    with torch.no_grad():
        features = list(reference.backbone((images - 0.5) / 0.5).values())
        outputs = reference.head(features)
        raw = predictor(images * 255)
        anchors = [head.anchors([(x.shape[2], x.shape[3]) for x in raw.logits], (320, 320), device=images.device)] * 3
        matcher, matched = SSDMatcher(0.5), []
        for target in targets:
            matched.append(matcher(box_iou(target["boxes"], anchors[0])) if len(target["boxes"])
                           else torch.full((len(anchors[0]),), -1))
        theirs = reference.compute_loss(targets, outputs, anchors, matched)
        ours = head.loss(raw, batch, (320, 320))
    for name, other in (("box", "bbox_regression"), ("class", "classification")):
        torch.testing.assert_close(ours[name].sum / ours[name].count, theirs[other], rtol=1e-4, atol=1e-5)


def _box_targets(target: dict[str, Tensor]) -> BoxTargets:
    labels = target["labels"] - 1
    return BoxTargets(target["boxes"], labels, torch.zeros(len(labels), dtype=torch.bool))
