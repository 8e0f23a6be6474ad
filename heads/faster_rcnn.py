"""Faster R-CNN on a feature pyramid: a network proposes regions, another says what each of them shows.

Ren et al. 2015, arXiv 1506.01497; the pyramid: Lin et al. 2017, arXiv 1612.03144. The wiring and all numbers are
torchvision's (FasterRCNN, RegionProposalNetwork, RoIHeads), with which its MobileNetV3 detectors were published. Three
things differ: a batch is worked on as a whole, with a fixed number of regions; anchors and regions inside a crowd are
neither objects nor background; and losses are divided by the counts of the whole batch, not by each process's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.interfaces import Features, FeatureSpec, Head, Losses, Term
from detseg.layers import normal_weights
from detseg.ops import boxes, matching
from detseg.ops.anchors import CachedAnchors, GridAnchors, to_rows
from detseg.ops.roi_align import roi_align
from detseg.ops.suppression import suppress, used_rows
from detseg.structures import BoxTargets, DenseBoxes, Size

ANCHOR_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
REGION_SIZE = 7
"""Rows and columns of a region's features."""
SMALLEST_REGION, SMALLEST_BOX = 1e-3, 1e-2
"""Pixels: what has a shorter side is no region, and no detection."""


class RCNNRaw(NamedTuple):
    """What the anchors say, from which regions are proposed, and the maps from which these are cut; map by map."""

    logits: tuple[Tensor, ...]
    """Each [B, A, H, W]: whether there is an object."""
    deltas: tuple[Tensor, ...]
    """Each [B, A * 4, H, W], encoded with ANCHOR_WEIGHTS."""
    maps: tuple[Tensor, ...]
    """The pyramid, each [B, C, H, W]."""


