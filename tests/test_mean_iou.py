"""mIoU: by hand, against cityscapesscripts' own evaluation, and exact over any number of processes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from torch import Tensor

from detseg.data.cityscapes import CITYSCAPES, read_cityscapes
from detseg.data.label_index import LabelIndex
from detseg.metrics.mean_iou import MeanIoU, class_iou, confusion_matrix
from detseg.predict import label_paths
from detseg.report.console import render
from detseg.report.pictures import write_labels
from detseg.report.results import label_image
from detseg.structures import VOID, Classes, ImageLabels, LabelPixels, Size

THREE = Classes(names=("road", "car", "sky"), source_ids=(7, 26, 23))


@dataclass(frozen=True, eq=False)
class Maps(LabelIndex):
    """Label maps in memory, by image id."""

    classes: Classes
    by_id: dict[int, LabelPixels]
    notes: tuple[str, ...] = ()

    @property
    def image_ids(self) -> NDArray[np.int64]:  # type: ignore[override]
        return np.array(list(self.by_id), dtype=np.int64)

    def path(self, i: int) -> Path:
        raise NotImplementedError("label maps without images")

    def origin(self, i: int) -> str:
        return f"map {i}"

    def size(self, i: int) -> Size:
        height, width = self.by_id[int(self.image_ids[i])].shape
        return height, width

    def labels(self, i: int, size: Size) -> LabelPixels:
        raise NotImplementedError("the truth comes with the predictions")

    def truths(self, found: Sequence[ImageLabels]) -> list[Tensor]:
        """What comes with the samples of these images."""
        return [torch.from_numpy(self.by_id[one.image_id]) for one in found]

    def relabel(self, classes: Classes, /) -> Self:
        return replace(self, classes=classes)


def pixels(values: ArrayLike) -> LabelPixels:
    return np.asarray(values, dtype=np.uint8)


def maps(*truths: ArrayLike, classes: Classes = THREE) -> Maps:
    """Label maps numbered from 1."""
    return Maps(classes, {i: pixels(truth) for i, truth in enumerate(truths, 1)})


def numbers(index: Maps, *found: ArrayLike) -> dict[str, float]:
    metric = MeanIoU(index, per_class=True)
    predictions = [ImageLabels(i, pixels(labels)) for i, labels in enumerate(found, 1)]
    metric.update(predictions, index.truths(predictions))
    return metric.compute()


def test_two_classes_by_hand() -> None:
    two = Classes(names=("a", "b"), source_ids=(1, 2))
    got = numbers(maps([[0, 0], [1, 1]], classes=two), [[0, 1], [1, 1]])
    assert got == pytest.approx({"mIoU": (1 / 2 + 2 / 3) / 2, "mIoU_present": (1 / 2 + 2 / 3) / 2,
                                 "pixel_accuracy": 3 / 4, "IoU/a": 1 / 2, "IoU/b": 2 / 3}, abs=1e-15)


def test_three_classes_and_void_over_two_images_by_hand() -> None:
    index = maps([[0, 0, 1, VOID], [2, 2, VOID, 0]], [[1], [1], [2]])
    metric = MeanIoU(index, per_class=True)
    first, second = ImageLabels(1, pixels([[0, 1, 1, 2], [2, 0, 0, 0]])), ImageLabels(2, pixels([[1], [0], [2]]))
    for prediction in (second, first):
        metric.update([prediction], index.truths([prediction]))
    assert metric.confusion.tolist() == [[2, 1, 0], [1, 2, 0], [1, 0, 2]]
    assert metric.confusion.dtype == np.int64
    # road: 2 of 2 + 1 + 2; car: 2 of 2 + 1 + 1; sky: 2 of 2 + 1. Nine of the eleven pixels are known.
    assert metric.compute() == pytest.approx(
        {"mIoU": (2 / 5 + 2 / 4 + 2 / 3) / 3, "mIoU_present": (2 / 5 + 2 / 4 + 2 / 3) / 3, "pixel_accuracy": 6 / 9,
         "IoU/road": 2 / 5, "IoU/car": 1 / 2, "IoU/sky": 2 / 3}, abs=1e-15)


def test_what_is_predicted_in_void_counts_nowhere() -> None:
    index = maps([[0, 0, VOID, VOID]])
    assert numbers(index, [[0, 0, 1, 2]]) == pytest.approx(
        {"mIoU": 1, "mIoU_present": 1, "pixel_accuracy": 1, "IoU/road": 1, "IoU/car": math.nan, "IoU/sky": math.nan},
        nan_ok=True)


def test_a_class_that_is_only_predicted_is_zero_in_one_mean_and_not_in_the_other() -> None:
    got = numbers(maps([[0, 0, 0, 1]]), [[0, 0, 2, 1]])
    assert got["IoU/sky"] == 0.0
    assert got["mIoU"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert got["mIoU_present"] == pytest.approx((2 / 3 + 1) / 2)


def test_a_class_that_is_never_found_is_zero_in_both() -> None:
    got = numbers(maps([[0, 0, 0, 1]]), [[0, 0, 0, 0]])
    assert got["IoU/car"] == 0.0
    assert got["mIoU"] == got["mIoU_present"] == pytest.approx((3 / 4 + 0) / 2)


def test_unused_classes_are_in_no_mean() -> None:
    classes = Classes(names=("unused 0", "cat", "dog"), source_ids=(0, 1, 2))
    got = numbers(maps([[1, 1, 2, 2]], classes=classes), [[1, 0, 2, 2]])
    assert got == pytest.approx({"mIoU": 3 / 4, "mIoU_present": 3 / 4, "pixel_accuracy": 3 / 4, "IoU/cat": 1 / 2,
                                 "IoU/dog": 1.0})


def test_without_a_known_pixel_nothing_exists() -> None:
    got = numbers(maps([[VOID, VOID]]), [[0, 1]])
    assert len(got) == 6
    assert all(math.isnan(value) for value in got.values())
    assert all(math.isnan(value) for value in MeanIoU(Maps(THREE, {})).compute().values())


def test_without_per_class_there_are_three_numbers() -> None:
    index, found = maps([[0, 1]]), [ImageLabels(1, pixels([[0, 1]]))]
    for reference in (False, True):
        metric = MeanIoU(index, reference=reference)
        metric.update(found, index.truths(found))
        assert metric.compute() == {"mIoU": 1.0, "mIoU_present": 1.0, "pixel_accuracy": 1.0}
    assert MeanIoU.main == "mIoU"


def test_counts_are_whole_numbers_beyond_what_floats_hold() -> None:
    """A count may go beyond 2^53 without losing its last pixel."""
    huge = 2**53
    metric = MeanIoU(maps())
    metric.merge([type(metric.collected())(np.array([[huge, 0, 0], [0, 3, 0], [0, 0, 0]]), frozenset()),
                  type(metric.collected())(np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0]]), frozenset())])
    assert metric.confusion[0, 0] == huge + 1
    assert metric.confusion.sum() == huge + 4
    assert class_iou(np.array([[2**61, 2**61], [0, 2**61]])) == [0.5, 0.5]


def case(seed: int, *, num_images: int) -> tuple[Maps, list[ImageLabels]]:
    """Images of many sizes, in which some classes do not occur, or occur only in the predictions."""
    rng = np.random.default_rng(seed)
    truths, found = {}, []
    for image_id in (rng.permutation(num_images) * 7 - 3).tolist():
        size = tuple(rng.integers(1, 30, 2))
        truths[image_id] = rng.choice(np.array([*range(6), VOID], dtype=np.uint8), size=size)
        found.append(ImageLabels(image_id, rng.choice(np.array([*range(2, 9)], dtype=np.uint8), size=size)))
    classes = Classes(tuple(f"class {k}" for k in range(10)), tuple(range(3, 33, 3)))
    return Maps(classes, truths), found


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_processes_together_know_what_one_does(seed: int, num_processes: int) -> None:
    index, found = case(seed, num_images=9)
    alone = MeanIoU(index, per_class=True)
    alone.update(found, index.truths(found))
    shares = []
    for rank in range(num_processes):
        metric = MeanIoU(index, per_class=True)
        metric.update(found[rank::num_processes], index.truths(found[rank::num_processes]))
        shares.append(metric.collected())
    merged = MeanIoU(index, per_class=True)
    merged.update(found[:2], index.truths(found[:2]))
    merged.merge(shares)
    assert np.array_equal(merged.confusion, alone.confusion)
    assert merged.compute() == pytest.approx(alone.compute(), abs=0, nan_ok=True)
    assert merged.collected().image_ids == alone.collected().image_ids
    with pytest.raises(ValueError, match="was given twice"):
        merged.update(found[:1], index.truths(found[:1]))
    with pytest.raises(AssertionError, match="two processes had the same image"):
        merged.merge([*shares, shares[0]])


def test_a_process_without_images_is_fine() -> None:
    index, found = case(0, num_images=2)
    metric, idle = MeanIoU(index), MeanIoU(index)
    metric.update(found, index.truths(found))
    expected = metric.compute()
    metric.merge([metric.collected(), idle.collected()])
    assert metric.compute() == expected


def test_what_it_refuses() -> None:
    index = maps([[0, 1]], [[0], [1]], [[2]])
    metric = MeanIoU(index)

    def update(*found: tuple[int, ArrayLike], truths: Sequence[int]) -> None:
        metric.update([ImageLabels(image_id, pixels(labels)) for image_id, labels in found],
                      [torch.from_numpy(index.by_id[image_id]) for image_id in truths])

    update((2, [[0], [1]]), truths=[2])
    with pytest.raises(ValueError, match="image 2 was given twice; give each image once"):
        update((2, [[0], [1]]), truths=[2])
    with pytest.raises(ValueError, match="image 4 is not one of the 3 images with label maps; evaluate on the"):
        update((4, [[0]]), truths=[3])
    with pytest.raises(ValueError, match=r"of image 1 is 2 x 1 \(height x width\), the true one is 1 x 2$"):
        update((1, [[0], [1]]), truths=[1])
    with pytest.raises(ValueError, match="2 of 3 images have no prediction, image 1 is the first; mIoU needs all"):
        metric.compute()
    update((1, [[0, 1]]), (3, [[2]]), truths=[1, 3])
    assert metric.compute()["mIoU"] == 1.0, "what was refused has left no trace"
    with pytest.raises(ValueError, match="shorter"):
        MeanIoU(index).update([ImageLabels(1, pixels([[0, 1]]))], [])


@pytest.mark.parametrize("wrong", [3, VOID])
def test_labels_beyond_the_classes_are_our_mistake(wrong: int) -> None:
    with pytest.raises(AssertionError, match="predicted labels go beyond the 3 classes"):
        confusion_matrix(pixels([[0, VOID]]), pixels([[0, wrong]]), 3)
    with pytest.raises(AssertionError, match="true labels go beyond the 3 classes"):
        confusion_matrix(pixels([[3]]), pixels([[0]]), 3)


def printed(index: Maps, found: Sequence[ImageLabels], *, per_class: bool) -> list[list[str]]:
    metric = MeanIoU(index, per_class=per_class)
    metric.update(found, index.truths(found))
    table = metric.table(metric.compute())
    assert {type(cell) for row in table.rows for cell in row} == {str, float}, "plain values"
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(render(table))
    lines = console.export_text().replace("│", "|").replace("┃", "|").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_names_what_is_absent_and_what_is_taken_for_what() -> None:
    classes = Classes(("road", "car", "sky", "unused"), (1, 2, 3, 4))
    index = maps([[0, 0, 0, 0, VOID], [1, 1, 1, 1, VOID]], classes=classes)
    found = [ImageLabels(1, pixels([[0, 0, 0, 0, 2], [1, 0, 0, 3, 2]]))]
    lines = printed(index, found, per_class=True)
    assert ["measure", "value", "pixels", "most often taken for"] in lines
    assert ["mIoU", "0.458", "", ""] in lines
    assert lines.index(["IoU/road", "0.667", "0.500", ""]) < lines.index(["IoU/car", "0.250", "0.500", "road 50%"])
    assert lines.index(["IoU/car", "0.250", "0.500", "road 50%"]) < lines.index(["IoU/sky", "-", "0.000", ""])
    assert ["not in the label maps: sky"] in lines
    assert not any("unused" in cell for line in lines for cell in line)
    short = printed(index, found, per_class=False)
    assert ["measure", "value"] in short
    assert ["not in the label maps: sky"] in short


def test_the_table_of_numbers_alone() -> None:
    """A resumed run that is at its end shows the numbers of its checkpoint."""
    index = maps([[0, 1]])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(MeanIoU(index).table({"mIoU": 0.25, "mIoU_present": 0.5, "pixel_accuracy": 0.75})))
    text = console.export_text()
    assert "0.250" in text
    assert "label maps" not in text, "nobody has looked at them"


def as_cityscapesscripts(pairs: Sequence[tuple[LabelPixels, LabelPixels]], classes: Classes) -> dict[str, float]:
    """Its evaluation as it is written: on label ids, with void in the matrix and not among the false positives."""
    ids = np.array([*classes.source_ids, *[0] * (255 - len(classes)), 0])
    matrix = np.zeros((40, 40), dtype=np.ulonglong)
    for truth, found in pairs:
        for true_id, found_id in zip(ids[truth].ravel().tolist(), ids[found].ravel().tolist(), strict=True):
            matrix[true_id, found_id] += 1
    scores = {}
    for name, label in zip(classes.names, classes.source_ids, strict=True):
        hits = int(matrix[label, label])
        misses = int(matrix[label].sum()) - hits
        false = int(matrix[[other for other in classes.source_ids if other != label], label].sum())
        total = hits + misses + false
        scores[name] = hits / total if total else math.nan
    valid = [score for score in scores.values() if not math.isnan(score)]
    return {f"IoU/{name}": score for name, score in scores.items()} | {
        "mIoU": sum(valid) / len(valid) if valid else math.nan}


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_cityscapesscripts_computes(seed: int) -> None:
    index, found = case(seed, num_images=5)
    metric = MeanIoU(index, per_class=True)
    metric.update(found, index.truths(found))
    expected = as_cityscapesscripts([(index.by_id[one.image_id], one.labels) for one in found], index.classes)
    got = metric.compute()
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)


def perturbed(truth: LabelPixels, rng: np.random.Generator) -> LabelPixels:
    """The true labels with void filled, patches of other classes (also ones that no label map has) and noise."""
    found = np.where(truth == VOID, rng.integers(0, len(CITYSCAPES), truth.shape), truth).astype(np.uint8)
    for _ in range(6):
        top, left = (int(rng.integers(0, side)) for side in truth.shape)
        found[top : top + 80, left : left + 120] = rng.integers(0, len(CITYSCAPES) - 2)
    noise = rng.random(truth.shape) < 0.05
    found[noise] = rng.integers(0, len(CITYSCAPES) - 2, int(noise.sum()))
    return found


@pytest.mark.real
def test_real_label_maps_against_cityscapesscripts(shared: Path, tmp_path: Path) -> None:
    """Files as `tools/predict.py --labels` writes them, found by their names and evaluated by the original code."""
    official: Any = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="the original evaluation is not installed: pip install --no-deps cityscapesscripts pyquaternion")
    index = read_cityscapes(shared / "data" / "cityscapes_mini", "val")
    rng = np.random.default_rng(0)
    metric = MeanIoU(index, per_class=True)
    positions = range(len(index))
    files = label_paths([index.path(i) for i in positions], tmp_path)
    for i in positions:
        truth = index.labels(i, index.size(i))
        prediction = ImageLabels(int(index.image_ids[i]), perturbed(truth, rng))
        metric.update([prediction], [torch.from_numpy(truth)])
        write_labels(files[i], label_image(prediction, index.classes))

    arguments = official.args
    arguments.evalInstLevelScore, arguments.JSONOutput, arguments.quiet = False, False, True
    arguments.predictionPath, arguments.predictionWalk = str(tmp_path), None
    truths = [index.origin(i) for i in positions]
    predicted = [official.getPrediction(arguments, truth) for truth in truths]
    result = official.evaluateImgLists(predicted, truths, arguments)

    got = metric.compute()
    assert 0.1 < got["mIoU"] < 0.9
    assert got["mIoU"] == pytest.approx(result["averageScoreClasses"], abs=1e-9)
    assert {name: got[f"IoU/{name}"] for name in CITYSCAPES.names} == pytest.approx(
        {name: result["classScores"][name] for name in CITYSCAPES.names}, abs=1e-9, nan_ok=True)
    matrix = np.array(result["confMatrix"])[np.ix_(CITYSCAPES.source_ids, CITYSCAPES.source_ids)]
    assert np.array_equal(metric.confusion, matrix)
    by_class = [got[f"IoU/{name}"] for name in CITYSCAPES.names]
    assert sum(map(math.isnan, by_class)) >= 1, "some class is in neither"
    assert by_class.count(0.0) >= 1, "some class is only predicted"
