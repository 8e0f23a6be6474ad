"""Numbers at edges and other averages of label maps: by hand, and against slow computations of what is meant."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial

import hotcoco
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detseg.metrics.edges import BoundaryIoU, EdgeIoU
from detseg.metrics.label_averages import LabelAverages
from detseg.metrics.label_maps import LabelMetric
from detseg.metrics.mean_iou import MeanIoU, confusion_matrix
from detseg.metrics.numbers import mean_existing, ratio
from detseg.structures import VOID, Classes, ImageLabels, LabelPixels
from tests.test_mean_iou import THREE, Maps, case, maps, pixels

EVERY: tuple[Callable[[Maps], LabelMetric], ...] = tuple(
    partial(kind, per_class=True) for kind in (MeanIoU, LabelAverages, BoundaryIoU, EdgeIoU))
every = pytest.mark.parametrize("make", EVERY, ids=["mean_iou", "averages", "boundary", "edges"])


def numbers(metric: LabelMetric, *found: LabelPixels) -> dict[str, float]:
    predictions = [ImageLabels(int(i), pixels(labels))
                   for i, labels in zip(metric.index.image_ids, found, strict=True)]
    assert isinstance(metric.index, Maps)
    metric.update(predictions, metric.index.truths(predictions))
    return metric.compute()


@st.composite
def patches(draw: st.DrawFn) -> tuple[Maps, list[ImageLabels]]:
    """Images of patches, so that there are insides; void among the true ones; sizes from a pixel on."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    truths, found = {}, []
    for image_id in range(draw(st.integers(1, 3))):
        height, width = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
        cell = draw(st.integers(1, 12))
        both = [np.kron(rng.choice(np.array(labels, np.uint8), size=(height, width)), np.ones((cell, cell), np.uint8))
                [:height, :width] for labels in ([0, 1, 1, 3, VOID], [0, 1, 3])]
        kept = rng.random((height, width)) < 0.8
        truths[image_id] = both[0]
        found.append(ImageLabels(image_id, np.where(kept & (both[0] != VOID), both[0], both[1])))
    return Maps(Classes(("a", "b", "unused", "c"), (1, 2, 3, 4)), truths), found


def outline(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """The mask without what is left when it is eroded by a square, outside of the image counted as outside of it."""
    padded = np.pad(mask, distance)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * distance + 1,) * 2)
    ring: NDArray[np.bool_] = mask & ~windows.all((2, 3))
    return ring


@given(patches(), st.sampled_from([0.02, 0.1, 0.3]))
@settings(max_examples=60, deadline=None)
def test_boundary_iou_is_that_of_eroded_masks(maps_and_found: tuple[Maps, list[ImageLabels]], share: float) -> None:
    index, found = maps_and_found
    common, union = np.zeros(4, int), np.zeros(4, int)
    for image_id, labels in found:
        truth = index.by_id[image_id]
        distance = max(1, round(share * (truth.shape[0]**2 + truth.shape[1]**2) ** 0.5))
        for k in range(4):
            true, predicted = outline(truth == k, distance), outline((labels == k) & (truth != VOID), distance)
            common[k] += (true & predicted).sum()
            union[k] += (true | predicted).sum()
    expected = {name: ratio(int(common[k]), int(union[k])) for k, name in ((0, "a"), (1, "b"), (3, "c"))}
    metric = BoundaryIoU(index, per_class=True, dilation_ratio=share)
    metric.update(found, index.truths(found))
    assert metric.compute() == pytest.approx(
        {"boundary_IoU": mean_existing(expected.values())} | {f"boundary_IoU/{n}": v for n, v in expected.items()},
        abs=1e-12, nan_ok=True)


def test_boundary_iou_by_hand() -> None:
    """A square of 4 x 4 in 10 x 10, predicted a column too far right; the outline is a pixel thick."""
    truth, labels = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    truth[3:7, 3:7], labels[3:7, 4:8] = 1, 1
    got = numbers(BoundaryIoU(maps(truth), per_class=True), labels)
    # Of 12 pixels each, three at the top and three at the bottom are common; of the columns none.
    assert got["boundary_IoU/car"] == pytest.approx(6 / (12 + 12 - 6))
    # Around it: 36 at the image's edge, and 20 that touch the square, of which five above and five below are common.
    assert got["boundary_IoU/road"] == pytest.approx(46 / (56 + 56 - 46))
    assert math.isnan(got["boundary_IoU/sky"])
    assert got["boundary_IoU"] == pytest.approx((6 / 18 + 46 / 66) / 2)


def test_a_large_object_hides_in_miou_what_boundary_iou_shows() -> None:
    truth, labels = np.zeros((200, 200), np.uint8), np.zeros((200, 200), np.uint8)
    truth[20:180, 20:180], labels[24:176, 24:176] = 1, 1
    assert numbers(MeanIoU(maps(truth)), labels)["mIoU"] > 0.85
    assert numbers(BoundaryIoU(maps(truth)), labels)["boundary_IoU"] < 0.5
    assert numbers(BoundaryIoU(maps(truth)), truth)["boundary_IoU"] == 1


