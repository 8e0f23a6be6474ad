"""`detseg analyze` as it is typed, and what predict, report and export make of the thresholds that it leaves."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detseg import checkpoint
from detseg.analysis.collect import Anchors, DetectionCollector, _WithBrightness, collector
from detseg.analysis.run import analyze, anchors_of
from detseg.analysis.thresholds import ScoreThresholds
from detseg.api import load_model
from detseg.config import load as load_config
from detseg.data.images import read_image
from detseg.data.location import Location
from detseg.evaluate import evaluate
from detseg.export.convert import export
from detseg.export.format import Options
from detseg.export.formats import format_named
from detseg.fingerprint import fingerprint
from detseg.predict import predict_image
from detseg.report.html import picture_of
from detseg.report.pictures import draw_boxes, write_picture
from detseg.report.results import summary
from detseg.resize import Letterbox
from detseg.run_folder import RunFolder
from detseg.structures import USUAL_THRESHOLD, Classes, ImageDetections
from tests import micro, tiny_segmenter
from tests.commands import run
from tests.conftest import ROOT

CLASSES = Classes(("cat", "dog"), (1, 2))
CONFIG = ROOT / "configs" / "ssdlite_v2.py"


def write_data(folder: Path, *, images: int = 3, objects: bool = True) -> Path:
    """Pictures that a dog fills almost; the last one without."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    annotations = []
    for k in range(1, images + 1):
        pixels = np.random.default_rng(k).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        write_picture(folder / "val2017" / f"{k}.png", pixels)
        if objects and k < images:
            annotations.append({"id": k, "image_id": k, "category_id": 2, "bbox": [1, 1, 62, 62], "area": 3844,
                                "iscrowd": 0})
    content = {"images": [{"id": k, "file_name": f"{k}.png", "height": 64, "width": 64} for k in range(1, images + 1)],
               "annotations": annotations,
               "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and the run of a network that takes every anchor for a dog, of a score below the usual
    threshold."""
    folder = tmp_path_factory.mktemp("pets")
    data = write_data(folder / "data")
    torch.manual_seed(0)
    config = load_config(CONFIG, ["model.width=0.35", "model.size=96", "workers=0"])
    model = config.build_model(CLASSES)
    state = model.state_dict()
    for layer in model.head.class_layers:
        state[f"head.{layer}.bias"].view(-1, model.head.num_outputs)[:, 2] = 0.2
    kept = RunFolder(folder / "run")
    kept.create(config, Location(data))
    checkpoint.save(kept.last, checkpoint.Checkpoint(
        step=1, total_steps=2, model=state, ema=None, optimizer={}, validated=0, numbers={}, best={}, classes=CLASSES,
        settings=config.settings(), versions={}, config_text=config.text,
        fingerprint=fingerprint(model, config.experiment.task)))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new current folder with a copy of the run."""
    shutil.copytree(made / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_explained(made: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = run("analyze", "run", "--examples", "2", capsys=capsys)
    assert (code, errors) == (0, "")
    assert out.splitlines()[-2:] == [
        "all of it: run/analysis.json",
        "detseg predict and detseg export take the thresholds from run/thresholds.json"]
    assert "What each kind of error costs (TIDE)" in out
    assert "meet no anchor" in out
    assert "\nwhat stands out\n- " in out
    found = json.loads(Path("run/analysis.json").read_text())
    assert found["num_images"] == 3
    assert found["num_objects"] == 2
    assert [image["image_id"] for image in found["images"]] == [1, 2, 3]
    assert max(sum(one["kind"] == kind["kind"] for one in found["examples"]) for kind in found["errors"]) <= 2
    assert found["anchors"]["iou"] == 0.5

    measured = ScoreThresholds.read(Path("run/thresholds.json"))
    model = load_model(Path("run"), None)
    assert measured.weights == model.weights_digest
    assert measured.classes.keys() == {"dog"}
    assert model.thresholds == {"cat": measured.all_classes, "dog": measured.classes["dog"]}
    assert model.threshold == (measured.all_classes, measured.classes["dog"])
    assert measured.data == str(made / "data")

    # What was measured is what is shown: as many dogs as the analysis counts, right or wrong.
    code, out, _ = run("predict", "run", str(made / "data" / "val2017"), capsys=capsys)
    assert code == 0
    shown = "shown from the scores that detseg analyze has found best: cat 0."
    assert sum(line.startswith(shown) for line in out.splitlines()) == 1
    counted = sum(int(line.split(": ")[1].removesuffix(" dog")) for line in out.splitlines() if line.endswith(" dog"))
    assert counted == sum(row[1] for row in found["confusion"]) > 0
    code, out, _ = run("predict", "run", str(made / "data" / "val2017"), "--threshold", "1", capsys=capsys)
    assert "shown from" not in out
    assert out.count(": nothing") == 3


def test_thresholds_of_other_weights_are_left_aside(place: Path) -> None:
    thresholds = ScoreThresholds(weights="other", data="", num_images=1, all_classes=0.5, classes={})
    thresholds.write(Path("run/thresholds.json"))
    model = load_model(Path("run"), None)
    assert model.thresholds is None
    assert model.threshold == USUAL_THRESHOLD
    assert model.notes[-1] == ("note: run/thresholds.json is of other weights than last.pt and was left aside; detseg "
                               "analyze measures anew")


def test_a_new_run_in_the_folder_forgets_them(made: Path, place: Path) -> None:
    for name in ("analysis.json", "thresholds.json"):
        (place / "run" / name).write_text("old")
    RunFolder(Path("run")).create(load_config(CONFIG), Location(made / "data"))
    assert not {"analysis.json", "thresholds.json"} & {path.name for path in (place / "run").iterdir()}


def test_the_page_of_a_run_shows_what_predict_shows(
    made: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(page: str) -> list[str]:
        return re.findall(r"<figcaption>(\d\.png: .*?)</figcaption>", page[page.index('<h2 id="examples">'):])

    monkeypatch.setattr("detseg.run_report._SECONDS", 0.01)
    pictures = made / "data" / "val2017"
    code, _, errors = run("report", "run", capsys=capsys)
    assert (code, errors) == (0, "")
    page = Path("run/report.html").read_text()
    assert told(page) == re.findall(r"\d\.png: .*", run("predict", "run", str(pictures), capsys=capsys)[1])
    model = load_model(Path("run"), None)
    for path in sorted(pictures.iterdir()):
        image = read_image(path)
        found = predict_image(model.network, model.task, image)
        assert found.shown(model.threshold).any()
        assert not found.shown(USUAL_THRESHOLD).any()
        assert picture_of(draw_boxes(image, found, model.classes, threshold=model.threshold), "", side=720).data in page

    # Measured on data that are named, a run's thresholds stay what they are.
    other = replace(ScoreThresholds.read(Path("run/thresholds.json")), classes={"dog": 0.9}, all_classes=0.9)
    other.write(Path("run/thresholds.json"))
    code, _, errors = run("report", "run", "--data", str(made / "data"), "--out", "page.html", capsys=capsys)
    assert (code, errors) == (0, "")
    assert ScoreThresholds.read(Path("run/thresholds.json")) == other
    assert told(Path("page.html").read_text()) == ["1.png: nothing", "2.png: nothing", "3.png: nothing"]


def test_elsewhere_a_file_is_written_only_when_it_is_named(
    made: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(next(Path("run").glob("*.py")))
    code, out, _ = run("analyze", config, "run/last.pt", "--data", str(made / "data"), "--json", "found.json",
                       capsys=capsys)
    assert code == 0
    assert "thresholds from" not in out
    assert json.loads(Path("found.json").read_text())["kind"] == "detection"
    assert not Path("run/analysis.json").exists()
    assert not Path("run/thresholds.json").exists()


def test_a_segmenter_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    tiny_segmenter.train_in(tmp_path, ["--out", "run", "--set", "schedule.epochs=1"])
    monkeypatch.chdir(tmp_path)
    code, out, errors = run("analyze", "run", capsys=capsys)
    assert (code, errors) == (0, "")
    assert "Errors by distance to an edge between labels" in out
    assert "Not in these label maps, so nothing is known of them: purple." in out
    found = json.loads(Path("run/analysis.json").read_text())
    assert (found["kind"], len(found["images"]), len(found["confusion"])) == ("segmentation", 5, 3)
    assert not Path("run/thresholds.json").exists()
    assert run("test", "run", "--json", "numbers.json", "--per-class", capsys=capsys)[0] == 0
    assert found["numbers"] == pytest.approx(json.loads(Path("numbers.json").read_text()), rel=1e-5)


@pytest.mark.parametrize(("images", "objects", "message"), [
    (0, True, "'images' is empty; a data set needs at least one image"),
    (2, False, "none of the 2 images in "),
])
def test_there_is_nothing_to_analyse(
    images: int, objects: bool, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(place / "empty", images=images, objects=objects)
    code, _, errors = run("analyze", "run", "--data", "empty", capsys=capsys)
    assert code == 2
    assert message in errors, errors


def test_what_is_typed_wrong(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in ((["run", "--examples", "-1"], "error: --examples is at least 0, got -1"),
                               (["run", "--data", "nowhere"], "error: "),
                               (["nowhere.py", "x.pt"], "error: there is no config nowhere.py")):
        code, _, errors = run("analyze", *arguments, capsys=capsys)
        assert code == 2
        assert errors.startswith(message)


@pytest.mark.conversion
def test_an_exported_file_has_the_thresholds(place: Path) -> None:
    measured = load_model(Path("run"), None)
    ScoreThresholds(weights=measured.weights_digest, data="", num_images=1, all_classes=0.5,
                    classes={"dog": 0.25}).write(Path("run/thresholds.json"))
    source = load_model(Path("run"), None).source
    assert source is not None
    predictor, task = micro.network("ssdlite")
    written = export(source._replace(predictor=predictor, task=task), place / "file.pt2", format_named("pt2"),
                     Options(), images=micro.scenes(1, seed=0))
    assert written.manifest.thresholds == {"cat": 0.5, "dog": 0.25}
    model = load_model(written.path, None)
    assert model.thresholds == {"cat": 0.5, "dog": 0.25}
    assert model.anchors == Anchors(None, "an exported file does not tell its anchors")
    assert model.weights_digest == written.manifest.checkpoint["sha256"]


def test_a_threshold_of_each_class_is_kept_to() -> None:
    found = ImageDetections(1, torch.tensor([[0.0, 0, 9, 9], [0, 0, 5, 5], [1, 1, 8, 8]]),
                            torch.tensor([0.75, 0.5, 0.25]), torch.tensor([0, 1, 1]))
    assert found.shown(0.5).tolist() == [True, True, False], "a score of the threshold itself is enough"
    assert found.shown((0.8, 0.2)).tolist() == [False, True, True]
    assert summary(found, CLASSES, threshold=(0.8, 0.3)) == "1 dog"
    image = np.zeros((40, 40, 3), np.uint8)
    assert np.array_equal(draw_boxes(image, found, CLASSES, threshold=(0.8, 0.3)),
                          draw_boxes(image, found._replace(boxes=found.boxes[1:2], scores=found.scores[1:2],
                                                           labels=found.labels[1:2]), CLASSES, threshold=0))


def test_brightness_is_of_the_image_without_bars(made: Path, place: Path) -> None:
    model = load_model(Path("run"), None)
    data = model.validation(model.location)
    plain = float(_WithBrightness(data.dataset).evaluation(0).truth)
    pixels = data.dataset.original(0).mean((0, 1)) @ (0.299, 0.587, 0.114) / 255
    assert plain == pytest.approx(pixels, abs=0.002)
    data.dataset.resize = Letterbox((64, 128))  # type: ignore[attr-defined]
    assert float(_WithBrightness(data.dataset).evaluation(0).truth) == pytest.approx(pixels, abs=0.002)


def test_processes_together_collect_what_one_does(made: Path, place: Path) -> None:
    model = load_model(Path("run"), None)
    data = model.validation(model.location)
    alone = analyze(model.network, model.task, data)
    _, predictions = evaluate(model.network, model.task, data.dataset, metric=data.metric(), batch_size=1, workers=0,
                              keep_predictions=True)
    shares = [collector(data.index, Anchors(None, "not asked")) for _ in range(2)]
    for k, prediction in enumerate(predictions):
        shares[k % 2].update([prediction], [_WithBrightness(data.dataset).evaluation(k).truth])
    whole = collector(data.index, Anchors(None, "not asked"))
    assert isinstance(whole, DetectionCollector)
    whole.merge([share.collected() for share in shares])
    assert whole.analysis(whole.compute()).to_json() == alone.to_json()
    assert len(whole.brightness) == 3


def test_a_head_without_anchors_says_so() -> None:
    assert anchors_of(micro.network("panlite")[0]) == Anchors(None, "the head has no anchors")
    found = anchors_of(micro.network("ssdlite")[0])
    assert found.view is not None
    assert found.view.anchors is not None
    assert found.view.anchors.shape[1] == 4
