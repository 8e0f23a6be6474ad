"""Matching: by hand, against torchvision's matcher, and what must never be matched; which anchors are sampled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.ops import box_iou

from detseg.ops.anchors import SSDAnchors
from detseg.ops.boxes import clip
from detseg.ops.matching import (
    IGNORED,
    NEGATIVE,
    Alignment,
    _uniform,
    align,
    gather_targets,
    match,
    subsample,
    wanted_outputs,
)
from detseg.structures import BoxTargets

SIZE = (192, 320)
ANCHORS = SSDAnchors()(
    [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2), (1, 1)], SIZE, device=torch.device("cpu"))

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
        ROW, targets, SIZE, positive=positive, negative=negative, keep_best=keep_best, keep_ties=keep_ties).tolist()
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
    matched = match(ANCHORS, targets, SIZE, positive=0.5, negative=0.4, keep_best=True)
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
    matched = match(ROW, both, SIZE, positive=0.5, negative=0.5, keep_best=True, crowd_coverage=0.9)
    assert matched.tolist() == [[-1, -1, 1, IGNORED, -1]]
    # A crowd in one image is nothing to the other.
    assert _match(_targets([crowd], [], crowd=((0, 0),)))[1] == [-1] * 5


def test_a_crowd_that_fills_the_image_ignores_every_anchor() -> None:
    """Also those at the border, of which more lies outside the image than inside."""
    targets = _targets([(0, 0, 320, 192)], crowd=((0, 0),))
    matched = match(ANCHORS, targets, SIZE, positive=0.5, negative=0.5, keep_best=True)
    assert bool((matched == IGNORED).all())


def _random_targets(number: int) -> Tensor:
    corner = torch.rand(number, 2) * torch.tensor([280.0, 160.0])
    return clip(torch.cat((corner, corner + 4 + torch.rand(number, 2) * 150), -1), SIZE)


@pytest.mark.parametrize("seed", range(5))
def test_matches_equal_torchvision(seed: int) -> None:
    torch.manual_seed(seed)
    images = [_random_targets(number) for number in (1, 12, 5, 30)]
    targets = _targets(*[[(b[0], b[1], b[2], b[3]) for b in image.tolist()] for image in images])
    with_best = match(ANCHORS, targets, SIZE, positive=0.5, negative=0.5, keep_best=True)
    without = match(ANCHORS, targets, SIZE, positive=0.5, negative=0.3, keep_best=False)
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
    found = match(anchors, targets, SIZE, positive=0.7, negative=0.3, keep_best=False, keep_ties=True)
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    for row in range(2):
        assert torch.equal(found[row], matcher(box_iou(true[row], anchors)))


def test_each_image_may_have_its_own_anchors() -> None:
    targets = _targets([(0, 0, 10, 10)], [(15, 0, 25, 10), (0, 0, 40, 40)], crowd=((1, 1),))
    own = torch.stack((ROW, ROW.flip(0)))
    found = match(own, targets, SIZE, positive=0.5, negative=0.5, keep_best=False)
    assert found.tolist() == [[0, -1, -1, -1, -1], [-1, 0, IGNORED, IGNORED, IGNORED]]
    empty = match(own, _targets([], []), SIZE, positive=0.5, negative=0.5, keep_best=False)
    assert empty.tolist() == [[-1] * 5] * 2


# ------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("seeded", [False, True])
def test_samples_are_random_and_of_the_kinds_asked_for(seeded: bool) -> None:
    matched = torch.full((3, 100), NEGATIVE)
    matched[0, :30], matched[0, 30:40] = 2, IGNORED
    matched[1, 50:53] = 0
    matched[2] = IGNORED
    matched[2, 7] = 1
    seen = torch.zeros(3, 100)
    for drawing in range(300):
        seed_B = torch.arange(3) + 3 * drawing if seeded else None
        rows, counted = subsample(matched, 20, positive_share=0.25, seed_B=seed_B, stream=0)
        assert rows.shape == counted.shape == (3, 20)
        assert counted.sum(1).tolist() == [20, 20, 1]
        kinds = matched.gather(1, rows)
        assert ((kinds >= 0) & counted).sum(1).tolist() == [5, 3, 1]
        assert bool((kinds[counted] != IGNORED).all())
        assert bool((counted.long().diff(dim=1) <= 0).all()), "those that count come first"
        assert all(len(set(row[keep].tolist())) == int(keep.sum()) for row, keep in zip(rows, counted, strict=True))
        seen.scatter_add_(1, rows, counted.float())
    # Each of 30 is drawn 5 times in 30, each of 60 others 15 times in 60; of 300 drawings 50 and 75 are expected.
    assert 25 < float(seen[0, :30].min()) < float(seen[0, :30].max()) < 80
    assert 40 < float(seen[0, 40:].min()) < float(seen[0, 40:].max()) < 110
    assert seen[1, 50:53].tolist() == [300] * 3


@pytest.mark.parametrize("seed_B", [None, torch.tensor([4, 9])])
def test_fewer_anchors_than_samples(seed_B: Tensor | None) -> None:
    matched = torch.tensor([[0, NEGATIVE, IGNORED], [0, 0, 0]])
    rows, counted = subsample(matched, 512, positive_share=0.25, seed_B=seed_B, stream=0)
    assert counted.sum(1).tolist() == [2, 3]
    assert set(rows[0, :2].tolist()) == {0, 1}
    counted = subsample(matched, 4, positive_share=0.5, seed_B=seed_B, stream=0)[1]
    assert counted.sum(1).tolist() == [2, 2]


def _some_matched(images: int = 6, anchors: int = 400) -> Tensor:
    """Objects, background and ignored anchors in a different mixture in each image."""
    kind = torch.rand(images, anchors) + torch.linspace(-0.2, 0.2, images)[:, None]
    return torch.where(kind < 0.2, 1, torch.where(kind < 0.8, NEGATIVE, IGNORED))


def _choice(matched: Tensor, *, seeds: list[int] | None, stream: int = 0) -> list[list[int]]:
    """Which anchors of each image are sampled."""
    seed_B = None if seeds is None else torch.tensor(seeds)
    rows, counted = subsample(matched, 40, positive_share=0.25, seed_B=seed_B, stream=stream)
    return [sorted(row[keep].tolist()) for row, keep in zip(rows, counted, strict=True)]


def test_an_images_choice_does_not_depend_on_the_others_in_its_batch() -> None:
    matched, seeds = _some_matched(), [5, 6, 2**32 - 1, 0, 2**40, 7]
    whole = _choice(matched, seeds=seeds)
    assert [len(choice) for choice in whole] == [40] * 6
    for row, seed in enumerate(seeds):
        assert _choice(matched[row : row + 1], seeds=[seed]) == [whole[row]]
    order = [3, 0, 5, 1]
    assert _choice(matched[order], seeds=[seeds[row] for row in order]) == [whole[row] for row in order]
    # The true boxes among the regions are padded to the fullest image.
    padded = torch.cat((matched, torch.full((6, 13), IGNORED)), 1)
    assert _choice(padded, seeds=seeds) == whole


def test_choices_follow_the_seeds_and_not_torchs_random_state() -> None:
    matched = _some_matched()
    state = torch.get_rng_state()
    first = _choice(matched, seeds=[1, 2, 3, 4, 5, 6])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert _choice(matched, seeds=[1, 2, 3, 4, 5, 6]) == first

    found = []
    for seed in (7, 8, 7):
        torch.manual_seed(seed)
        found.append(_choice(matched, seeds=None))
    assert found[0] == found[2] != found[1]


def test_choices_differ_between_seeds_streams_and_images() -> None:
    matched = _some_matched(1).expand(6, -1)
    choices = [choice for stream in range(3) for choice in _choice(matched, seeds=[0, 1, 2, 3, 4, 5], stream=stream)]
    assert len({tuple(choice) for choice in choices}) == 18
    # Of 240 and of 80 anchors about 30 and 10 are drawn; two independent choices have about 5 of 40 in common.
    common = [len(set(one) & set(other)) for i, one in enumerate(choices) for other in choices[:i]]
    assert max(common) < 20
    assert len({tuple(choice) for choice in _choice(matched, seeds=[3] * 6)}) == 1


def test_random_numbers_are_those_of_splitmix64() -> None:
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # the generator's first, for the seed 0
    assert _uniform(torch.tensor([0]), 3, stream=0)[0].tolist() == [(x >> 11) / 2**53 for x in published]


def test_random_numbers_are_uniform_and_independent() -> None:
    numbers = torch.stack([_uniform(torch.arange(100) + 1000, 4000, stream=stream) for stream in range(3)])
    assert numbers.dtype == torch.float64
    assert bool(((numbers >= 0) & (numbers < 1)).all())
    assert bool((numbers.flatten().sort()[0].diff() > 0).all()), "no seed and no stream repeats numbers of another"
    # Pearson's statistic of 256 equal bins has a mean of 255 and a std of 22.6; five of them are allowed.
    for part in (*numbers, numbers[:, :, :100], numbers[:, :, 1::2]):
        counts = torch.histc(part.flatten(), 256, 0, 1)
        expected = part.numel() / 256
        assert 142 < float(((counts - expected) ** 2 / expected).sum()) < 368
    # Neighbouring numbers, seeds and streams are uncorrelated: the coefficient of n pairs has a std of 1 / sqrt(n).
    x = (numbers - 0.5) * 12**0.5
    for one, other in ((x[..., 1:], x[..., :-1]), (x[:, 1:], x[:, :-1]), (x[1:], x[:-1])):
        products = one * other
        assert abs(float(products.mean())) < 5 / products.numel() ** 0.5
    # Every position, over all seeds and streams, and every seed, over all positions.
    assert float(x.mean((0, 1)).abs().max()) < 5 / 300**0.5
    assert float(x.mean((0, 2)).abs().max()) < 5 / 12000**0.5


# ------------------------------------------------------------------------------------------ task-aligned assignment


def _align(targets: BoxTargets, scores: Tensor, *, found: Tensor | None = None, most: int = 13) -> Alignment:
    """On ROW; the network says its anchors where `found` is not given."""
    return align(scores, ROW.expand(len(scores), -1, -1) if found is None else found, ROW, targets, SIZE, most=most)


def _scores(*rows: list[float], label: int = 10) -> Tensor:
    """[B, 5, 12], of one class."""
    scores = torch.zeros(len(rows), 5, 12)
    scores[..., label] = torch.tensor(rows)
    return scores


def test_a_box_takes_the_anchors_that_say_it_best() -> None:
    # The centres of the first three anchors lie in the box; their IoU with it is 1/2, 1 / 3 and 1/2 by the network.
    targets = _targets([(0, 0, 20, 10)])
    found = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 20, 30], [10, 0, 20, 10], [0, 0, 20, 10], [0, 0, 20, 10]]])
    scores = _scores([0.4, 0.9, 0.8, 1.0, 1.0])
    matched, quality, weight = _align(targets, scores, found=found)
    assert matched.tolist() == [[0, 0, 0, -1, -1]], "the last two say it best, but lie elsewhere"
    # Of 0.4 / 64, 0.9 / 729 and 0.8 / 64 the last is the best, and gets the largest IoU.
    torch.testing.assert_close(quality, torch.tensor([[0.25, 0.5 * 0.9 / 729 / (0.8 / 64), 0.5, 0.0, 0.0]]))
    torch.testing.assert_close(weight, 2 * quality)
    assert _align(targets, scores, found=found, most=2).matched.tolist() == [[0, -1, 0, -1, -1]]
    assert _align(targets, scores, found=found, most=1).matched.tolist() == [[-1, -1, 0, -1, -1]]


def test_a_box_between_the_centres_takes_the_anchor_that_overlaps_it_most() -> None:
    targets = _targets([(106, 106, 109, 109)])
    matched, quality, weight = _align(targets, _scores([0.5] * 5))
    assert matched.tolist() == [[-1, -1, -1, -1, 0]]
    assert quality[0, 4] == pytest.approx(0.09)
    assert weight[0].tolist() == [0, 0, 0, 0, 1], "however little it overlaps"
    assert _align(_targets([(200, 100, 210, 110)]), _scores([0.5] * 5)).matched.tolist() == [[-1] * 5]


def test_an_anchor_that_two_boxes_want_stands_for_the_one_it_overlaps_more() -> None:
    targets = _targets([(0, 0, 20, 10), (4, 0, 16, 10)])
    scores = _scores([0.5] * 5)
    scores[..., 11] = 0.5
    matched, quality, weight = _align(targets, scores)
    assert matched.tolist() == [[0, 1, 0, -1, -1]]
    assert quality[0].tolist() == pytest.approx([0.5, 10 / 12, 0.5, 0, 0])
    assert weight[0].tolist() == [1, 1, 1, 0, 0]


def test_alignment_leaves_crowds_and_padding_alone() -> None:
    targets = _targets([(0, 0, 10, 10), (98, 98, 112, 112)], [], crowd=((0, 1),))
    scores = torch.full((2, 5, 12), 0.5)
    matched, quality, weight = _align(targets, scores)
    assert matched.tolist() == [[0, -1, -1, -1, IGNORED], [-1] * 5], "the second's centre lies on the border"
    for each in (quality, weight):
        assert each[0, 2:].eq(0).all()
        assert each[1].eq(0).all()
    nothing = _align(BoxTargets(*(part[:, :0] for part in targets[:3])), scores)
    assert nothing.matched.tolist() == [[-1] * 5] * 2
    assert nothing.quality.eq(0).all()
    assert nothing.weight.eq(0).all()


def _plain_alignment(
    scores: Tensor, found: Tensor, targets: BoxTargets, most: int
) -> tuple[list[int], list[float], list[float]]:
    """The rule word for word for one image, box by box; no crowds."""
    real = [number for number, label in enumerate(targets.labels[0].tolist()) if label >= 0]
    fits, ious = dict[tuple[int, int], float](), dict[tuple[int, int], float]()
    for box in real:
        left, top, right, bottom = targets.boxes[0, box].tolist()
        nearest = int(box_iou(targets.boxes[0, box : box + 1], ANCHORS)[0].argmax())
        candidates = dict[int, float]()
        for anchor, (x0, y0, x1, y1) in enumerate(ANCHORS.tolist()):
            if anchor == nearest or (left < (x0 + x1) / 2 < right and top < (y0 + y1) / 2 < bottom):
                ious[box, anchor] = float(box_iou(targets.boxes[0, box : box + 1], found[0, anchor : anchor + 1]))
                candidates[anchor] = float(scores[0, anchor, targets.labels[0, box]]) * ious[box, anchor] ** 6
        best = sorted(candidates, key=lambda anchor: -candidates[anchor])[:most]
        fits |= {(box, anchor): candidates[anchor] for anchor in best if candidates[anchor] > 0}
    matched, quality, weight = [NEGATIVE] * len(ANCHORS), [0.0] * len(ANCHORS), [0.0] * len(ANCHORS)
    for anchor in {anchor for _, anchor in fits}:
        matched[anchor] = max((box for box, other in fits if other == anchor), key=lambda box: ious[box, anchor])
    for box in real:
        own = [anchor for anchor, owner in enumerate(matched) if owner == box]
        for anchor in own:
            weight[anchor] = fits[box, anchor] / max(fits[box, one] for one in own)
            quality[anchor] = weight[anchor] * max(ious[box, one] for one in own)
    return matched, quality, weight


@pytest.mark.parametrize("seed", range(4))
def test_alignment_equals_plain_python(seed: int) -> None:
    torch.manual_seed(seed)
    corners = torch.rand(1, 7, 2) * torch.tensor([250.0, 130])
    targets = BoxTargets(torch.cat((corners, corners + 5 + torch.rand(1, 7, 2) * 70), -1),
                         torch.tensor([[0, 1, 2, 0, 1, 2, -1]]), torch.zeros(1, 7, dtype=torch.bool))
    found = ANCHORS[None] + torch.randn(1, len(ANCHORS), 4) * 4
    scores = torch.rand(1, len(ANCHORS), 3)
    matched, quality, weight = align(scores, found, ANCHORS, targets, SIZE, most=9)
    wanted, qualities, weights = _plain_alignment(scores, found, targets, 9)
    assert matched[0].tolist() == wanted
    assert quality[0].tolist() == pytest.approx(qualities, rel=1e-4)
    assert weight[0].tolist() == pytest.approx(weights, rel=1e-4)
    assert 6 < sum(number >= 0 for number in wanted) <= 6 * 9
