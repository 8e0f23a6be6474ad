"""The public surface: one call from a run, or a config and weights, to what is found in an image."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import detseg
from detseg.checkpoint import load
from detseg.data.images import read_image
from detseg.report.pictures import write_picture
from detseg.video import video_file
from tests import tiny_segmenter
from tests.conftest import ROOT
from tests.test_video import cut, write_lossless

from . import discovery

OVERRIDES = ["model.size=96", "model.width=0.25", "schedule.epochs=1", "schedule.warmup_steps=1", "batch_size=4",
             "workers=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector's run and a segmenter's, as the commands leave them, and a photograph of 60 x 90."""
    folder = tmp_path_factory.mktemp("api")
    data = discovery.small_config(ROOT / "configs" / "ssdlite_v3_small.py").experiment.data.generate
    generate: Any = data
    generate(folder / "data" / "sample", num_train=8, num_val=3)
    tiny_segmenter.write_config(folder)
    tiny_segmenter.generate(folder / "data" / "shades")
    train = importlib.import_module("detseg.commands.train").main
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            config = str(ROOT / "configs" / "ssdlite_v3_small.py")
            assert train([config, "--data", "data/sample", "--out", "runs/boxes", "--set", *OVERRIDES]) == 0
            assert train(["shades.py", "--out", "runs/labels", "--set", "schedule.epochs=2"]) == 0
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    write_picture(folder / "photo.png", picture)
    return folder


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_bottlenecks_in_parts_give_the_same() -> None:
    whole, parts = detseg.load("runs/boxes"), detseg.load("runs/boxes", execution="split", parts=3)
    assert "bottlenecks in parts: 3" in parts.network.form
    assert "parts" not in whole.network.form
    torch.testing.assert_close(parts("photo.png").boxes, whole("photo.png").boxes, rtol=1e-4, atol=1e-3)
    assert "in parts" in parts.to("cpu").network.form
    assert "in parts" in parts.run_with("torch").network.form
    with pytest.raises(ValueError, match="no inverted bottlenecks"):
        detseg.load("runs/labels", execution="split")
    with pytest.raises(ValueError, match="parts are of bottlenecks that are split"):
        detseg.load("runs/boxes", parts=3)
    exported = parts.export("parts.onnx", images=[pixels()])
    assert exported.manifest.parts == 3
    with pytest.raises(ValueError, match='execution is "whole" or "split", got \'both\''):
        detseg.load("runs/boxes", execution="both")  # type: ignore[arg-type]


def bgr_pixels() -> Any:
    return cv2.imread("photo.png")


def pixels() -> Any:
    return cv2.cvtColor(bgr_pixels(), cv2.COLOR_BGR2RGB)


def test_the_public_surface() -> None:
    assert detseg.__all__ == ["BestClasses", "Boxes", "Frame", "LabelMap", "Model", "__version__", "load"]
    assert all(getattr(detseg, name) is not None for name in detseg.__all__)
    with pytest.raises(AttributeError, match="module 'detseg' has no attribute 'fit'"):
        detseg.fit  # noqa: B018


def test_naming_the_package_needs_no_torch() -> None:
    code = "import sys, detseg; assert detseg.__version__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


def test_a_detector_finds_the_same_however_the_image_is_given() -> None:
    model = detseg.load("runs/boxes")
    found = model("photo.png")
    assert isinstance(found, detseg.Boxes)
    assert len(found.boxes) == len(found.scores) == len(found.labels) == len(found.names) > 0
    assert found.names == tuple(model.classes.names[label] for label in found.labels.tolist())
    assert bool((found.boxes >= 0).all())
    assert bool((found.boxes <= torch.tensor([90, 60, 90, 60])).all())
    rgb = pixels()
    for image in (Path("photo.png"), rgb, Image.open("photo.png"), rgb[::1]):
        other = model(image)
        assert torch.equal(other.boxes, found.boxes)
        assert torch.equal(other.scores, found.scores)
    both = model(["photo.png", rgb])
    assert [type(one) for one in both] == [detseg.Boxes] * 2
    assert torch.equal(both[1].boxes, found.boxes)


def test_bgr_is_asked_for_by_name() -> None:
    model: Any = detseg.load("runs/boxes")
    bgr = bgr_pixels()
    assert torch.equal(model(bgr, channel_order="bgr").scores, model("photo.png").scores)
    assert not torch.equal(model(bgr).scores, model("photo.png").scores)
    with pytest.raises(ValueError, match="channel_order is \"rgb\" or \"bgr\", got 'BGR'"):
        model(bgr, channel_order="BGR")


def test_it_says_what_the_command_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = detseg.load("runs/boxes")
    code = importlib.import_module("detseg.commands.predict").main(["runs/boxes", "photo.png", "--out", str(tmp_path)])
    assert code == 0, capsys.readouterr().err
    records = json.loads((tmp_path / "predictions.json").read_text())
    found = model("photo.png")
    assert [record["score"] for record in records] == found.scores.tolist()
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "photo.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(model.draw("photo.png"), picture)
    assert np.array_equal(model.draw("photo.png", found), picture)
    assert not np.array_equal(model.draw("photo.png", found, threshold=0.0), picture)


