"""Suppression: by hand, against torchvision, and the static way against the eager one on hard cases."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD
from torchvision.ops import batched_nms

from detseg import boxes
from detseg.anchors import GridAnchors, SSDAnchors
from detseg.interfaces import DenseBoxes, Detections
from detseg.suppression import FIXED_POINT_STEPS, _suppress_static, suppress, used_rows
from detseg.tasks import Detection

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
    return _suppress_static(dense, **options._asdict())


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


def test_used_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    valid = torch.tensor([[True, False, False], [True, True, False]])
    assert used_rows(valid) == 2
    assert used_rows(valid & False) == 1
    for name in ("is_exporting", "is_compiling"):
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, name, lambda: True)
            assert used_rows(valid) == 3


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
    peer = SimpleNamespace(box_coder=BoxCoder(weights), score_thresh=0.05, topk_candidates=per_class, nms_thresh=0.45,
                           detections_per_img=max_detections)
    theirs = SSD.postprocess_detections(
        peer, {"bbox_regression": deltas, "cls_logits": logits}, [anchors] * 2, [SIZE] * 2)
    dense = DenseBoxes(boxes.clip(boxes.decode(deltas, anchors, weights), SIZE), logits.softmax(-1)[..., 1:])
    for way in (_eager, _static):
        found = way(dense, Options(0.05, 0.45, per_class, max_detections, 1000))
        for row, wanted in enumerate(theirs):
            number = int(found.num_valid[row])
            assert number == len(wanted["scores"]) > 20
            torch.testing.assert_close(found.scores[row, :number], wanted["scores"])
            assert torch.equal(found.labels[row, :number] + 1, wanted["labels"])
            torch.testing.assert_close(found.boxes[row, :number], wanted["boxes"], rtol=1e-5, atol=1e-3)


def _chain(length: int) -> DenseBoxes:
    """Boxes in a row, each overlapping only its neighbours too much: every second one stays."""
    x = torch.arange(length) * 3.0
    row = torch.stack((x, torch.zeros(length), x + 10, torch.full((length,), 10.0)), -1)
    return DenseBoxes(row[None], torch.linspace(0.9, 0.1, length)[None, :, None])


def _steps_needed(dense: DenseBoxes, options: Options) -> int:
    """How many steps the fixed point takes, by iterating until nothing changes; one class."""
    scores, order = dense.scores[0, :, 0].sort(descending=True)
    entered = order[: options.per_class][scores[: options.per_class] > options.score_threshold]
    overlap = (boxes.iou(dense.boxes[0, entered], dense.boxes[0, entered]) > options.iou_threshold).float().tril(-1)
    kept, steps = torch.ones(len(entered)), 0
    while not torch.equal(following := (overlap @ kept < 0.5).float(), kept):
        kept, steps = following, steps + 1
    return steps


def test_long_chains() -> None:
    for length in (2, 3, 10, FIXED_POINT_STEPS, FIXED_POINT_STEPS + 1):
        dense = _chain(length)
        assert _steps_needed(dense, Options()) == length - 1
        _assert_same(_static(dense, Options()), _eager(dense, Options()))


def test_longer_chains_leave_boxes_too_many_and_lose_none() -> None:
    assert FIXED_POINT_STEPS % 2 == 0
    found, wanted = (way(_chain(90), Options()) for way in (_static, _eager))
    assert wanted.num_valid.tolist() == [45]
    assert int(found.num_valid[0]) > 45
    assert {tuple(box) for box in wanted.boxes[0].tolist()} < {tuple(box) for box in found.boxes[0].tolist()}


@pytest.mark.parametrize("three_on_first", [False, True])
def test_steps_suffice_for_smooth_scores_on_grids_of_anchors(three_on_first: bool) -> None:
    """The longest chains come from scores that fall smoothly over the anchors of an image: ramps, hills, waves.

    Waves are searched at random; hill climbing over 600 of them found chains of 28.
    """
    maps = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    anchors = SSDAnchors(three_on_first=three_on_first)(maps, (320, 320), device=torch.device("cpu"))
    anchors = boxes.clip(anchors, (320, 320))
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 640).unbind(-1)
    fields = [x, (x + y) / 2, (1.7 * x + y) / 2.7, torch.exp(-4 * (x**2 + y**2)),
              torch.exp(-8 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)), torch.atan2(y - 0.5, x - 0.5) / 7 + 0.5]
    for _ in range(25):
        waves = [torch.randn(()) * torch.cos(torch.randn(()) * 5 * x + torch.randn(()) * 5 * y + torch.rand(()) * 6.3)
                 for _ in range(4)]
        fields.append((torch.stack(waves).sum(0) + torch.randn(len(x)) * 0.01).sigmoid())
    longest = 0
    for number, field in enumerate(fields):
        options = Options(iou_threshold=(0.45, 0.55, 0.6)[number % 3], per_class=300)
        dense = DenseBoxes(anchors[None], field.clamp(0.02, 0.98)[None, :, None])
        longest = max(longest, _steps_needed(dense, options))
    assert 12 <= longest <= FIXED_POINT_STEPS


@pytest.mark.parametrize(("sizes", "map_size", "image", "entered"), [
    ((32, 64, 128, 256, 512), (10, 14), (320, 426), 150),
    ((32, 64, 128, 256, 512), (25, 34), (800, 1066), 1000),
    ((32,), (80, 107), (320, 426), 150),
])
def test_steps_suffice_for_the_proposals_of_a_map(
    sizes: tuple[int, ...], map_size: tuple[int, int], image: tuple[int, int], entered: int
) -> None:
    """As above, with the anchors, the limits and the threshold of the configs of Faster R-CNN."""
    anchors = boxes.clip(GridAnchors((sizes,))([map_size], image, device=torch.device("cpu")), image)
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2 / torch.tensor([image[1], image[0]])).unbind(-1)
    longest = 0
    for field in ((x + y) / 2, torch.exp(-4 * (x**2 + y**2)), torch.atan2(y - 0.5, x - 0.5) / 7 + 0.5):
        dense = DenseBoxes(anchors[None], field.clamp(0.02, 0.98)[None, :, None])
        longest = max(longest, _steps_needed(dense, Options(iou_threshold=0.7, per_class=entered)))
    assert 5 <= longest <= FIXED_POINT_STEPS


class Finish(nn.Module):
    """A task's last part as a module, which is what torch exports."""

    def __init__(self, task: Detection) -> None:
        super().__init__()
        self.task = task

    def forward(self, dense_boxes: Tensor, scores: Tensor) -> Detections:
        return self.task.finish(DenseBoxes(dense_boxes, scores))


def test_exported_strictly_it_gives_the_same() -> None:
    task = Detection(score_threshold=0.05, iou_threshold=0.5, per_class=60, max_detections=50, candidates=400)
    first, second = _random(2, 130, 3, spread=0.5), _random(2, 130, 3, spread=0.1)
    exported = torch.export.export(Finish(task), tuple(first), strict=True).module()
    for dense in (first, second, second._replace(scores=second.scores * 0)):
        _assert_same(Detections(*exported(*dense)), task.finish(dense))
