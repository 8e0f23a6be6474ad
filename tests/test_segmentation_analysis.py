"""Error analysis of segmenters: by hand, and distances to edges against every pair of pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from detseg.analysis.collect import Anchors, SegmentationCollector, collector
from detseg.analysis.segmentation import edge_bands, edge_distance
from detseg.analysis.segmentation_result import SegmentationAnalysis
from detseg.data.label_index import LabelFiles, LabelIndex
from detseg.report.console import plain_console, render
from detseg.structures import VOID, Classes, ImageLabels

CLASSES = Classes(("road", "unused-1", "car", "sky"), (1, 2, 3, 4))
ROAD, CAR, SKY = 0, 2, 3


def index_of(number: int) -> LabelIndex:
    pairs = [(f"{k}.png", f"{k}-labels.png") for k in range(number)]
    return LabelFiles.of(CLASSES, Path("street"), pairs, table=np.zeros(256, np.int16))


def labelled(values: list[list[int]]) -> NDArray[np.uint8]:
    return np.array(values, np.uint8)


TRUTH = labelled([[ROAD] * 4 + [CAR] * 4 for _ in range(6)])
PREDICTED = labelled([[ROAD] * 3 + [CAR] * 4 + [ROAD] for _ in range(6)])


def collected(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> SegmentationCollector:
    made = collector(index_of(len(pairs)), Anchors(None))
    assert isinstance(made, SegmentationCollector)
    for image_id, (truth, predicted) in enumerate(pairs, start=1):
        made.update([ImageLabels(image_id, predicted)], [torch.from_numpy(truth)])
    return made


def analysis(made: SegmentationCollector, *, num_examples: int = 20) -> SegmentationAnalysis:
    found = made.analysis(made.compute(), num_examples=num_examples)
    assert isinstance(found, SegmentationAnalysis)
    return found


@settings(max_examples=80, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 11)), elements=st.sampled_from([0, 2, VOID])))
def test_distances_are_those_to_the_nearest_pixel_at_an_edge(labels: NDArray[np.uint8]) -> None:
    height, width = labels.shape
    at_edge = [(y, x) for y in range(height) for x in range(width)
               for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1))
               if 0 <= v < height and 0 <= u < width and labels[v, u] != labels[y, x]]
    expected = [[min((math.hypot(y - v, x - u) for v, u in at_edge), default=math.inf) for x in range(width)]
                for y in range(height)]
    assert edge_distance(labels) == pytest.approx(np.array(expected), abs=1e-4)


def test_errors_by_distance_by_hand() -> None:
    # Distances along a row are 3 2 1 0 0 1 2 3; the fourth pixel is wrong, at 0, and the last, at 3.
    assert edge_bands(TRUTH, PREDICTED).tolist() == [[24, 6], [24, 6], [0, 0], [0, 0], [0, 0]]
    void = TRUTH.copy()
    void[:, 6:] = VOID
    # That is an edge too: 3 2 1 0 0 0, and the last two are not counted.
    assert edge_bands(void, PREDICTED).tolist() == [[24, 6], [12, 0], [0, 0], [0, 0], [0, 0]]
    flat = np.zeros_like(TRUTH)
    assert edge_bands(flat, PREDICTED)[-1].tolist() == [48, 24], "no pixel is near an edge where there is none"


def test_the_whole_by_hand() -> None:
    got = analysis(collected([(TRUTH, PREDICTED), (TRUTH, TRUTH)]))
    road, car, sky = got.classes
    assert (road.name, road.pixels, road.predicted) == ("road", 48, 48)
    assert (road.iou, road.precision, road.recall) == pytest.approx((42 / 54, 42 / 48, 42 / 48))
    assert car.iou == pytest.approx(42 / 54)
    assert (sky.name, sky.pixels, math.isnan(sky.iou)) == ("sky", 0, True)
    assert got.confusion == ((42, 6, 0), (6, 42, 0), (0, 0, 0)), "an unused class is none"
    assert [(one.true, one.predicted, one.pixels, one.share_of_true, one.share_of_errors) for one in got.pairs] == [
        ("road", "car", 6, 6 / 48, 0.5), ("car", "road", 6, 6 / 48, 0.5)]
    assert [(band.low, band.high, band.pixels, band.wrong) for band in got.edges[:2]] == [(0, 2, 48, 6), (2, 4, 48, 6)]
    assert got.edges[0].share_of_errors == 0.5
    (worst,) = got.worst
    assert (worst.image_id, worst.file, worst.wrong, worst.true, worst.predicted, worst.confused) == (
        1, "0.png", 12, "road", "car", 6)
    assert (worst.accuracy, worst.miou) == pytest.approx((36 / 48, 18 / 30))
    assert [(one.image_id, one.wrong, one.true) for one in got.images] == [(1, 12, "road"), (2, 0, None)]
    assert got.numbers["mIoU"] == pytest.approx(42 / 54)
    assert got.findings == (
        "50% of all wrong pixels are road taken for car (12% of road). Look whether both are labelled consistently; "
        "more images or a larger class weight for the rarer.",
        "100% of all wrong pixels lie within 4 pixels of an edge between labels: a larger input or finer features, and "
        "labels with exact edges, are what is left to gain.",
        "Not in these label maps, so nothing is known of them: sky.",
        "The worst image is 0.png: 75% of its pixels are right, of all 88%. Look whether its label map is right.")
    assert len(analysis(collected([(TRUTH, PREDICTED), (TRUTH, TRUTH)]), num_examples=1).pairs) == 1


def test_whole_regions_and_classes_that_are_never_predicted() -> None:
    truth = np.zeros((40, 80), np.uint8)
    truth[:, 40:] = CAR
    predicted = np.zeros_like(truth)
    findings = analysis(collected([(truth, predicted)])).findings
    # Of 40 wrong columns, whose pixels are 0, 1, ... 39 from the edge, four are nearer than 4.
    assert findings[1].startswith("90% of all wrong pixels lie more than 4 pixels from any edge between labels: whole ")
    assert findings[2] == "Never predicted: car. Class weights, or more images that show them."
    perfect = analysis(collected([(truth, truth)]))
    assert not perfect.pairs
    assert not perfect.worst
    assert perfect.findings == ("Not in these label maps, so nothing is known of them: sky.",)


def test_processes_together_count_what_one_does() -> None:
    pairs = [(TRUTH, PREDICTED), (TRUTH, TRUTH), (TRUTH, np.full_like(TRUTH, SKY))]
    alone = collected(pairs)
    shares = [collector(index_of(3), Anchors(None)) for _ in range(4)]
    for image_id, (truth, predicted) in enumerate(pairs, start=1):
        shares[3 - image_id].update([ImageLabels(image_id, predicted)], [torch.from_numpy(truth)])
    whole = collector(index_of(3), Anchors(None))
    whole.merge([share.collected() for share in shares])
    assert whole.analysis(whole.compute()).to_json() == analysis(alone).to_json()


def test_it_is_written_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got = analysis(collected([(TRUTH, PREDICTED)]))
    got.write(tmp_path / "analysis.json")
    read = json.loads((tmp_path / "analysis.json").read_text())
    assert (read["kind"], read["edges"][-1]["high"], read["classes"][2]["iou"]) == ("segmentation", None, None)
    for title, table in got.tables():
        plain_console().print(title, render(table))
    shown = capsys.readouterr().out
    for text in ("mIoU is 0.600, pixel accuracy 0.750", "over 16 px", "0 to 2 px", "road as car"):
        assert text in shown
    assert got.score_thresholds(weights="", data="") is None


def test_nothing_to_analyse() -> None:
    with pytest.raises(ValueError, match="there are no images with label maps to analyse; name other data with --data"):
        collector(index_of(0), Anchors(None))
    nothing = collected([(np.full_like(TRUTH, VOID), PREDICTED)])
    with pytest.raises(ValueError, match="none of the 1 images has a pixel with a label, so there is no mIoU"):
        analysis(nothing)
    with pytest.raises(ValueError, match="the number of examples is at least 0, got -1"):
        analysis(nothing, num_examples=-1)
