"""COCO AP: hand-computed numbers, the two implementations against each other and the official code."""

from __future__ import annotations

import contextlib
import io
import math
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from detseg.atomic import write_records
from detseg.data.box_index import BoxIndex
from detseg.data.coco import read_coco
from detseg.metrics.coco_ap import CocoAP
from detseg.report.console import render
from detseg.report.results import records
from detseg.structures import Classes, ImageDetections, Size

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
both = pytest.mark.parametrize("reference", [False, True], ids=["hotcoco", "pycocotools"])

CLASSES = Classes(("cat", "unused-2", "dog", "cow"), (1, 2, 18, 90))


class Truth(NamedTuple):
    """One object: xywh as in the file."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    crowd: bool = False
    area: float | None = None
    """Of the outline; without one, four fifths of the box."""


def index_of(images: dict[int, Size], annotations: list[Truth]) -> BoxIndex:
    positions = {image_id: i for i, image_id in enumerate(images)}
    boxes = np.array([annotation.bbox for annotation in annotations], np.float64).reshape(-1, 4)
    return BoxIndex.of(
        CLASSES, Path("images"),
        image_ids=np.array(list(images), np.int64),
        sizes=np.array(list(images.values()), np.int32).reshape(-1, 2),
        names=[f"{image_id}.jpg" for image_id in images],
        image_of_box=np.array([positions[annotation.image_id] for annotation in annotations], np.int64),
        boxes=boxes,
        labels=np.array([CLASSES.source_ids.index(annotation.category_id) for annotation in annotations], np.int32),
        crowd=np.array([annotation.crowd for annotation in annotations], np.bool_),
        areas=np.array([0.8 * annotation.bbox[2] * annotation.bbox[3] if annotation.area is None else annotation.area
                        for annotation in annotations], np.float64),
        annotation_ids=np.arange(len(annotations), dtype=np.int64),
    )


def found(image_id: int, *rows: tuple[float, float, float, float, float, int]) -> ImageDetections:
    """Rows of x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return ImageDetections(image_id, table[:, :4].float(), table[:, 4].float(), table[:, 5].long())


def numbers(index: BoxIndex, predictions: list[ImageDetections], *, reference: bool = False) -> dict[str, float]:
    metric = CocoAP(index, per_class=True, reference=reference)
    metric.update(predictions)
    return metric.compute()


def random_case(seed: int) -> tuple[BoxIndex, list[ImageDetections]]:
    """Crowds, empty images, images without detections, ties, duplicates, every size, more than 100 of a class."""
    random = np.random.default_rng(seed)
    images = {int(i): (int(random.integers(80, 500)), int(random.integers(80, 500)))
              for i in random.choice(10_000, size=12, replace=False)}
    annotations, predictions = [], []
    for image_id, (height, width) in images.items():
        true = np.stack([random.uniform(0, 0.7 * width, 8), random.uniform(0, 0.7 * height, 8),
                         random.uniform(2, 0.3 * width, 8), random.uniform(2, 0.3 * height, 8)], axis=1)
        labels = random.choice([0, 2] if seed % 3 else [2], size=8)
        number = 0 if random.random() < 0.2 else int(random.integers(1, 8))
        for box, label in zip(true[:number], labels[:number], strict=True):
            crowd = bool(random.random() < 0.2)
            annotations.append(Truth(image_id, CLASSES.source_ids[label], tuple(box.tolist()), crowd))
        rows = 0 if random.random() < 0.2 else int(random.choice([3, 30, 150]))
        near = random.integers(0, 8, rows)
        shifted = true[near] + random.normal(0, 1, (rows, 4)) * random.choice([0.0, 1.0, 8.0], (rows, 1))
        guessed = np.where(random.random(rows) < 0.8, labels[near], 3)
        scores = np.sort(random.integers(0, 20, rows) / 20.0)[::-1]
        predictions.append(found(image_id, *[
            (x, y, x + max(w, 0.5), y + max(h, 0.5), score, int(label))
            for (x, y, w, h), score, label in zip(shifted, scores, guessed, strict=True)]))
    return index_of(images, annotations), predictions


