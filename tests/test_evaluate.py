"""Evaluation: every image once, in portions, by one process or several, with the same numbers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

from detseg.data.images import read_image
from detseg.data.layouts import read_labels
from detseg.data.segmentation import SegmentationDataset
from detseg.evaluate import Evaluation, draw_examples, evaluate, suitable_batch
from detseg.interfaces import Metric
from detseg.metrics.mean_iou import MeanIoU
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.report.pictures import draw
from detseg.resize import KeepAspect
from detseg.structures import DenseLogits, ImageLabels, LabelMaps, MetricTable
from detseg.tasks.segmentation import Segmentation
from tests import tiny_segmenter

TASK = Segmentation()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_segmenter.generate(tmp_path_factory.mktemp("data") / "shades")


def dataset_of(folder: Path, model: Predictor) -> SegmentationDataset:
    return SegmentationDataset(read_labels(folder, "val").relabel(model.classes), model.resize)


def of_any_size() -> Predictor:
    model = tiny_segmenter.untrained()
    model.resize = KeepAspect(28, 100)
    return model


def one_by_one(model: Predictor, dataset: SegmentationDataset) -> list[ImageLabels]:
    """What prediction says of each image file."""
    network = model.ready()
    return [predict_image(network, TASK, read_image(dataset.index.path(i)), image_id=image_id)
            for i, image_id in enumerate(dataset.index.image_ids.tolist())]


@pytest.mark.parametrize("make", [tiny_segmenter.untrained, of_any_size])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluation_is_prediction_of_every_image(folder: Path, make: Any, batch_size: int) -> None:
    """Also where images have no common size: these come one by one, and nothing is padded."""
    model = make()
    dataset, heard = dataset_of(folder, model), list[int]()
    expected = one_by_one(model, dataset)
    metric = MeanIoU(dataset.index, per_class=True)
    found = evaluate(model, TASK, dataset, batch_size=batch_size, workers=0, metric=metric, progress=heard.append,
                     keep_predictions=True)
    assert [prediction.image_id for prediction in found.predictions] == [1, 2, 3, 4, 5]
    for prediction, wanted in zip(found.predictions, expected, strict=True):
        assert np.mean(prediction.labels != wanted.labels) < 0.002, "batches may differ in the last digit"
    by_hand = MeanIoU(dataset.index, per_class=True)
    by_hand.update(found.predictions, [dataset.evaluation(item).truth for item in range(5)])
    assert found.numbers == pytest.approx(by_hand.compute(), abs=0, nan_ok=True)
    assert heard[-1] == 5
    assert len(heard) == (5 if batch_size == 1 or make is of_any_size else 2)


def test_predictions_are_kept_only_when_asked_for(folder: Path) -> None:
    model = tiny_segmenter.untrained()
    dataset = dataset_of(folder, model)
    found, kept = (evaluate(model, TASK, dataset, metric=MeanIoU(dataset.index), batch_size=2, workers=0,
                            keep_predictions=keep) for keep in (False, True))
    assert (len(found.predictions), len(kept.predictions)) == (0, 5)
    assert found.numbers == kept.numbers
    assert model.training, "the network given is left as it was"


class Watching(Metric[ImageLabels]):
    """Counts the label maps that are still in memory when new ones come."""

    main = "most"

    def __init__(self) -> None:
        self.seen: list[weakref.ref[Any]] = []
        self.most = 0

    def update(self, predictions: Sequence[ImageLabels], truths: Sequence[Any]) -> None:
        assert len(predictions) == len(truths)
        self.seen += [weakref.ref(prediction.labels) for prediction in predictions]
        self.most = max(self.most, sum(reference() is not None for reference in self.seen))

    def collected(self) -> Any:
        raise NotImplementedError("there is one process")

    def merge(self, collected: Sequence[Any]) -> None:
        raise NotImplementedError("there is one process")

    def compute(self) -> dict[str, float]:
        return {"most": self.most, "all": len(self.seen)}

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        return MetricTable(("measure", "value"), tuple(numbers.items()))


def test_label_maps_do_not_pile_up(folder: Path) -> None:
    model = tiny_segmenter.untrained()
    found = evaluate(model, TASK, dataset_of(folder, model), batch_size=1, workers=0, metric=Watching())
    assert found.numbers["all"] == 5
    assert found.numbers["most"] <= 2


class Processes:
    """Threads in the place of processes, which know their rank and gather like torch.distributed."""

    def __init__(self, number: int, patch: pytest.MonkeyPatch) -> None:
        self.number, self.here = number, threading.local()
        self.shares: list[Any] = [None] * number
        self.barrier = threading.Barrier(number, timeout=60)
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: number)
        patch.setattr(torch.distributed, "get_rank", lambda: self.here.rank)
        patch.setattr(torch.distributed, "all_gather_object", self.gather)

    def gather(self, target: list[Any], share: Any) -> None:
        self.shares[self.here.rank] = share
        self.barrier.wait()
        target[:] = self.shares
        self.barrier.wait()

    def run(self, work: Any) -> list[Any]:
        results: list[Any] = [None] * self.number

        def one(rank: int) -> None:
            self.here.rank = rank
            results[rank] = work()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.mark.parametrize("number", [2, 3, 7])
def test_several_processes_get_the_numbers_of_one(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 7 processes and 5 images, two have nothing to do."""
    model = tiny_segmenter.untrained()
    dataset = dataset_of(folder, model)

    def whole() -> Evaluation:
        return evaluate(model, TASK, dataset, metric=MeanIoU(dataset.index), batch_size=1, workers=0,
                        keep_predictions=True)

    alone = whole()
    for found in Processes(number, monkeypatch).run(whole):
        assert found.numbers == alone.numbers
        assert [prediction.image_id for prediction in found.predictions] == [1, 2, 3, 4, 5]
        for prediction, wanted in zip(found.predictions, alone.predictions, strict=True):
            assert np.array_equal(prediction.labels, wanted.labels)


def test_examples_are_drawn_on_the_original_images(folder: Path) -> None:
    model = tiny_segmenter.untrained()
    dataset = dataset_of(folder, model)
    pictures = draw_examples(model, TASK, dataset, number=3, threshold=0.4)
    for item, picture in zip((0, 2, 4), pictures, strict=True):
        original = dataset.original(item)
        prediction = one_by_one(model, dataset)[item]
        assert np.array_equal(picture, draw(prediction, original, model.classes, threshold=0.4))


def test_a_batch_nobody_has_chosen_fits_the_images() -> None:
    assert suitable_batch((320, 320), most=16) == 16
    assert suitable_batch((320, 320), most=192) == 20
    assert suitable_batch((1024, 2048), most=16) == 1
    assert suitable_batch((4000, 4000), most=16) == 1


def test_evaluation_can_be_that_of_what_is_exported(folder: Path) -> None:
    """`static` reaches decoding and post-processing."""
    model = tiny_segmenter.untrained()
    dataset, asked = dataset_of(folder, model), list[bool]()

    class Asked(Segmentation):
        def postprocess(self, dense: DenseLogits, *, static: bool = False) -> LabelMaps:
            asked.append(static)
            return super().postprocess(dense)

    for static in (True, False):
        evaluate(model, Asked(), dataset, metric=MeanIoU(dataset.index), batch_size=5, workers=0, static=static)
    assert asked == [True, False]
