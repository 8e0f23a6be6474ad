"""Suppression: by hand, against torchvision, and the static form, which must be exact on the hardest cases."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD
from torchvision.ops import batched_nms, nms

from detseg.ops import boxes
from detseg.ops.anchors import GridAnchors, SSDAnchors
from detseg.ops.suppression import BLOCK, suppress, used_rows
from detseg.structures import DenseBoxes, Detections
from detseg.tasks.detection import Detection

SIZE = (192, 320)


class Options(NamedTuple):
    """Arguments of `suppress`."""

    score_threshold: float = 0.01
    iou_threshold: float = 0.5
    per_class: int = 1000
    max_detections: int = 100
    candidates: int = 1000


Way = Callable[[DenseBoxes, Options], Detections]


def _eager(dense: DenseBoxes, options: Options) -> Detections:
    return suppress(dense, **options._asdict())


def _static(dense: DenseBoxes, options: Options) -> Detections:
    return suppress(dense, **options._asdict(), static=True)


def _random(images: int, anchors: int, classes: int, *, spread: float = 1.0) -> DenseBoxes:
    """Boxes inside the image, all scores different; a small `spread` heaps them on each other."""
    corner = torch.rand(images, anchors, 2) * torch.tensor([220.0, 120.0]) * spread
    found = torch.cat((corner, corner + 10 + torch.rand(images, anchors, 2) * 60), -1)
    order = torch.randperm(images * anchors * classes).double() + 1
    scores = (order / (len(order) + 1)).view(images, anchors, classes).float()
    return DenseBoxes(boxes.clip(found, SIZE), scores)


def _assert_same(found: Detections, wanted: Detections) -> None:
    for name, one, other in zip(found._fields, found, wanted, strict=True):
        assert torch.equal(one, other), name


def _dense(*rows: tuple[tuple[float, float, float, float], tuple[float, ...]]) -> DenseBoxes:
    found, scores = zip(*rows, strict=True)
    return DenseBoxes(torch.tensor([found]).float(), torch.tensor([scores]))


HAND = _dense(
    ((0, 0, 10, 10), (0.9, 0.3)),
    ((0, 0, 10, 8), (0.8, 0.2)),  # IoU 0.8 with the first: falls for class 0, and for class 1
    ((20, 0, 30, 10), (0.005, 0.6)),
    ((22, 0, 32, 10), (0.7, 0.01)),  # its rival of class 0 is below the threshold, its own class 1 too: not above it
)


@pytest.mark.parametrize("way", [_eager, _static])
def test_by_hand(way: Way) -> None:
    found = way(HAND, Options(max_detections=5))
    assert found.num_valid.tolist() == [4]
    assert found.labels.tolist() == [[0, 0, 1, 1, -1]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.7, 0.6, 0.3, 0]]))
    assert found.boxes[0].tolist() == [[0, 0, 10, 10], [22, 0, 32, 10], [20, 0, 30, 10], [0, 0, 10, 10], [0, 0, 0, 0]]
    assert found.labels.dtype == found.num_valid.dtype == torch.int64


@pytest.mark.parametrize("way", [_eager, _static])
def test_limits_by_hand(way: Way) -> None:
    best = way(HAND, Options(max_detections=2))
    assert (best.labels.tolist(), best.num_valid.tolist()) == ([[0, 0]], [2])
    # One a class enters: the best of class 0 and of class 1.
    entered = way(HAND, Options(max_detections=4, per_class=1))
    assert (entered.labels.tolist(), entered.num_valid.tolist()) == ([[0, 1, -1, -1]], [2])
    # A box falls only above the threshold, here an IoU of exactly one half.
    exact = _dense(((0, 0, 10, 10), (0.9,)), ((0, 0, 10, 5), (0.8,)))
    assert way(exact, Options(max_detections=2, iou_threshold=0.5)).num_valid.tolist() == [2]
    assert way(exact, Options(max_detections=2, iou_threshold=0.49)).num_valid.tolist() == [1]


@pytest.mark.parametrize("way", [_eager, _static])
def test_nothing_found(way: Way) -> None:
    dense = _random(2, 30, 3)
    found = way(dense, Options(score_threshold=0.9999, max_detections=7))
    assert found.num_valid.tolist() == [0, 0]
    assert found.boxes.shape == (2, 7, 4)
    assert not found.boxes.any()
    assert not found.scores.any()
    assert bool((found.labels == -1).all())
    one = dense._replace(scores=torch.cat((dense.scores[:1] * 0, dense.scores[1:])))
    assert (way(one, Options()).num_valid > 0).tolist() == [False, True]


@pytest.mark.parametrize("way", [_eager, _static])
def test_there_are_never_more_rows_than_scores(way: Way) -> None:
    found = way(_random(1, 4, 2), Options(max_detections=100))
    assert found.boxes.shape == (1, 8, 4)
    assert found.scores.shape == found.labels.shape == (1, 8)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("options", [
    Options(), Options(iou_threshold=0.3, per_class=20), Options(score_threshold=0.6, max_detections=300),
    Options(iou_threshold=0.7, per_class=5, max_detections=10)])
def test_the_two_ways_are_equal(seed: int, options: Options) -> None:
    torch.manual_seed(seed)
    for dense in (_random(2, 120, 3), _random(2, 300, 1, spread=0.1), _random(1, 90, 7, spread=0.0)):
        _assert_same(_static(dense, options), _eager(dense, options))


@pytest.mark.parametrize("seed", range(4))
def test_the_two_ways_are_equal_where_candidates_are_capped(seed: int) -> None:
    """As long as the candidates fill all rows; with fewer, eager code takes more."""
    torch.manual_seed(seed)
    dense = _random(2, 400, 4)
    options = Options(max_detections=40, candidates=300)
    found = _static(dense, options)
    assert found.num_valid.tolist() == [40, 40]
    _assert_same(found, _eager(dense, options))


def test_eager_code_takes_more_candidates_while_rows_are_empty() -> None:
    heap = [((0.0, 0.0, 50.0, 50.0 - 0.01 * i), (0.9 - 0.001 * i,)) for i in range(60)]
    dense = _dense(*heap, ((100, 100, 120, 120), (0.1,)), ((200, 100, 220, 120), (0.05,)))
    options = Options(max_detections=3, candidates=4)
    assert _eager(dense, options).num_valid.tolist() == [3]
    assert _static(dense, options).num_valid.tolist() == [1]
    _assert_same(_static(dense, options._replace(candidates=62)), _eager(dense, options))


def test_equal_scores() -> None:
    """Of equal scores any may come first, but the rows are the same ones wherever the outcome does not depend on it."""
    apart = torch.tensor([[30.0 * x, 30.0 * y, 30 * x + 20, 30 * y + 20] for x in range(10) for y in range(6)])
    dense = DenseBoxes(apart.repeat(3, 1)[None], torch.full((1, 180, 2), 0.25))  # each box three times, two classes
    for way in (_eager, _static):
        found = way(dense, Options(max_detections=200))
        assert found.num_valid.tolist() == [120]
        assert found.scores[0, :120].tolist() == [0.25] * 120
        rows = {(label, *box) for label, box in zip(
            found.labels[0, :120].tolist(), found.boxes[0, :120].tolist(), strict=True)}
        assert rows == {(label, *box) for label in (0, 1) for box in apart.tolist()}
    first = _eager(dense, Options(max_detections=60)).labels
    assert bool((first == 0).all()), "the lower class goes first"


def test_images_and_classes_do_not_see_each_other() -> None:
    dense = _random(3, 80, 4, spread=0.2)
    whole = _eager(dense, Options())
    for row in range(3):
        alone = _eager(DenseBoxes(dense.boxes[row : row + 1], dense.scores[row : row + 1]), Options())
        for one, other in zip(whole, alone, strict=True):
            assert torch.equal(one[row : row + 1], other)
    for label in range(4):
        alone = _eager(DenseBoxes(dense.boxes, dense.scores[..., label : label + 1]), Options(max_detections=80))
        for row in range(3):
            mine = whole.boxes[row][whole.labels[row] == label]
            assert torch.equal(mine, alone.boxes[row, : len(mine)])


def _of_classes(dense: DenseBoxes) -> DenseBoxes:
    """The same, but each class has boxes of its own, moved a little."""
    moved = dense.boxes[:, :, None] + torch.rand(*dense.scores.shape, 4) * 8
    return DenseBoxes(boxes.clip(moved, SIZE), dense.scores)


@pytest.mark.parametrize("way", [_eager, _static])
def test_classes_with_boxes_of_their_own_by_hand(way: Way) -> None:
    """The rows' first boxes overlap, their second do not."""
    own = torch.tensor([[[[0.0, 0, 10, 10], [0, 0, 10, 10]], [[0, 0, 10, 9], [50, 50, 60, 60]]]])
    found = way(DenseBoxes(own, torch.tensor([[[0.9, 0.7], [0.8, 0.6]]])), Options(max_detections=4))
    assert found.num_valid.tolist() == [3]
    assert found.labels.tolist() == [[0, 1, 1, -1]]
    assert found.boxes[0, :3].tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [Options(), Options(iou_threshold=0.3, per_class=20, max_detections=50)])