@both
def test_a_hand_computed_case(reference: bool) -> None:
    # Two cats of 10 x 10 and 40 x 40. Found: the second exactly, then a false one, then the first at IoU 0.8.
    index = index_of({7: (60, 100)}, [Truth(7, 1, (0, 0, 10, 10)), Truth(7, 1, (50, 10, 40, 40))])
    got = numbers(index, [found(7, (50, 10, 90, 50, 0.9, 0), (0, 40, 9, 50, 0.8, 0), (0, 0, 8, 10, 0.7, 0))],
                  reference=reference)

    both, one = (51 * 1 + 50 * 2 / 3) / 101, 51 / 101  # precision at 101 recalls: 1 up to 0.5, then 2/3 or nothing
    expected = {
        # IoU 0.8 passes 7 of the 10 thresholds; 0.5 and 0.75 are among them.
        "AP": 0.7 * both + 0.3 * one, "AP50": both, "AP75": both,
        # The false box is as small as the first cat and comes before it: precision 1/2, at 7 of 10 thresholds.
        "APs": 0.7 * 0.5, "APm": 1.0, "APl": math.nan,
        "AR1": 0.5, "AR10": 0.85, "AR100": 0.85, "ARs": 0.7, "ARm": 1.0, "ARl": math.nan,
        "AP/cat": 0.7 * both + 0.3 * one, "AP/dog": math.nan, "AP/cow": math.nan,
    }
    assert got == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(12))
def test_the_implementations_agree_and_are_the_official_summary(seed: int) -> None:
    index, predictions = random_case(seed)
    fast, reference = (numbers(index, predictions, reference=reference) for reference in (False, True))
    assert fast == pytest.approx(reference, abs=1e-6, nan_ok=True)

    results = [dict(record) for prediction in predictions for record in records(prediction, CLASSES)]
    assert list(reference.values())[:12] == pytest.approx(official(index, results), abs=1e-12, nan_ok=True)
    assert 0 < reference["AP"] < 1


def official(index: BoxIndex, results: list[dict[str, Any]] | str) -> list[float]:
    """The twelve numbers as pycocotools' own `summarize` says them."""
    ground_truth = COCO()
    ground_truth.dataset = index.coco_ground_truth()
    ground_truth.createIndex()
    evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [math.nan if number == -1 else float(number) for number in evaluation.stats]


@st.composite
def awkward_cases(draw: st.DrawFn) -> tuple[BoxIndex, list[ImageDetections]]:
    """Sides at the borders of the areas, and outlines of exactly 32^2 and 96^2; equal boxes and equal scores, crowds,
    images without objects or detections, an image with more than 100 detections of a class."""
    sides = st.sampled_from([1.0, 16.0, 31.0, 32.0, 33.0, 64.0, 95.0, 96.0, 97.0, 144.0])
    boxes = st.tuples(st.sampled_from([0.0, 3.0, 20.0]), st.sampled_from([0.0, 5.0]), sides, sides)
    labels, scores = st.sampled_from([0, 2]), st.sampled_from([0.1, 0.5, 0.5000001, 0.9])
    annotations, predictions = [], []
    for image_id in (5, 3, 4):
        areas = st.sampled_from([None, 1024.0, 9216.0])
        true = draw(st.lists(st.tuples(boxes, labels, st.booleans(), areas), max_size=4))
        annotations += [Truth(image_id, CLASSES.source_ids[label], box, crowd and draw(st.booleans()), area)
                        for box, label, crowd, area in true]
        rows = draw(st.lists(st.tuples(boxes, labels, scores), max_size=5))
        rows += [(box, label, draw(scores)) for box, label, _, _ in true if draw(st.booleans())]
        if image_id == 4 and rows and draw(st.booleans()):
            rows = rows + rows[:1] * 105
        predictions.append(found(image_id, *(
            (x, y, x + w, y + h, score, label) for (x, y, w, h), label, score in rows)))
    return index_of(dict.fromkeys((5, 3, 4), (150, 170)), annotations), predictions


