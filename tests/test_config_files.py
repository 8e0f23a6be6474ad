"""Configs by name, what they say of themselves, and copies to edit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from detseg import config
from detseg.api import load_model
from detseg.benchmark.predictor import counts
from detseg.commands.configs import END, START, listing, markdown
from detseg.config_files import BUILT_IN, ConfigFile, built_in_configs, copy_config, describe_config, find_config
from detseg.tasks.classification import Classification
from detseg.tasks.detection import Detection
from detseg.tasks.segmentation import Segmentation

from . import discovery, tiny
from .commands import run
from .conftest import ROOT

NAMES = [path.stem for path in discovery.configs()]
LARGE = ROOT / "configs" / "ssdlite_v3_large.py"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_built_in_are_those_of_the_checkout() -> None:
    assert BUILT_IN == ROOT / "configs"
    assert [*built_in_configs()] == NAMES


def test_a_name_stands_for_its_file_and_a_file_comes_first() -> None:
    assert find_config(Path("ssdlite_v3_large")) == LARGE
    assert config.load(Path("ssdlite_v3_large")).path == LARGE
    Path("ssdlite_v3_large").write_text(tiny.CONFIG)
    assert find_config(Path("ssdlite_v3_large")) == Path("ssdlite_v3_large")
    assert config.load(Path("ssdlite_v3_large")).experiment.batch_size == 6


@pytest.mark.parametrize(("name", "message"), [
    ("ssdlite_v3_lrage", "there is no config ssdlite_v3_lrage; did you mean ssdlite_v3_large?"),
    ("ssdlite-v3-large", "there is no config ssdlite-v3-large; did you mean ssdlite_v3_large?"),
    ("configs/raspp_v2.py", "there is no config configs/raspp_v2.py; did you mean raspp_v2?"),
    ("raspp_v2.py", "there is no config raspp_v2.py; did you mean raspp_v2?"),
    ("onw.py", "there is no config onw.py; did you mean own.py?"),
    ("xyz", "there is no config xyz; detseg configs lists those there are"),
    ("xyz.py", "there is no config xyz.py"),
    ("runs/raspp_v2", "there is no config runs/raspp_v2, and no folder of a run"),
    ("folder", "folder is a folder and no config; name a .py file, or one of detseg configs"),
])
def test_what_is_no_config(name: str, message: str) -> None:
    Path("folder").mkdir()
    Path("own.py").touch()
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        find_config(Path(name))


def test_python_takes_names_too(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config ssdlite_v3_lrage; did you mean ssdlite_v3_large\?"):
        load_model(Path("ssdlite_v3_lrage"), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"there is no checkpoint .*x\.pth"):
        load_model(Path("ssdlite_v3_large"), tmp_path / "x.pth")


@pytest.mark.parametrize("name", NAMES)
def test_every_config_describes_itself(name: str) -> None:
    one = describe_config(built_in_configs()[name])
    assert one.name == name
    task = config.load(one.path).experiment.task
    kinds = {Detection: ("detector", "AP"), Segmentation: ("segmenter", "mIoU"),
             Classification: ("classifier", "top-1")}
    kind, metric = kinds[type(task)]
    assert one.kind == kind
    assert re.fullmatch(rf"\d\d\.\d {metric} on .+|none published|see benchmarks\.md", one.score)


def test_a_description_by_hand() -> None:
    assert describe_config(ROOT / "configs" / "fasterrcnn_v3_large_320_fpn.py") == ConfigFile(
        name="fasterrcnn_v3_large_320_fpn", path=ROOT / "configs" / "fasterrcnn_v3_large_320_fpn.py",
        title="Faster R-CNN with a pyramid on MobileNetV3-Large at 320 pixels, for COCO: torchvision's, made for "
              "phones.",
        kind="detector", parameters=19_410_754, macs=1_005_994_880, region_macs=14_359_552, size=(320, 426),
        source="torchvision", score="22.8 AP on val2017")


@pytest.mark.parametrize(("old", "new", "missing"), [
    ("Source: ", "From: ", "a line 'Source: ...; ...'"),
    ("Cost: ", "Costs: ", "a line 'Cost: ...'"),
    ("from detseg.tasks.detection import", "from detseg.tasks import", "a task"),
])
def test_a_description_that_lacks_something(old: str, new: str, missing: str) -> None:
    Path("mine.py").write_text(LARGE.read_text().replace(old, new))
    with pytest.raises(ValueError, match=re.escape(f"mine.py: it lacks {missing}, as detseg/config_files.py")):
        describe_config(Path("mine.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_costs_are_what_is_counted(name: str) -> None:
    one, loaded = describe_config(built_in_configs()[name]), config.load(built_in_configs()[name])
    with torch.device("meta"):
        model = loaded.build_model(loaded.experiment.classes)
    assert model.resize.size == one.size
    assert counts(model) == (one.parameters, one.macs, one.region_macs)


def test_the_readme_has_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert (text.count(START), text.count(END)) == (1, 1), "detseg configs --markdown prints the tables"
    told = text[text.index(START):text.index(END)] + END
    assert run("configs", "--markdown", capsys=capsys) == (0, f"{told}\n", "")


def test_tables_by_hand() -> None:
    box = describe_config(LARGE)
    two = describe_config(ROOT / "configs" / "fasterrcnn_v3_large_320_fpn.py")
    label = describe_config(ROOT / "configs" / "raspp_v2.py")
    image = describe_config(ROOT / "configs" / "classify_v3_large.py")
    assert markdown([box, two, label, image]).splitlines() == [
        START, "",
        "| detector | parameters | multiply-adds | input | source of the wiring | published AP |",
        "|--|--|--|--|--|--|",
        "| `ssdlite_v3_large` | 3,440,060 | 583,171,904 | 320 | torchvision | 21.3 on val2017 |",
        "| `fasterrcnn_v3_large_320_fpn` | 19,410,754 | 1,005,994,880 + 14,359,552 a region | 320 x 426 | torchvision "
        "| 22.8 on val2017 |", "",
        "| segmenter | parameters | multiply-adds | input | source of the wiring | published mIoU |",
        "|--|--|--|--|--|--|",
        "| `raspp_v2` | 2,113,557 | 2,740,709,056 | 513 | TensorFlow | 75.3 on VOC val |", "",
        "| classifier | parameters | multiply-adds | input | source of the wiring | published top-1 |",
        "|--|--|--|--|--|--|",
        "| `classify_v3_large` | 5,483,032 | 216,589,760 | 224 | paper | 75.2 on ImageNet val |", "", END]
    assert listing([box, label, image]).splitlines() == [
        "detectors         parameters  multiply-adds  input  source of the wiring  published AP",
        "ssdlite_v3_large      3.44 M         0.58 B    320  torchvision           21.3 on val2017", "",
        "segmenters  parameters  multiply-adds  input  source of the wiring  published mIoU",
        "raspp_v2        2.11 M         2.74 B    513  TensorFlow            75.3 on VOC val", "",
        "classifiers        parameters  multiply-adds  input  source of the wiring  published top-1",
        "classify_v3_large      5.48 M         0.22 B    224  paper                 75.2 on ImageNet val", "",
        "detseg train NAME --data DIR trains one, detseg configs copy NAME gives one to edit"]


def test_the_command_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("configs", capsys=capsys)
    assert (code, err) == (0, "")
    assert sorted(line.split()[0] for line in out.splitlines() if line.partition(" ")[0] in NAMES) == NAMES
    code, out, err = run("configs", "--json", capsys=capsys)
    assert (code, err) == (0, "")
    everything = {one["name"]: one for one in json.loads(out)}
    assert [*everything] == NAMES
    assert everything["ssdlite_v3_large"]["path"] == str(LARGE)
    assert everything["ssdlite_v3_large"]["parameters"] == 3_440_060


def test_a_copy_to_edit(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("configs", "copy", "ssdlite_v3_large", capsys=capsys) == (
        0, "ssdlite_v3_large.py: edit it, and train it with detseg train ssdlite_v3_large.py --data DIR\n", "")
    copied = config.load(Path("ssdlite_v3_large.py"))
    assert copied.text == config.load(LARGE).text
    assert copied.entries() == config.load(LARGE).entries()
    Path("folder").mkdir()
    assert copy_config("ssdlite_v3_large", Path("folder")) == Path("folder/ssdlite_v3_large.py")
    assert copy_config("ssdlite_v3_large", Path("new/mine.py")).read_text() == LARGE.read_text()


@pytest.mark.parametrize(("arguments", "message"), [
    (["raspp_v3"], "error: no config that comes with detseg is called raspp_v3; did you mean raspp_v2?\n"),
    (["raspp_v2.py"], "error: no config that comes with detseg is called raspp_v2.py; did you mean raspp_v2?\n"),
    (["xyz"], "error: no config that comes with detseg is called xyz; detseg configs lists them\n"),
    (["raspp_v2", "old.py"], "error: old.py is there already; it is not replaced: name another file behind raspp_v2\n"),
    (["raspp_v2", "new"], "error: a config is a .py file, got new: take new.py, or a folder that exists\n"),
])
def test_a_copy_that_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.py").write_text("old")
    assert run("configs", "copy", *arguments, capsys=capsys) == (2, "", message)
    assert [path.name for path in Path().iterdir()] == ["old.py"]
    assert Path("old.py").read_text() == "old"
