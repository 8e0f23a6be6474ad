"""Several metrics at once, and those that a command offers."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from detseg.choices import METRICS
from detseg.config import Data
from detseg.data.detection import DetectionDataset
from detseg.data.location import Location
from detseg.metrics.coco_ap import CocoAP
from detseg.metrics.together import Together, chosen, offered
from detseg.metrics.voc_ap import VocAP
from detseg.report.console import render
from detseg.resize import Stretch
from detseg.validation import prepared
from tests import tiny
from tests.test_coco_ap import CLASSES, index_of, random_case
from tests.test_mean_iou import maps


def test_what_is_offered_is_what_the_command_line_knows() -> None:
    boxes, labels = offered(index_of({}, [])), offered(maps())
    assert (*boxes, *labels) == METRICS
    for metrics, index in ((boxes, index_of({1: (5, 5)}, [])), (labels, maps())):
        made = {name: make(index, per_class=True, reference=False) for name, make in metrics.items()}
        assert len({metric.main for metric in made.values()}) == len(made), "they can stand together"
        for metric in made.values():
            numbers = metric.compute()
            assert metric.main in numbers
            assert metric.table(numbers).more == ()


def test_what_is_not_offered_is_refused_with_what_is() -> None:
    assert chosen(index_of({}, []), ["voc"]) == [VocAP]
    with pytest.raises(ValueError, match=r"no metric edges, miou; there are coco, voc, top300, aspect, crowding$"):
        chosen(index_of({}, []), ["voc", "edges", "miou"])
    with pytest.raises(ValueError, match="these data have no metric voc; there is only the config's own"):
        chosen(tiny.Index((0, 1), tiny.FILE_CLASSES), ["voc"])


@pytest.mark.parametrize("num_processes", [1, 3])
def test_together_they_say_what_each_says(num_processes: int) -> None:
    index, predictions = random_case(7)
    kinds = (CocoAP, VocAP, partial(CocoAP, per_image=5), CocoAP)
    expected = dict[str, float]()
    for kind in kinds:
        metric = kind(index, per_class=True)
        metric.update(predictions, [None] * len(predictions))
        expected |= metric.compute()
    shares = []
    for rank in range(num_processes):
        share = Together([kind(index, per_class=True) for kind in kinds])
        own = predictions[rank::num_processes]
        share.update(own, [None] * len(own))
        shares.append(share.collected())
    together = Together([kind(index, per_class=True) for kind in kinds])
    together.merge(shares)
    got = together.compute()
    assert together.main == "AP"
    assert got == pytest.approx(expected, abs=0, nan_ok=True)
    assert list(got) == list(expected)
    table = together.table(got)
    assert table._replace(more=()) == CocoAP(index).table(got)
    assert [one.rows[0][0] for one in table.more] == ["mean", "AP@5"]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(table))
    text = console.export_text()
    assert text.index("APl") < text.index("VOC07_AP50") < text.index("AP75@5")


def test_a_config_may_have_any_of_them_and_the_command_adds_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """VOC's rules may decide which checkpoint is best; COCO's are then the further ones."""
    index, predictions = random_case(3)
    monkeypatch.setattr("detseg.validation.screened", lambda index, *, whole: (index, []))  # there are no image files

    def read(folder: Path, split: str) -> None:
        raise AssertionError("nobody reads")

    data = Data(read=read, dataset=DetectionDataset, metric=VocAP, generate=lambda folder: folder)  # type: ignore[arg-type]
    validation = prepared(index, Location(Path("here")), CLASSES, data, Stretch((32, 32)), metrics=("coco", "voc"),
                          what="it")
    metric = validation.metric()
    metric.update(predictions, [None] * len(predictions))
    numbers = metric.compute()
    assert metric.main == "VOC_AP50"
    assert list(numbers)[:3] == ["VOC_AP50", "VOC07_AP50", "AP"]
    assert len(metric.table(numbers).more) == 1
    alone = prepared(index, Location(Path("here")), CLASSES, data, Stretch((32, 32)), what="it").metric()
    assert isinstance(alone, VocAP)