@given(patches(), st.sampled_from([(1,), (1, 3), (2, 5, 40)]))
@settings(max_examples=60, deadline=None)
def test_edges_are_found_by_looking_at_every_pair_of_pixels(
    maps_and_found: tuple[Maps, list[ImageLabels]], widths: tuple[int, ...]
) -> None:
    index, found = maps_and_found
    metric = EdgeIoU(index, per_class=True, widths=widths)
    metric.update(found, index.truths(found))
    got = metric.compute()
    for width in widths:
        inside, beyond = np.zeros((4, 4), int), np.zeros((4, 4), int)
        for image_id, labels in found:
            truth = index.by_id[image_id]
            y, x = (axis.ravel() for axis in np.indices(truth.shape))
            flat = truth.ravel()
            steps = np.maximum(abs(y[:, None] - y), abs(x[:, None] - x))
            near = ((steps <= width) & (flat[:, None] != flat)).any(1).reshape(truth.shape)
            inside += confusion_matrix(truth[near], labels[near], 4)
            beyond += confusion_matrix(truth[~near], labels[~near], 4)
        for where, matrix in (("within", inside), ("beyond", beyond)):
            iou = {name: ratio(int(matrix[k, k]), int(matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]))
                   for k, name in ((0, "a"), (1, "b"), (3, "c"))}
            expected = {f"IoU_{where}_{width}px/{name}": value for name, value in iou.items()} | {
                f"mIoU_{where}_{width}px": mean_existing(iou.values()),
                f"accuracy_{where}_{width}px": ratio(int(matrix.trace()), int(matrix.sum()))}
            assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert len(got) == len(widths) * 2 * 5


def test_edges_by_hand() -> None:
    """Two halves; the prediction is a column off, which is all of the error, and all of it near the edge."""
    truth, labels = np.zeros((4, 10), np.uint8), np.zeros((4, 10), np.uint8)
    truth[:, 5:], labels[:, 6:] = 1, 1
    got = numbers(EdgeIoU(maps(truth), widths=(1, 2)), labels)
    assert got == pytest.approx({
        "mIoU_within_1px": (1 / 2 + 0) / 2, "accuracy_within_1px": 1 / 2,
        "mIoU_beyond_1px": 1, "accuracy_beyond_1px": 1,
        "mIoU_within_2px": (2 / 3 + 1 / 2) / 2, "accuracy_within_2px": 3 / 4,
        "mIoU_beyond_2px": 1, "accuracy_beyond_2px": 1})


def test_averages_by_hand() -> None:
    """A large image and a small one; in the small one nothing is right."""
    index = maps([[0, 0, 0, 0, 0, 0, 1, 1, VOID]], [[2]])
    got = numbers(LabelAverages(index, per_class=True), pixels([[0, 0, 0, 0, 0, 1, 1, 1, 2]]), pixels([[0]]))
    assert got == pytest.approx({
        "mean_accuracy": (5 / 6 + 1 + 0) / 3,
        "frequency_weighted_IoU": 6 / 9 * (5 / 7) + 2 / 9 * (2 / 3) + 1 / 9 * 0,
        "image_IoU": ((5 / 6 + 2 / 3) / 2 + 0) / 2,
        "accuracy/road": 5 / 6, "accuracy/car": 1, "accuracy/sky": 0,
        "confusion/road/car": 1 / 6, "confusion/sky/road": 1})


@pytest.mark.parametrize("seed", range(5))
def test_averages_are_those_of_another_implementation(seed: int) -> None:
    index, found = case(seed, num_images=6)
    metric = LabelAverages(index, per_class=True)
    metric.update(found, index.truths(found))
    got, theirs = metric.compute(), hotcoco.metrics.mean_iou(metric.counts.astype(np.uint64))
    assert got["frequency_weighted_IoU"] == pytest.approx(theirs["fwIoU"], abs=1e-12)
    present = metric.counts.sum(1) > 0
    assert got["mean_accuracy"] == pytest.approx(np.mean(np.array(theirs["Acc"])[present]), abs=1e-12)
    alone = []
    for one in found:
        of_one = MeanIoU(Maps(index.classes, {one.image_id: index.by_id[one.image_id]}))
        of_one.update([one], index.truths([one]))
        alone.append(of_one.compute()["mIoU"])
        assert metric.of_image[one.image_id] == pytest.approx(alone[-1], nan_ok=True)
    assert got["image_IoU"] == pytest.approx(mean_existing(alone))
    names = index.classes.names
    for k, name in enumerate(names):
        for j, other in enumerate(names):
            if k != j and metric.counts[k].any():
                share = metric.counts[k, j] / metric.counts[k].sum()
                assert got.get(f"confusion/{name}/{other}", 0.0) == pytest.approx(share)


