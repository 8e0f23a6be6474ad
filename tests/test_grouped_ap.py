"""AP of groups of objects: against COCO AP of images alone, by hand, and the two implementations against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings

from detseg.data.box_index import BoxIndex
from detseg.metrics.grouped_ap import ASPECT, COUNT, OVERLAP, GroupedAP, aspect_ratio, overlap
from detseg.structures import ImageDetections
from tests.test_coco_ap import CLASSES, Truth, awkward_cases, found, index_of, random_case
from tests.test_coco_ap import numbers as coco_numbers

ALL = (ASPECT, OVERLAP, COUNT)


def numbers(
    index: BoxIndex, predictions: list[ImageDetections], *, reference: bool = False
) -> dict[str, float]:
    metric = GroupedAP(index, per_class=True, reference=reference, groupings=ALL)
    metric.update(predictions)
    return metric.compute()


@given(awkward_cases())
@settings(max_examples=20, deadline=None)
def test_the_implementations_agree(case: tuple[BoxIndex, list[ImageDetections]]) -> None:
    fast, reference = (numbers(*case, reference=reference) for reference in (False, True))
    assert fast == pytest.approx(reference, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("seed", range(4))
def test_images_of_few_objects_are_those_images_alone(seed: int) -> None:
    index, predictions = random_case(seed)
    got, seen = numbers(index, predictions), set()
    objects = np.bincount(index.image_of_box()[~index.crowd], minlength=len(index))
    for group, (low, high) in COUNT.ranges.items():
        chosen = np.flatnonzero((objects >= low) & (objects <= high))
        ids = {int(index.image_ids[i]) for i in chosen}
        alone = coco_numbers(index.select(chosen.tolist()), [one for one in predictions if one.image_id in ids])
        for name, theirs in (("AP", "AP"), ("AR", "AR100")):
            assert got[f"{name}_{group}"] == pytest.approx(alone[theirs], abs=1e-9, nan_ok=True)
        for name in CLASSES.used.values():
            assert got[f"AP_{group}/{name}"] == pytest.approx(alone[f"AP/{name}"], abs=1e-9, nan_ok=True)
        seen |= ids
    assert seen == set(index.image_ids.tolist()), "every image is in a group"


def test_shapes_by_hand() -> None:
    """The wide cat is found, the tall one is not; the false detection is square, and hurts there alone."""
    index = index_of({1: (100, 100)}, [Truth(1, 1, (0, 0, 40, 20)), Truth(1, 1, (50, 0, 20, 40)),
                                       Truth(1, 1, (0, 50, 20, 20))])
    got = numbers(index, [found(1, (60, 60, 80, 80, 0.9, 0), (0, 0, 40, 20, 0.8, 0), (0, 50, 20, 70, 0.7, 0))])
    assert [got[f"AP_{group}"] for group in ("tall", "square", "wide")] == pytest.approx([0, 1 / 2, 1])
    assert [got[f"AR_{group}"] for group in ("tall", "square", "wide")] == [0, 1, 1]


def test_crowding_by_hand() -> None:
    """A cat and a dog with an IoU of 1/3, and a cat alone; a false detection in the open hurts those alone."""
    index = index_of({1: (100, 100)}, [Truth(1, 1, (0, 0, 20, 20)), Truth(1, 18, (10, 0, 20, 20)),
                                       Truth(1, 1, (60, 60, 20, 20)), Truth(1, 1, (60, 60, 30, 30), crowd=True)])
    again, in_the_open = (0, 0, 20, 20, 0.95, 0), (60, 0, 80, 20, 0.95, 0)
    exact = [(0, 0, 20, 20, 0.9, 0), (60, 60, 80, 80, 0.9, 0)]
    for extra, packed, apart in (([], 1, 1), ([again], 1, 1), ([in_the_open], 1, 1 / 2)):
        got = numbers(index, [found(1, *extra, *exact)])
        assert got["AP_packed/cat"] == pytest.approx(packed)
        assert got["AP_packed/dog"] == 0
        assert got["AP_apart/cat"] == pytest.approx(apart)
        assert math.isnan(got["AP_touching"])
    # A copy that comes first and is too small at one of ten thresholds: false among the crowded, ignored elsewhere.
    got = numbers(index, [found(1, (1.5, 0, 20, 20, 0.95, 0), *exact)])
    assert got["AP_packed/cat"] == pytest.approx(0.95)
    assert got["AP_apart/cat"] == pytest.approx(1)


def test_what_is_measured() -> None:
    index = index_of({1: (50, 50), 2: (50, 50)}, [Truth(1, 1, (0, 0, 10, 10)), Truth(1, 18, (0, 0, 10, 20)),
                                                  Truth(2, 1, (0, 0, 10, 10))])
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 20], [30, 30, 5, 5], [1, 1, 0, 0]], float)
    assert overlap(index, 0, boxes).tolist() == [0.5, 0.5, 0, 0]
    assert overlap(index, 1, boxes).tolist() == [0, 0, 0, 0], "the one object is the box's own"
    shapes = np.array([[0, 0, 6, 4], [0, 0, 4, 6], [0, 0, 5, 0], [0, 0, 0, 5], [0, 0, 0, 0], [0, 0, -1, 5]], float)
    assert aspect_ratio(index, 0, shapes).tolist() == [1.5, 4 / 6, 1e10, 0, 1, 0]


def test_without_images_or_objects_nothing_exists() -> None:
    cases: list[tuple[BoxIndex, list[ImageDetections]]] = [
        (index_of({}, []), []), (index_of({1: (50, 80)}, []), [found(1, (0, 0, 5, 5, 0.5, 0))])]
    for index, predictions in cases:
        got = numbers(index, predictions)
        assert len(got) == 9 * (2 + 3)
        assert all(math.isnan(value) for value in got.values())


def test_the_table_says_how_many_objects_each_group_has() -> None:
    index = index_of({1: (50, 80)}, [Truth(1, 1, (0, 0, 30, 20)), Truth(1, 18, (40, 0, 20, 20)),
                                     Truth(1, 1, (0, 30, 20, 20), crowd=True)])
    metric = GroupedAP(index, per_class=True, groupings=(ASPECT,))
    metric.update([found(1, (0, 0, 30, 20, 0.5, 0))])
    table = metric.table(metric.compute())
    assert metric.main == "AP_tall"
    assert table.columns == ("measure", "tall", "square", "wide")
    assert table.rows[0] == ("objects", "0", "2", "1"), "3 to 2 is in both, as an area of 32^2 is in COCO"
    assert [row[0] for row in table.rows[1:]] == ["AP", "AR", "AP/cat", "AP/cow", "AP/dog"]
    assert table.rows[1][2:] == pytest.approx((0.5, 1.0))
    assert table.notes == ("width over height: tall up to 0.667, square 0.667 to 1.5, wide from 1.5",)
    assert len(GroupedAP(index).table(GroupedAP(index).compute()).rows) == 3
