"""Error analysis of detectors: every kind by hand, the authors' own toolbox, thresholds, calibration, sensitivity."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.analysis.calibration import calibration
from detseg.analysis.collect import Anchors, collector
from detseg.analysis.curves import curves
from detseg.analysis.detection import analyze_detections
from detseg.analysis.detection_result import DetectionAnalysis
from detseg.analysis.thresholds import ScoreThresholds
from detseg.analysis.tide import KINDS, class_ap, costs, match, scored
from detseg.data.box_index import BoxIndex
from detseg.data.check.network import NetworkView
from detseg.metrics.coco_ap import CocoAP
from detseg.metrics.numbers import mean_existing
from detseg.report.console import plain_console, render
from detseg.resize import Stretch
from detseg.structures import ImageDetections
from tests.test_coco_ap import CLASSES, Truth, found, index_of, random_case
from tests.tide_reference import reference

CAT, DOG = 0, 2
IMAGES = {7: (200, 300), 3: (100, 100)}
TRUTHS = [Truth(7, 1, (0, 0, 40, 40)), Truth(7, 18, (100, 0, 40, 40)), Truth(7, 1, (0, 100, 40, 40)),
          Truth(7, 18, (100, 100, 40, 40)), Truth(3, 1, (10, 10, 30, 60))]
ERRORS = found(
    7, (0, 0, 40, 40, 0.9, CAT),  # finds the first cat
    (0, 0, 40, 40, 0.8, CAT),  # again
    (100, 0, 140, 40, 0.7, CAT),  # the first dog, as a cat
    (20, 100, 60, 140, 0.6, CAT),  # IoU 1/3 with the second cat
    (120, 100, 160, 140, 0.5, CAT),  # IoU 1/3 with the second dog
    (200, 150, 240, 190, 0.4, DOG))  # nothing is there; and nothing at all in the other image


def case() -> tuple[BoxIndex, list[ImageDetections]]:
    """One error of each kind, and two missed objects: the second dog, and the cat of the other image."""
    return index_of(IMAGES, TRUTHS), [ERRORS, found(3)]


def analysis(**others: object) -> DetectionAnalysis:
    index, predictions = case()
    return analyze_detections(predictions, index, **others)  # type: ignore[arg-type]


def test_every_kind_of_error_by_hand() -> None:
    index, predictions = case()
    matches = match(predictions, index)
    kinds = [KINDS[kind] if kind >= 0 else None for kind in matches.kind.tolist()]
    assert kinds == [None, "duplicate", "classification", "localisation", "both", "background"]
    assert matches.found.tolist() == [0, -1, -1, -1, -1, -1]
    assert matches.about.tolist() == [-1, 0, 1, 2, 3, -1]
    assert matches.iou.tolist() == pytest.approx([1, 1, 1, 1 / 3, 1 / 3, 0])
    assert np.flatnonzero(matches.missed).tolist() == [3, 4]

    # Of 3 cats one is found before anything wrong: precision 1 up to a recall of 1/3, 34 of the 101 places. No dog is.
    cost = costs(matches)
    assert cost.ap50 == pytest.approx(34 / 2 / 101)
    assert cost.class_ap50 == pytest.approx([34 / 101, math.nan, 0, math.nan], nan_ok=True)
    assert cost.gained == pytest.approx({
        "classification": 51 / 2 / 101,  # one of two dogs is found, surer than the wrong one: precision 1 up to 1/2
        "localisation": 33 * 0.5 / 2 / 101,  # a second cat is, behind two wrong ones: precision 1/2 up to 2/3
        "both": 0, "duplicate": 0, "background": 0,  # nothing right comes behind these
        "missed": (51 - 34) / 2 / 101})  # of two cats one is found
    assert cost.class_gained["classification"] == pytest.approx([0, math.nan, 51 / 101, math.nan], nan_ok=True)
    assert cost.false_positives == 0
    assert cost.false_negatives == pytest.approx((101 - 34) / 2 / 101), "the one cat that is left is found; no dog is"


def test_removing_all_errors_gives_an_ap_of_1() -> None:
    for index, predictions in (case(), *(random_case(seed) for seed in range(20))):
        matches = match(predictions, index)
        asked = matches.num_objects() > 0
        better = scored(matches, without=KINDS)
        assert better.right.all()
        assert [value for value in class_ap(better, asked) if not math.isnan(value)] == pytest.approx(
            [1.0] * int((better.num_objects > 0).sum()))
        assert (better.num_objects[asked] > 0).any() or not matches.objects.any()


def test_a_correction_finds_an_object_once() -> None:
    """Of two boxes that are not close enough, only the surer one would find the object; the other is left out."""
    index = index_of({1: (100, 100)}, [Truth(1, 1, (0, 0, 40, 40))])
    matches = match([found(1, (20, 0, 60, 40, 0.9, CAT), (0, 20, 40, 60, 0.8, CAT))], index)
    assert matches.of_kind("localisation").tolist() == [True, True]
    assert matches.corrected_by.tolist() == [0]
    assert not matches.missed.any()
    better = scored(matches, without=KINDS[1:2])
    assert (better.scores.tolist(), better.right.tolist()) == (pytest.approx([0.9]), [True])


def test_a_class_of_which_all_is_missed_loses_all_to_that() -> None:
    index = index_of({1: (100, 100)}, [Truth(1, 1, (0, 0, 40, 40)), Truth(1, 18, (50, 50, 40, 40))])
    cost = costs(match([found(1, (0, 0, 40, 40, 0.9, CAT))], index))
    assert cost.ap50 == 0.5
    assert cost.gained["missed"] == 0.5
    assert cost.class_gained["missed"][DOG] == 1.0


def test_crowds_are_neither_right_nor_wrong() -> None:
    index = index_of({1: (100, 100)}, [Truth(1, 1, (0, 0, 60, 100), crowd=True), Truth(1, 1, (70, 0, 30, 30))])
    matches = match([found(1, (70, 0, 100, 30, 0.9, CAT), (0, 0, 20, 20, 0.8, CAT), (0, 0, 20, 20, 0.7, DOG))], index)
    assert matches.ignored.tolist() == [False, True, False]
    assert matches.of_kind("background").tolist() == [False, False, True], "it is a crowd of cats"
    assert matches.num_objects().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_authors_toolbox(seed: int) -> None:
    """No two scores are equal: of such, `tidecv` ranks errors first, once it has put any right."""
    index, predictions = random_case(seed)
    random = np.random.default_rng(seed)
    agrees([one._replace(scores=-torch.from_numpy(np.sort(-random.random(len(one.scores))))) for one in predictions],
           index)


@pytest.mark.real
def test_it_is_the_authors_toolbox_on_a_trained_detector(shared: Path) -> None:
    from detseg.api import load_model
    from detseg.data.location import Location
    from detseg.evaluate import evaluate
    from tests.conftest import ROOT

    model = load_model(ROOT / "configs" / "ssdlite_v2_tensorflow.py",
                       shared / "weights" / "ssdlite_mnv2_pedestrian_tf.safetensors", classes=("person",))
    data = model.validation(Location(shared / "data" / "coco_mini"), common=True)
    _, predictions = evaluate(model.network, model.task, data.dataset, metric=data.metric(), batch_size=8, workers=0,
                              keep_predictions=True)
    agrees(predictions, data.index)


def agrees(predictions: list[ImageDetections], index: BoxIndex) -> None:
    wanted, cost = reference(predictions, index), costs(match(predictions, index))
    got = {"ap50": cost.ap50, "false positives": cost.false_positives, "false negatives": cost.false_negatives}
    got |= {str(kind): value for kind, value in cost.gained.items()}
    assert got == pytest.approx(wanted, abs=0.001)


@pytest.mark.parametrize("seed", range(8))
def test_its_ap50_is_that_of_coco(seed: int) -> None:
    """Where no image has more than 100 detections."""
    index, predictions = random_case(seed)
    few = [ImageDetections(one.image_id, one.boxes[:90], one.scores[:90], one.labels[:90]) for one in predictions]
    metric = CocoAP(index)
    metric.update(few)
    assert costs(match(few, index)).ap50 == pytest.approx(metric.compute()["AP50"], abs=1e-6)


# ---------------------------------------------------------------------------------------------- curves and thresholds


def test_curves_by_hand() -> None:
    # Right, wrong, right, right, wrong, of 4 objects. F1 from the k-th on: 2/5, 2/6, 4/7, 6/8, 6/9.
    got = curves(np.array([0.9, 0.8, 0.7, 0.4, 0.3]), np.array([True, False, True, True, False]), 4)
    assert (got.threshold, got.precision, got.recall, got.f1) == pytest.approx((0.35, 3 / 4, 3 / 4, 6 / 8))
    assert got.precision_at_recall[:26] == (1.0,) * 26
    assert got.precision_at_recall[26:76] == (3 / 4,) * 50
    assert got.precision_at_recall[76:] == (0.0,) * 25
    assert got.precision_at_score[80] == 1 / 2
    assert math.isnan(got.precision_at_score[95])
    assert got.recall_at_score[70] == 2 / 4
    assert got.f1_at_score[40] == 6 / 8


def test_there_is_no_threshold_without_anything_right() -> None:
    nothing = np.zeros(0)
    for scores, right, number in ((nothing, nothing.astype(bool), 3), (np.ones(2), np.zeros(2, bool), 3),
                                  (nothing, nothing.astype(bool), 0)):
        got = curves(scores, right, number)
        assert math.isnan(got.threshold)
        assert math.isnan(got.recall) == (number == 0)
    assert curves(np.array([0.5]), np.array([True]), 1).threshold == 0.5, "no score follows"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=1, max_size=30), st.integers(0, 5))
def test_no_score_has_a_larger_f1(rows: list[tuple[int, bool]], missed: int) -> None:
    scores, right = np.array([score / 10 for score, _ in rows]), np.array([one for _, one in rows])
    number = int(right.sum()) + missed

    def f1(threshold: float) -> float:
        hits = int(right[scores >= threshold].sum())
        return 2 * hits / (int((scores >= threshold).sum()) + number)

    got = curves(scores, right, number)
    if right.any():
        assert got.f1 == pytest.approx(f1(got.threshold))
        assert got.f1 >= max(map(f1, scores.tolist())) - 1e-12
    else:
        assert math.isnan(got.threshold)


def thresholds(**changes: object) -> ScoreThresholds:
    given: dict[str, object] = {"weights": "abc", "data": "data/pets", "num_images": 5, "all_classes": 0.5,
                                "classes": {"cat": 0.25}}
    return ScoreThresholds(**(given | changes))  # type: ignore[arg-type]


def test_thresholds_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    thresholds().write(path)
    assert ScoreThresholds.read(path) == thresholds()
    assert thresholds().by_class(CLASSES) == (0.25, 0.5, 0.5, 0.5), "others have what all classes have"
    for damaged in ("", "{", "[]", '{"weights": "x"}', json.dumps({**json.loads(path.read_text()), "all_classes": 4})):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"thresholds\.json is damaged; delete it, or let detseg analyze write it"):
            ScoreThresholds.read(path)
    with pytest.raises(ValueError, match=r"a score threshold lies in 0 to 1, got 1\.5"):
        thresholds(classes={"cat": 1.5})


def test_thresholds_are_those_of_the_largest_f1() -> None:
    # Cats: right, then three wrong; of dogs nothing right. All together: the same first one.
    made = analysis().score_thresholds(weights="abc", data="here")
    assert made is not None
    assert (made.weights, made.data, made.num_images) == ("abc", "here", 2)
    assert made.all_classes == pytest.approx(0.85)
    assert made.classes == {"cat": pytest.approx(0.85)}
    index, _ = case()
    assert analyze_detections([found(7), found(3)], index).score_thresholds(weights="", data="") is None


# ---------------------------------------------------------------------------------------------- calibration


def test_calibration_by_hand() -> None:
    # 4 of score 0.55, 3 right; 2 of 0.25, none right; one too unsure to count.
    got = calibration(np.array([0.55] * 4 + [0.25] * 2 + [0.01]), np.array([True] * 3 + [False] * 3 + [True]))
    bins = [(one.low, one.count, one.score, one.precision) for one in got.bins if one.count]
    assert np.array(bins) == pytest.approx(np.array([(0.2, 2, 0.25, 0), (0.5, 4, 0.55, 0.75)]))
    assert got.error == pytest.approx((4 * 0.2 + 2 * 0.25) / 6)
    assert got.temperature < 1, "scores are not extreme enough"
    assert got.scaled_error < got.error


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found(temperature: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 100_000)
    right = random.random(len(logits)) < 1 / (1 + np.exp(-logits / temperature))
    got = calibration(1 / (1 + np.exp(-logits)), right)
    # The standard error of 1 / temperature is below 0.01 here.
    assert got.temperature == pytest.approx(temperature, rel=0.05)
    assert got.scaled_error < 0.01
    assert (got.error > 0.02) == (temperature != 1)


def test_calibration_of_nothing_and_of_one_kind_only() -> None:
    nothing = calibration(np.zeros(0), np.zeros(0, bool))
    assert math.isnan(nothing.error)
    assert math.isnan(nothing.temperature)
    sure = calibration(np.ones(3), np.ones(3, bool))
    assert math.isnan(sure.temperature)
    assert sure.error == sure.scaled_error == pytest.approx(0, abs=1e-5)


# ---------------------------------------------------------------------------------------------- the whole


def test_the_whole_of_the_case() -> None:
    got = analysis(num_examples=1)
    assert got.numbers["AP50"] == pytest.approx(got.ap50)
    assert {one.kind: one.count for one in got.errors} == dict.fromkeys(KINDS, 1) | {"missed": 2}
    # Shown are scores of at least 0.85, which all classes have: the first cat alone. 4 objects are then missed.
    assert {one.kind: one.shown for one in got.errors} == dict.fromkeys(KINDS, 0) | {"missed": 4}
    assert [one.name for one in got.classes] == ["cat", "dog", "cow"], "an unused class is none"
    assert got.confusion == ((1, 0, 0, 2), (0, 0, 0, 2), (0, 0, 0, 0), (0, 0, 0, 0))
    (missed,) = got.examples
    assert (missed.kind, missed.image_id, missed.file, missed.true_box, missed.true, missed.box) == (
        "missed", 3, "3.jpg", (10, 10, 40, 70), "cat", None), "the largest"
    assert [(one.image_id, one.objects, one.found, one.errors["missed"]) for one in got.images] == [
        (3, 1, 0, 1), (7, 4, 1, 3)]
    sizes, positions, truncation = got.sensitivities
    # The root of 40 x 40 of 200 x 300 is 0.163; of 30 x 60 of 100 x 100 it is 0.424.
    assert [(group.objects, group.found) for group in sizes.groups] == [(0, 0), (0, 0), (0, 0), (4, 1), (1, 0)]
    assert {group.name: group.objects for group in positions.groups if group.objects} == {
        "upper left": 1, "upper middle": 1, "middle left": 2, "middle": 1}
    assert [group.objects for group in truncation.groups] == [2, 3]
    assert got.anchors is None
    assert "Predicted, but never right: dog." in got.findings
    assert "Without objects in these images, so nothing is known of them: cow." in got.findings


def test_errors_that_are_shown_have_their_boxes() -> None:
    # Right dogs and cats behind the errors, so that these are shown too.
    more = found(3, *((10, 10, 40, 70, 0.3, CAT),))
    truths = [*TRUTHS[:4], *(Truth(7, 18, (200, 10 * k, 8, 8)) for k in range(6)), TRUTHS[4]]
    right = [(200, 10 * k, 208, 10 * k + 8, 0.3, DOG) for k in range(6)]
    index = index_of(IMAGES, truths)
    rows = [(*box, score, label) for box, score, label in zip(
        ERRORS.boxes.tolist(), ERRORS.scores.tolist(), ERRORS.labels.tolist(), strict=True)]
    got = analyze_detections([found(7, *rows, *right), more], index)
    examples = {one.kind: one for one in got.examples}
    wrong_place = examples["background"]
    assert (wrong_place.box, wrong_place.predicted, wrong_place.true_box, wrong_place.iou) == (
        (200, 150, 240, 190), "dog", None, 0)
    assert wrong_place.score == pytest.approx(0.4)
    by_class = {one.name: one.curves.threshold for one in got.classes}
    assert by_class["dog"] == pytest.approx(0.3)
    assert sum(image.errors["background"] for image in got.images) == 1
    assert got.confusion[-1][1] == 1


def test_confusion_is_of_objects_that_are_not_found() -> None:
    index = index_of({1: (100, 100)}, [Truth(1, 1, (0, 0, 40, 40)), Truth(1, 18, (50, 50, 40, 40))])
    got = analyze_detections([found(1, (0, 0, 40, 40, 0.9, CAT), (0, 0, 40, 40, 0.8, DOG), (50, 50, 90, 90, 0.7, CAT),
                                    (50, 50, 90, 90, 0.6, DOG), (50, 50, 90, 90, 0.5, CAT))], index)
    assert [one.curves.threshold for one in got.classes[:2]] == pytest.approx([0.8, 0.6])
    assert got.confusion[0][0] == got.confusion[1][1] == 1
    assert got.confusion[-1][:2] == (0, 1), "the dog on the cat that is found is one too many"
    assert got.class_errors[0][1] == 1, "and an error of class"
    assert got.class_errors_besides == 1


def test_brightness_is_in_quarters_of_the_images() -> None:
    images = dict.fromkeys(range(1, 9), (100, 100))
    index = index_of(images, [Truth(k, 1, (10, 10, 40, 40)) for k in images])
    predictions = [found(k, *([(10, 10, 50, 50, 0.9, CAT)] if k <= 6 else [])) for k in images]
    got = analyze_detections(predictions, index, brightness={k: k / 10 for k in images})
    by_light = got.sensitivities[-1]
    assert by_light.name == "brightness of the image"
    assert [(group.objects, group.recall, group.ap50) for group in by_light.groups] == [
        (2, 1, 1), (2, 1, 1), (2, 1, 1), (2, 0, 0)]
    assert by_light.groups[0].name == "darkest quarter (0.10 to 0.28)"
    assert len(analyze_detections(predictions, index).sensitivities) == 3, "nothing is said of what is not known"


def test_misses_that_no_anchor_meets() -> None:
    """The images are 100 x 100 at the network's size: the missed dog is 20 x 13.3, the cat 30 x 60."""
    anchors = np.array([[10, 10, 40, 65], [0, 0, 13.4, 20]], np.float32)
    got = analysis(view=NetworkView("", Stretch((100, 100)), anchors)).anchors
    assert got is not None
    # The first cat, at 0..13.3 x 0..20, and the other image's are met; the rest is not.
    assert (got.missed, got.missed_unmet) == (2, 1)
    assert got.objects_unmet == pytest.approx(3 / 5)
    finding = next(one for one in analysis(view=NetworkView("", Stretch((100, 100)), anchors)).findings
                   if "no anchor" in one)
    assert finding.startswith("1 of 2 missed objects meet no anchor with an IoU of 0.5 (60% of all objects)")
    assert analysis(anchors_note="the head has no anchors").anchors_note == "the head has no anchors"


