"""Matching: by hand, against torchvision's matcher, and what must never be matched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.ops import box_iou

from detseg.anchors import SSDAnchors
from detseg.interfaces import BoxTargets
from detseg.matching import IGNORED, NEGATIVE, gather_targets, match

LIMITS = torch.tensor([320.0, 192.0, 320.0, 192.0])
ANCHORS = SSDAnchors()(
    [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2), (1, 1)], (192, 320), device=torch.device("cpu"))

# Four anchors in a row, 10 x 10 each, of which neighbours share half, and one far away.
ROW = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [15, 0, 25, 10], [100, 100, 110, 110]])


def _targets(*images: list[tuple[float, float, float, float]], crowd: tuple[tuple[int, int], ...] = ()) -> BoxTargets:
    """A padded batch; box m of an image has label 10 + m. `crowd` lists (image, box)."""
    num_boxes = max(len(image) for image in images)
    batch = BoxTargets(torch.zeros(len(images), num_boxes, 4), torch.full((len(images), num_boxes), -1),
                       torch.zeros(len(images), num_boxes, dtype=torch.bool))
    for row, image in enumerate(images):
        for number, box in enumerate(image):
            batch.boxes[row, number] = torch.tensor(box)
            batch.labels[row, number] = 10 + number
    for row, number in crowd:
        batch.crowd[row, number] = True
    return batch


def _match(
    targets: BoxTargets, *, positive: float = 0.5, negative: float = 0.5, keep_best: bool = True
) -> list[list[int]]:
    found: list[list[int]] = match(
        ROW, targets, limits=LIMITS, positive=positive, negative=negative, keep_best=keep_best).tolist()
    return found


def test_thresholds_by_hand() -> None:
    # IoU with the anchors: 1, 1/3, 0, 0, 0.
    targets = _targets([(0, 0, 10, 10)])
    assert _match(targets) == [[0, -1, -1, -1, -1]]
    assert _match(targets, positive=1 / 3, negative=0.2) == [[0, 0, -1, -1, -1]]
    assert _match(targets, positive=0.5, negative=0.2) == [[0, IGNORED, -1, -1, -1]]
    assert _match(targets, positive=0.5, negative=0.5, keep_best=False) == [[0, -1, -1, -1, -1]]
    assert NEGATIVE == -1


def test_an_anchor_takes_the_box_it_overlaps_most() -> None:
    # Anchor 1 has IoU 7/13 with the first box and 9/11 with the second.
    targets = _targets([(2, 0, 12, 10), (6, 0, 16, 10)])
    assert _match(targets, keep_best=False)[0][1] == 1
    assert _match(targets)[0][:2] == [0, 1]


def test_keep_best_gives_every_box_its_anchor_however_small_the_overlap() -> None:
    small = _targets([(101, 101, 103, 103)])
    assert _match(small) == [[-1, -1, -1, -1, 0]]
    assert _match(small, keep_best=False) == [[-1] * 5]
    assert _match(_targets([(200, 100, 210, 110)])) == [[-1] * 5], "a box that overlaps no anchor has none"


def test_of_two_boxes_with_the_same_best_anchor_the_later_gets_it() -> None:
    targets = _targets([(101, 101, 108, 108), (102, 102, 104, 104)])
    assert _match(targets)[0][4] == 1
    # The best anchor of a later box is taken from a box that overlaps it more, as in torchvision.
    assert _match(_targets([(100, 100, 110, 110), (102, 102, 104, 104)]))[0][4] == 1


def test_images_of_a_batch_do_not_see_each_other() -> None:
    many = _targets([(0, 0, 10, 10)], [], [(15, 0, 25, 10), (100, 100, 110, 110)])
    assert _match(many) == [[0, -1, -1, -1, -1], [-1] * 5, [-1, -1, -1, 0, 1]]


def test_padding_is_never_matched() -> None:
    """Padding is a box of zeros; an anchor at the corner must not take it, not even as its best."""
    targets = BoxTargets(torch.zeros(2, 3, 4), torch.full((2, 3), -1), torch.zeros(2, 3, dtype=torch.bool))
    assert _match(targets) == [[-1] * 5] * 2
    # The same for padding that holds anything.
    noise = targets._replace(boxes=torch.tensor([0.0, 0, 10, 10]).expand(2, 3, 4))
    assert _match(noise) == [[-1] * 5] * 2
    assert _match(noise._replace(crowd=torch.ones(2, 3, dtype=torch.bool))) == [[-1] * 5] * 2
    with pytest.raises(AssertionError, match="padding, must not be matched"):
        _match(targets, positive=0.0, negative=0.0)


def test_no_boxes_at_all() -> None:
    targets = BoxTargets(torch.zeros(3, 0, 4), torch.zeros(3, 0).long(), torch.zeros(3, 0).bool())
    matched = match(ANCHORS, targets, limits=LIMITS, positive=0.5, negative=0.4, keep_best=True)
    assert matched.shape == (3, len(ANCHORS))
    assert matched.dtype == torch.int64
    assert bool((matched == NEGATIVE).all())
    boxes, labels = gather_targets(targets, matched)
    assert boxes.shape == (3, len(ANCHORS), 4)
    assert labels.shape == (3, len(ANCHORS))


def test_boxes_without_area_match_nothing() -> None:
    assert _match(_targets([(5, 5, 5, 9), (3, 3, 3, 3), (100, 100, 110, 110)])) == [[-1, -1, -1, -1, 2]]


def test_crowds_are_ignored_and_never_matched() -> None:
    # Half of anchor 1 and all of anchors 2 and 3 lie in the crowd; a quarter of anchor 0 does not matter.
    crowd = (10.0, 0.0, 30.0, 10.0)
    assert _match(_targets([crowd], crowd=((0, 0),))) == [[-1, IGNORED, IGNORED, IGNORED, -1]]
    # A true box inside the crowd keeps its anchor.
    both = _targets([crowd, (10, 0, 20, 10)], crowd=((0, 0),))
    assert _match(both) == [[-1, IGNORED, 1, IGNORED, -1]]
    matched = match(ROW, both, limits=LIMITS, positive=0.5, negative=0.5, keep_best=True, crowd_coverage=0.9)
    assert matched.tolist() == [[-1, -1, 1, IGNORED, -1]]
    # A crowd in one image is nothing to the other.
    assert _match(_targets([crowd], [], crowd=((0, 0),)))[1] == [-1] * 5


def test_a_crowd_that_fills_the_image_ignores_every_anchor() -> None:
    """Also those at the border, of which more lies outside the image than inside."""
    targets = _targets([(0, 0, 320, 192)], crowd=((0, 0),))
    matched = match(ANCHORS, targets, limits=LIMITS, positive=0.5, negative=0.5, keep_best=True)
    assert bool((matched == IGNORED).all())


def _random_targets(number: int) -> Tensor:
    corner = torch.rand(number, 2) * torch.tensor([280.0, 160.0])
    return torch.cat((corner, torch.minimum(corner + 4 + torch.rand(number, 2) * 150, LIMITS[:2])), -1)


@pytest.mark.parametrize("seed", range(5))
def test_matches_equal_torchvision(seed: int) -> None:
    torch.manual_seed(seed)
    images = [_random_targets(number) for number in (1, 12, 5, 30)]
    targets = _targets(*[[(b[0], b[1], b[2], b[3]) for b in image.tolist()] for image in images])
    with_best = match(ANCHORS, targets, limits=LIMITS, positive=0.5, negative=0.5, keep_best=True)
    without = match(ANCHORS, targets, limits=LIMITS, positive=0.5, negative=0.3, keep_best=False)
    for row, image in enumerate(images):
        quality = box_iou(image, ANCHORS)
        assert torch.equal(with_best[row], SSDMatcher(0.5)(quality.clone()))
        assert torch.equal(without[row], Matcher(0.5, 0.3)(quality.clone()))


def test_gathered_boxes_and_labels() -> None:
    targets = _targets([(0, 0, 10, 10)], [(15, 0, 25, 10), (100, 100, 110, 110)])
    matched = torch.tensor([[0, NEGATIVE, IGNORED], [1, 0, NEGATIVE]])
    boxes, labels = gather_targets(targets, matched)
    positive = matched >= 0
    assert labels[positive].tolist() == [10, 11, 10]
    assert boxes[positive].tolist() == [[0, 0, 10, 10], [100, 100, 110, 110], [15, 0, 25, 10]]
