"""Prediction: which files are meant, where their pictures go, and the command with an untrained SSDLite."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from detseg import checkpoint
from detseg.api import Model, load_model
from detseg.config import load as load_config
from detseg.data.coco import COCO_80
from detseg.fingerprint import fingerprint
from detseg.predict import find_images, label_paths, picture_paths, predict_files, predict_image
from detseg.report.pictures import write_picture
from detseg.report.results import summary
from detseg.structures import ImageDetections, Pixels
from detseg.tasks.detection import Detection
from tests.conftest import ROOT

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
    (["."], [], 2, "error: the folder . has no images directly in it (1 .md else); name the folder they lie in"),
    (["photos"], ["--threshold", "40"], 2, "error: --threshold is a score from 0 to 1, got 40"),
    (["photos"], ["--threshold", "nan"], 2, "error: --threshold is a score from 0 to 1, got nan"),
    (["photos"], ["--out", "photos/../photos"], 2, "error: the picture would replace the image "),
    (["photos"], ["--out", "photos/a.jpg"], 1, "error: photos/a.jpg/predictions.json: the results were not written ("),
])
def test_what_a_user_does_wrong(
    images: list[str], options: list[str], code: int, message: str, trained: Model, photos: Path,
    capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.md").touch()
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