@given(awkward_cases())
@settings(max_examples=200, deadline=None)
def test_it_is_what_pycocotools_computes_where_that_is_awkward(case: tuple[BoxIndex, list[ImageDetections]]) -> None:
    index, predictions = case
    fast = list(numbers(index, predictions).values())[:12]
    if results := [dict(record) for prediction in predictions for record in records(prediction, CLASSES)]:
        with contextlib.redirect_stdout(io.StringIO()):
            assert fast == pytest.approx(official(index, results), abs=1e-6, nan_ok=True)
    else:
        assert all(math.isnan(number) or number == 0 for number in fast)


@given(awkward_cases(), st.sampled_from([1, 3, 102]))
@settings(max_examples=25, deadline=None)
def test_a_limit_for_an_image_is_that_of_all_classes_together(
    case: tuple[BoxIndex, list[ImageDetections]], per_image: int
) -> None:
    index, predictions = case
    limited = {}
    for reference in (False, True):
        metric = CocoAP(index, per_class=True, reference=reference, per_image=per_image)
        metric.update(predictions)
        limited[reference] = metric.compute()
    assert limited[False] == pytest.approx(limited[True], abs=1e-6, nan_ok=True)
    # The same by leaving out the others beforehand, which COCO's own limit of 100 of each class then does not see.
    if per_image <= 100:
        kept = []
        for one in predictions:
            order = torch.from_numpy(np.argsort(-one.scores.numpy(), kind="stable")[:per_image])
            kept.append(one._replace(boxes=one.boxes[order], scores=one.scores[order], labels=one.labels[order]))
        got = numbers(index, kept)
        assert limited[False] == pytest.approx(
            {f"{name}@{per_image}": got[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
            | {f"{name}@{per_image}": got[old] for name, old in
               (("AR", "AR100"), ("ARs", "ARs"), ("ARm", "ARm"), ("ARl", "ARl"))}
            | {f"AP@{per_image}/{name}": got[f"AP/{name}"] for name in CLASSES.used.values()}, abs=1e-9, nan_ok=True)


def test_many_classes_give_nothing_for_free_under_a_limit_for_an_image() -> None:
    """Guesses of other classes, surer than the right one, take its place."""
    index = index_of({1: (50, 80)}, [Truth(1, 1, (0, 0, 10, 10)), Truth(1, 18, (20, 20, 10, 10))])
    rows = [(0, 0, 10, 10, 0.9, 0), (40, 0, 50, 10, 0.8, 0), (20, 20, 30, 30, 0.7, 2)]
    for per_image, dog in ((2, 0.0), (3, 1.0)):
        metric = CocoAP(index, per_class=True, per_image=per_image)
        metric.update([found(1, *rows)])
        got = metric.compute()
        assert metric.main == f"AP@{per_image}"
        assert got[f"AP@{per_image}/dog"] == pytest.approx(dog)
        assert got[f"AP@{per_image}"] == pytest.approx((1 + dog) / 2)
        table = metric.table(got)
        assert [row[0] for row in table.rows][:3] == [f"{name}@{per_image}" for name in ("AP", "AP50", "AP75")]
        assert {row[3] for row in table.rows} == {str(per_image)}
        assert [table.rows[row][0] for row in table.sections] == [f"{name}@{per_image}" for name in (
            "AP75", "APl", "ARl")]
    with pytest.raises(ValueError, match="at least 1 detection of an image must count, got per_image=0; LVIS has 300"):
        CocoAP(index, per_image=0)


@both
def test_without_images_nothing_exists(reference: bool) -> None:
    got = numbers(index_of({}, []), [], reference=reference)
    assert tuple(got) == (*NAMES, "AP/cat", "AP/dog", "AP/cow")
    assert all(math.isnan(number) for number in got.values())


def test_only_detections_take_memory_and_48_bytes_each() -> None:
    """What grows with the images is an array of them; 30 detections an image, as in a file of numbers."""
    kept = {}
    for count in (100, 1000):
        index = index_of(dict.fromkeys(range(count), (50, 80)), [])
        one = found(0, *[(0, 0, 5, 5, 0.5, 0)] * 30)
        metric = CocoAP(index)
        tracemalloc.start()
        for i in range(count):
            metric.update([one._replace(image_id=i)])
        kept[count], peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak - kept[count] < 100_000, "nothing piles up on the way"
        assert sum(rows.nbytes for rows in metric.collected().values()) == count * 30 * 48
    assert (kept[1000] - kept[100]) / 900 < 30 * 48 + 500


@both
def test_no_detections_at_all_is_zero(reference: bool) -> None:
    index = index_of({1: (50, 80), 2: (80, 50)}, [Truth(1, 18, (0, 0, 10, 10)), Truth(1, 1, (1, 1, 40, 40))])
    for predictions in ([], [found(1), found(2)]):
        got = numbers(index, predictions, reference=reference)
        assert {name for name, number in got.items() if math.isnan(number)} == {"APl", "ARl", "AP/cow"}
        assert all(number == 0 for number in got.values() if not math.isnan(number))


@both
def test_no_objects_at_all_is_nan(reference: bool) -> None:
    index = index_of({1: (50, 80)}, [])
    for predictions in ([found(1)], [found(1, (0, 0, 5, 5, 0.9, 0))]):
        got = numbers(index, predictions, reference=reference)
        assert tuple(got) == (*NAMES, "AP/cat", "AP/dog", "AP/cow")
        assert all(math.isnan(number) for number in got.values())


@both
def test_crowds_are_ignored_and_images_without_predictions_count(reference: bool) -> None:
    index = index_of({1: (50, 80), 2: (60, 60)},
                  [Truth(1, 1, (0, 0, 10, 10)), Truth(1, 1, (20, 20, 30, 30), crowd=True), Truth(2, 1, (5, 5, 10, 10))])
    in_crowd = [(20 + 5 * k, 25, 24 + 5 * k, 40, 0.95, 0) for k in range(3)]
    got = numbers(index, [found(1, *in_crowd, (0, 0, 10, 10, 0.5, 0))], reference=reference)
    assert got["AP"] == pytest.approx(51 / 101)
    assert got["AR100"] == pytest.approx(0.5)


@both
def test_it_is_silent_and_takes_images_in_any_order_and_portions(
    reference: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    index, predictions = random_case(99)
    expected = numbers(index, predictions, reference=reference)
    metric = CocoAP(index, per_class=True, reference=reference)
    metric.update(predictions[7:])
    metric.update([])
    metric.update(predictions[:7][::-1])
    assert metric.compute() == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert metric.compute() == pytest.approx(expected, abs=1e-12, nan_ok=True), "computing changed it"
    assert tuple(CocoAP(index).compute()) == NAMES
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_processes_together_know_what_one_does(num_processes: int) -> None:
    index, predictions = random_case(7)
    expected = numbers(index, predictions)
    shares = []
    for rank in range(num_processes):
        metric = CocoAP(index, per_class=True)
        metric.update(predictions[rank::num_processes])
        shares.append(metric.collected())
    merged = CocoAP(index, per_class=True)
    merged.update(predictions[:1])
    merged.merge(shares)
    assert merged.compute() == pytest.approx(expected, abs=0, nan_ok=True), "equal scores are ranked by image, not rank"
    with pytest.raises(ValueError, match="was given twice"):
        merged.update(predictions[-1:])
    with pytest.raises(AssertionError, match="two processes predicted the same image"):
        merged.merge([*shares, shares[0]])


def test_half_precision_with_gradient_is_taken() -> None:
    index = index_of({1: (50, 80)}, [Truth(1, 1, (0, 0, 10, 10))])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]], dtype=torch.bfloat16, requires_grad=True)
    prediction = ImageDetections(1, boxes, torch.tensor([0.5], dtype=torch.float16), torch.tensor([0]))
    assert numbers(index, [prediction])["AP"] == pytest.approx(1.0)


