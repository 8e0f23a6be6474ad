"""`detseg browse`: samples as training sees them, with what is to be learned on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detseg.browse import browse
from detseg.config import load
from detseg.data.augment import BoxSample, Context, SSDAugment
from detseg.data.images import read_image
from detseg.data.location import Location
from detseg.data.mixing import Mosaic
from detseg.data.sample import generate_sample
from detseg.report.pictures import draw
from detseg.resize import Resize
from detseg.structures import VOID, BoxTargets, Classes, LabelTargets, Pixels

from .commands import run
from .conftest import ROOT

DETECTOR, SEGMENTER = str(ROOT / "configs" / "ssdlite_v2_bccd.py"), str(ROOT / "configs" / "lraspp_v3_small.py")
SMALL = ["model.width=0.35", "model.size=64"]
RED, BLUE = (250, 30, 20), (20, 40, 240)
CLASSES = Classes(("cat", "dog"), (1, 18), (RED, BLUE))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_sample(tmp_path_factory.mktemp("browse") / "sample", num_train=5, num_val=1)


def plain(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), 127, np.uint8)


def test_true_boxes_are_drawn_with_their_classes_and_crowds_with_dashes() -> None:
    targets = BoxTargets(torch.tensor([[20.0, 40, 120, 100], [150, 40, 250, 140]]), torch.tensor([0, 1]),
                         torch.tensor([False, True]))
    picture = draw(targets, plain(200, 300), CLASSES, threshold=0.9)
    solid, dashed = picture[100, 20:121], picture[140, 150:251]
    assert (solid == RED).all(), "without gaps; nothing has a score"
    shares = [(dashed == colour).all(axis=1).mean() for colour in (BLUE, (127, 127, 127))]
    assert 0.3 < shares[0] < 0.7
    assert 0.3 < shares[1] < 0.7
    assert (picture[60:90, 30:110] == 127).all(), "nothing inside"
    empty = BoxTargets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    np.testing.assert_array_equal(draw(empty, plain(20, 30), CLASSES, threshold=0.0), plain(20, 30))


def test_the_smallest_object_lies_on_top_and_a_crowd_below() -> None:
    boxes = torch.tensor([[50.0, 50, 150, 150], [50, 50, 110, 110], [50, 50, 100, 100]])
    targets = BoxTargets(boxes, torch.tensor([0, 1, 0]), torch.tensor([False, False, True]))
    picture = draw(targets, plain(200, 200), CLASSES, threshold=0.0)
    assert tuple(picture[80, 50]) == BLUE
    assert tuple(picture[130, 50]) == RED


def test_a_label_map_is_drawn_and_void_stays() -> None:
    labels = torch.zeros(60, 80, dtype=torch.uint8)
    labels[:, 40:] = VOID
    picture = draw(LabelTargets(labels), plain(60, 80), CLASSES, threshold=0.0)
    assert (picture[:, 45:] == 127).all()
    assert picture[10, 10, 0] > picture[10, 10, 2] + 50


@pytest.mark.parametrize("config", [DETECTOR, SEGMENTER])
def test_a_sheet_of_samples(config: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, again = tmp_path / "a" / "seen.png", tmp_path / "again.png"
    settings = SMALL if config == DETECTOR else ["model.size=64"]
    code, said, error = run("browse", config, "--data", str(data), "--out", str(out), "--number", "4", "--set",
                            *settings, capsys=capsys)
    assert code == 0, error
    assert said.startswith(f"{out}: 4 of 5 training images, in epoch 0 of 0 to ")
    sheet = read_image(out)
    assert sheet.shape[1:] == (1600, 3)
    assert abs(sheet.shape[0] - 400) < 10, "one row of four squares"
    assert run("browse", config, "--data", str(data), "--out", str(again), "--number", "4", "--set", *settings,
               capsys=capsys)[0] == 0
    assert out.read_bytes() == again.read_bytes()
    assert run("browse", config, "--data", str(data), "--out", str(again), "--number", "4", "--epoch", "1", "--set",
               *settings, capsys=capsys)[0] == 0
    assert out.read_bytes() != again.read_bytes()


def test_the_closing_phase_of_a_mosaic_shows(data: Path) -> None:
    config = load(Path(DETECTOR), SMALL)
    seen: list[bool] = []

    def augment(resize: Resize) -> Mosaic:
        ssd = SSDAugment(resize)

        def then(sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
            seen.append(sample.image.shape[0] == 2 * resize.size[0])
            return ssd(sample, context)

        return Mosaic(then, resize, probability=1.0, closing=0.5)

    config = replace(config, experiment=replace(config.experiment, augment=augment))
    epochs = config.experiment.schedule.epochs
    for epoch, mixed in ((0, True), (epochs // 2 - 1, True), (epochs // 2, False), (epochs - 1, False)):
        seen.clear()
        browse(config, Location(data), number=3, epoch=epoch)
        assert seen == [mixed] * 3, epoch


def test_what_cannot_be_shown_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "seen.png")
    for arguments, message in (
        (["--number", "0"], "--number is how many samples are shown, at least 1, got 0"),
        (["--epoch", "36"], "--epoch counts from 0, and the run has 36 epochs, 0 to 35; got 36"),
        (["--epoch", "-1"], "0 to 35; got -1"),
    ):
        code, _, error = run("browse", DETECTOR, "--data", str(data), "--out", out, *arguments, capsys=capsys)
        assert code == 2
        assert message in error
    code, _, error = run("browse", DETECTOR, "--sample", "--images", str(data), capsys=capsys)
    assert (code, error) == (2, "error: the sample has its images; leave out --images\n")
    assert not Path(out).exists()


def test_broken_images_are_left_out_and_counted(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = generate_sample(tmp_path / "sample", num_train=3, num_val=1)
    min((folder / "train2017").iterdir()).write_bytes(b"no picture")
    code, said, _ = run("browse", SEGMENTER, "--data", str(folder), "--out", str(tmp_path / "seen.png"), "--set",
                        "model.size=64", capsys=capsys)
    assert code == 0
    assert ": 2 of 2 training images, without 1 that are broken, in epoch 0" in said