def test_the_two_ways_are_equal_where_classes_have_boxes_of_their_own(seed: int, options: Options) -> None:
    torch.manual_seed(seed)
    for dense in (_of_classes(_random(2, 120, 3)), _of_classes(_random(1, 90, 7, spread=0.1))):
        _assert_same(_static(dense, options), _eager(dense, options))


def test_boxes_that_all_classes_share_may_be_given_once_for_each() -> None:
    dense = _random(2, 90, 4, spread=0.3)
    repeated = dense._replace(boxes=dense.boxes[:, :, None].expand(-1, -1, 4, -1))
    for way in (_eager, _static):
        _assert_same(way(repeated, Options()), way(dense, Options()))


def test_used_rows() -> None:
    valid = torch.tensor([[True, False, False], [True, True, False]])
    assert used_rows(valid) == 2
    assert used_rows(valid & False) == 1


@pytest.mark.parametrize("seed", range(3))
def test_eager_code_equals_batched_nms(seed: int) -> None:
    torch.manual_seed(seed)
    dense = _random(1, 200, 5, spread=0.4)
    found = _eager(dense, Options(iou_threshold=0.45, max_detections=1000))
    labels, anchors = (dense.scores[0].T > 0.01).nonzero(as_tuple=True)
    scores, chosen = dense.scores[0][anchors, labels], dense.boxes[0][anchors]
    kept = batched_nms(chosen.double(), scores.double(), labels, 0.45)
    number = int(found.num_valid[0])
    assert number == len(kept)
    assert torch.equal(found.boxes[0, :number], chosen[kept])
    assert torch.equal(found.scores[0, :number], scores[kept])
    assert torch.equal(found.labels[0, :number], labels[kept])


