"""Matching: by hand, against torchvision's matcher, and what must never be matched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.ops import box_iou

from detseg.anchors import SSDAnchors
from detseg.interfaces import BoxTargets
from detseg.matching import IGNORED, NEGATIVE, gather_targets, match, sample, wanted_outputs

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
    targets: BoxTargets, *, positive: float = 0.5, negative: float = 0.5, keep_best: bool = True,
    keep_ties: bool = False,
) -> list[list[int]]:
    found: list[list[int]] = match(
        ROW, targets, limits=LIMITS, positive=positive, negative=negative, keep_best=keep_best,
        keep_ties=keep_ties).tolist()
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


def test_wanted_outputs() -> None:
    targets = _targets([(0, 0, 10, 10)], [(15, 0, 25, 10), (100, 100, 110, 110)])
    matched = torch.tensor([[0, NEGATIVE, IGNORED], [1, 0, NEGATIVE]])
    with_background = wanted_outputs(targets, matched, first=1, negative=0)
    assert with_background.tolist() == [[11, 0, IGNORED], [12, 11, 0]]
    assert wanted_outputs(targets, matched, first=0, negative=-1).tolist() == [[10, -1, IGNORED], [11, 10, -1]]
    empty = wanted_outputs(_targets([], []), torch.full((2, 3), NEGATIVE), first=1, negative=0)
    assert empty.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_ties_by_hand() -> None:
    # The box lies between anchors 1 and 2, IoU 3/5 with both, and 1/7 with 0 and 3.
    targets = _targets([(7.5, 0, 17.5, 10)])
    assert _match(targets, positive=0.9, negative=0.3) == [[-1, 0, IGNORED, -1, -1]]
    assert _match(targets, positive=0.9, negative=0.3, keep_best=False, keep_ties=True) == [[-1, 0, 0, -1, -1]]
    # Anchor 0, of which the small box overlaps the most, stands for the large one that it overlaps most itself.
    both = _targets([(0, 0, 10, 9), (4, 4, 6, 6)])
    assert _match(both, positive=0.95, keep_best=False, keep_ties=True) == [[0, -1, -1, -1, -1]]
    assert _match(_targets([(50, 50, 60, 60)]), keep_best=False, keep_ties=True) == [[-1] * 5]


@pytest.mark.parametrize("seed", range(5))
def test_with_ties_it_equals_torchvision(seed: int) -> None:
    torch.manual_seed(seed)
    corner = torch.rand(2, 9, 2) * torch.tensor([200.0, 100.0])
    true = torch.cat((corner, corner + 8 + torch.rand(2, 9, 2) * 90), -1).round()
    targets = BoxTargets(true, torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.bool))
    anchors = ANCHORS.round().repeat(2, 1)  # every anchor twice: there are ties
    found = match(anchors, targets, limits=LIMITS, positive=0.7, negative=0.3, keep_best=False, keep_ties=True)
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    for row in range(2):
        assert torch.equal(found[row], matcher(box_iou(true[row], anchors)))


def test_each_image_may_have_its_own_anchors() -> None:
    targets = _targets([(0, 0, 10, 10)], [(15, 0, 25, 10), (0, 0, 40, 40)], crowd=((1, 1),))
    own = torch.stack((ROW, ROW.flip(0)))
    found = match(own, targets, limits=LIMITS, positive=0.5, negative=0.5, keep_best=False)
    assert found.tolist() == [[0, -1, -1, -1, -1], [-1, 0, IGNORED, IGNORED, IGNORED]]
    empty = match(own, _targets([], []), limits=LIMITS, positive=0.5, negative=0.5, keep_best=False)
    assert empty.tolist() == [[-1] * 5] * 2


def test_samples_are_random_and_of_the_kinds_asked_for() -> None:
    matched = torch.full((3, 100), NEGATIVE)
    matched[0, :30], matched[0, 30:40] = 2, IGNORED
    matched[1, 50:53] = 0
    matched[2] = IGNORED
    matched[2, 7] = 1
    seen = torch.zeros(3, 100)
    for _ in range(300):
        rows, counted = sample(matched, 20, positive_share=0.25)
        assert rows.shape == counted.shape == (3, 20)
        assert counted.sum(1).tolist() == [20, 20, 1]
        kinds = matched.gather(1, rows)
        assert ((kinds >= 0) & counted).sum(1).tolist() == [5, 3, 1]
        assert bool((kinds[counted] != IGNORED).all())
        assert bool((counted.long().diff(dim=1) <= 0).all()), "those that count come first"
        seen.scatter_add_(1, rows, counted.float())
    # Each of 30 is drawn 5 times in 30, each of 60 others 15 times in 60; of 300 drawings 50 and 75 are expected.
    assert 25 < float(seen[0, :30].min()) < float(seen[0, :30].max()) < 80
    assert 40 < float(seen[0, 40:].min()) < float(seen[0, 40:].max()) < 110
    assert seen[1, 50:53].tolist() == [300] * 3


def test_fewer_anchors_than_samples() -> None:
    rows, counted = sample(torch.tensor([[0, NEGATIVE, IGNORED], [0, 0, 0]]), 512, positive_share=0.25)
    assert counted.sum(1).tolist() == [2, 3]
    assert set(rows[0, :2].tolist()) == {0, 1}
    assert sample(torch.tensor([[0, 0, 0]]), 4, positive_share=0.5)[1].sum() == 2
