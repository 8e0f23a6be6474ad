"""Segmentation through the commands, from masks on disk to files for a server, with the smallest network there is."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask
from pycocotools.coco import COCO

from detseg.api import load_model
from detseg.checkpoint import load
from detseg.config import load as load_config
from detseg.data.images import read_image
from detseg.data.layouts import read_labels
from detseg.metrics.mean_iou import MeanIoU
from detseg.predict import predict_image
from detseg.structures import ImageLabels
from detseg.train import fit
from tests import tiny_segmenter
from tests.commands import run
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config, its data where the config says that they are, and a run."""
    folder = tmp_path_factory.mktemp("shades")
    tiny_segmenter.write_config(folder)
    tiny_segmenter.generate(folder / "data" / "shades")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert importlib.import_module("detseg.commands.train").main(["shades.py", "--out", "run"]) == 0
    (folder / "said.txt").write_text(said.getvalue())
    return folder


def test_training_leaves_a_whole_run(place: Path) -> None:
    best = load(Path("run/best.pt"))
    assert best.classes == tiny_segmenter.CLASSES
    assert best.best["value"] > 0.8, "bright and dark are easy to tell"
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [line["mIoU"] for line in log if line["kind"] == "val"][-1] > 0.8
    assert log[-1].keys() >= {"mIoU", "mIoU_present", "pixel_accuracy"}
    said = Path("said.txt").read_text()
    assert "12 images to train on, 5 to validate on, 3 classes; 45 steps (3 an epoch)" in " ".join(said.split())
    assert re.search(r"epoch 15: mIoU 0\.\d{3} \(best 0\.\d{3}\)", said)
    assert "not in the label maps: purple" in said
    picture = cv2.imread("run/predictions.jpg")
    assert picture is not None
    assert picture.shape[1] == 1600


