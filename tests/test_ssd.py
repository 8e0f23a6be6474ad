"""SSD: the paper's exact cost, torchvision's SSD gives the same, and what is learnt from a crowd and an empty image."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd as torchvision_ssd
from torchvision.models.detection._utils import SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.ops import box_iou

from detseg import config
from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.cost import count_macs, count_parameters
from detseg.data.coco import COCO_80
from detseg.interfaces import FeatureSpec
from detseg.model import Predictor
from detseg.ops.anchors import AnchorRaw, SSDAnchors
from detseg.resize import Stretch
from detseg.structures import BoxTargets, Classes
from detseg.tasks.detection import Detection
from heads.ssd import SSD

from .conftest import ROOT
from .one_stage import box_targets

SIZE = (96, 160)
MAPS = [(6, 10), (3, 5), (2, 3), (1, 2), (1, 1), (1, 1)]
CLASSES = Classes(names=("cat", "dog", "cow"), source_ids=(3, 5, 9))
EVERYWHERE = (0.0, 0.0, 160.0, 96.0)


def test_the_head_alone_costs_what_table_5_of_the_v2_paper_says() -> None:
    backbone = mobilenet_v2(taps=("c4.expansion", "c5"))
    head = SSD(backbone.specs, 80, anchors=SSDAnchors(three_on_first=True))
    features = {"c4.expansion": torch.empty(1, 576, 20, 20), "c5": torch.empty(1, 1280, 10, 10)}
    macs = count_macs(head, features)
    assert count_parameters(head) == 14_776_629
    assert macs == 1_259_068_672
    assert round(14_776_629 / 1e6, 1) == 14.8
    assert int(macs / 1e7) == 125, "the paper cuts off: 1.25 B"


def test_the_whole_costs_what_its_config_says() -> None:
    predictor = config.load(ROOT / "configs" / "ssd_v2.py").build_model(COCO_80)
    assert count_parameters(predictor) == 17_000_501
    assert count_macs(predictor, torch.empty(1, 3, 320, 320, device="meta")) == 1_870_281_472


# ------------------------------------------------------------------------------------------ against torchvision


def _predictor(*, min_negatives: int = 3) -> Predictor:
    backbone = mobilenet_v2(width=0.25, taps=("c4.expansion", "c5"), scale_last=True)
    head = SSD(backbone.specs, len(CLASSES), anchors=SSDAnchors(clip_sizes=False), width=0.1,
               min_negatives=min_negatives)
    return Predictor(backbone, head, classes=CLASSES, resize=Stretch(SIZE), mean=(0.5, 0.5, 0.5), std=(0.25, 0.3, 0.2))


def _used(predictor: Predictor) -> Predictor:
    """As after training: statistics that are not trivial, and scores that differ from anchor to anchor."""
    for module in predictor.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.normal_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    predictor.train()
    with torch.no_grad():
        for _ in range(4):
            predictor(torch.rand(8, 3, 1, 1) * 255 * torch.rand(8, 3, *SIZE))
    return predictor.eval()


class _Maps(nn.Module):
    """What torchvision calls a backbone: every map that boxes are predicted on."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.backbone, self.head = predictor.backbone, predictor.head

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = list(self.backbone(images).values())
        extras = self.head.get_submodule("extras")
        for extra in extras.children():
            maps.append(extra(maps[-1]))
        return OrderedDict((str(k), x) for k, x in enumerate(maps))


def _reference(predictor: Predictor, task: Detection) -> Any:
    """torchvision's SSD with its own head, anchors, decoding and loss, on our maps and with our predictors' weights."""
    head = predictor.head
    assert isinstance(head, SSD)
    weights = {f"{theirs}.module_list.{key}": tensor
               for theirs, ours in (("classification_head", head.classify), ("regression_head", head.locate))
               for key, tensor in ours.state_dict().items()}
    channels = [layer.in_channels for layer in head.classify.children() if isinstance(layer, nn.Conv2d)]
    reference_head = torchvision_ssd.SSDHead(channels, [6] * 6, len(CLASSES) + 1)
    reference_head.load_state_dict(weights)
    return torchvision_ssd.SSD(
        _Maps(predictor), DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95, clip=False),
        (SIZE[1], SIZE[0]), len(CLASSES) + 1, head=reference_head,
        image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.3, 0.2],
        score_thresh=task.score_threshold, nms_thresh=task.iou_threshold, topk_candidates=task.per_class,
        detections_per_img=task.max_detections).eval()