@every
@given(seed=st.integers(0, 10**6), num_processes=st.integers(1, 4))
@settings(max_examples=8, deadline=None)
def test_processes_together_know_what_one_does(
    make: Callable[[Maps], LabelMetric], seed: int, num_processes: int
) -> None:
    index, found = case(seed, num_images=7)
    alone, shares = make(index), []
    alone.update(found, index.truths(found))
    for rank in range(num_processes):
        metric = make(index)
        metric.update(found[rank::num_processes], index.truths(found[rank::num_processes]))
        shares.append(metric.collected())
    merged = make(index)
    merged.update(found[:2], index.truths(found[:2]))
    merged.merge(shares)
    assert merged.compute() == pytest.approx(alone.compute(), abs=0, nan_ok=True)
    with pytest.raises(AssertionError, match="two processes had the same image"):
        merged.merge([*shares, shares[0]])


@every
def test_what_it_refuses_and_what_does_not_exist(make: Callable[[Maps], LabelMetric]) -> None:
    metric = make(maps([[0, 1]], [[0]]))
    with pytest.raises(ValueError, match="image 4 is not one of the 2 images with label maps; evaluate on the data"):
        metric.update([ImageLabels(4, pixels([[0]]))], [torch.zeros(1, 1, dtype=torch.uint8)])
    with pytest.raises(ValueError, match=r"image 1 is 2 x 1 \(height x width\), the true one is 1 x 2$"):
        metric.update([ImageLabels(1, pixels([[0], [1]]))], [torch.tensor([[0, 1]], dtype=torch.uint8)])
    with pytest.raises(ValueError, match=r"2 of 2 images have no prediction, image 1 is the first; .+ needs? all$"):
        metric.compute()
    for empty in (make(Maps(THREE, {})), make(maps([[VOID, VOID]]))):
        got = numbers(empty, *[pixels([[0, 1]])] * len(empty.index.image_ids))
        assert got.keys() >= {empty.main}
        assert all(math.isnan(value) for value in got.values())
        table = empty.table(got)
        assert all(len(row) <= len(table.columns) for row in table.rows)


@every
def test_a_class_that_is_never_predicted_is_zero(make: Callable[[Maps], LabelMetric]) -> None:
    truth = np.array([[0] * 40 + [1] * 40] * 40, np.uint8)
    metric = make(maps(truth))
    got = numbers(metric, np.zeros_like(truth))
    cars = [value for name, value in got.items() if name.endswith("/car") and not name.startswith("confusion")]
    assert cars
    assert set(cars) == {0.0}


def test_bands_and_shares_that_mean_nothing_are_refused() -> None:
    for share in (0, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"above 0 and at most 1, got {share}; the paper has 0.02"):
            BoundaryIoU(maps(), dilation_ratio=share)
    for widths in ((), (0, 1), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match="widths of bands are whole pixels from 1 on, ascending, got"):
            EdgeIoU(maps(), widths=widths)


def test_the_tables() -> None:
    truth = np.array([[0] * 40 + [1] * 40] * 40, np.uint8)
    tables = []
    for make in EVERY[1:]:
        metric = make(maps(truth))
        tables.append(metric.table(numbers(metric, truth)))
    averages, boundary, edges = tables
    assert [row[0] for row in averages.rows] == ["mean_accuracy", "frequency_weighted_IoU", "image_IoU", "accuracy/car",
                                                 "accuracy/road", "accuracy/sky"]
    assert [row[0] for row in boundary.rows] == ["boundary_IoU", *(f"boundary_IoU/{n}" for n in ("car", "road", "sky"))]
    assert edges.columns == ("measure", "1 px", "2 px", "4 px", "8 px", "16 px")
    assert edges.rows[0] == ("of all pixels, within", "2.5%", "5.0%", "10.0%", "20.0%", "40.0%")
    assert [row[0] for row in edges.rows[1:6]] == ["mIoU within", "accuracy within", "mIoU beyond", "accuracy beyond",
                                                   "IoU within/car"]
    assert edges.sections == (4,)
    assert all(len(row) == 6 for row in edges.rows)
    of_numbers_alone = EdgeIoU(maps(truth), widths=(2,))
    assert len(of_numbers_alone.table(dict.fromkeys(
        ("mIoU_within_2px", "accuracy_within_2px", "mIoU_beyond_2px", "accuracy_beyond_2px"), 0.5)).rows) == 4


class Square(Maps):
    """The same label map for every image."""

    def truths(self, found: Sequence[ImageLabels]) -> list[torch.Tensor]:
        return [torch.from_numpy(self.by_id[one.image_id]) for one in found]


@every
def test_memory_does_not_grow_with_the_images(make: Callable[[Maps], LabelMetric]) -> None:
    """A hundred images or a thousand: label maps are let go, and at most a number of each is kept."""
    truth, kept, peaks = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96) // 99, {}, {}
    one, true = ImageLabels(0, truth[::-1].copy()), torch.from_numpy(truth)
    for count in (100, 1000):
        metric = make(Square(THREE, dict.fromkeys(range(count), truth)))
        metric.update([one], [true])  # what is made once
        tracemalloc.start()
        for image_id in range(1, count):
            metric.update([one._replace(image_id=image_id)], [true])
        kept[count], peaks[count] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (kept[1000] - kept[100]) / 900 < 150
    assert peaks[1000] - peaks[100] < 900 * 150
