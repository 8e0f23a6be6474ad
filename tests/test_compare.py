"""`detseg compare`: networks on the same images, what is said of them, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from detseg.compare import compare, read_models, recipe_of
from detseg.config import Config
from detseg.config import load as load_config
from detseg.run_folder import RunFolder
from detseg.structures import Classes
from detseg.train import fit
from tests import micro, tiny, tiny_segmenter
from tests.commands import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: two seeds of a recipe, and one that has learned next to nothing."""
    folder = tmp_path_factory.mktemp("compared")
    short = ["schedule.epochs=1", "optimizer.lr=0.000001"]
    tiny_segmenter.train_in(
        folder, ["--out", "one", "--set", "seed=1"], ["--out", "two", "--set", "seed=2"],
        ["--out", "poor", "--set", *short])
    return folder


def test_two_seeds_and_a_worse_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("compare", "one", "two", "poor", "--json", "all.json", capsys=capsys)
    assert code == 0, err
    said = " ".join(out.split())
    assert "poor against one and two: worse: -" in said
    assert "one and two are one recipe with 2 seeds (mIoU" in said
    assert "the verdicts count what other images and other seeds give" in said
    assert "multiply-adds" in said
    content = json.loads(Path("all.json").read_text())
    assert (content["main"], content["images"]) == ("mIoU", 5)
    one, two, poor = content["networks"]
    assert one["difference"] is None
    assert poor["difference"]["mIoU"]["high"] < 0
    assert poor["difference"]["mIoU"]["value"] == poor["numbers"]["mIoU"]["value"] - one["numbers"]["mIoU"]["value"]
    assert one["numbers"]["IoU/purple"] == {"value": None, "low": None, "high": None}
    for name, network in (("one", one), ("two", two)):
        code, *_ = run("test", name, "--per-class", "--json", "numbers.json", capsys=capsys)
        assert code == 0
        tested = json.loads(Path("numbers.json").read_text())
        assert {key: found["value"] for key, found in network["numbers"].items()} == pytest.approx(tested, abs=1e-12)
    assert [cost["latency"] for cost in content["costs"]] == [None] * 3
    assert content["costs"][0]["parameters"] == sum(one.numel() for one in tiny_segmenter.untrained().parameters())


def test_latency_and_checkpoints(place: Path) -> None:
    models = read_models(["one", "one,one/last.pt", "shades.py,poor/best.pt"])
    assert [one.name for one in models] == ["one", "one,last.pt", "shades.py,best.pt"]
    heard = []
    found = compare(models, None, resamples=100, seconds=0.05, progress=lambda *turn: heard.append(turn))
    assert [one.recipe for one in found.comparison.networks] [1:]== ["one,last.pt", "shades.py,best.pt"]
    assert len(found.comparison.recipes()) == 3, "two checkpoints of a run are no two seeds"
    assert heard[0] == ("one", 0, 5)
    assert heard[-1] == ("shades.py,best.pt", 5, 5)
    assert all(cost.latency is not None and cost.latency.median > 0 for cost in found.costs)
    assert found.cost_table().columns[-1] == "ratio"
    assert found.cost_table().rows[0][-1] == "1.00"


