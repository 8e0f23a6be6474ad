"""A file knows what it is: what changes the meaning of its tensors is refused by every command, and a remark is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import detseg
from detseg import config as configs
from detseg.checkpoint import Checkpoint, save
from detseg.commands import predict, test
from detseg.config import Config, resolve_classes
from detseg.fingerprint import differences, fingerprint
from detseg.report.pictures import write_picture
from detseg.structures import Classes
from detseg.tasks.detection import Detection
from detseg.train import fit

from . import discovery
from .conftest import ROOT

SMALL = ("model.size=64", "model.width=0.25", "schedule.epochs=1", "schedule.warmup_steps=1", "batch_size=4")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated once."""
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("samples").symlink_to(samples)
    write_picture(Path("photo.png"), np.full((50, 60, 3), 90, np.uint8))


def written(name: str, *, change: Callable[[str], str] = lambda text: text) -> Path:
    """A run folder as training leaves it, without the training."""
    run = Path("run")
    run.mkdir(exist_ok=True)
    path = run / "mine.py"
    path.write_text(change((ROOT / "configs" / f"{name}.py").read_text()))
    config = configs.load(path, SMALL, sample=True)
    index = config.experiment.data.read(sample(config), "train")
    model = config.build_model(resolve_classes(config.experiment.classes, index.classes))
    save(run / "best.pt", Checkpoint(
        step=1, total_steps=2, model=model.state_dict(), ema=None, optimizer={}, validated=1, numbers={}, best={},
        classes=model.classes, settings=config.settings(), versions={}, config_text=config.text,
        fingerprint=fingerprint(model, config.experiment.task)))
    shutil.copy(run / "best.pt", run / "last.pt")
    (run / "resolved.json").write_text('{"config": "mine.py", "data": null}')
    return path


def sample(config: Config) -> Path:
    """Eight images."""
    generate: Any = config.experiment.data.generate
    folder = Path("samples") / str(generate.__name__)
    if not folder.exists():
        generate(folder, num_train=8, num_val=2)
    return folder


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1, f"{old!r} is not in the config any more"
    path.write_text(text.replace(old, new))


SSDLITE = "ssdlite_v3_large"
BREAKAGES: Sequence[tuple[str, str, str, str, str]] = [
    ("resize", SSDLITE, "Stretch", "Letterbox", "resize: Stretch(size=(64, 64)"),
    ("normalisation", SSDLITE, "mean=(0.5, 0.5, 0.5)", "mean=(0.4, 0.5, 0.5)", "normalisation: mean (0.5, 0.5, 0.5)"),
    ("anchors", SSDLITE, "anchors=SSDAnchors()", "anchors=SSDAnchors(min_scale=0.15)", "min_scale=0.15"),
    ("box weights", SSDLITE, "width=width)\n    return", "width=width, box_weights=(1.0, 1.0, 1.0, 1.0))\n    return",
     "box_weights=(1.0, 1.0, 1.0, 1.0)"),
    ("loss kind", SSDLITE, "anchors=SSDAnchors()", 'anchors=SSDAnchors(), class_loss="focal"', "class_loss='focal'"),
    ("suppression", SSDLITE, "iou_threshold=0.55", "iou_threshold=0.45", "postprocess.iou_threshold: 0.55 there, 0.45"),
    ("activation", SSDLITE, "reduced_tail=", "minimalistic=True, reduced_tail=", "Hardswish"),
    ("padding", SSDLITE, "reduced_tail=", 'padding="same", reduced_tail=', "same=_Same"),
    ("aligned corners", "lraspp_v3_large", "filters=filters", "filters=filters, align_corners=False",
     "align_corners=False"),
    ("size divisor", "fasterrcnn_v3_large_320_fpn", "size_divisor=32", "size_divisor=64",
     "size_divisor: 32 there, 64 here"),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), [one[1:] for one in BREAKAGES],
                         ids=[one[0] for one in BREAKAGES])
