"""VOC's AP50: by hand, and against the development kit's rules written down again."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.data.box_index import BoxIndex
from detseg.metrics.voc_ap import VocAP
from detseg.structures import ImageDetections
from tests.test_coco_ap import CLASSES, Truth, found, index_of


def numbers(index: BoxIndex, *predictions: ImageDetections) -> dict[str, float]:
    metric = VocAP(index, per_class=True)
    metric.update(predictions)
    return metric.compute()


def test_both_curves_by_hand() -> None:
    """Four cats, of which three are found: right, wrong, right, wrong, wrong, right."""
    index = index_of({1: (100, 100)}, [Truth(1, 1, (20 * k, 0, 10, 10)) for k in range(4)])
    rows = [(0, 0, 10, 10, 0.9, 0), (0, 50, 10, 60, 0.8, 0), (20, 0, 30, 10, 0.7, 0), (20, 50, 30, 60, 0.6, 0),
            (40, 50, 50, 60, 0.5, 0), (40, 0, 50, 10, 0.4, 0)]
    got = numbers(index, found(1, *rows))
    # Precision at recall 1/4 is 1, at 2/4 2/3, at 3/4 3/6.
    assert got["VOC_AP50/cat"] == got["VOC_AP50"] == pytest.approx((1 + 2 / 3 + 1 / 2) / 4)
    # Recalls 0, 0.1, 0.2 | 0.3, 0.4, 0.5 | 0.6, 0.7 | and 0.8, 0.9, 1 are not reached.
    assert got["VOC07_AP50/cat"] == got["VOC07_AP50"] == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 1 / 2) / 11)
    assert math.isnan(got["VOC_AP50/dog"])
    assert math.isnan(got["VOC07_AP50/dog"])


def test_the_second_detection_of_an_object_is_false_although_another_object_is_near() -> None:
    """COCO would give the second the other cat, which it overlaps by 0.6."""
    index = index_of({1: (100, 100)}, [Truth(1, 1, (0, 0, 10, 10)), Truth(1, 1, (0, 2, 10, 10))])
    got = numbers(index, found(1, (0, 0, 10, 10, 0.9, 0), (0, 0.5, 10, 10.5, 0.8, 0)))
    assert got["VOC_AP50"] == pytest.approx(1 / 2)


def test_difficult_objects_count_neither_way() -> None:
    index = index_of({1: (100, 100)}, [Truth(1, 1, (0, 0, 10, 10)), Truth(1, 1, (50, 50, 30, 30), crowd=True)])
    in_crowd = [(50, 50, 80, 80, 0.95, 0), (50, 50, 79, 80, 0.94, 0)]
    assert numbers(index, found(1, *in_crowd, (0, 0, 10, 10, 0.5, 0)))["VOC_AP50"] == 1
    small = (60, 60, 70, 70, 0.96, 0)  # inside it, but an IoU of 1/9: false, where COCO ignores it
    assert numbers(index, found(1, small, (0, 0, 10, 10, 0.5, 0)))["VOC_AP50"] == 1 / 2


def test_three_of_ten_objects_reach_the_recall_of_three_tenths() -> None:
    """Which 3 * 0.1 in floating point does not say."""
    index = index_of({1: (100, 200)}, [Truth(1, 1, (20 * k, 0, 10, 10)) for k in range(10)])
    assert numbers(index, found(1, *[(20 * k, 0, 20 * k + 10, 10, 0.9, 0) for k in range(3)]))["VOC07_AP50"] == 4 / 11


class Object(NamedTuple):
    """As the development kit reads it: pixels counted from 1, the last one included."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float
    difficult: bool
    seen: bool = False


def by_the_kit(truth: dict[int, list[Object]], detections: list[tuple[int, float, tuple[float, ...]]]) -> Any:
    """VOCevaldet.m for a class, step by step: right and false detections, and the number of objects."""
    objects = {image: list(some) for image, some in truth.items()}
    right, false = [], []
    for image, _, (x1, y1, x2, y2) in sorted(detections, key=lambda one: -one[1]):
        best, best_j = -math.inf, -1
        for j, one in enumerate(objects.get(image, [])):
            width = min(x2, one.xmax) - max(x1, one.xmin) + 1
            height = min(y2, one.ymax) - max(y1, one.ymin) + 1
            if width > 0 and height > 0:
                union = ((x2 - x1 + 1) * (y2 - y1 + 1) + (one.xmax - one.xmin + 1) * (one.ymax - one.ymin + 1)
                         - width * height)
                if width * height / union > best:
                    best, best_j = width * height / union, j
        is_right = is_false = False
        if best >= 0.5:
            one = objects[image][best_j]
            if not one.difficult:
                is_right, is_false = not one.seen, one.seen
                objects[image][best_j] = one._replace(seen=True)
        else:
            is_false = True
        right.append(is_right)
        false.append(is_false)
    return right, false, sum(not one.difficult for some in truth.values() for one in some)