@pytest.mark.parametrize(("per_class", "max_detections"), [(300, 300), (10, 40)])
def test_equals_torchvisions_ssd(per_class: int, max_detections: int) -> None:
    anchors = boxes.clip(_random(1, 150, 1).boxes[0], SIZE)
    logits, deltas = torch.randn(2, 150, 6) * 2, torch.randn(2, 150, 4)
    weights = (10.0, 10.0, 5.0, 5.0)
    reference = SimpleNamespace(
        box_coder=BoxCoder(weights), score_thresh=0.05, topk_candidates=per_class, nms_thresh=0.45,
        detections_per_img=max_detections)
    theirs = SSD.postprocess_detections(
        reference, {"bbox_regression": deltas, "cls_logits": logits}, [anchors] * 2, [SIZE] * 2)
    dense = DenseBoxes(boxes.clip(boxes.decode(deltas, anchors, weights), SIZE), logits.softmax(-1)[..., 1:])
    for way in (_eager, _static):
        found = way(dense, Options(0.05, 0.45, per_class, max_detections, 1000))
        for row, wanted in enumerate(theirs):
            number = int(found.num_valid[row])
            assert number == len(wanted["scores"]) > 20
            torch.testing.assert_close(found.scores[row, :number], wanted["scores"])
            assert torch.equal(found.labels[row, :number] + 1, wanted["labels"])
            torch.testing.assert_close(found.boxes[row, :number], wanted["boxes"], rtol=1e-5, atol=1e-3)