def test_it_is_written_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got = analysis()
    got.write(tmp_path / "analysis.json")
    read = json.loads((tmp_path / "analysis.json").read_text())
    assert read["kind"] == "detection"
    assert read["classes"][2]["ap50"] is None
    assert read["errors"][0]["ap50_gain"] == pytest.approx(51 / 2 / 101, rel=1e-5)
    assert len(read["overall"]["curves"]["precision_at_recall"]) == 101
    console = plain_console()
    for title, table in got.tables():
        console.print(title, render(table))
    shown = capsys.readouterr().out
    for text in ("What each kind of error costs (TIDE)", "false negatives", "cow", "Are scores probabilities?",
                 "anchors: not asked"):
        assert text in shown


def test_many_classes_make_short_tables() -> None:
    index, predictions = case()
    got = analyze_detections(predictions, index)
    assert got.tables()[3].title.startswith("Confusion: true classes down")
    many = replace(got, classes=got.classes * 5)
    confusion = tuple(tuple(k if row == 1 and column == 2 else 0 for column in range(16))
                      for k, row in enumerate(range(16), 8))
    many = replace(many, confusion=confusion)
    title, table = many.tables()[3]
    assert title == "Confusion: the largest numbers"
    assert table.rows == (("dog", "cow", "9"),)


