"""Prediction: which files are meant, where their pictures go, and the command with an untrained SSDLite."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from detseg import checkpoint
from detseg.api import Model, load_model
from detseg.config import load as load_config
from detseg.data.coco import COCO_80
from detseg.data.images import read_image
from detseg.data.yolo import YoloSplit, classes_of_list, read_yolo
from detseg.fingerprint import fingerprint
from detseg.predict import find_images, label_paths, picture_paths, predict_files, predict_frames, predict_image
from detseg.report.pictures import draw, write_picture
from detseg.report.results import crops, summary
from detseg.structures import ImageDetections, Pixels
from detseg.tasks.detection import Detection
from detseg.video import Video
from tests.conftest import ROOT
from tests.test_video import write_lossless

CONFIG = ROOT / "configs" / "ssdlite_v2.py"
SMALL = ["model.width=0.35", "model.size=96"]
DOG = COCO_80.names.index("dog")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """An untrained network that takes everything for a dog, with a score of about 0.65; in the file of its title."""
    torch.manual_seed(0)
    config = load_config(CONFIG, SMALL)
    model = config.build_model(COCO_80)
    state = model.state_dict()
    for layer in model.head.class_layers:
        state[f"head.{layer}.bias"].view(-1, model.head.num_outputs)[:, 1 + DOG] = 5.0
    path = tmp_path_factory.mktemp("run") / "last.pt"
    checkpoint.save(path, checkpoint.Checkpoint(
        step=1, total_steps=2, model=state, ema=None, optimizer={}, validated=0, numbers={}, best={}, classes=COCO_80,
        settings=config.settings(), versions={}, config_text=config.text,
        fingerprint=fingerprint(model, config.experiment.task)))
    return load_model(CONFIG, path)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder "photos" with a.jpg (60 x 90) and b.PNG (70 x 40) in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, (name, size) in enumerate({"a.jpg": (60, 90), "b.PNG": (70, 40)}.items()):
        write_picture(Path("photos") / name, noise(size, seed=seed))
    return Path("photos")


def noise(size: tuple[int, int], *, seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def run(
    trained: Model, images: Sequence[str], *options: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """The command's exit code, output and errors."""
    file = trained.title.partition(",")[0]
    code = importlib.import_module("detseg.commands.predict").main([str(CONFIG), file, *images, *options])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_the_command_leaves_pictures_and_files_that_pycocotools_reads(
    trained: Model, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, errors = run(trained, ["photos"], "--threshold", "0.3", capsys=capsys)
    assert (code, errors) == (0, "")
    folder = Path("predictions")
    assert {path.name for path in folder.iterdir()} == {"a.jpg", "b.PNG", "predictions.json", "images.json"}
    with contextlib.redirect_stdout(io.StringIO()):
        images = COCO(str(folder / "images.json"))
        results = images.loadRes(str(folder / "predictions.json"))
    assert [(image["file_name"], image["height"], image["width"]) for image in images.loadImgs(images.getImgIds())] == [
        ("photos/a.jpg", 60, 90), ("photos/b.PNG", 70, 40)]
    assert {category["id"]: category["name"] for category in images.loadCats(images.getCatIds())} == COCO_80.used

    lines = out.splitlines()
    assert lines[0] == trained.title
    for image, line in zip(images.loadImgs(images.getImgIds()), lines[1:3], strict=True):
        path = Path(image["file_name"])
        pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        expected = predict_image(trained.network, trained.task, pixels, image_id=image["id"])
        found = results.loadAnns(results.getAnnIds(imgIds=[image["id"]]))
        assert [record["score"] for record in found] == pytest.approx(expected.scores.tolist(), abs=1e-6)
        sure = [record for record in found if record["score"] >= 0.3]
        assert 0 < len(sure) < len(found), "unsure predictions are in the file and not in the picture"
        assert line == f"{path}: {len(sure)} dog"
        picture = cv2.imread(str(folder / path.name))
        assert picture is not None
        assert picture.shape == pixels.shape
        right, bottom = np.array([record["bbox"] for record in found]).reshape(-1, 2, 2).sum(axis=1).max(axis=0)
        assert right <= pixels.shape[1] + 1e-3
        assert bottom <= pixels.shape[0] + 1e-3
    assert lines[3].startswith("2 images, ")
    assert lines[3].endswith("images/s with reading and drawing; pictures, predictions.json and images.json are in "
                             "predictions")


def test_the_threshold_is_for_people_only(
    trained: Model, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    for threshold in ("0", "1"):
        _, out, _ = run(trained, ["photos/b.PNG"], "--threshold", threshold, "--out", threshold, capsys=capsys)
        written.append((Path(threshold) / "predictions.json").read_text())
    assert "photos/b.PNG: nothing\n" in out
    assert written[0] == written[1]
    original = cv2.imread("photos/b.PNG")
    assert np.array_equal(np.array(cv2.imread("1/b.PNG")), np.array(original))
    assert not np.array_equal(np.array(cv2.imread("0/b.PNG")), np.array(original))


def test_an_unreadable_image_is_named_and_the_others_go_on(
    trained: Model, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "aa.jpg").write_text("no picture")
    code, out, errors = run(trained, ["photos", "photos/b.PNG"], "--out", "found", capsys=capsys)
    assert code == 1
    assert errors.splitlines() == [
        "left out: cannot read the image photos/aa.jpg: it is no image of a known kind",
        "error: 1 of 3 images could not be read and were left out"]
    assert "\n2 images, " in out
    images = json.loads(Path("found/images.json").read_text())["images"]
    assert [(image["id"], image["file_name"]) for image in images] == [(0, "photos/a.jpg"), (2, "photos/b.PNG")]
    assert {record["image_id"] for record in json.loads(Path("found/predictions.json").read_text())} == {0, 2}
    assert sorted(path.name for path in Path("found").iterdir()) == ["a.jpg", "b.PNG", "images.json",
                                                                     "predictions.json"]


def test_every_picture_in_a_folder_is_predicted_or_named(
    trained: Model, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.fromarray(noise((40, 50), seed=3))
    kinds = {".jfif": "JPEG", ".jpe": "JPEG", ".gif": "GIF", ".avif": "AVIF", ".jp2": "JPEG2000", ".ppm": "PPM",
             ".mpo": "MPO"}
    for suffix, kind in kinds.items():
        image.save(photos / f"c{suffix}", kind)
    (photos / "d.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (photos / "e.avif").write_bytes((photos / "c.avif").read_bytes()[:300])
    for name in ("a.xml", "b.xml", "notes.txt"):
        (photos / name).touch()
    code, out, errors = run(trained, ["photos"], capsys=capsys)
    assert code == 1
    assert "passed over, as their names are no pictures': 2 .xml, 1 .txt\n" in out
    left_out = errors.splitlines()
    assert left_out[0].startswith("left out: cannot read the image photos/d.heic: it is a HEIC picture")
    assert left_out[1].startswith("left out: cannot read the image photos/e.avif: it is no image of a known kind")
    assert left_out[2] == "error: 2 of 11 images could not be read and were left out"
    predicted = json.loads(Path("predictions/images.json").read_text())["images"]
    assert {Path(one["file_name"]).suffix for one in predicted} == {".jpg", ".PNG", *kinds}
    assert len(list(Path("predictions").iterdir())) == 9 + 2, "a picture of each"


def test_no_readable_image_leaves_empty_lists(
    trained: Model, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "empty.jpg").touch()
    code, _, errors = run(trained, ["photos/empty.jpg"], capsys=capsys)
    assert code == 1
    assert "left out: cannot read the image photos/empty.jpg: the file is empty\nerror: 1 of 1 images" in errors
    assert json.loads(Path("predictions/predictions.json").read_text()) == []
    assert json.loads(Path("predictions/images.json").read_text())["images"] == []


@pytest.mark.parametrize(("images", "options", "code", "message"), [
    (["none/*.jpg"], [], 2, "error: no image matches none/*.jpg"),
    (["none.jpg"], [], 2, "error: no image, folder or pattern none.jpg"),
    (["."], [], 2, "error: the folder . has no images directly in it (1 .md, 1 .mp4 else); name the folder they lie"),
    (["photos"], ["--threshold", "40"], 2, "error: --threshold is a score from 0 to 1, got 40"),
    (["photos"], ["--threshold", "nan"], 2, "error: --threshold is a score from 0 to 1, got nan"),
    (["photos"], ["--out", "photos/../photos"], 2, "error: the picture would replace the image "),
    (["photos"], ["--out", "photos/a.jpg"], 1, "error: photos/a.jpg/predictions.json: the results were not written ("),
    (["photos"], ["--csv", "boxes.xlsx"], 2, "error: --csv is a file whose name ends in .csv, got boxes.xlsx"),
    (["photos"], ["--yolo-scores"], 2, "error: --yolo-scores is of YOLO's label files; name their folder with --yolo"),
    (["photos"], ["--crops", "predictions"], 2, "error: --crops and --out are both predictions; crops would lie among"),
    (["photos"], ["--every", "0"], 2, "error: --every is a number of frames, at least 1, got 0"),
    (["photos"], ["--frames", "-1"], 2, "error: --frames is a number of frames, at least 1, got -1"),
    (["none.mp4"], [], 2, "error: no video none.mp4"),
    (["97"], [], 2, "error: there is no camera 97; it is not connected, or another program uses it"),
    (["notes.mp4"], [], 2, "error: cannot read the video notes.mp4: it is no video of a known kind, or it was cut off"),
    (["rtsp://127.0.0.1:9/x"], [], 1, "error: the stream rtsp://127.0.0.1:9/x cannot be opened: nobody answers there"),
    (["notes.mp4", "photos/notes.mkv"], [], 2, "error: notes.mp4 and photos/notes.mkv would both have the video pred"),
    (["photos", "photos/notes.mkv"], ["--out", "photos/."], 2, "error: the picture would replace the image "),
])
def test_what_a_user_does_wrong(
    images: list[str], options: list[str], code: int, message: str, trained: Model, photos: Path,
    capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.md").touch()
    Path("notes.mp4").write_text("no video")
    (photos / "notes.mkv").touch()
    before = {path: path.read_bytes() for path in photos.iterdir()}
    got, _, errors = run(trained, images, *options, capsys=capsys)
    assert got == code
    assert errors.startswith(message)
    assert errors.count("\n") == 1
    assert {path: path.read_bytes() for path in photos.iterdir()} == before
    assert not Path("predictions").exists()


@pytest.mark.parametrize(("config", "file", "message"), [
    (CONFIG, "no.pt", "error: there is no checkpoint no.pt\n"),
    (CONFIG, "photos/a.jpg", "error: photos/a.jpg "),
    (Path("nowhere.py"), "no.pt", "error: there is no config nowhere.py\n"),
])
def test_a_wrong_network(
    config: Path, file: str, message: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert importlib.import_module("detseg.commands.predict").main([str(config), file, "photos"]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_published_weights_predict_too(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save(peer.state_dict(), "published.pth")
    config = str(ROOT / "configs" / "ssdlite_v3_large.py")
    assert importlib.import_module("detseg.commands.predict").main([config, "published.pth", "photos/a.jpg"]) == 0
    assert capsys.readouterr().out.startswith("published.pth (torchvision SSDLite)\nphotos/a.jpg: ")
    categories = {record["category_id"] for record in json.loads(Path("predictions/predictions.json").read_text())}
    assert categories <= COCO_80.used.keys()


def test_without_a_listener_an_unreadable_file_is_an_error(trained: Model, photos: Path) -> None:
    (photos / "aa.jpg").touch()
    paths = [photos / "a.jpg", photos / "aa.jpg"]
    found = predict_files(trained.loaded, Detection(), paths)
    first = next(found)
    assert (first.image_id, first.path, first.image.shape) == (0, paths[0], (60, 90, 3))
    with pytest.raises(ValueError, match=r"cannot read the image photos/aa\.jpg: the file is empty"):
        next(found)


def test_images_are_found_once_and_in_order(photos: Path) -> None:
    (photos / "notes.txt").touch()
    (photos / "deep").mkdir()
    for name in ("photos/deep/c.webp", "photos/[x].jpg", "photos/picture"):
        Path(name).touch()
    a, b, c, x = photos / "a.jpg", photos / "b.PNG", photos / "deep" / "c.webp", photos / "[x].jpg"
    assert find_images(["photos"]) == [x, a, b]
    assert find_images(["photos/b.PNG", "photos"]) == [b, x, a]
    assert find_images(["photos/**/*"]) == [x, a, b, c]
    assert find_images(["photos/[x].jpg"]) == [x], "the name of a file that exists is no pattern"
    assert find_images(["photos/picture"]) == [photos / "picture"], "whoever names a file means it"
    twice = ["photos/a.jpg", "photos/deep/../a.jpg", "./photos/a.jpg", os.path.abspath("photos/a.jpg")]
    assert find_images(twice) == [a]


def test_pictures_have_the_names_of_their_images(photos: Path) -> None:
    def names(*images: str) -> list[str]:
        return [str(path) for path in picture_paths([Path(image) for image in images], Path("out"))]

    assert names("a/x.jpg", "b/y.tif", "/c/z.png") == ["out/x.jpg", "out/y.tif", "out/z.png"]
    assert names("d/a/x.jpg", "d/b/c/x.jpg", "d/y.jpg") == ["out/a/x.jpg", "out/b/c/x.jpg", "out/y.jpg"]
    assert names("d/x.jpg", "d/b/X.JPG") == ["out/x.jpg", "out/b/X.JPG"], "one file on many systems"
    assert names("../x.jpg", "x.jpg") == ["out/x.jpg", f"out/{Path.cwd().name}/x.jpg"]
    assert names("x", "y.heic") == ["out/x.png", "out/y.heic.png"], "formats that are read and not written"


def test_a_picture_never_replaces_an_image(photos: Path) -> None:
    Path("link").symlink_to("photos")
    for folder in ("photos", "link", "photos/../photos"):
        with pytest.raises(ValueError, match=r"would replace the image .*photos/a\.jpg; choose another folder for the"):
            picture_paths([photos / "a.jpg", photos / "b.PNG"], Path(folder))


def test_label_maps_are_png_files_of_the_same_name(photos: Path) -> None:
    def names(*images: str) -> list[str]:
        return [str(path) for path in label_paths([Path(image) for image in images], Path("out"))]

    city = "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"
    assert names(city) == ["out/berlin_000000_000019_leftImg8bit.png"], "<city>_<sequence>_<frame>*.png"
    assert names("a/x.jpg", "b/y.TIF", "z.png") == ["out/x.png", "out/y.png", "out/z.png"]
    assert names("d/a/x.jpg", "d/b/x.png", "d/y.jpg") == ["out/a/x.png", "out/b/x.png", "out/y.png"]
    assert names("x", "frame.0001") == ["out/x.png", "out/frame.0001.png"], "what is no suffix stays"
    with pytest.raises(ValueError, match=r"a/x.jpg and a/X.png would both have the label map .*; predict them one by"):
        names("a/x.jpg", "b/y.jpg", "a/X.png")


def test_a_label_map_never_replaces_an_image(photos: Path) -> None:
    (photos / "a.png").touch()
    assert label_paths([photos / "a.jpg"], photos) == [photos / "a.png"], "that is none of the images"
    with pytest.raises(ValueError, match=r"the label map would replace the image .*a\.png; choose another folder"):
        label_paths([photos / "a.png"], photos)


def test_boxes_are_no_label_maps(trained: Model, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(trained, ["photos"], "--labels", "labels", capsys=capsys)
    assert code == 2
    assert errors == f"error: {CONFIG} predicts no label maps; leave --labels out\n"
    assert not Path("labels").exists()
    assert not Path("predictions").exists()


def test_a_full_disk_names_the_file_that_did_not_fit(
    trained: Model, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path("predictions") / "b.PNG").mkdir(parents=True)
    code, _, errors = run(trained, ["photos"], capsys=capsys)
    assert code == 1
    assert errors.startswith("error: predictions/b.PNG: the picture was not written (Is a directory")
    assert sorted(path.name for path in Path("predictions").iterdir()) == ["a.jpg", "b.PNG"]


def test_the_summary_counts_what_is_drawn() -> None:
    prediction = ImageDetections(0, torch.zeros(5, 4), torch.tensor([0.9, 0.8, 0.75, 0.5, 0.4]),
                                 torch.tensor([0, DOG, DOG, 0, 0]))
    counted = [summary(prediction, COCO_80, threshold=threshold) for threshold in (0.0, 0.75, 0.95)]
    assert counted == ["3 person, 2 dog", "2 dog, 1 person", "nothing"]


def write_truth(trained: Model, files: Sequence[Path]) -> None:
    """truth.json: objects a little beside some of what the network finds, so that its score is neither 0 nor 1."""
    images, annotations = [], list[dict[str, Any]]()
    for image_id, file in enumerate(files, 11):
        pixels = read_image(file)
        images.append({"id": image_id, "file_name": file.name, "height": pixels.shape[0], "width": pixels.shape[1]})
        found = predict_image(trained.network, trained.task, pixels)
        for row in range(0, min(40, len(found.boxes)), 4):
            left, top, right, bottom = found.boxes[row].tolist()
            box = [left + row / 20, top, right - left, bottom - top]
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "bbox": box, "iscrowd": 0,
                                "category_id": COCO_80.source_ids[DOG], "area": box[2] * box[3]})
    categories = [{"id": source_id, "name": name} for source_id, name in COCO_80.used.items()]
    Path("truth.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def average_precision(records: Sequence[dict[str, Any]]) -> float:
    """By pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO("truth.json")
        judge = COCOeval(truth, truth.loadRes(list(records)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0])


@pytest.mark.parametrize("views", [[], ["--tta", "flip"], ["--tiles", "64"]])
def test_predictions_have_the_score_that_test_tells(
    views: list[str], trained: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the images, and those of a video that was made of them without loss."""
    monkeypatch.chdir(tmp_path)
    files = [Path("photos") / f"{k}.png" for k in range(4)]
    for k, file in enumerate(files):
        write_picture(file, noise((60, 90), seed=k))
    write_lossless(Path("clip.avi"), [read_image(file) for file in files])
    write_truth(trained, files)
    weights = trained.title.partition(",")[0]
    test = importlib.import_module("detseg.commands.test").main
    data = ["--data", "truth.json", "--images", "photos"]
    assert test([str(CONFIG), weights, *data, "--json", "numbers.json", *views]) == 0
    expected = json.loads(Path("numbers.json").read_text())["AP"]
    assert 0.01 < expected < 0.95

    found = []
    for source in ("photos", "clip.avi"):
        assert run(trained, [source], "--out", source[:4], *views, capsys=capsys)[0] == 0
        images = json.loads((Path(source[:4]) / "images.json").read_text())["images"]
        assert [image["file_name"] for image in images] == (
            [str(file) for file in files] if source == "photos" else ["clip.avi"] * 4)
        assert [image.get("frame") for image in images] == ([None] * 4 if source == "photos" else [0, 1, 2, 3])
        places = {image["id"]: 11 + place for place, image in enumerate(images)}
        records = json.loads((Path(source[:4]) / "predictions.json").read_text())
        found.append([record | {"image_id": places[record["image_id"]]} for record in records])
        assert average_precision(found[-1]) == pytest.approx(expected, abs=1e-6)
    assert found[0] == found[1]


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Pixels]:
    """The ten frames of clip.mkv in the current folder."""
    monkeypatch.chdir(tmp_path)
    frames = [noise((60, 90), seed=k) for k in range(10)]
    write_lossless(Path("clip.mkv"), frames, rate=5.0)
    return frames


def test_frames_between_keep_the_last_boxes(
    trained: Model, clip: list[Pixels], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, errors = run(trained, ["clip.mkv"], "--every", "3", "--frames", "8", "--yolo", "labels", "--threshold",
                            "0.5", capsys=capsys)
    assert (code, errors) == (0, "")
    assert re.search(r"^clip.mkv 8/8  [\d.]+ frames/s", out, re.MULTILINE)
    assert re.search(r"^8 frames, [\d.]+ frames/s with reading and drawing; videos, predictions.json and images.json "
                     r"are in predictions, label files in labels$", out, re.MULTILINE)
    images = json.loads(Path("predictions/images.json").read_text())["images"]
    assert [(image["id"], image["frame"], image["time"]) for image in images] == [(0, 0, 0.0), (3, 3, 0.6), (6, 6, 1.2)]
    records = json.loads(Path("predictions/predictions.json").read_text())
    assert {record["image_id"] for record in records} == {0, 3, 6}
    for number in (0, 3, 6):
        wanted = predict_image(trained.network, trained.task, clip[number]).scores.tolist()
        assert [record["score"] for record in records if record["image_id"] == number] == wanted
    assert sorted(path.name for path in Path("labels").iterdir()) == [
        "classes.txt", "clip_000000.txt", "clip_000003.txt", "clip_000006.txt"]
    with Video("predictions/clip.mp4") as video:
        assert video.rate == 5.0
        drawn = [frame.image for frame in video]
    assert len(drawn) == 8
    found = list(predict_frames(trained.network, trained.task, Video("clip.mkv"), every=3, first_id=20))
    assert [frame.prediction.image_id for frame in found] == [20, 20, 20, 23, 23, 23, 26, 26, 26, 29]
    assert [frame.number for frame in found if frame.predicted] == [0, 3, 6, 9]
    wanted = draw(found[5].prediction, clip[5], COCO_80, threshold=0.5)
    with_boxes, without = (np.abs(drawn[5].astype(int) - picture).mean() for picture in (wanted, clip[5]))
    assert with_boxes < 0.8 * without, "they are drawn, but for what the codec loses"


def test_of_a_video_that_breaks_off_what_was_read_is_kept(
    trained: Model, clip: list[Pixels], capsys: pytest.CaptureFixture[str]
) -> None:
    content = Path("clip.mkv").read_bytes()
    Path("clip.mkv").write_bytes(content[: len(content) // 2])
    write_picture(Path("a.png"), clip[0])
    code, out, errors = run(trained, ["a.png", "clip.mkv", "97"], capsys=capsys)
    assert code == 1
    images = json.loads(Path("predictions/images.json").read_text())["images"]
    frames = [image for image in images if "frame" in image]
    assert 2 < len(frames) < 8
    assert [image["id"] for image in images] == list(range(len(frames) + 1)), "images come first"
    assert errors.splitlines() == [
        "left out: there is no camera 97; it is not connected, or another program uses it",
        f"error: clip.mkv breaks off after frame {len(frames)} of 10 ({len(frames) / 5:.1f} of 2.0 s); what was read "
        "until there is kept; 97 was left out"]
    assert f"1 images and {len(frames)} frames, " in out
    with Video("predictions/clip.mp4") as video:
        assert len(list(video)) == len(frames)
    assert {record["image_id"] for record in json.loads(Path("predictions/predictions.json").read_text())} == {
        image["id"] for image in images}


class Camera:
    """In place of OpenCV's: gives three pictures, then somebody presses Ctrl-C."""

    def __init__(self, number: int) -> None:
        assert number == 0
        self.given = 0

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def read(self) -> tuple[bool, Pixels]:
        self.given += 1
        if self.given > 3:
            raise KeyboardInterrupt
        return True, noise((60, 90), seed=self.given)

    def get(self, what: int) -> float:
        return -1.0

    def release(self) -> None:
        pass


def test_a_camera_is_stopped_and_what_it_gave_is_kept(
    trained: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", Camera)
        code, out, errors = run(trained, ["0"], capsys=capsys)
    assert (code, errors) == (0, "")
    assert "3 frames, " in out
    assert [image["frame"] for image in json.loads(Path("predictions/images.json").read_text())["images"]] == [0, 1, 2]
    with Video("predictions/camera_0.mp4") as video:
        assert (len(list(video)), video.rate) == (3, 25.0)


def test_boxes_as_a_table_as_label_files_and_as_crops(
    trained: Model, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "images").mkdir()
    for name in ("a.jpg", "b.PNG"):
        (photos / name).rename(photos / "images" / name)
    code, out, _ = run(trained, ["photos/images"], "--threshold", "0.5", "--csv", "boxes.csv", "--yolo",
                       "photos/labels", "--crops", "crops", capsys=capsys)
    assert code == 0
    assert out.rstrip().endswith("are in predictions, boxes in boxes.csv, label files in photos/labels, crops in crops")
    with open("boxes.csv", newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["image", "frame", "time", "class", "score", "left", "top", "right", "bottom"]

    index = read_yolo(YoloSplit(photos, classes_of_list(photos / "labels" / "classes.txt"), (photos / "images",)))
    num_rows = 0
    for item, path in enumerate(sorted((photos / "images").iterdir())):
        image = read_image(path)
        found = predict_image(trained.network, trained.task, image)
        sure = found.boxes[found.scores >= 0.5].tolist()
        mine = [row for row in rows if row[0] == str(path)]
        assert [[float(number) for number in row[5:]] for row in mine] == sure
        assert {tuple(row[1:4]) for row in mine} <= {("", "", "dog")}
        assert [float(row[4]) for row in mine] == found.scores[found.scores >= 0.5].tolist()
        boxes, labels, _ = index.targets(item)
        assert np.asarray(boxes) == pytest.approx(np.asarray(sure).reshape(-1, 4), abs=1e-3)
        assert {index.classes.names[label] for label in labels.tolist()} <= {"dog"}
        for number, (left, top, right, bottom) in enumerate(sure):
            crop: Any = cv2.imread(f"crops/dog/{path.stem}_{number}.jpg")
            assert crop.shape[:2] == (max(1, np.ceil(bottom) - np.floor(top)), max(1, np.ceil(right) - np.floor(left)))
        num_rows += len(sure)
    assert num_rows == len(rows) == len(list(Path("crops").rglob("*.jpg"))) > 2

    run(trained, ["photos/images/a.jpg"], "--threshold", "0.5", "--yolo", "scored", "--yolo-scores", capsys=capsys)
    lines, plain = (Path(folder, "a.txt").read_text().splitlines() for folder in ("scored", "photos/labels"))
    assert [line.rpartition(" ")[0] for line in lines] == plain
    assert float(lines[0].rpartition(" ")[2]) == pytest.approx(float(rows[0][4]), abs=1e-6)


def test_a_crop_has_every_pixel_that_its_box_touches() -> None:
    image = np.arange(20 * 30 * 3, dtype=np.uint16).astype(np.uint8).reshape(20, 30, 3)
    boxes = torch.tensor([[2.5, 3, 6.2, 9], [29.9, 19.9, 30, 20], [30, 20, 30, 20], [0, 0, 1, 1]])
    prediction = ImageDetections(0, boxes, torch.tensor([0.9, 0.8, 0.7, 0.1]), torch.tensor([DOG, 0, 0, 0]))
    found = crops(prediction, image, COCO_80, threshold=0.5)
    assert [name for name, _ in found] == ["dog", "person", "person"]
    assert np.array_equal(found[0][1], image[3:9, 2:7])
    assert np.array_equal(found[1][1], image[19:, 29:])
    assert np.array_equal(found[2][1], image[19:, 29:]), "a box without area is still a pixel"
