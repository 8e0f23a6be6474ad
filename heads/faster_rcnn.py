"""Faster R-CNN on a feature pyramid: a network proposes regions, another says what each of them shows.

Ren et al. 2015, arXiv 1506.01497; the pyramid: Lin et al. 2017, arXiv 1612.03144. The wiring and all numbers are
torchvision's (FasterRCNN, RegionProposalNetwork, RoIHeads), with which its MobileNetV3 detectors were published. Three
things differ: a batch is worked on as a whole, with a fixed number of regions; anchors and regions inside a crowd are
neither objects nor background; and all losses are divided by one number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg import boxes, matching
from detseg.anchors import GridAnchors, image_limits, predict_rows
from detseg.interfaces import BoxTargets, DenseBoxes, Features, FeatureSpec, Head, Losses, Size
from detseg.layers import normal_weights
from detseg.roi_align import roi_align
from detseg.suppression import suppress, used_rows

ANCHOR_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
REGION_SIZE = 7
"""Rows and columns of a region's features."""
SMALLEST_REGION, SMALLEST_BOX = 1e-3, 1e-2
"""Pixels: what has a shorter side is no region, and no detection."""


class RCNNRaw(NamedTuple):
    """What the anchors say, from which regions are proposed, and the maps from which these are cut."""

    logits: Tensor
    """[B, N]: whether there is an object."""
    deltas: Tensor
    """[B, N, 4], encoded with ANCHOR_WEIGHTS."""
    anchors: Tensor
    """[N, 4] xyxy in network pixels."""
    limits: Tensor
    """[4]: width, height, width, height of the network's image."""
    maps: tuple[Tensor, ...]
    """The pyramid, each [B, C, H, W]."""


