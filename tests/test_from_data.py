"""What follows from the training data: by hand, as a run says and keeps it, and what the command line overrules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detseg.checkpoint import load
from detseg.config import Config
from detseg.config import load as load_config
from detseg.data.box_index import BoxIndex
from detseg.from_data import DetectorFromData, _suited_size, class_weights
from detseg.ops.anchors import SSDAnchors
from detseg.settings import Value
from detseg.structures import Classes
from heads.ssdlite import SSDLite

from . import tiny_segmenter
from .commands import run
from .conftest import ROOT

FINETUNE = ROOT / "configs" / "ssdlite_v2_finetune.py"
CLASSES = Classes(("nut", "bolt"), (1, 2))
SMALL = ["model.size=96", "model.width=0.35"]


def _index(boxes: list[tuple[float, float, float, float]], *, labels: list[int] | None = None) -> BoxIndex:
    """One image of 100 x 100 with boxes x, y, width, height."""
    number = len(boxes)
    return BoxIndex.of(
        CLASSES, Path("."), image_ids=np.array([1]), sizes=np.array([[100, 100]], np.int32), names=["a.png"],
        image_of_box=np.zeros(number, np.int64), boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(labels or [0] * number, np.int32), crowd=np.zeros(number, bool), areas=np.ones(number),
        annotation_ids=np.arange(1, number + 1))


def _schedule(number: int, *fixed: str, **given: Value) -> dict[str, Value]:
    """What follows from a number of images."""
    usual: dict[str, Value] = {"batch_size": 16, "optimizer.lr": 0.03, "schedule.epochs": 12,
                               "schedule.warmup_steps": 40, "ema.decay": 0.5}
    return {choice.name: choice.value for choice in DetectorFromData()._schedule(number, usual | given, fixed)}


def test_the_number_of_steps_by_hand() -> None:
    # 1,000 images are 62 steps of 16: 36 passes are 2,232.
    assert _schedule(1000) == {"schedule.epochs": 36, "ema.decay": round(1 - 1 / 446.4, 5), "validate_every": 5}
    # 205 are 12 steps: 36 passes would be 432, and 500 are 42 passes of 12.
    assert _schedule(205)["schedule.epochs"] == 42
    # 118,287 are 7,392 steps: 30,000 are 5 passes.
    assert _schedule(118_287)["schedule.epochs"] == 5
    assert _schedule(118_287)["validate_every"] == 1


def test_few_images_make_smaller_batches() -> None:
    assert _schedule(32).keys() == {"schedule.epochs", "ema.decay", "validate_every"}
    assert _schedule(31) == {"batch_size": 8, "optimizer.lr": 0.015, "schedule.epochs": 167, "ema.decay": 0.99002,
                             "validate_every": 21}
    assert _schedule(3)["batch_size"] == _schedule(1)["batch_size"] == 1


def test_a_warm_up_is_no_longer_than_a_tenth() -> None:
    assert _schedule(205, **{"schedule.warmup_steps": 51})["schedule.warmup_steps"] == 50
    assert "schedule.warmup_steps" not in _schedule(205, **{"schedule.warmup_steps": 50})


def test_what_stays_is_what_the_rest_follows_from() -> None:
    # 10 epochs of 12 steps: the average over a fifth of 120 steps, a validation in 2 epochs.
    assert _schedule(205, "schedule.epochs", **{"schedule.epochs": 10}) == {
        "schedule.warmup_steps": 12, "ema.decay": round(1 - 1 / 24, 5), "validate_every": 2}
    # One step an epoch of 16 of the 17 images; neither batch nor rate change.
    assert _schedule(17, "batch_size") == {"schedule.epochs": 500, "ema.decay": 0.99, "validate_every": 63}


@pytest.mark.parametrize(("wrong", "message"), [
    ("passes=0", "from_data.passes must be at least 1, got 0"),
    ("min_steps=0", "from_data.min_steps must be at least 1, got 0"),
    ("max_steps=10", "from_data.max_steps must be at least min_steps, 500, got 10"),
])
def test_limits(wrong: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(FINETUNE, [f"from_data.{wrong}"])


def _suited(config: Config, index: BoxIndex) -> tuple[Config, dict[str, str]]:
    made = config.suited(index, CLASSES)
    return made, {choice.name: choice.reason for choice in made.choices}


def test_anchors_have_the_size_of_the_boxes() -> None:
    """Small boxes of one class and large ones of another: anchors meet both, which the config's do not."""
    boxes = [(10.0 * k, 10.0 * k, 8.0, 8.0) for k in range(9)] + [(0.0, 0.0, 60.0, 60.0)]
    config = load_config(FINETUNE, SMALL)
    made, reasons = _suited(config, _index(boxes, labels=[0] * 9 + [1]))
    scales = made.model_settings["anchor_scales"].value
    assert isinstance(scales, tuple)
    assert scales[0] < 0.12
    assert list(scales) == sorted(scales)
    assert "boxes meet their best anchor with an IoU of 0." in reasons["model.anchor_scales"]
    head = made.build_model(CLASSES).head
    assert isinstance(head, SSDLite)
    assert isinstance(head.anchors, SSDAnchors)
    assert head.anchors.scales == scales