def test_every_command_refuses_what_changes_the_meaning(
    name: str, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(name)
    edited(path, old, new)
    commands: dict[str, Callable[[], Any]] = {
        "test": lambda: test.main(["run", "--data", "nowhere"]),
        "test CONFIG CHECKPOINT": lambda: test.main(["run/mine.py", "run/best.pt", "--data", "nowhere"]),
        "predict": lambda: predict.main(["run", "photo.png"]),
    }
    for command, run in commands.items():
        assert run() == 2, command
        errors = capsys.readouterr().err
        assert "best.pt was trained with another config, under which its tensors mean something else" in errors
        assert "insist with --config-changed" in errors
        assert message in errors, command
        assert f"+{next(line for line in path.read_text().splitlines() if new.splitlines()[0] in line)}" in errors
    with pytest.raises(ValueError, match="was trained with another config"):
        detseg.load("run")
    config = configs.load(path, SMALL, sample=True)
    with pytest.raises(ValueError, match="insist with --config-changed") as refused:
        fit(config, sample(config), out=Path("run"), resume=True)
    assert message in str(refused.value)


def test_another_config_of_the_same_shapes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    written("ssdlite_v4_conv_small")
    other = Path("other.py")
    other.write_text(Path("run/mine.py").read_text().replace("mobilenet_v4_conv_small(", "_other(").replace(
        "\n\ndef model(", '\n\ndef _other(**arguments):\n    """A twin."""\n'
        "    return mobilenet_v4_conv_small(**arguments)\n\n\ndef model("))
    assert test.main([str(other), "run/best.pt", "--data", "nowhere"]) == 2
    errors = capsys.readouterr().err
    assert "--- the config it was trained with" in errors
    assert "+++ the config here" in errors
    assert "+def _other(**arguments):" in errors


def test_a_changed_class_list_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    path = written("ssdlite_v2_bccd")
    edited(path, '("Platelets", "RBC", "WBC")', '("RBC", "Platelets", "WBC")')
    assert test.main(["run", "--data", "nowhere"]) == 2
    assert '+    classes=Classes(("RBC", "Platelets", "WBC"), (1, 2, 3)),' in capsys.readouterr().err


def test_another_head_of_the_same_tensors_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the text of the config is the same: what it imports has changed."""
    import heads.ssdlite

    written(SSDLITE)
    monkeypatch.setattr(heads.ssdlite, "SSDLite", type("SSDHeavy", (heads.ssdlite.SSDLite,), {}))
    assert test.main(["run", "--data", "nowhere"]) == 2
    errors = capsys.readouterr().err
    assert "head: SSDLite(" in errors
    assert "SSDHeavy(" in errors
    assert "+++ the config here" not in errors


def test_remarks_docstrings_and_layout_refuse_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    path = written(SSDLITE)
    edited(path, "    head = SSDLite(", "    # three remarks\n\n    head  =  SSDLite(")
    edited(path, '"""320 x 320 stretched, values in -1..1, six anchors on every map: 3,234 boxes."""', '"""Small."""')
    assert predict.main(["run", "photo.png"]) == 0, capsys.readouterr().err
    assert cv2.imread("predictions/photo.png") is not None


def test_insisting_takes_the_config_as_it_is_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    path = written(SSDLITE)
    edited(path, "iou_threshold=0.55", "iou_threshold=0.45")
    assert predict.main(["run", "photo.png", "--config-changed"]) == 0
    said = capsys.readouterr().out
    assert "note: run/best.pt was trained with another config than run/mine.py, which was insisted on" in said
    model = detseg.load("run", config_changed=True)
    assert isinstance(model.task, Detection)
    assert model.task.iou_threshold == 0.45


def test_a_file_of_an_older_version_is_taken_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    written(SSDLITE)
    content = torch.load("run/best.pt", weights_only=True)
    del content["config_text"], content["fingerprint"]
    torch.save(content | {"format": 1}, "run/best.pt")
    assert predict.main(["run", "photo.png"]) == 0
    assert "run/best.pt was written by an older detseg and carries no fingerprint" in capsys.readouterr().out
    assert any("carries no fingerprint" in note for note in detseg.load("run").notes)


@pytest.mark.parametrize("path", discovery.configs(), ids=lambda path: path.stem)
def test_a_fingerprint_is_plain_and_the_same_every_time(path: Path) -> None:
    config = discovery.small_config(path)

    def taken(classes: Classes = discovery.OWN) -> dict[str, str]:
        return fingerprint(config.build_model(classes), config.experiment.task)

    one = taken()
    assert one == taken(), "nothing in it may depend on chance, or on where something lies in memory"
    assert not [line for line in one.values() if " at 0x" in line]
    assert {"resize", "normalisation", "classes", "task", "head", "size_divisor"} <= one.keys()
    assert not differences(one, taken())
    other = Classes(names=("bolt", "nut", "washer"), source_ids=(2, 5, 40))
    assert [line.partition(":")[0] for line in differences(one, taken(other))][:1] == ["classes"]