def test_a_segmenter_gives_a_label_map() -> None:
    model = detseg.load("runs/labels").to("cpu")
    assert model.device == torch.device("cpu")
    found = model(pixels())
    assert isinstance(found, detseg.LabelMap)
    assert found.labels.shape == (60, 90)
    assert found.labels.dtype == np.uint8
    assert found.names == ("dark", "bright", "purple")
    assert model.draw("photo.png", found).shape == (60, 90, 3)


def test_a_config_and_weights_do_as_well_as_a_run() -> None:
    run = detseg.load("runs/boxes")
    files = detseg.load("runs/boxes/ssdlite_v3_small.py", "runs/boxes/best.pt")
    assert run.title == files.title == f"runs/boxes/best.pt, after {load(Path('runs/boxes/best.pt')).step} steps"
    assert torch.equal(run("photo.png").scores, files("photo.png").scores)


def test_a_video_is_predicted_frame_by_frame(tmp_path: Path) -> None:
    model = detseg.load("runs/boxes")
    frames = [np.random.default_rng(k).integers(0, 256, (60, 90, 3), dtype=np.uint8) for k in range(5)]
    write_lossless(tmp_path / "clip.avi", frames, rate=10.0)
    seen = list(model.stream(tmp_path / "clip.avi", every=2))
    assert [(frame.number, frame.predicted) for frame in seen] == [
        (0, True), (1, False), (2, True), (3, False), (4, True)]
    assert [frame.time for frame in seen] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    for frame, image in zip(seen, frames, strict=True):
        assert isinstance(frame, detseg.Frame)
        assert np.array_equal(frame.image, image)
        wanted = model(frames[frame.number - frame.number % 2])
        assert torch.equal(frame.prediction.boxes, wanted.boxes)
        assert frame.prediction.names == wanted.names


def test_a_video_that_breaks_off_is_an_error_behind_its_frames(tmp_path: Path) -> None:
    model = detseg.load("runs/labels")
    frames = [np.random.default_rng(k).integers(0, 256, (40, 60, 3), dtype=np.uint8) for k in range(40)]
    seen = list[detseg.Frame]()
    cut(write_lossless(tmp_path / "a.avi", frames), 0.5)
    with pytest.raises(OSError, match=r"cut\.avi breaks off after frame \d+ of 40"):
        seen.extend(model.stream(tmp_path / "cut.avi"))
    assert 10 < len(seen) < 40
    with pytest.raises(ValueError, match="every Nth frame is predicted, N at least 1, got 0"):
        next(model.stream(tmp_path / "a.avi", every=0))
    with pytest.raises(FileNotFoundError, match="there is no camera 97"):
        next(model.stream(97))


def test_views_are_chosen_and_given_up() -> None:
    model = detseg.load("runs/boxes")
    plain = model("photo.png")
    flipped = model.use_views(flip=True)("photo.png")
    assert model.network.form.endswith("TTA (flip)")
    assert not torch.equal(flipped.scores, plain.scores)
    assert torch.equal(model.use_views(tile=100)("photo.png").boxes, plain.boxes), "it fits one tile"
    assert "TTA" not in model.to("cpu").network.form
    assert torch.equal(model.use_views()("photo.png").scores, plain.scores)
    with pytest.raises(ValueError, match="the overlap is that of tiles; give their size too"):
        model.use_views(overlap=0.3)


@pytest.mark.parametrize(("image", "message"), [
    ("no.png", "no image no.png in .*: the folder has no such file"),
    ("shades.py", "cannot read the image shades.py: .* no image of a known kind"),
    (np.zeros((4, 5, 3)), r"an image as an array is uint8 \[H, W, 3\], got float64 \[4, 5, 3\]"),
    (np.zeros((4, 5), np.uint8), r"got uint8 \[4, 5\]"),
    (np.zeros((0, 5, 3), np.uint8), r"got uint8 \[0, 5, 3\]"),
    (torch.zeros(3, 4, 5), "an image is a path, an array .* or a Pillow image, got Tensor"),
])
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        detseg.load("runs/boxes")(image)


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere"], "nowhere is no run folder; name one, or a config and a checkpoint"),
    (["data"], "data holds no run: it has neither best.pt nor last.pt"),
    (["shades.py"], "shades.py is no run folder"),
    (["shades.py", "photo.png"], "photo.png was refused: it is a pickle that could run code, or a damaged file"),
    (["shades.py", "runs/boxes/best.pt"], "shades.py is not the config of this checkpoint"),
])
def test_what_is_no_model(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detseg.load(*arguments)


def test_the_readme_s_lines_run_as_they_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against a run where `make train` leaves one."""
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "detseg.load" in block]
    assert len(blocks) == 2
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "ssdlite_v3_large").symlink_to(Path("runs/boxes").resolve())
    write_picture(tmp_path / "photo.jpg", pixels())
    monkeypatch.chdir(tmp_path)
    with video_file(tmp_path / "clip.mp4", rate=25) as add:
        for _ in range(3):
            add(read_image("photo.jpg"))
    exec(compile(ast.parse("\n".join(blocks)), "README.md", "exec"), {})