def kit_averages(right: list[bool], false: list[bool], num_objects: int) -> tuple[float, float]:
    """VOCap.m, and the loop over 11 recalls of 2007, in fractions."""
    if not num_objects:
        return math.nan, math.nan
    recalls, precisions = [Fraction(0)], [Fraction(0)]
    for k in range(1, len(right) + 1):
        hits, misses = sum(right[:k]), sum(false[:k])
        recalls.append(Fraction(hits, num_objects))
        precisions.append(Fraction(hits, hits + misses) if hits + misses else Fraction(0))  # NaN, which max leaves out
    eleven = sum(max((p for r, p in zip(recalls[1:], precisions[1:], strict=True) if r >= Fraction(t, 10)), default=0)
                 for t in range(11))
    recalls, precisions = [*recalls, Fraction(1)], [*precisions, Fraction(0)]
    for i in reversed(range(len(precisions) - 1)):
        precisions[i] = max(precisions[i], precisions[i + 1])
    area = sum((recalls[i] - recalls[i - 1]) * precisions[i] for i in range(1, len(recalls)))
    return float(area), float(Fraction(eleven) / 11)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Truth], list[tuple[int, int, float, tuple[int, int, int, int]]]]:
    """Objects, and detections (image, label, score, box) that often are those of objects; equal scores and boxes."""
    boxes = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 9), st.integers(1, 9))
    places = st.tuples(st.sampled_from([7, 2, 4]), st.sampled_from([0, 2]))
    scores = st.sampled_from([0.25, 0.5, 0.75, 0.9])
    true = draw(st.lists(st.tuples(places, boxes, st.booleans(), st.booleans()), max_size=10))
    truths = [Truth(image, CLASSES.source_ids[label], box, first and second)
              for (image, label), box, first, second in true]
    rows = draw(st.lists(st.tuples(places, boxes, scores), max_size=12))
    rows += [(place, (x + draw(st.integers(0, 1)), y, w, h), draw(scores)) for place, (x, y, w, h), _, _ in true
             if draw(st.booleans())]
    return truths, [(image, label, score, box) for (image, label), box, score in draw(st.permutations(rows))]


@given(cases())
@settings(max_examples=200, deadline=None)
def test_it_is_what_the_development_kit_computes(case: Any) -> None:
    truths, rows = case
    index = index_of({7: (40, 40), 2: (40, 40), 4: (40, 40)}, truths)
    predictions, kit_rows = [], []
    for image in (2, 4, 7):
        own = sorted((row for row in rows if row[0] == image), key=lambda row: -row[2])
        predictions.append(found(image, *((x, y, x + w, y + h, score, label) for _, label, score, (x, y, w, h) in own)))
        kit_rows += [(label, (image, score, (x + 1, y + 1, x + w, y + h))) for _, label, score, (x, y, w, h) in own]
    got, means = numbers(index, *predictions[::-1]), []
    for label, name in ((0, "cat"), (2, "dog")):
        truth: dict[int, list[Object]] = {}
        for one in truths:
            x, y, w, h = one.bbox
            if one.category_id == CLASSES.source_ids[label]:
                truth.setdefault(one.image_id, []).append(Object(x + 1, y + 1, x + w, y + h, one.crowd))
        expected = kit_averages(*by_the_kit(truth, [row for k, row in kit_rows if k == label]))
        assert (got[f"VOC_AP50/{name}"], got[f"VOC07_AP50/{name}"]) == pytest.approx(expected, abs=1e-12, nan_ok=True)
        means.append(expected)
    existing = [one for one in means if not math.isnan(one[0])]
    for column, rule in enumerate(("VOC_AP50", "VOC07_AP50")):
        mean = sum(one[column] for one in existing) / len(existing) if existing else math.nan
        assert got[rule] == pytest.approx(mean, abs=1e-12, nan_ok=True)


def test_a_class_that_is_never_predicted_is_zero_and_one_without_objects_does_not_count() -> None:
    index = index_of({1: (50, 80), 2: (50, 80)}, [Truth(1, 1, (0, 0, 10, 10)), Truth(2, 18, (0, 0, 10, 10))])
    got = numbers(index, found(1, (0, 0, 10, 10, 0.5, 0), (0, 0, 10, 10, 0.9, 3)))
    for rule in ("VOC_AP50", "VOC07_AP50"):
        assert [got[name] for name in (f"{rule}/cat", f"{rule}/dog", rule)] == pytest.approx([1, 0, 1 / 2])
    assert math.isnan(got["VOC_AP50/cow"])


def test_without_images_or_objects_nothing_exists() -> None:
    for got in (numbers(index_of({}, [])), numbers(index_of({1: (5, 5)}, []), found(1, (0, 0, 5, 5, 0.5, 0)))):
        assert len(got) == 8
        assert all(math.isnan(value) for value in got.values())


def test_what_it_refuses() -> None:
    metric = VocAP(index_of({1: (50, 80)}, []))
    with pytest.raises(ValueError, match="image 2 is not one of the 1 images with annotations; evaluate on the data"):
        metric.update([found(2)])


def test_the_table_has_both_rules_beside_each_other() -> None:
    metric = VocAP(index_of({1: (50, 80)}, []), per_class=True)
    table = metric.table({"VOC_AP50": 0.5, "VOC07_AP50": 0.25, "VOC_AP50/a": 0.25, "VOC07_AP50/a": 0.125,
                          "VOC_AP50/b": 0.75, "VOC07_AP50/b": 0.375})
    assert table.columns == ("class", "VOC_AP50", "VOC07_AP50")
    assert table.rows == (("mean", 0.5, 0.25), ("b", 0.75, 0.375), ("a", 0.25, 0.125))