@both
def test_ids_that_no_float_holds_are_told_apart(reference: bool) -> None:
    base = 2**62
    index = index_of({base + 1: (50, 80), base: (50, 80)}, [Truth(base, 1, (0, 0, 10, 10))])
    right, wrong = (base, (0, 0, 10, 10, 0.9, 0)), (base + 1, (0, 0, 10, 10, 0.9, 0))
    assert numbers(index, [found(*right), found(base + 1)], reference=reference)["AP"] == pytest.approx(1.0)
    assert numbers(index, [found(base), found(*wrong)], reference=reference)["AP"] == 0


def test_what_it_refuses() -> None:
    index = index_of({1: (50, 80), 2: (60, 60)}, [])
    metric = CocoAP(index)
    metric.update([found(1)])
    with pytest.raises(ValueError, match="image 1 was given twice; give each image once"):
        metric.update([found(2), found(1)])
    with pytest.raises(ValueError, match="image 3 is not one of the 2 images with annotations; evaluate on the data"):
        metric.update([found(3)])
    for row in ((0, 0, math.nan, 5, 0.9, 0), (0, 0, 5, 5, math.inf, 0)):
        with pytest.raises(FloatingPointError, match="image 2 has boxes or scores that are not finite: the network"):
            CocoAP(index).update([found(2, row)])
    for label in (-1, 4):
        with pytest.raises(AssertionError, match="padding, or the labels of another set of classes"):
            CocoAP(index).update([found(2, (0, 0, 5, 5, 0.9, label))])