# ------------------------------------------------------------------------------------------ the static form is exact


def _by_kernel(dense: DenseBoxes, options: Options) -> Detections:
    """Word for word, by torchvision's kernel on each class of each image: only the best of all classes enter."""
    num_rows = min(options.max_detections, dense.scores.shape[1] * dense.scores.shape[2])
    found = Detections(
        torch.zeros(len(dense.scores), num_rows, 4), torch.zeros(len(dense.scores), num_rows),
        torch.full((len(dense.scores), num_rows), -1), torch.zeros(len(dense.scores), dtype=torch.int64))
    for image, scores_NK in enumerate(dense.scores):
        smallest = scores_NK.flatten().sort(descending=True)[0][: options.candidates][-1]
        rows: list[tuple[float, int, Tensor]] = []
        for label, scores in enumerate(scores_NK.unbind(1)):
            own = dense.boxes[image] if dense.boxes.dim() == 3 else dense.boxes[image, :, label]
            order = scores.argsort(descending=True)
            order = order[(scores[order] >= smallest) & (scores[order] > options.score_threshold)][: options.per_class]
            kept = order[nms(own[order].double(), scores[order].double(), options.iou_threshold)]
            rows += [(float(scores[anchor]), label, own[anchor]) for anchor in kept]
        rows = sorted(rows, key=lambda row: -row[0])[:num_rows]
        for number, (score, label, box) in enumerate(rows):
            found.boxes[image, number], found.scores[image, number], found.labels[image, number] = box, score, label
        found.num_valid[image] = len(rows)
    return found