def test_findings_say_what_costs_most() -> None:
    first = analysis().findings[0]
    assert first.startswith("Most AP50 is lost to wrong classes (0.252; 0 from the thresholds on, 1 in all).")
    index = index_of({1: (100, 100)}, [Truth(1, 1, (0, 0, 40, 40))])
    perfect = analyze_detections([found(1, (0, 0, 40, 40, 0.99, CAT))], index).findings
    assert perfect[0].startswith("Without objects in these images")
    tiny = index_of({1: (1000, 1000)}, [Truth(1, 1, (100 * k, 0, 20, 20)) for k in range(8)] + [
        Truth(1, 1, (0, 500, 400, 400))])
    missed = analyze_detections([found(1, (0, 500, 400, 900, 0.9, CAT))], tiny).findings
    assert missed[0] == ("Most AP50 is lost to missed objects (0.881; 8 at any score, 8 from the thresholds on); of "
                         "all that are not found from there on, 100% are under 4% of the image's side. A larger "
                         "model.size shows them larger.")


@pytest.mark.parametrize(("images", "truths", "message"), [
    ({}, [], "there are no images in images to analyse; name other data with --data"),
    ({1: (10, 10)}, [], "none of the 1 images in images has an object to find, so there is no AP to explain; name"),
    ({1: (10, 10)}, [Truth(1, 1, (0, 0, 5, 5), crowd=True)], "none of the 1 images in images has an object to find"),
])
def test_nothing_to_analyse(images: dict[int, tuple[int, int]], truths: list[Truth], message: str) -> None:
    index = index_of(images or IMAGES, truths).select(range(len(images)))
    for ask in (lambda: analyze_detections([], index), lambda: collector(index, Anchors(None))):
        with pytest.raises(ValueError, match=message):
            ask()


def test_what_a_caller_does_wrong() -> None:
    index, _ = case()
    with pytest.raises(ValueError, match="image 99 is not one of the 2 images with annotations"):
        analyze_detections([found(99)], index)
    with pytest.raises(ValueError, match="the number of examples is at least 0, got -1"):
        analyze_detections([], index, num_examples=-1)
    with pytest.raises(ValueError, match="there is no analysis of a int; detseg test has its score"):
        collector(3, Anchors(None))


def test_a_class_that_is_never_predicted_and_images_without_objects() -> None:
    index = index_of({1: (100, 100), 2: (50, 50)}, [Truth(1, 18, (0, 0, 40, 40))])
    got = analyze_detections([found(1), found(2, (0, 0, 9, 9, 0.9, CAT))], index)
    assert "Never predicted: dog. Look whether training shows them (detseg browse), and bring more." in got.findings
    assert got.errors[KINDS.index("background")].count == 1
    dog = next(one for one in got.classes if one.name == "dog")
    assert (dog.ap50, dog.curves.recall) == (0, 0)
    assert math.isnan(dog.curves.precision)
    assert mean_existing([dog.curves.threshold]) != mean_existing([dog.curves.threshold]), "NaN"
