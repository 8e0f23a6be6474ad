"""The page of a run: what it says, that it needs nothing else, and how it looks to a browser.

Its tests in Chromium are skipped where that is missing.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detseg.analysis import page
from detseg.analysis.detection import analyze_detections
from detseg.analysis.detection_result import Example
from detseg.analysis.page import Images, sections
from detseg.bootstrap import Interval
from detseg.config import load as load_config
from detseg.data.location import Location
from detseg.report.html import picture_of
from detseg.report.inline_charts import Line, bar_chart, line_chart
from detseg.report.run_page import (
    ClassCount,
    ExportedFile,
    Fact,
    RunFacts,
    Section,
    run_page,
    scores,
    settings,
    state_of_training,
    verdict,
)
from detseg.run_folder import RunFolder
from detseg.run_report import write_report
from detseg.structures import VOID, Classes, LabelPixels, MetricTable
from detseg.train import fit
from tests import browser, tiny_segmenter
from tests.commands import run
from tests.test_coco_ap import random_case
from tests.test_segmentation_analysis import CAR, PREDICTED, ROAD, SKY, TRUTH, collected
from tests.test_segmentation_analysis import CLASSES as STREET
from tests.test_segmentation_analysis import analysis as label_analysis

WRONG = Interval(math.nan, math.nan, math.nan)


def facts(**changes: Any) -> RunFacts:
    """Of a detector; its names look like HTML."""
    log = [{"kind": "train", "step": step, "epoch": step / 10, "loss": 9 / step, "loss/class": 5 / step,
            "loss/box": 4 / step, "lr": 0.1, "images_per_second": 20.0, "gradient_norm": None}
           for step in range(10, 100, 10)]
    log += [{"kind": "val", "step": step, "epoch": step / 10, "AP": 0.1 + step / 300, "AP50": 0.5, "APs": None,
             "seconds": 3.0} for step in range(30, 100, 30)]
    return RunFacts(
        name="a <b> run", main="AP", num_images=87, step=90,
        numbers={"AP": Interval(0.532, 0.509, 0.56), "AP50": Interval(0.85, 0.81, 0.89), "APs": WRONG,
                 "APm": Interval(0.39, 0.36, 0.43), "APl": Interval(0.67, 0.65, 0.7),
                 "AP/<i>": Interval(0.7, 0.6, 0.8), "AP/dog": Interval(0.3, 0.2, 0.4), "AP/gone": WRONG},
        table=MetricTable(("measure", "IoU", "value", "more"), (
            ("AP", "0.50:0.95", 0.532), ("APs", "0.50:0.95", math.nan), ("AP/<i>", "0.50:0.95", 0.7, "x"))),
        log=log, cost=[Fact("Parameters", "3,091,680")],
        files=[ExportedFile("x.onnx", 12.34, {"passed": True, "images": 16, "predictions": {"share": 0.998}}, None),
               ExportedFile("y.pte", 3.0, None, {"metric": "AP", "artefact": 0.528, "drop": 0.4})],
        data=[Fact("Place", "data/x")], classes=[ClassCount("<i>", 2381, 967), ClassCount("dog", None, 0)],
        described={"config": "x.py", "start": "weights of <x>", "versions": {"torch": "2"}, "settings": {
            "seed": {"value": 3, "from": "command line"}, "model.scales": {"value": [0.1, 0.25], "from": "file"},
            "workers": {"value": None, "from": "default"}}},
        config_text="if a < b: ...", examples=[picture_of(np.full((30, 40, 3), 90, np.uint8), "1.jpg: 2 <i>")],
        notes=["note: a < b"])._replace(**changes)


def test_the_verdict_is_three_sentences() -> None:
    assert verdict(facts()) == [
        "On 87 validation images the checkpoint of step 90 has AP 53.2; on other images of the kind 50.9 to 56.0 is to "
        "be expected (95%).",
        "Of 2 classes <i> does best (70.0) and dog worst (30.0); by size, medium objects have 39.0, large objects have "
        "67.0.",
        "AP has still risen by 10.0 over the last third of the 3 validations: more epochs are worth a try."]
    plain = {"AP": Interval(0.5, math.nan, math.nan)}
    assert verdict(facts(numbers=plain))[:2] == [
        "On 87 validation images the checkpoint of step 90 has AP 50.0.", "No class was counted by itself."]
    assert "It knows one class, dog." in verdict(facts(numbers=plain | {"AP/dog": Interval(0.5, 0.4, 0.6)}))
    assert verdict(facts(numbers={"AP": WRONG}))[0].startswith("There is no AP: the 87 validation images show")


@pytest.mark.parametrize(("values", "expected"), [
    ([0.1, 0.2], "With 2 validations it cannot be told"),
    ([0.1, 0.3, 0.4, 0.45, 0.47, 0.5], "AP has still risen by 5.0 over the last third of the 6 validations"),
    ([0.1, 0.3, 0.4, 0.5, 0.503, 0.505], "AP has levelled off over the last third of the 6 validations"),
    ([0.1, 0.3, 0.5, 0.48, 0.46, 0.45], "AP has fallen by 5.0 since epoch 2:"),
])
def test_whether_training_was_long_enough(values: list[float], expected: str) -> None:
    assert state_of_training([*zip(range(len(values)), values, strict=True)], "AP").startswith(expected)


def test_the_page_tells_everything_and_escapes_it() -> None:
    page = run_page(facts())
    assert [*re.findall(r'<h2 id="(\w+)">', page)] == ["scores", "examples", "curves", "costs", "data", "settings"]
    for text in ("a &lt;b&gt; run", "1.jpg: 2 &lt;i&gt;", "weights of &lt;x&gt;", "if a &lt; b: ...", "note: a &lt; b",
                 "passed: 99.8% of the predictions the same on 16 images", "not compared", "2,381", "0.1, 0.25",
                 "AP 52.8, 0.4 points below the checkpoint", "command line", "1 settings as they are by default"):
        assert text in page, text
    for markup in ("<i>", "<b>", "<x>"):
        assert markup not in page
    assert re.search(r"https?://(?!www\.w3\.org/)", page) is None, "nothing is fetched"
    assert len(re.findall('role="img" aria-label="', page)) == 5, "a gradient norm that was never a number has no chart"


def test_the_table_has_the_value_first_and_its_interval() -> None:
    rows = re.findall(r"<tr>(.*?)</tr>", scores(facts()).html, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert cells == [["measure", "value", "95% interval", "IoU", "more"], ["AP", "53.2", "50.9 to 56.0", "0.50:0.95",
                     ""], ["APs", "-", "", "0.50:0.95", ""], ["AP/&lt;i&gt;", "70.0", "60.0 to 80.0", "0.50:0.95", "x"]]


def test_many_classes_are_cut_to_the_best_and_the_worst() -> None:
    many = {f"AP/{k}": Interval(k / 100, k / 100, k / 100) for k in range(90)}
    text = scores(facts(numbers={"AP": WRONG} | many)).html
    assert "AP by class, the best and the worst 20 of 90" in text
    assert text.count("stroke-linejoin") < 200
    assert ">89<" in text
    assert ">50<" not in text


def test_sections_are_a_list_of_functions() -> None:
    page = run_page(facts(), sections=[settings, lambda _: None])
    assert re.findall(r'<h2 id="(\w+)">', page) == ["settings"]
    assert "curves" not in run_page(facts(log=[]))


def test_charts_have_names_of_their_own_and_the_page_s_colours() -> None:
    first = line_chart({"a & b": Line([0, 1, 2], [3, 2, 1])}, title="Loss", x_label="epoch", log=True)
    second = bar_chart({"cat": Interval(0.5, 0.4, 0.6), "dog": Interval(0.2, math.nan, math.nan)}, title="AP")
    ids = [re.findall(r'\bid="([^"]+)"', chart) for chart in (first, second)]
    assert not set(ids[0]) & set(ids[1])
    for chart, mine in zip((first, second), ids, strict=True):
        assert set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", chart)) <= set(mine)
        assert set(re.findall(r"(?:stroke|fill): ?(#\w+)", chart)) == set(), "no colour but the page's"
        assert "<style" not in chart
    assert 'aria-label="Loss over epoch: a &amp; b from 3 to 1"' in first
    assert 'aria-label="AP: cat 50.0; dog 20.0"' in second


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("told")
    tiny_segmenter.train_in(folder, ["--out", "run", "--set", "report=true"])
    return folder


def explained() -> list[Section]:
    """What is told of the errors of a detector."""
    index, predictions = random_case(4)
    images = Images(lambda image_id: np.full((*index.size(index.image_ids.tolist().index(image_id)), 3), 120, np.uint8),
                    lambda _: pytest.fail("boxes have no label maps"), index.classes)
    return sections(analyze_detections(predictions, index), images)


def explained_labels(pairs: Sequence[tuple[LabelPixels, LabelPixels]]) -> list[Section]:
    """Of a segmenter: of (true, predicted) label maps."""
    images = Images(lambda image_id: np.full((*pairs[image_id - 1][0].shape, 3), 200, np.uint8),
                    lambda image_id: pairs[image_id - 1], STREET)
    return sections(label_analysis(collected([*pairs])), images)


def test_errors_are_told_and_shown() -> None:
    text = run_page(facts(analysis=explained()))
    order = [text.index(f'<h2 id="{anchor}">') for anchor in ("scores", "findings", "errors", "examples")]
    assert order == sorted(order)
    for told in ("Most AP50 is lost to", "AP50 lost to each kind of error", "Precision over recall, IoU 0.5",
                 "F1 over the score from which boxes are shown; dots: the best threshold", ", marked: ",
                 "Objects that are found, by their share of the image", "What is taken for what",
                 "Where objects are found"):
        assert told in text, told
    kinds = re.findall(r'<figure data-kind="(\w+)" data-name="(\w+)">', text)
    assert {"background", "missed"} <= {kind for kind, _ in kinds}
    assert max(Counter(kind for kind, _ in kinds).values()) <= 8
    assert text.count("data:image/jpeg;base64,") == 1 + len(kinds)


def test_label_maps_are_shown_with_where_they_are_wrong() -> None:
    assert (TRUTH != PREDICTED).any()
    errors = explained_labels([(TRUTH, PREDICTED), (TRUTH, TRUTH), (PREDICTED, TRUTH)])[1].html
    assert "Of all wrong pixels: what is taken for what: road as car 50.0; car as road 50.0" in errors
    assert re.findall(r'data-kind="([^"]+)" data-name="([^"]+)"', errors) == [("road as car", "road")] * 2
    assert "<select" not in errors, "there is nothing to choose from"
    other = TRUTH.copy()
    other[0] = SKY
    errors = explained_labels([(TRUTH, PREDICTED), (TRUTH, other)])[1].html
    assert errors.count("<select") == 1, "of kinds; both lie on roads"


def test_wrong_pixels_are_red_and_void_is_never_wrong() -> None:
    true, predicted = np.full((64, 96), ROAD, np.uint8), np.full((64, 96), ROAD, np.uint8)
    true[:, :32], predicted[:, :64] = VOID, CAR
    picture = re.search(r'base64,([^"]+)" width="192" height="128"', explained_labels([(true, predicted)])[1].html)
    assert picture is not None
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(picture[1]), np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    wrong = shown[64:, 96:].astype(int)
    red = (wrong[..., 2] - wrong[..., 1]) > 60
    inner = [red[4:-4, start + 4 : start + 28].mean() for start in (0, 32, 64)]  # JPEG smears colours at borders
    assert inner == [0, 1, 0]


def test_an_error_is_shown_around_its_boxes_inside_the_image() -> None:
    images = Images(lambda _: np.full((200, 300, 3), 90, np.uint8), lambda _: pytest.fail("no label maps"),
                    Classes(("cat", "dog"), (1, 2)))
    error = Example(kind="localisation", image_id=1, file="1.jpg", box=(280, 150, 299, 199), predicted="dog", score=0.5,
                    true_box=(250, 170, 290, 199), true="dog", iou=0.2)
    shown = page._error_picture(error, images)
    assert (shown.width, shown.height) == (360, 360)
    assert shown.where == "1.jpg: dog 0.50, IoU 0.20 with dog"
    missed = page._error_picture(replace(error, kind="missed", box=None, predicted=None, score=None, iou=0.0), images)
    assert (missed.width, missed.height, missed.where) == (360, 360, "1.jpg: dog not found")
    wide = page._error_picture(replace(error, box=(10, 50, 290, 120)), images)
    assert (wide.width, wide.height) == (360, 240), "nothing of it is cut off"


def test_training_leaves_the_page(trained: Path) -> None:
    page = (trained / "run" / "report.html").read_text()
    assert "of all wrong pixels" in page
    assert json.loads((trained / "run" / "analysis.json").read_text())["kind"] == "segmentation"
    assert "On 5 validation images the checkpoint of step" in page
    assert page.count("data:image/jpeg;base64,") == 5 + 5
    assert "picture 0.png: " in page
    assert "<td>optimizer.lr</td>" in page
    assert len(page) < 1_000_000


def test_the_command_measures_again(
    trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    shutil.copytree("run", tmp_path / "run")
    copy = RunFolder(tmp_path / "run")
    copy.report.unlink()
    (copy.path / "x.onnx").write_bytes(b"0" * 100_000)
    (copy.path / "x.onnx.parity.json").write_text(json.dumps(
        {"passed": False, "images": 4, "predictions": {"share": 0.5}}))
    code, out, err = run("report", str(copy.path), capsys=capsys)
    assert code == 0, err
    assert f"written: {copy.report}" in out
    assert "DIFFERS: 50.0% of the predictions the same on 4 images" in copy.report.read_text()
    code, out, err = run("report", "run", "--data", "data/shades", "--out", str(tmp_path / "p.html"), capsys=capsys)
    assert code == 0, err
    assert (tmp_path / "p.html").is_file()
    code, _, err = run("test", "run", "--per-class", "--json", str(tmp_path / "n.json"), capsys=capsys)
    assert code == 0, err
    value = json.loads((tmp_path / "n.json").read_text())["mIoU"]
    assert f"has mIoU {100 * value:.1f};" in (tmp_path / "p.html").read_text()


def test_pictures_have_their_own_names_where_broken_images_are_left_out(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "data" / "shades", tmp_path / "shades")
    image, *others = sorted((tmp_path / "shades" / "images" / "val").iterdir())
    image.write_bytes(b"no picture")
    with contextlib.chdir(trained):
        page = write_report(Path("run"), out=tmp_path / "page.html", location=Location(tmp_path / "shades")).read_text()
    gallery = page[page.index('<h2 id="examples">') : page.index('<h2 id="curves">')]
    assert re.findall(r"<figcaption>([^:]+):", gallery) == [path.name for path in others]
    assert f"left out: {image}" in page


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere"], "nowhere is no run folder"),
    (["run", "--data", "nowhere"], "nowhere"),
    (["run", "--images", "data"], "--images tells where the images of --data lie"),
    (["run", "--out", "."], "--out . is a folder; name a file in it"),
])
def test_bad_input(
    trained: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    code, _, err = run("report", *arguments, capsys=capsys)
    assert code == 2
    assert message in err


def test_what_stands_in_the_way_of_a_page_does_not_make_the_run_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    (tmp_path / "run" / "report.html" / "x").touch()
    tiny_segmenter.write_config(tmp_path)
    tiny_segmenter.generate(tmp_path / "data" / "shades")
    with contextlib.chdir(tmp_path):
        config = load_config(Path("shades.py"), ["schedule.epochs=1", "report=true"])
        result = fit(config, Path("data/shades"), out=Path("run"))
        assert result.numbers
        assert re.search(r"no report: .*the page was not written.*report\.html", capsys.readouterr().out)
        config = load_config(Path("shades.py"), ["schedule.epochs=1", "report=false"])
        assert not fit(config, Path("data/shades"), out=Path("other")).run.report.exists()


def test_a_metric_that_nobody_can_resample_has_no_intervals(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(metric: Any) -> Any:
        raise ValueError("nobody knows how")

    monkeypatch.setattr("detseg.run_report.resamplable", refuse)
    monkeypatch.chdir(trained)
    page = write_report(Path("run"), out=tmp_path / "page.html").read_text()
    assert "<th scope=\"col\">value</th>" in page
    assert "95% interval" not in page
    assert "is to be expected" not in page


# ------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.launched() as launched:
        yield launched


CONTRAST = """() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((v) => v / 255).map(
      (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parts = (text) => {
    const numbers = text.match(/[\\d.]+/g).map(Number), scale = text.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map((v) => v * scale), numbers.length > 3 ? numbers[3] : 1];
  };
  const behind = (one) => {
    const [r, g, b, a] = parts(getComputedStyle(one).backgroundColor);
    if (a === 1) return `${r} ${g} ${b}`;
    const below = parts(behind(one.parentElement));
    return [r, g, b].map((v, at) => a * v + (1 - a) * below[at]).join(" ");
  };
  const worst = [];
  for (const one of document.querySelectorAll("h1, h2, h3, p, th, td, a, summary, figcaption, svg text")) {
    if (!one.textContent.trim() || !one.getClientRects().length) continue;
    const style = getComputedStyle(one);
    const [a, b] = [light(one.closest("svg") ? style.fill : style.color), light(behind(one))].sort((x, y) => y - x);
    worst.push([(a + 0.05) / (b + 0.05), one.textContent.trim().slice(0, 30)]);
  }
  return worst.sort((x, y) => x[0] - y[0])[0];
}"""
"""The least contrast of text, by WCAG 2.2."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_in_chromium(chromium: Any, tmp_path: Path, width: int, scheme: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(run_page(facts(analysis=[*explained(), *(
        one._replace(anchor=f"labels-{one.anchor}")
        for one in explained_labels([(TRUTH, PREDICTED), (TRUTH, PREDICTED), (TRUTH, np.full_like(TRUTH, ROAD))]))])))
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, problems, requested = context.new_page(), list[str](), list[str]()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(path.as_uri())
    assert [url for url in requested if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is wider than the page"
    charts = page.evaluate("""() => [...document.querySelectorAll(".chart svg")].map((svg) => [
      svg.getBoundingClientRect().width, svg.querySelectorAll("path, use").length,
      [...svg.querySelectorAll("path")].filter((one) => one.getBBox().width > 20).length])""")
    assert len(charts) == 12
    assert all(200 < shown < 600 and marks > 10 and large > 0 for shown, marks, large in charts), charts
    smallest = page.evaluate("""() => Math.min(...[...document.querySelectorAll("svg text")].map(
      (one) => one.getBoundingClientRect().height))""")
    assert smallest > 9, "pixels of a chart's letters"
    contrast, where = page.evaluate(CONTRAST)
    assert contrast >= 4.5, where
    assert page.evaluate("[...document.images].every((image) => image.alt || image.closest('dialog'))")
    assert not page.locator("dialog").is_visible()
    page.locator("#examples ~ .pictures .enlarge").first.press("Enter")
    assert page.locator("dialog img").is_visible()
    assert page.locator("dialog img").get_attribute("alt") == "1.jpg: 2 <i>"
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    gallery = page.locator(".gallery").first
    total = gallery.locator("figure").count()
    gallery.locator("select").first.select_option("missed")
    missed = gallery.locator("figure:visible").count()
    assert 0 < missed < total
    assert gallery.locator("[data-count]").inner_text() == f"{missed} of {total} pictures"
    assert gallery.locator("figure[data-kind=missed]").count() == missed
    name = gallery.locator("select").last.locator("option").nth(1).inner_text()
    gallery.locator("select").last.select_option(name)
    both = gallery.locator("figure:visible").count()
    assert both == gallery.locator(f'figure[data-kind=missed][data-name="{name}"]').count()
    gallery.locator("select").first.select_option("")
    assert gallery.locator("figure:visible").count() == gallery.locator(f'figure[data-name="{name}"]').count() > both
    labels = page.locator(".gallery").last
    labels.locator("select").first.select_option("road as car")
    assert labels.locator("figure:visible").count() == labels.locator('figure[data-kind="road as car"]').count() > 0
    assert gallery.locator("figure:visible").count() > both, "each has choices of its own"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert problems == []
    context.close()