def test_anchors_that_fit_stay() -> None:
    """The last map's square anchor is 0.95 of the image's side, in its middle."""
    _, reasons = _suited(load_config(FINETUNE, SMALL), _index([(2.5, 2.5, 95.0, 95.0)]))
    assert "model.anchor_scales" not in reasons
    _, reasons = _suited(load_config(FINETUNE, SMALL), _index([]))
    assert "model.anchor_scales" not in reasons, "no boxes, nothing follows"


def test_what_the_command_line_sets_stays() -> None:
    boxes = [(10.0, 10.0, 8.0, 8.0)]
    made, reasons = _suited(load_config(FINETUNE, [*SMALL, "schedule.epochs=7", "from_data.anchors=false"]),
                            _index(boxes))
    assert made.experiment.schedule.epochs == 7
    assert reasons.keys() == {"batch_size", "optimizer.lr", "schedule.warmup_steps", "ema.decay", "validate_every"}
    assert made.experiment.origin("batch_size") == "the data"
    made, reasons = _suited(load_config(FINETUNE, [*SMALL, "from_data.schedule=false"]), _index(boxes))
    assert reasons.keys() == {"model.anchor_scales"}
    config = load_config(FINETUNE, [*SMALL, "from_data=none"])
    assert _suited(config, _index(boxes)) == (config, {})


@pytest.mark.parametrize(("sizes", "most", "wanted"), [
    ([(360, 480)] * 3, 360 * 480, (360, 480)),
    ([(720, 960), (1080, 1920), (720, 960)], 360 * 480, (360, 480)),
    ([(1920, 1080)], 360 * 480, (552, 312)),
    ([(100, 100), (104, 104), (104, 104)], 360 * 480, (104, 104)),
    ([(3, 4)], 360 * 480, (8, 8)),
])
def test_the_size_is_that_of_the_images(sizes: list[tuple[int, int]], most: int, wanted: tuple[int, int]) -> None:
    assert _suited_size(np.array(sizes), most) == wanted


def test_class_weights_by_hand() -> None:
    # Shares 0.64, 0.36 and none: 1.25 and 1.667, whose mean over the pixels is 1.4.
    assert class_weights(np.array([64, 36, 0])) == (0.89, 1.19, 1.0)
    assert class_weights(np.array([1_000_000, 1])) == (1.0, 10.0), "the largest is 10"
    assert class_weights(np.array([5, 0])) is None
    assert class_weights(np.array([0, 0])) is None


def _write_shades(settings: str) -> None:
    """A small data set of label maps, and shades.py, an experiment on it with further settings."""
    tiny_segmenter.generate(Path("data/shades"))
    text = tiny_segmenter.CONFIG
    for old, new in (
        ("width: float = 1.0", "class_weights: tuple[float, ...] | None = None"),
        ("from detseg.model", "from detseg.from_data import SegmenterFromData\nfrom detseg.optim import Freeze\n"
                              "from detseg.model"),
        ("    batch_size=4,\n", f"    batch_size=4,\n    {settings},\n")):
        assert old in text
        text = text.replace(old, new)
    Path("shades.py").write_text(text)