def test_detections_equal_torchvision() -> None:
    task = Detection(score_threshold=0.05, iou_threshold=0.5, per_class=100, max_detections=50)
    predictor = _used(_predictor())
    reference = _reference(predictor, task)
    images = torch.rand(3, 3, 1, 1) * torch.rand(3, 3, *SIZE)
    with torch.inference_mode():
        raw: AnchorRaw = predictor(images * 255)
        found = task.postprocess(predictor.head.decode(raw, SIZE))
        theirs = reference(list(images))
        outputs = reference.head(list(reference.backbone(reference.transform(list(images))[0].tensors).values()))
    logits, deltas = raw.rows(len(CLASSES) + 1)
    for mine, other in ((logits, outputs["cls_logits"]), (deltas, outputs["bbox_regression"])):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-5 * float(other.abs().max()))
    assert found.num_valid.tolist() == [len(rows["scores"]) for rows in theirs]
    assert min(found.num_valid.tolist()) > 10
    for row, wanted in enumerate(theirs):
        num_valid = int(found.num_valid[row])
        assert len(set(wanted["scores"].tolist())) == num_valid
        assert torch.equal(found.labels[row, :num_valid] + 1, wanted["labels"])
        torch.testing.assert_close(found.scores[row, :num_valid], wanted["scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found.boxes[row, :num_valid], wanted["boxes"], rtol=0, atol=1e-2)


def test_the_loss_equals_torchvision() -> None:
    predictor = _used(_predictor(min_negatives=0))
    reference = _reference(predictor, Detection())
    targets = box_targets(
        [((10, 10, 70, 60), 0, False), ((90, 20, 150, 90), 2, False)], [((40, 5, 60, 90), 1, False)], [])
    given = [{"boxes": boxes[labels >= 0], "labels": labels[labels >= 0] + 1}
             for boxes, labels in zip(targets.boxes, targets.labels, strict=True)]
    anchors = SSDAnchors(clip_sizes=False)(MAPS, SIZE, device=predictor.device)
    with torch.no_grad():
        raw: AnchorRaw = predictor(torch.rand(3, 3, 1, 1) * 255 * torch.rand(3, 3, *SIZE))
        matched = [SSDMatcher(0.5)(box_iou(one["boxes"], anchors)) if len(one["boxes"])
                   else torch.full((len(anchors),), -1) for one in given]
        logits, deltas = raw.rows(len(CLASSES) + 1)
        theirs = reference.compute_loss(
            given, {"cls_logits": logits, "bbox_regression": deltas}, [anchors] * 3, matched)
        ours = predictor.head.loss(raw, targets, SIZE)
    assert ours.keys() == {"class", "box"}
    number = sum(int((index >= 0).sum()) for index in matched)
    assert [int(term.count) for term in ours.values()] == [number, number]
    torch.testing.assert_close(ours["class"].sum / number, theirs["classification"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours["box"].sum / number, theirs["bbox_regression"], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------ what it learns from


def _with_gradient(predictor: Predictor, targets: BoxTargets) -> tuple[Tensor, Tensor]:
    """Which anchors' boxes and which anchors' scores have a gradient, [B, N] each."""
    given: AnchorRaw = predictor.eval()(torch.rand(len(targets.labels), 3, *SIZE) * 255)
    raw = AnchorRaw(deltas=tuple(x.detach().requires_grad_() for x in given.deltas),
                    logits=tuple(x.detach().requires_grad_() for x in given.logits))
    losses = predictor.head.loss(raw, targets, SIZE)
    gradients = torch.autograd.grad(losses["class"].sum + losses["box"].sum, (*raw.deltas, *raw.logits))
    logits, deltas = AnchorRaw(deltas=gradients[:len(MAPS)], logits=gradients[len(MAPS):]).rows(len(CLASSES) + 1)
    assert bool(deltas.isfinite().all())
    assert bool(logits.isfinite().all())
    assert int((deltas != 0).any(-1).sum()) == int(losses["class"].count) == int(losses["box"].count)
    return (deltas != 0).any(-1), (logits != 0).any(-1)


def test_three_negatives_for_each_positive_and_three_where_there_is_none() -> None:
    objects = box_targets([((10, 10, 70, 60), 0, False), ((9, 9, 9, 9), 1, False)], [])
    boxes, scores = _with_gradient(_predictor(), objects)
    positives = int(boxes[0].sum())
    assert positives > 0
    assert scores.sum(1).tolist() == [4 * positives, 3]
    assert not boxes[1].any()


def test_no_object_at_all() -> None:
    boxes, scores = _with_gradient(_predictor(), box_targets([], []))
    assert not boxes.any()
    assert scores.sum(1).tolist() == [3, 3]


def test_a_crowd_is_ignored_by_the_loss_and_an_object_in_it_is_not() -> None:
    boxes, scores = _with_gradient(_predictor(min_negatives=10_000), box_targets(
        [(EVERYWHERE, 1, True)], [(EVERYWHERE, 1, True), ((10, 10, 70, 60), 0, False)]))
    assert not scores[0].any()
    assert bool(boxes[1].any())
    assert torch.equal(boxes[1], scores[1])


def test_it_begins_with_small_weights() -> None:
    layers = [layer for layer in _predictor().head.modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 4 * 2 + 6 * 2
    for layer in layers:
        assert 0.02 < float(layer.weight.detach().std()) < 0.04
        assert layer.bias is None or not layer.bias.any()


def test_its_layers_for_other_classes_and_its_widths() -> None:
    head = _predictor().head
    layers = dict(head.named_modules())
    outputs = [layer.out_channels for name in head.class_layers if isinstance(layer := layers[name], nn.Conv2d)]
    assert outputs == [6 * 4] * 6
    extras = [layer.out_channels for layer in head.get_submodule("extras").modules() if isinstance(layer, nn.Conv2d)]
    assert extras == [25, 51, 12, 25, 12, 25, 8, 16], "at least 16 are left"


@pytest.mark.parametrize(("classes", "options", "message"), [
    (0, {}, "a detector needs at least one class, got 0"),
    (3, {"extra_channels": (64, 32)}, "2 taps and 2 extra maps make 4, but the anchors are for 6: give as many "
                                      "extra_channels or set num_maps"),
])
def test_bad_arguments_are_explained(classes: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SSD({"c4": FeatureSpec(8, 16), "c5": FeatureSpec(8, 32)}, classes, anchors=SSDAnchors(), **options)