def test_evaluation_shows_and_writes_everything(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("test", "shades.py", "run/best.pt", "--per-class", "--json", "numbers.json", "--results",
                       "results.json", capsys=capsys)
    assert code == 0
    assert "run/best.pt, after" in out
    assert "not in the label maps: purple" in out
    assert re.search(r"IoU/dark\W+0\.\d{3}", out)
    numbers = json.loads(Path("numbers.json").read_text())
    assert numbers["mIoU"] == load(Path("run/best.pt")).best["value"]
    assert numbers["IoU/purple"] is None or numbers["IoU/purple"] == 0.0

    code, _, _ = run("test", "shades.py", "run/best.pt", "--reference", "--data", "data/shades", "--json",
                     "reference.json", capsys=capsys)
    assert code == 0
    reference = json.loads(Path("reference.json").read_text())
    assert {name: numbers[name] for name in reference} == reference

    # The written run lengths, put together again, get the same score.
    index = read_labels(Path("data/shades"), "val")
    labels = {int(image_id): np.full(index.size(i), 255, dtype=np.uint8) for i, image_id in enumerate(index.image_ids)}
    for record in json.loads(Path("results.json").read_text()):
        k = tiny_segmenter.CLASSES.source_ids.index(record["category_id"])
        labels[record["image_id"]][decoded(record["segmentation"])] = k
    index = index.relabel(tiny_segmenter.CLASSES)
    metric, truths = MeanIoU(index), [torch.from_numpy(index.labels(i, index.size(i))) for i in range(len(index))]
    metric.update([ImageLabels(*item) for item in labels.items()], truths)
    assert metric.compute() == reference


def test_further_metrics_have_tables_of_their_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("test", "shades.py", "run/best.pt")
    assert run(*arguments, "--json", "usual.json", capsys=capsys)[0] == 0
    code, out, _ = run(*arguments, "--metric", "edges", "averages", "miou", "--metric", "boundary", "edges", "--json",
                       "more.json", capsys=capsys)
    assert code == 0
    usual, more = (json.loads(Path(name).read_text()) for name in ("usual.json", "more.json"))
    assert list(more)[:len(usual)] == list(usual)
    assert {name: more[name] for name in usual} == usual
    assert more.keys() - usual.keys() > {"boundary_IoU", "mIoU_within_1px", "image_IoU", "frequency_weighted_IoU"}
    assert out.count("measure") == 4, "the config's own is not shown again, nor one that is asked for twice"
    assert re.search(r"boundary_IoU\W+0\.\d{3}", out)

    code, _, errors = run(*arguments, "--metric", "voc", capsys=capsys)
    assert code == 2
    assert errors == "error: these data have no metric voc; there are miou, averages, boundary, edges\n"


def decoded(run_lengths: Any) -> Any:
    with warnings.catch_warnings():  # pycocotools knows no NumPy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        return mask.decode(run_lengths).astype(bool)


def test_prediction_leaves_pictures_run_lengths_and_label_maps(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    original = read_image(Path("data/shades/images/val/picture 0.png"))
    name = "aachen_000000_000019_leftImg8bit.png"
    cv2.imwrite(f"photos/{name}", original)
    cv2.imwrite("photos/b.bmp", original[:20, ::-1].copy())
    code, out, errors = run("predict", "shades.py", "run/best.pt", "photos", "--labels", "labels", capsys=capsys)
    assert (code, errors) == (0, "")
    assert sorted(path.name for path in Path("labels").iterdir()) == [name, "b.png"]
    assert sorted(path.name for path in Path("predictions").iterdir()) == [
        name, "b.bmp", "images.json", "predictions.json"]
    assert re.search(rf"^photos/{name}: \d+% (dark|bright), \d+% (dark|bright)$", out, re.MULTILINE)
    assert out.rstrip().endswith("images.json are in predictions, label maps in labels")

    model = load_model(Path("shades.py"), Path("run/best.pt")).network
    images = COCO("predictions/images.json")
    results = json.loads(Path("predictions/predictions.json").read_text())
    for image in images.loadImgs(images.getImgIds()):
        path = Path(image["file_name"])
        pixels = read_image(path)
        expected = predict_image(model, load_config(Path("shades.py")).experiment.task, pixels).labels
        stored = cv2.imread(f"labels/{path.stem}.png", cv2.IMREAD_UNCHANGED)
        assert stored is not None
        assert stored.shape == expected.shape == pixels.shape[:2] == (image["height"], image["width"])
        assert np.array_equal(stored, np.array([4, 9, 20])[expected])
        for record in (record for record in results if record["image_id"] == image["id"]):
            assert np.array_equal(decoded(record["segmentation"]), stored == record["category_id"])
        picture = cv2.imread(f"predictions/{path.name}")
        assert picture is not None
        assert picture.shape == pixels.shape
        assert not np.array_equal(picture[..., ::-1], pixels)


@pytest.mark.parametrize("views", [["--tta", "flip", "1.5"], ["--tiles", "32x36", "--overlap", "0.5"]])
def test_predicted_label_maps_have_the_score_that_test_tells(
    views: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From several views of each image, which both commands make in the same way."""
    code, out, _ = run("test", "run", "--data", "data/shades", "--json", "numbers.json", *views, capsys=capsys)
    assert code == 0
    assert ("TTA (flip 1.5)" if "--tta" in views else "tiles of 32 x 36") in out
    assert run("predict", "run", "data/shades/images/val", "--labels", "labels", *views, capsys=capsys)[0] == 0
    index = read_labels(Path("data/shades"), "val")
    metric, ids = MeanIoU(index.relabel(tiny_segmenter.CLASSES)), np.array(tiny_segmenter.CLASSES.source_ids)
    for i, image_id in enumerate(index.image_ids.tolist()):
        stored: Any = cv2.imread(f"labels/{index.path(i).name}", cv2.IMREAD_UNCHANGED)
        labels = np.searchsorted(ids, stored).astype(np.uint8)
        metric.update([ImageLabels(image_id, labels)], [torch.from_numpy(metric.index.labels(i, index.size(i)))])
    numbers = json.loads(Path("numbers.json").read_text())
    assert metric.compute() == numbers
    code, _, _ = run("test", "run", "--data", "data/shades", "--json", "plain.json", capsys=capsys)
    assert json.loads(Path("plain.json").read_text()) != numbers


@pytest.mark.parametrize(("tool", "arguments", "code", "message"), [
    ("predict", ["data/shades/images/val", "--threshold", "0.5"], 2,
     "error: --threshold is for boxes: label maps have no scores, and an image always has its best classes; "
     "leave it out"),
    ("predict", ["data/shades/images/val", "--labels", "predictions/../predictions"], 2,
     "error: --labels and --out are both predictions; label maps would replace pictures"),
    ("predict", ["data/shades/images/val", "--labels", "data/shades/images/val"], 2,
     "error: the label map would replace the image "),
    ("predict", ["data/shades/images/val", "--overlap", "0.3"], 2,
     "error: the overlap is that of tiles; give their size too"),
    ("predict", ["--tta", "flip", "data/shades/images/val"], 2,
     "error: --tta takes flip and scales such as 0.75, got 'data/shades/images/val'; put files and folders before it"),
    ("test", ["--data", "nowhere"], 2, "error: no label maps in nowhere (no such folder). Looked for"),
])
def test_what_a_user_does_wrong(
    tool: str, arguments: list[str], code: int, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got, _, errors = run(tool, "shades.py", "run/best.pt", *arguments, capsys=capsys)
    assert got == code
    assert errors.startswith(message)
    assert not Path("predictions").exists()


def test_where_the_data_should_lie_is_said_where_it_is_not(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").unlink()
    for tool, arguments in (("train", []), ("test", ["run/best.pt"])):
        code, _, errors = run(tool, "shades.py", *arguments, capsys=capsys)
        assert code == 2
        assert re.match(r"error: no label maps in data/shades \(no such folder\)\. Looked for\n", errors)
        assert "name another folder with --data" in errors
    _, out, _ = run("train", "shades.py", "--show", capsys=capsys)
    assert ["data", "data/shades", "file"] in [line.split() for line in out.splitlines()]


@pytest.mark.slow
def test_two_processes_count_every_pixel_once(place: Path) -> None:
    """Five images over two processes: nothing is padded or repeated, and the confusion matrices add up."""
    overrides = ["schedule.epochs=2", "validate_every=1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(ROOT / "tools" / "train.py"),
               "shades.py", "--out", "two", "--set", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    one = fit(load_config(Path("shades.py"), overrides), Path("data/shades"), out=Path("one"))
    two = load(Path("two/last.pt"))
    assert two.numbers == pytest.approx(one.numbers, abs=2e-3), "the weights differ in their last digits"
    trained = load_model(Path("shades.py"), Path("two/last.pt"))
    index = read_labels(Path("data/shades"), "val")
    metric, task = MeanIoU(index), trained.task
    for i, image_id in enumerate(index.image_ids.tolist()):
        found = predict_image(trained.network, task, read_image(index.path(i)), image_id=image_id)
        metric.update([found], [torch.from_numpy(index.labels(i, index.size(i)))])
    assert metric.compute() == pytest.approx(two.numbers, abs=1e-3)
