"""Predictions as plain values: what other programs read of them, and what a line of text says."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from pycocotools import mask

from detseg.atomic import write_records
from detseg.metrics.coco_ap import CocoAP
from detseg.report.results import label_image, records, summary
from detseg.structures import Classes, ImageDetections, ImageLabels
from tests.test_coco_ap import CLASSES, found, official, random_case

PETS = Classes(names=("cat", "dog"), source_ids=(17, 18))
STREET = Classes(names=("road", "car", "sky"), source_ids=(7, 26, 23))


def labelled(values: ArrayLike, *, image_id: int = 5) -> ImageLabels:
    return ImageLabels(image_id, np.asarray(values, dtype=np.uint8))


# ---------------------------------------------------------------------------------------------- boxes


def test_records_and_summary_of_boxes() -> None:
    prediction = ImageDetections(5, torch.tensor([[1.0, 2, 11, 22], [0, 0, 4, 5], [0, 0, 9, 9]]),
                                 torch.tensor([0.75, 0.5, 0.25]), torch.tensor([1, 0, 1]))
    assert records(prediction, PETS) == [
        {"image_id": 5, "category_id": 18, "bbox": [1, 2, 10, 20], "score": 0.75},
        {"image_id": 5, "category_id": 17, "bbox": [0, 0, 4, 5], "score": 0.5},
        {"image_id": 5, "category_id": 18, "bbox": [0, 0, 9, 9], "score": 0.25}]
    assert summary(prediction, PETS, threshold=0.2) == "2 dog, 1 cat"
    assert summary(prediction, PETS, threshold=0.5) == "1 dog, 1 cat", "a score of the threshold itself is enough"
    assert summary(prediction, PETS, threshold=0.9) == "nothing"


def test_records_have_the_files_ids_and_leave_unused_classes_out() -> None:
    got = records(found(7, (1.5, 2, 4, 8, 0.75, 2), (0, 0, 5, 5, 0.5, 1)), CLASSES)
    assert got == [{"image_id": 7, "category_id": 18, "bbox": [1.5, 2.0, 2.5, 6.0], "score": 0.75}]
    assert type(got[0]["image_id"]) is int


def write(path: Path, predictions: Iterable[ImageDetections]) -> None:
    write_records(path, (record for prediction in predictions for record in records(prediction, CLASSES)))


@pytest.mark.parametrize("seed", [3, 4])
def test_the_written_file_gives_the_same_number(seed: int, tmp_path: Path) -> None:
    index, predictions = random_case(seed)
    path = tmp_path / "new" / "results.json"
    write(path, predictions)
    got = CocoAP(index)
    got.update(predictions)
    assert list(got.compute().values()) == pytest.approx(official(index, str(path)), abs=1e-6, nan_ok=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_no_detections_are_an_empty_list(tmp_path: Path) -> None:
    write(tmp_path / "results.json", [found(1)])
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    path.write_text("before")
    with pytest.raises(FloatingPointError, match="image 2 has boxes or scores that are not finite"):
        write(path, [found(1, (0, 0, 5, 5, 0.9, 0)), found(2, (0, 0, 5, float("nan"), 0.9, 0))])
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["before"]

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"the results were not written \(No space left .*\); the one .*/results.json"):
        write(path, [found(1)])
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["before"]

    with pytest.raises(NotADirectoryError, match="the results were not written"):
        write(path / "inside" / "results.json", [found(1)])


# ---------------------------------------------------------------------------------------------- label maps


def test_records_summary_and_label_image_of_a_label_map() -> None:
    labels = np.zeros((20, 30), dtype=np.uint8)
    labels[:, 12:] = 2
    labels[0, 0] = 1
    prediction = labelled(labels)
    assert summary(prediction, STREET, threshold=0.4) == "60% sky, 40% road", "a speck is left out"
    assert [(record["image_id"], record["category_id"]) for record in records(prediction, STREET)] == [
        (5, 7), (5, 26), (5, 23)]
    stored = label_image(prediction, STREET)
    assert stored.dtype == np.uint8
    assert (stored[0, 0], stored[0, 1], stored[5, 20]) == (26, 7, 23)


def test_a_summary_of_many_small_classes_names_the_largest() -> None:
    classes = Classes(tuple(f"class {k}" for k in range(250)), tuple(range(250)))
    labels = np.arange(500, dtype=np.int64).reshape(1, 500) % 250
    labels[0, 3] = 7
    assert summary(labelled(labels), classes, threshold=0.4) == "1% class 7"


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # pycocotools
def test_records_are_run_lengths_that_pycocotools_reads() -> None:
    classes = Classes(("road", "unused", "sky"), (7, 8, 23))
    labels = np.random.default_rng(0).choice(3, size=(31, 17))
    got = records(labelled(labels), classes)
    assert [(record["image_id"], record["category_id"]) for record in got] == [(5, 7), (5, 23)]
    for record, k in zip(got, (0, 2), strict=True):
        assert record["segmentation"]["size"] == [31, 17]
        assert type(record["segmentation"]["counts"]) is str
        assert np.array_equal(mask.decode(record["segmentation"]), labels == k)
    assert json.loads(json.dumps(got)) == got
    assert [record["category_id"] for record in records(labelled([[2, 2]]), classes)] == [23]


def test_class_ids_that_no_label_image_holds() -> None:
    prediction = labelled(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"label images hold ids of 0 to 255, the classes have 256, -1; predictions"):
        label_image(prediction, Classes(("a", "b", "c"), (7, 256, -1)))
    many = Classes(tuple(f"class {k}" for k in range(9)), tuple(range(300, 309)))
    with pytest.raises(ValueError, match=r"the classes have 300, 301, 302, 303, 304, \.\.\.; predictions"):
        label_image(prediction, many)


# ---------------------------------------------------------------------------------------------- others


def test_predictions_of_no_known_kind_are_named() -> None:
    with pytest.raises(TypeError, match="there is no results format for a dict"):
        records({}, PETS)
    with pytest.raises(TypeError, match="there is no summary of a dict"):
        summary({}, PETS, threshold=0.5)