def _distinct(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """Scores between 0 and 1, all different, in random order."""
    number = torch.Size(shape).numel()
    return ((torch.randperm(number, generator=generator) + 1) / (number + 1)).view(shape)


def _chain(length: int) -> DenseBoxes:
    """Boxes in a row, each overlapping only its neighbours too much: every second one stays."""
    x = torch.arange(length) * 3.0
    row = torch.stack((x, torch.zeros(length), x + 10, torch.full((length,), 10.0)), -1)
    return DenseBoxes(row[None], torch.linspace(0.9, 0.1, length)[None, :, None])


def _chain_length(dense: DenseBoxes, options: Options) -> int:
    """How often "kept unless a kept better box overlaps" has to be applied, from "all kept", until nothing changes."""
    scores, order = dense.scores[0, :, 0].sort(descending=True)
    entered = order[: options.per_class][scores[: options.per_class] > options.score_threshold]
    overlap = (boxes.iou(dense.boxes[0, entered], dense.boxes[0, entered]) > options.iou_threshold).float().tril(-1)
    kept, steps = torch.ones(len(entered)), 0
    while not torch.equal(following := (overlap @ kept < 0.5).float(), kept):
        kept, steps = following, steps + 1
    return steps + 1


@pytest.mark.parametrize("length", [2, 3, 10, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 90, 4 * BLOCK + 1, 257])
def test_chains_of_any_length(length: int) -> None:
    """Each box overlaps only the next, so that the last one's fate follows from the first's."""
    dense, options = _chain(length), Options(max_detections=300)
    overlap = boxes.iou(dense.boxes[0], dense.boxes[0]) > options.iou_threshold
    assert torch.equal(overlap, (torch.arange(length)[:, None] - torch.arange(length)).abs() <= 1)
    assert _chain_length(dense, options) == length
    found = _static(dense, options)
    assert found.num_valid.tolist() == [(length + 1) // 2]
    assert torch.equal(found.boxes[0, : (length + 1) // 2], dense.boxes[0, ::2])
    _assert_same(found, _by_kernel(dense, options))
    _assert_same(found, _eager(dense, options))


@pytest.mark.parametrize("candidates", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 90, 4 * BLOCK - 1, 300])
@pytest.mark.parametrize("per_class", [7, 60, 1000])
def test_chains_of_several_classes_and_images(candidates: int, per_class: int) -> None:
    """Three classes on the same boxes, whose scores alternate; the second image runs the other way round."""
    row = _chain(95).boxes
    scores = torch.linspace(0.95, 0.05, 3 * 95).view(1, 95, 3)
    dense = DenseBoxes(row.expand(2, -1, -1), torch.cat((scores, scores.flip(1))))
    for limit in (0.01, 0.5):
        options = Options(
            score_threshold=limit, per_class=per_class, max_detections=min(300, candidates), candidates=candidates)
        _assert_same(_static(dense, options), _by_kernel(dense, options))
    reached = Options(per_class=per_class, max_detections=300, candidates=300)
    _assert_same(_static(dense, reached), _eager(dense, reached))
    assert _static(dense, reached).num_valid.tolist() == [3 * (min(per_class + 1, 96) // 2)] * 2


@st.composite
def _hard(draw: st.DrawFn) -> tuple[DenseBoxes, Options]:
    """Whole pixels, so that every IoU is a fraction of small numbers and no rounding decides."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    images, classes = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    anchors = draw(st.integers(1, 90 if draw(st.booleans()) else 2 * BLOCK))
    shape = (images, anchors, classes) if draw(st.booleans()) else (images, anchors)
    spread, largest = draw(st.sampled_from([(1, 12), (8, 12), (40, 30), (200, 90)])), draw(st.sampled_from([1, 3, 60]))
    corner = torch.randint(0, spread[0], (*shape, 2), generator=generator)
    sides = spread[1] + torch.randint(0, largest, (*shape, 2), generator=generator)
    if draw(st.booleans()):  # some have no area
        sides = sides * (torch.rand(*shape, 1, generator=generator) > 0.2)
    if draw(st.booleans()):  # chains: along the first axis, in one or both directions
        place = torch.arange(anchors).view(1, -1, *(1,) * (len(shape) - 2))
        corner[..., 0] = place * draw(st.sampled_from([3, 4, 6]))
    scores = _distinct(images, anchors, classes, generator=generator)
    if draw(st.booleans()):  # they fall along the boxes, which makes the longest chains
        falling = torch.arange(anchors * classes, 0, -1) / (anchors * classes + 1)
        scores = falling.view(1, anchors, classes).repeat(images, 1, 1)
    candidates = draw(st.sampled_from([1, BLOCK, 2 * BLOCK, 1000]) | st.integers(1, 400))
    options = Options(
        score_threshold=draw(st.sampled_from([0.0, 0.05, 0.5, 0.9])),
        iou_threshold=draw(st.sampled_from([0.3, 0.45, 0.5, 0.7, 1.0])),
        per_class=draw(st.sampled_from([1, 5, BLOCK, 1000])),
        max_detections=min(candidates, draw(st.sampled_from([1, 10, BLOCK, 400]))),
        candidates=candidates)
    return DenseBoxes(torch.cat((corner, corner + sides), -1).float(), scores), options


@given(_hard())
@settings(max_examples=300, deadline=None)
def test_the_static_form_equals_torchvisions_kernel(case: tuple[DenseBoxes, Options]) -> None:
    dense, options = case
    _assert_same(_static(dense, options), _by_kernel(dense, options))
    # Eager code is the same wherever it does not need more candidates to fill its rows.
    whole = options._replace(candidates=10_000)
    _assert_same(_static(dense, whole), _eager(dense, options))


def _falling(field: Tensor) -> Tensor:
    """Scores in the order of a field's values, all different: [1, N, 1]."""
    scores = torch.empty(len(field))
    scores[field.argsort(descending=True)] = torch.linspace(0.95, 0.05, len(field))
    return scores[None, :, None]


@pytest.mark.parametrize("three_on_first", [False, True])
def test_smooth_scores_on_grids_of_anchors(three_on_first: bool) -> None:
    """The longest chains that networks make come from scores that fall smoothly over an image: ramps, hills, waves.

    The anchors are rounded to whole pixels: many pairs of them overlap by exactly 0.6, of which rounding would decide.
    """
    maps = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    anchors = SSDAnchors(three_on_first=three_on_first)(maps, (320, 320), device=torch.device("cpu"))
    anchors = boxes.clip(anchors.round(), (320, 320))
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 640).unbind(-1)
    fields = [x, (x + y) / 2, (1.7 * x + y) / 2.7, torch.exp(-4 * (x**2 + y**2)),
              torch.exp(-8 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)), torch.atan2(y - 0.5, x - 0.5) / 7 + 0.5]
    for _ in range(12):
        waves = [torch.randn(()) * torch.cos(torch.randn(()) * 5 * x + torch.randn(()) * 5 * y + torch.rand(()) * 6.3)
                 for _ in range(4)]
        fields.append(torch.stack(waves).sum(0))
    longest = 0
    for number, field in enumerate(fields):
        options = Options(iou_threshold=(0.45, 0.55, 0.6)[number % 3], max_detections=300, candidates=300)
        dense = DenseBoxes(anchors[None], _falling(field))
        longest = max(longest, _chain_length(dense, options._replace(per_class=300)))
        _assert_same(_static(dense, options), _by_kernel(dense, options))
    assert longest > 12


@pytest.mark.parametrize(("sizes", "map_size", "image", "entered"), [
    ((32, 64, 128, 256, 512), (10, 14), (320, 426), 150),
    ((32, 64, 128, 256, 512), (25, 34), (800, 1066), 1000),
    ((32,), (80, 107), (320, 426), 150),
])
def test_smooth_scores_on_the_anchors_of_a_pyramid(
    sizes: tuple[int, ...], map_size: tuple[int, int], image: tuple[int, int], entered: int
) -> None:
    """As above, with the anchors, the limits and the threshold of the configs of Faster R-CNN."""
    anchors = boxes.clip(GridAnchors((sizes,))([map_size], image, device=torch.device("cpu")), image)
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2 / torch.tensor([image[1], image[0]])).unbind(-1)
    longest = 0
    for field in ((x + y) / 2, torch.exp(-4 * (x**2 + y**2)), torch.atan2(y - 0.5, x - 0.5) / 7 + 0.5):
        dense = DenseBoxes(anchors[None], _falling(field))
        options = Options(iou_threshold=0.7, per_class=entered, max_detections=entered, candidates=entered)
        longest = max(longest, _chain_length(dense, options))
        _assert_same(_static(dense, options), _by_kernel(dense, options))
    assert longest > 5


# ------------------------------------------------------------------------------------------ export


class Finish(nn.Module):
    """A task's last part as a module, which is what torch exports."""

    def __init__(self, task: Detection) -> None:
        super().__init__()
        self.task = task

    def forward(self, dense_boxes: Tensor, scores: Tensor) -> Detections:
        return self.task.postprocess(DenseBoxes(dense_boxes, scores), static=True)


def test_exported_strictly_it_gives_the_same() -> None:
    task = Detection(score_threshold=0.05, iou_threshold=0.5, per_class=60, max_detections=50, candidates=400)
    first, second = _random(2, 130, 3, spread=0.5), _random(2, 130, 3, spread=0.1)
    exported = torch.export.export(Finish(task), tuple(first), strict=True).module()
    for dense in (first, second, second._replace(scores=second.scores * 0)):
        _assert_same(Detections(*exported(*dense)), task.postprocess(dense))