class FasterRCNN(Head[BoxTargets, RCNNRaw, DenseBoxes]):
    """Proposes regions on all maps of a pyramid, and cuts them from all but the last.

    Args:
        specs: the neck's, from fine to coarse.
        num_classes: without background.
        anchors: of all maps.
        proposals: of each map so many of the surest anchors enter suppression, and of what is left so many are
            classified.
        training_proposals: the same in the loss.
        min_objectness: less sure anchors propose nothing.
        anchor_samples, region_samples: so many of an image enter the loss, at most half and a quarter of them objects.
        box_weights: of the encoding of boxes in regions.
        hidden: the width of the two layers before the classifier.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, anchors: GridAnchors, proposals: int = 1000,
        training_proposals: int = 2000, min_objectness: float = 0.05, anchor_samples: int = 256,
        region_samples: int = 512, box_weights: tuple[float, float, float, float] = BOX_WEIGHTS, hidden: int = 1024,
    ) -> None:
        super().__init__()
        _check(specs, num_classes, anchors)
        numbers = (proposals, training_proposals, anchor_samples, region_samples)
        if min(numbers) < 1 or not 0 <= min_objectness < 1:
            raise ValueError("proposals, training_proposals, anchor_samples and region_samples must be at least 1, got "
                             f"{numbers}, and min_objectness must lie in [0, 1), got {min_objectness}")
        self.maps, self.strides = tuple(specs), tuple(spec.stride for spec in specs.values())
        self.anchors, self._anchors = anchors, CachedAnchors(anchors, stride=self.strides[0])
        self.min_objectness, self.box_weights = min_objectness, box_weights
        self.proposals, self.training_proposals = proposals, training_proposals
        self.anchor_samples, self.region_samples = anchor_samples, region_samples
        self.num_outputs, self.class_layers = num_classes + 1, {"second_stage.score": 1, "second_stage.box": 4}

        channels = specs[self.maps[0]].channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors.num_per_cell[0], 1)
        self.shift = nn.Conv2d(channels, anchors.num_per_cell[0] * 4, 1)
        self.second_stage: _RegionLayers = _RegionLayers(channels, self.num_outputs, hidden=hidden)
        normal_weights(self, std=0.01)

    def forward(self, features: Features) -> RCNNRaw:
        """Maps by name to what the anchors say."""
        maps = tuple(features[name] for name in self.maps)
        seen = [F.relu(self.conv(x)) for x in maps]
        return RCNNRaw(tuple(self.objectness(x) for x in seen), tuple(self.shift(x) for x in seen), maps)

    def loss(self, raw: RCNNRaw, targets: BoxTargets, size: Size) -> Losses:
        """Of the anchors and of the regions; each with the count of its samples."""
        objectness, proposal, num_anchors = self._anchor_loss(raw, targets, size)
        classification, box, num_regions = self._region_loss(raw, targets, size)
        return {"objectness": Term(objectness, num_anchors), "proposal": Term(proposal, num_anchors),
                "class": Term(classification, num_regions), "box": Term(box, num_regions)}

    def decode(self, raw: RCNNRaw, size: Size, *, static: bool = False) -> DenseBoxes:
        """For each proposed region the box and probability of every class; rows without a region have score 0."""
        regions, valid = self._propose(raw, size, self.proposals, static=static)
        used = regions.shape[1] if static else used_rows(valid)
        left_out, regions, valid = regions.shape[1] - used, regions[:, :used], valid[:, :used]
        logits, deltas = self._classify(raw, regions, static=static)
        inside = boxes.clip(boxes.decode(deltas[:, :, 1:], regions[:, :, None], self.box_weights), size)
        kept = _is_large(inside, SMALLEST_BOX) & valid[..., None]
        scores = torch.where(kept, logits.softmax(-1)[..., 1:], 0.0)
        return DenseBoxes(F.pad(inside, (0, 0, 0, 0, 0, left_out)), F.pad(scores, (0, 0, 0, left_out)))

    def _propose(self, raw: RCNNRaw, size: Size, number: int, *, static: bool) -> tuple[Tensor, Tensor]:
        """The surest regions [B, P, 4], suppressed map by map, and which rows are valid, [B, P]: the first ones."""
        num_anchors = [x.shape[2] * x.shape[3] * self.anchors.num_per_cell[0] for x in raw.maps]
        number = min(number, sum(num_anchors))
        most = min(number, max(num_anchors))
        regions, scores = [], []
        anchors_of_maps = self._anchors(raw.maps, size, static=static).split_with_sizes(num_anchors)
        for logits, deltas, anchors in zip(raw.logits, raw.deltas, anchors_of_maps, strict=True):
            best, rows = to_rows([logits.detach().float()], columns=1)[..., 0].topk(min(number, len(anchors)))
            shift = _rows(to_rows([deltas.detach().float()], columns=4), rows)
            inside = boxes.clip(boxes.decode(shift, anchors[rows], ANCHOR_WEIGHTS), size)
            left_out = most - rows.shape[1]
            regions.append(F.pad(inside, (0, 0, 0, left_out)))
            scores.append(F.pad(torch.where(_is_large(inside, SMALLEST_REGION), best.sigmoid(), 0.0), (0, left_out)))
        # Maps do not see each other's regions, just as images do not.
        kept = suppress(
            DenseBoxes(torch.cat(regions), torch.cat(scores)[..., None]), score_threshold=self.min_objectness,
            iou_threshold=0.7, per_class=most, max_detections=most, candidates=most, static=static)
        of_image = [torch.cat(x.chunk(len(raw.maps)), 1) for x in (kept.boxes, kept.scores)]
        best, rows = of_image[1].topk(number)
        return _rows(of_image[0], rows), best > 0

    def _classify(self, raw: RCNNRaw, regions: Tensor, *, static: bool) -> tuple[Tensor, Tensor]:
        """Regions [B, P, 4] to logits [B, P, K + 1], background first, and deltas [B, P, K + 1, 4]."""
        maps = [x.float() for x in raw.maps[:-1]]
        features = roi_align(maps, regions, strides=self.strides[:-1], size=REGION_SIZE, static=static)
        logits, deltas = self.second_stage(features)
        return logits.float(), deltas.float().reshape(*regions.shape[:2], -1, 4)

    def _anchor_loss(self, raw: RCNNRaw, targets: BoxTargets, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness and box loss of sampled anchors, and how many they are."""
        anchors = self._anchors(raw.maps, size)
        matched_BN = matching.match(
            anchors, targets, size, positive=0.7, negative=0.3, keep_best=False, keep_ties=True)
        rows, counted = matching.subsample(
            matched_BN, self.anchor_samples, positive_share=0.5, seed_B=targets.seed, stream=0)
        matched = matched_BN.gather(1, rows)
        positive = (matched >= 0) & counted
        logits = to_rows(raw.logits, columns=1)[..., 0].float()
        objectness = F.binary_cross_entropy_with_logits(logits.gather(1, rows), positive.float(), reduction="none")
        wanted, _ = matching.gather_targets(targets, matched)
        deltas = _rows(to_rows(raw.deltas, columns=4).float(), rows)
        box = _box_loss(deltas, anchors[rows], wanted, positive, weights=ANCHOR_WEIGHTS)
        return (objectness * counted).sum(), box, counted.sum()

    def _region_loss(self, raw: RCNNRaw, targets: BoxTargets, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Classification and box loss of sampled regions, the true boxes among them, and how many they are."""
        regions, valid = self._propose(raw, size, self.training_proposals, static=False)
        regions = torch.cat((regions, targets.boxes), 1)
        valid = torch.cat((valid, (targets.labels >= 0) & ~targets.crowd), 1)
        matched_BP = matching.match(regions, targets, size, positive=0.5, negative=0.5, keep_best=False)
        matched_BP = torch.where(valid, matched_BP, matching.IGNORED)
        rows, counted = matching.subsample(
            matched_BP, self.region_samples, positive_share=0.25, seed_B=targets.seed, stream=1)
        used = used_rows(counted)
        rows, counted = rows[:, :used], counted[:, :used]
        regions, matched = _rows(regions, rows), matched_BP.gather(1, rows)

        logits, deltas = self._classify(raw, regions, static=False)
        outputs = matching.wanted_outputs(targets, matched, first=1, negative=0).clamp(min=0)
        classification = F.cross_entropy(logits.flatten(0, 1), outputs.flatten(), reduction="none").view_as(outputs)
        of_class = deltas.gather(2, outputs[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
        wanted, _ = matching.gather_targets(targets, matched)
        box = _box_loss(of_class, regions, wanted, (matched >= 0) & counted, weights=self.box_weights)
        return (classification * counted).sum(), box, counted.sum()


class _RegionLayers(nn.Module):
    """The second stage: a region's features to what it shows."""

    def __init__(self, channels: int, num_outputs: int, *, hidden: int) -> None:
        super().__init__()
        self.input_shape = (channels, REGION_SIZE, REGION_SIZE)
        self.hidden = nn.Sequential(
            nn.Linear(channels * REGION_SIZE ** 2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.score = nn.Linear(hidden, num_outputs)
        self.box = nn.Linear(hidden, num_outputs * 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, P, channels, 7, 7] to logits [B, P, outputs] and deltas [B, P, outputs * 4]."""
        x = self.hidden(features.flatten(2))
        return self.score(x), self.box(x)


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