def test_a_run_says_keeps_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _write_shades("from_data=SegmenterFromData(passes=2, min_steps=1)")
    code, out, err = run("train", "shades.py", "--out", "runs/one", capsys=capsys)
    assert code == 0, err
    assert "from the data: schedule.epochs = 2: 2 passes over 12 images are 6 steps" in out
    (line,) = [line for line in out.splitlines() if line.startswith("from the data: model.class_weights = ")]
    dark, bright, purple = map(float, line.partition(" = ")[2].partition(":")[0].split())
    assert 0.5 < min(dark, bright) < 1 < max(dark, bright) < 2, "their mean over the pixels is 1"
    assert purple == 1
    settings = json.loads(Path("runs/one/resolved.json").read_text())["settings"]
    assert settings["model.class_weights"] == {"value": [dark, bright, purple], "from": "the data"}
    assert load(Path("runs/one/last.pt")).settings["model.class_weights"] == (dark, bright, purple)
    for command in (["train", "shades.py", "--out", "runs/one", "--resume"], ["test", "runs/one"]):
        code, _, err = run(*command, capsys=capsys)
        assert code == 0, err
    code, _, err = run("train", "shades.py", "--out", "runs/one", "--resume", "--set", "from_data=none", capsys=capsys)
    assert code == 2
    assert "schedule.epochs: 2 in the run, 15 now" in err
    code, out, _ = run("train", "shades.py", "--out", "runs/two", "--set", "from_data.class_weights=false",
                       "schedule.epochs=1", capsys=capsys)
    assert code == 0
    assert "model.class_weights" not in out
    assert "schedule.epochs" not in out


def test_untrained_layers_are_not_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe learns all of a network that starts from nothing; who asks for the opposite is told."""
    monkeypatch.chdir(tmp_path)
    _write_shades("freeze=Freeze(stride=4), from_data=SegmenterFromData(schedule=False, size=False)")
    short = ["--set", "schedule.epochs=1"]
    for out, more, frozen in (("plain", [], 0), ("tuned", ["--weights", "runs/plain"], 4)):
        code, said, err = run("train", "shades.py", "--out", f"runs/{out}", *more, *short, capsys=capsys)
        assert code == 0, err
        assert ("from the data: freeze.stride = 0: the first layers are untrained too" in said) == (frozen == 0)
        assert load(Path(f"runs/{out}/last.pt")).settings["freeze.stride"] == frozen
        code, _, err = run("train", "shades.py", "--out", f"runs/{out}", "--resume", *short, capsys=capsys)
        assert code == 0, err
    for override in ("freeze.stride=4", "from_data=none"):
        code, _, err = run("train", "shades.py", "--out", "runs/no", *short, override, capsys=capsys)
        assert code == 2
        assert "freeze.stride=4 keeps the backbone's first layers as they are, and nothing has trained them" in err


def test_images_of_rare_classes_come_more_often() -> None:
    """Of eight images all show a nut, two a bolt, and one more a region of bolts to ignore."""
    index = BoxIndex.of(
        CLASSES, Path("."), image_ids=np.arange(8), sizes=np.full((8, 2), 100, np.int32), names=list("abcdefgh"),
        image_of_box=np.array([*range(8), 0, 5, 7]), boxes=np.full((11, 4), 10.0),
        labels=np.array([0] * 8 + [1] * 3, np.int32), crowd=np.array([False] * 10 + [True]), areas=np.ones(11),
        annotation_ids=np.arange(1, 12))
    assert index.repeats(0.5).tolist() == pytest.approx([2 ** 0.5, 1, 1, 1, 1, 2 ** 0.5, 1, 1])
    assert index.repeats(0.25).tolist() == [1.0] * 8


def test_label_maps_say_what_to_do_in_place_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_segmenter.generate(Path("data/shades"))
    tiny_segmenter.write_config(tmp_path)
    for value, message in (("0.1", "repeat_rare is for boxes, got 0.1 for label maps; their augmentation has "
                            "rare_classes"), ("2", "repeat_rare is a share of the images, 0..1, got 2")):
        code, _, err = run("train", "shades.py", "--set", f"repeat_rare={value}", capsys=capsys)
        assert code == 2
        assert message in err