class FasterRCNN(Head[BoxTargets, RCNNRaw, DenseBoxes]):
    """Proposes regions on all maps of a pyramid, and cuts them from all but the last.

    specs: the neck's, from fine to coarse. proposals: of each map so many of the surest anchors enter suppression, and
    of what is left so many are classified; training_proposals: the same in the loss. min_objectness: less sure anchors
    propose nothing. anchor_samples, region_samples: so many of an image teach, at most half and a quarter of them
    objects. hidden: the width of the two layers before the classifier.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, anchors: GridAnchors, proposals: int = 1000,
        training_proposals: int = 2000, min_objectness: float = 0.05, anchor_samples: int = 256,
        region_samples: int = 512, hidden: int = 1024,
    ) -> None:
        super().__init__()
        _check(specs, num_classes, anchors)
        numbers = (proposals, training_proposals, anchor_samples, region_samples)
        if min(numbers) < 1 or not 0 <= min_objectness < 1:
            raise ValueError("proposals, training_proposals, anchor_samples and region_samples must be at least 1, got "
                             f"{numbers}, and min_objectness must lie in [0, 1), got {min_objectness}")
        self.maps, self.strides = tuple(specs), tuple(spec.stride for spec in specs.values())
        self.anchors, self.min_objectness = anchors, min_objectness
        self.proposals, self.training_proposals = proposals, training_proposals
        self.anchor_samples, self.region_samples = anchor_samples, region_samples
        self.num_outputs, self.class_layers = num_classes + 1, {"score": 1, "box": 4}

        channels = specs[self.maps[0]].channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors.num_per_cell[0], 1)
        self.shift = nn.Conv2d(channels, anchors.num_per_cell[0] * 4, 1)
        self.hidden = nn.Sequential(
            nn.Linear(channels * REGION_SIZE ** 2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.score = nn.Linear(hidden, self.num_outputs)
        self.box = nn.Linear(hidden, self.num_outputs * 4)
        normal_weights(self, std=0.01)

    def forward(self, features: Features, size: Size) -> RCNNRaw:
        """Maps by name to what the anchors say in images of `size`, which may be less than the maps span."""
        maps = tuple(features[name] for name in self.maps)
        seen = [F.relu(self.conv(x)) for x in maps]
        logits = predict_rows([self.objectness] * len(maps), seen, columns=1)[..., 0]
        deltas = predict_rows([self.shift] * len(maps), seen, columns=4)
        spanned = (maps[0].shape[2] * self.strides[0], maps[0].shape[3] * self.strides[0])
        anchors = self.anchors([(x.shape[2], x.shape[3]) for x in maps], spanned, device=logits.device)
        return RCNNRaw(logits, deltas, anchors, image_limits(size, device=logits.device), maps)

    def loss(self, raw: RCNNRaw, targets: BoxTargets) -> Losses:
        """Of the anchors and of the regions, each torchvision's mean over its samples, times the number of sampled
        anchors, by which all are to be divided."""
        objectness, proposal, num_anchors = self._anchor_loss(raw, targets)
        classification, box, num_regions = self._region_loss(raw, targets)
        factor = num_anchors / num_regions.clamp(min=1)
        return Losses({"objectness": objectness, "proposal": proposal, "class": factor * classification,
                       "box": factor * box}, num_anchors)

    def decode(self, raw: RCNNRaw) -> DenseBoxes:
        """For each proposed region the box and probability of every class; rows without a region have score 0."""
        regions, valid = self._propose(raw, self.proposals)
        used = used_rows(valid)
        left_out, regions, valid = regions.shape[1] - used, regions[:, :used], valid[:, :used]
        logits, deltas = self._classify(raw, regions)
        inside = _inside(boxes.decode(deltas[:, :, 1:], regions[:, :, None], BOX_WEIGHTS), raw.limits)
        meant = _is_large(inside, SMALLEST_BOX) & valid[..., None]
        scores = torch.where(meant, logits.softmax(-1)[..., 1:], 0.0)
        return DenseBoxes(F.pad(inside, (0, 0, 0, 0, 0, left_out)), F.pad(scores, (0, 0, 0, left_out)))

    def _propose(self, raw: RCNNRaw, number: int) -> tuple[Tensor, Tensor]:
        """The surest regions [B, P, 4], suppressed map by map, and which rows are meant, [B, P]: the first ones."""
        logits, deltas = raw.logits.detach().float(), raw.deltas.detach().float()
        num_anchors = [x.shape[2] * x.shape[3] * self.anchors.num_per_cell[0] for x in raw.maps]
        number = min(number, sum(num_anchors))
        most = min(number, max(num_anchors))
        regions, scores = [], []
        parts = (x.split_with_sizes(num_anchors, -2) for x in (logits[..., None], deltas, raw.anchors))
        for sure, shift, anchors in zip(*parts, strict=True):
            best, rows = sure[..., 0].topk(min(number, len(anchors)))
            inside = _inside(boxes.decode(_rows(shift, rows), anchors[rows], ANCHOR_WEIGHTS), raw.limits)
            left_out = most - rows.shape[1]
            regions.append(F.pad(inside, (0, 0, 0, left_out)))
            scores.append(F.pad(torch.where(_is_large(inside, SMALLEST_REGION), best.sigmoid(), 0.0), (0, left_out)))
        # Maps do not see each other's regions, just as images do not.
        kept = suppress(
            DenseBoxes(torch.cat(regions), torch.cat(scores)[..., None]), score_threshold=self.min_objectness,
            iou_threshold=0.7, per_class=most, max_detections=most, candidates=most)
        of_image = [torch.cat(x.chunk(len(raw.maps)), 1) for x in (kept.boxes, kept.scores)]
        best, rows = of_image[1].topk(number)
        return _rows(of_image[0], rows), best > 0

    def _classify(self, raw: RCNNRaw, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Regions [B, P, 4] to logits [B, P, K + 1], background first, and deltas [B, P, K + 1, 4]."""
        maps = [x.float() for x in raw.maps[:-1]]
        hidden = self.hidden(roi_align(maps, regions, strides=self.strides[:-1], size=REGION_SIZE).flatten(2))
        return self.score(hidden), self.box(hidden).reshape(*regions.shape[:2], -1, 4)

    def _anchor_loss(self, raw: RCNNRaw, targets: BoxTargets) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness and box loss of sampled anchors, and how many they are."""
        matched_BN = matching.match(
            raw.anchors, targets, limits=raw.limits, positive=0.7, negative=0.3, keep_best=False, keep_ties=True)
        rows, counted = matching.sample(matched_BN, self.anchor_samples, positive_share=0.5)
        matched = matched_BN.gather(1, rows)
        positive = (matched >= 0) & counted
        objectness = F.binary_cross_entropy_with_logits(
            raw.logits.float().gather(1, rows), positive.float(), reduction="none")
        wanted, _ = matching.gather_targets(targets, matched)
        box = _box_loss(_rows(raw.deltas.float(), rows), raw.anchors[rows], wanted, positive, weights=ANCHOR_WEIGHTS)
        return (objectness * counted).sum(), box, counted.sum()

    def _region_loss(self, raw: RCNNRaw, targets: BoxTargets) -> tuple[Tensor, Tensor, Tensor]:
        """Classification and box loss of sampled regions, the true boxes among them, and how many they are."""
        regions, valid = self._propose(raw, self.training_proposals)
        regions = torch.cat((regions, targets.boxes), 1)
        valid = torch.cat((valid, (targets.labels >= 0) & ~targets.crowd), 1)
        matched_BP = matching.match(
            regions, targets, limits=raw.limits, positive=0.5, negative=0.5, keep_best=False)
        matched_BP = torch.where(valid, matched_BP, matching.IGNORED)
        rows, counted = matching.sample(matched_BP, self.region_samples, positive_share=0.25)
        used = used_rows(counted)
        rows, counted = rows[:, :used], counted[:, :used]
        regions, matched = _rows(regions, rows), matched_BP.gather(1, rows)

        logits, deltas = self._classify(raw, regions)
        outputs = matching.wanted_outputs(targets, matched, first=1, negative=0).clamp(min=0)
        classification = F.cross_entropy(logits.flatten(0, 1), outputs.flatten(), reduction="none").view_as(outputs)
        of_class = deltas.gather(2, outputs[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
        wanted, _ = matching.gather_targets(targets, matched)
        box = _box_loss(of_class, regions, wanted, (matched >= 0) & counted, weights=BOX_WEIGHTS)
        return (classification * counted).sum(), box, counted.sum()


def _check(specs: Mapping[str, FeatureSpec], num_classes: int, anchors: GridAnchors) -> None:
    """Refuses pyramids and anchors that do not go together, with ValueError."""
    if num_classes < 1:
        raise ValueError(f"a detector needs at least one class, got {num_classes}")
    if len(specs) != len(anchors.sizes) or len(specs) < 2:
        raise ValueError(f"the pyramid has {len(specs)} maps ({', '.join(specs)}), but the anchors are for "
                         f"{len(anchors.sizes)}; they must be as many, and at least two")
    widths, shapes = {spec.channels for spec in specs.values()}, set(anchors.num_per_cell)
    if len(widths) > 1 or len(shapes) > 1:
        raise ValueError("all maps share their predictors and need the same number of channels and of anchors a cell, "
                         f"got {sorted(widths)} channels and {sorted(shapes)} anchors")
    strides = [spec.stride for spec in specs.values()][:-1]
    distinct = sorted(set(strides))
    if strides[:len(distinct)] != [strides[0] * 2 ** k for k in range(len(distinct))]:
        raise ValueError("regions are cut from maps of which each has twice the stride of the one before, got "
                         f"{strides}: choose other taps")


def _inside(found: Tensor, limits: Tensor) -> Tensor:
    return torch.minimum(found.clamp(min=0.0), limits)


def _is_large(found: Tensor, smallest: float) -> Tensor:
    """Whether both sides reach `smallest` pixels."""
    return (found[..., 2] - found[..., 0] >= smallest) & (found[..., 3] - found[..., 1] >= smallest)


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """The rows [B, S] of values [B, N, 4], [B, S, 4]."""
    return values.gather(1, rows[..., None].expand(-1, -1, 4))


def _box_loss(
    deltas: Tensor, regions: Tensor, wanted: Tensor, positive: Tensor, *, weights: tuple[float, float, float, float]
) -> Tensor:
    """Smooth L1 with its bend at 1 / 9, summed over what is positive."""
    # Elsewhere boxes may have no area, and what is no number would poison the gradient of the others.
    regions, wanted = (
        torch.where(positive[..., None], x, x.new_tensor((0.0, 0.0, 1.0, 1.0))) for x in (regions, wanted))
    loss = F.smooth_l1_loss(deltas, boxes.encode(wanted, regions, weights), reduction="none", beta=1 / 9)
    return (loss * positive[..., None]).sum()