@pytest.mark.conversion
@pytest.mark.filterwarnings("ignore")
def test_an_exported_file_is_measured_on_what_the_run_was(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run("export", "one", "--format", "onnx", "--out", "one.onnx", capsys=capsys)
    assert code == 0, err
    code, out, err = run("compare", "one", "one.onnx", "--latency", "0.05", "--json", "all.json", capsys=capsys)
    assert code == 0, err
    content = json.loads(Path("all.json").read_text())
    assert content["costs"][1]["parameters"] is None
    assert content["costs"][1]["megabytes"] == Path("one.onnx").stat().st_size / 1e6
    assert "no difference shown" in out
    assert content["networks"][1]["difference"]["mIoU"]["value"] == pytest.approx(0, abs=0.01)


def test_a_split_of_the_run_s_own(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs that kept other images for validation are not compared on either's."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "data", "data")
    for name in ("one", "two"):
        shutil.copytree(trained / name, name)
        described = json.loads(RunFolder(Path(name)).resolved.read_text())
        described["data"]["path"] = "all"
        described["data"]["val_share"] = 0.3
        RunFolder(Path(name)).resolved.write_text(json.dumps(described))
    for part in ("images", "masks"):
        shutil.copytree(f"data/shades/{part}/train", f"all/{part}")
    shutil.copyfile("data/shades/classes.txt", "all/classes.txt")
    names = sorted(f"images/{path.name}" for path in Path("all/images").iterdir())
    for name, kept in (("one", names[:4]), ("two", names[2:6])):
        RunFolder(Path(name)).split.write_text(json.dumps(
            {"share": 0.3, "val": kept, "train": [one for one in names if one not in kept], "notes": []}))
    code, _, err = run("compare", "one", "two", capsys=capsys)
    assert code == 2
    assert "one and two are validated on other images:" in err
    assert "2 only for one, all/images/" in err
    assert "name data that none of them was trained on with --data DIR" in err
    code, out, err = run("compare", "one", "two", "--data", "data/shades", capsys=capsys)
    assert code == 0, err
    assert "draws of the 5 images" in " ".join(out.split())


@pytest.mark.parametrize(("arguments", "message"), [
    (["one"], "a comparison takes two runs or more, got one; detseg test tells the numbers of one"),
    (["one", "./one/"], "./one/ is named twice; name two different ones"),
    (["one", "nowhere"], "nowhere is no run folder"),
    (["one", "two", "--data", "nowhere"], "nowhere"),
    (["one", "two", "--images", "data"], "--images tells where the images of --data lie"),
    (["one", "two", "--resamples", "10"], "the ends of an interval take 100 draws or more, got 10"),
    (["one", "two", "--latency", "0"], "--latency takes the seconds to time predictions for, more than 0, got 0"),
])
def test_bad_input(
    place: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run("compare", *arguments, capsys=capsys)
    assert code == 2
    assert message in err


def test_runs_that_started_elsewhere_are_another_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.begin_in(tmp_path, monkeypatch)

    def config(epochs: int) -> Config:
        return load_config(Path("brightness.py"), [f"schedule.epochs={epochs}"])

    run = fit(config(1), Path("data"), out=Path("run"), initialise=lambda _: "weights of x").run
    assert run.described()["start"] == "weights of x"
    fit(config(2), None, out=Path("run"), resume=True, config_changed=True)
    assert run.described()["start"] == "weights of x", "a resumed run has not forgotten it"
    shutil.copytree("run", "other")
    assert len({recipe_of(one) for one in read_models(["run", "other"])}) == 1
    RunFolder(Path("other")).resolved.write_text(json.dumps(run.described() | {"start": None}))
    assert len({recipe_of(one) for one in read_models(["run", "other"])}) == 2


def test_runs_without_data_and_of_other_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("far", "gone"):
        shutil.copytree("one", name)
        described = json.loads(RunFolder(Path(name)).resolved.read_text())
        described["data"]["path"] = "elsewhere"
        RunFolder(Path(name)).resolved.write_text(json.dumps(described))
    code, _, err = run("compare", "one", "far", capsys=capsys)
    assert code == 2
    assert "one was trained on data/shades, far on elsewhere; name the data to compare them on with --data DIR" in err
    code, _, err = run("compare", "gone", "far", capsys=capsys)
    assert code == 2
    assert "elsewhere" in err
    assert run("compare", "one", "far", "--data", "data/shades", capsys=capsys)[0] == 0


def test_other_classes_and_tasks(place: Path) -> None:
    one, two = read_models(["one", "two"])
    detector, task = micro.network("ssdlite")
    two.model.loaded, two.model.task = detector, task
    with pytest.raises(ValueError, match="one is for segmentation and two for detection; no number is common"):
        compare([one, two], None)
    one, two = read_models(["one", "two"])
    assert isinstance(two.model.loaded, torch.nn.Module)
    two.model.loaded.classes = Classes(("dark", "light"), (4, 9))
    with pytest.raises(ValueError, match=r"one \(here\) and two \(there\) know other classes:\n  id 9: 'bright'"):
        compare([one, two], None)


@pytest.mark.real
@pytest.mark.slow
def test_ap_of_real_detections_is_the_metric_s(shared: Path) -> None:
    """On COCO's annotations with boxes shifted at random: 80 classes, crowds, many objects of every size."""
    from detseg.bootstrap import ResamplableAP
    from detseg.data.layouts import read_boxes
    from detseg.structures import ImageDetections

    index = read_boxes(shared / "data" / "coco_mini", "val")
    random = np.random.default_rng(0)
    metric = ResamplableAP(index, per_class=True)
    for item in range(len(index)):
        true = index.targets(item)
        boxes = true.boxes + random.normal(0, 0.08, true.boxes.shape) * np.tile(
            true.boxes[:, 2:] - true.boxes[:, :2], 2)
        metric.update([ImageDetections(int(index.image_ids[item]), torch.from_numpy(boxes),
                                       torch.from_numpy(random.random(len(boxes))), torch.from_numpy(true.labels))])
    found = metric.resampled(np.ones((1, len(index)), np.int64))
    expected = metric.compute()
    assert 0.2 < expected["AP"] < 0.9
    assert all(math.isclose(float(value[0]), expected[name], abs_tol=1e-6) or math.isnan(expected[name])
               for name, value in found.items())