def test_the_table_shows_the_official_rows_and_classes_best_first() -> None:
    values = {name: k / 16 for k, name in enumerate(NAMES)} | {"APl": math.nan}
    by_class = {"AP/cat": 0.25, "AP/dog": 0.5, "AP/cow": math.nan}
    console = Console(width=100, record=True, file=io.StringIO())
    table = CocoAP(index_of({1: (4, 4)}, [])).table({**values, **by_class})
    console.print(render(table))
    lines = [line.replace("│", " ").replace("┃", " ").split() for line in console.export_text().splitlines()]
    assert ["AP50", "0.50", "all", "100", "0.062"] in lines
    assert ["APl", "0.50:0.95", "large", "100", "-"] in lines
    assert ["AR1", "0.50:0.95", "all", "1", "0.375"] in lines
    shown = [line[0] for line in lines if line and line[0] in (*NAMES, *by_class)]
    assert shown == [*NAMES, "AP/dog", "AP/cat", "AP/cow"]
    assert {type(cell) for row in table.rows for cell in row} == {str, float}, "plain values"
    ends = [table.rows[row][0] for row in table.sections]
    assert ends == ["AP75", "APl", "AR100", "ARl"], "the official groups"


@pytest.mark.real
def test_real_annotations(shared: Path, tmp_path: Path) -> None:
    annotations = shared / "data" / "coco_mini" / "annotations" / "instances_val2017.json"
    index = read_coco(annotations, annotations.parents[1] / "val2017")
    exact, shifted = [], []
    for i, image_id in enumerate(index.image_ids.tolist()):
        rows = slice(index.offsets[i], index.offsets[i + 1])
        x, y, width, height = torch.from_numpy(index.boxes[rows]).unbind(1)
        corners = torch.stack([x, y, x + width, y + height], dim=1)
        labels = torch.from_numpy(index.labels[rows].astype(np.int64))
        prediction = ImageDetections(image_id, corners.float(), torch.rand(len(labels)), labels)
        exact.append(prediction)
        shifted.append(prediction._replace(boxes=prediction.boxes + 6 * torch.rand(len(labels), 4)))
    assert numbers(index, exact)["AP"] == pytest.approx(1.0)

    fast, reference = (numbers(index, shifted, reference=reference) for reference in (False, True))
    assert fast == pytest.approx(reference, abs=1e-6, nan_ok=True)
    assert 0.2 < fast["AP"] < 0.9
    found_boxes = (record for prediction in shifted for record in records(prediction, index.classes))
    write_records(tmp_path / "results.json", found_boxes)
    with contextlib.redirect_stdout(io.StringIO()):
        original = COCO(str(annotations))
        evaluation = COCOeval(original, original.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(fast.values())[:12] == pytest.approx(list(evaluation.stats), abs=1e-6)
