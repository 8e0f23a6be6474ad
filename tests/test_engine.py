"""What runs a network's layers: the predictions stay, whatever the engine, and a network is converted once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch.utils._pytree import tree_leaves

from detseg import engine
from detseg.api import Model
from detseg.benchmark import predictor as benchmark
from detseg.benchmark.synthetic import OneConvolution
from detseg.cache import cache_folder
from detseg.choices import ENGINES
from detseg.engine import CACHE, OnnxRuntimePredictor, with_engine
from detseg.interfaces import Task
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.resize import KeepAspect
from detseg.tasks.classification import Classification

from . import discovery, micro
from .commands import run
from .tiny_segmenter import generate, write_config

pytestmark = pytest.mark.conversion

CONVERTING = "converting the network for ONNX Runtime; it is kept for the next time"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The segmenter, converted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        said = list[str]()
        converted(*segmenter(), said)
        assert said == [CONVERTING]
        (path,) = cache_folder(CACHE).iterdir()
        return path


def keep(file: Path) -> Path:
    """It lies in this test's cache, long unused."""
    cache_folder(CACHE).mkdir(parents=True)
    path = cache_folder(CACHE) / file.name
    shutil.copyfile(file, path)
    os.utime(path, (1000, 1000))
    return path


def segmenter() -> tuple[Predictor, Task[Any, Any, Any, Any]]:
    """The network that is converted soonest."""
    return micro.network("fcn")


def converted(predictor: Predictor, task: Task[Any, Any, Any, Any], said: list[str]) -> OnnxRuntimePredictor:
    found = with_engine(predictor, task, "onnxruntime", say=said.append)
    assert isinstance(found, OnnxRuntimePredictor)
    return found


@pytest.mark.parametrize("head", [
    pytest.param(head, marks=() if head in ("ssdlite", "lraspp") else pytest.mark.slow)
    for head in discovery.one_config_a_head()])
def test_a_network_of_one_size(head: str) -> None:
    predictor, task = micro.network(head)
    ours = converted(predictor, task, [])
    assert not list(cache_folder(CACHE).glob(".*"))
    pictures = micro.scenes(3, seed=4)
    images, folded = micro.inputs(pictures, micro.SIZE), predictor.folded()
    with torch.inference_mode():
        for batch in (images, images[:1]):
            for mine, wanted in zip(tree_leaves(ours(batch)), tree_leaves(folded(batch)), strict=True):
                torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    _same_predictions(ours, predictor, task, pictures)


@pytest.mark.parametrize("head", ["faster_rcnn", "fcn", *(
    pytest.param(head, marks=pytest.mark.slow) for head in ("deeplabv3", "raspp", "retinanet"))])
def test_a_network_of_any_size(head: str) -> None:
    """The smallest images are left to torch, others are padded as torch pads them."""
    predictor, task = micro.network(head)
    predictor.resize = KeepAspect(160, 320)
    ours = converted(predictor, task, [])
    pictures = micro.scenes(2, seed=4)
    shapes = [pictures[0], pictures[0].transpose(1, 0, 2), pictures[1][:80], pictures[1][:, :16]]
    assert len({predictor.resize.apply(one).shape for one in shapes}) == 4
    assert min(predictor.resize.apply(shapes[3]).shape[:2]) < 129
    _same_predictions(ours, predictor, task, shapes)


def _same_predictions(
    ours: OnnxRuntimePredictor, predictor: Predictor, task: Task[Any, Any, Any, Any], pictures: Any
) -> None:
    found = 0
    for picture in pictures:
        mine, wanted = (predict_image(one, task, picture) for one in (ours, predictor))
        if task.scored:
            found += len(wanted.boxes)
            torch.testing.assert_close(mine.boxes, wanted.boxes, rtol=0, atol=2e-2)
            torch.testing.assert_close(mine.scores, wanted.scores, rtol=0, atol=1e-4)
            assert torch.equal(mine.labels, wanted.labels)
        elif isinstance(task, Classification):
            found += len(wanted.labels)
            torch.testing.assert_close(mine.scores, wanted.scores, rtol=0, atol=1e-4)
            assert torch.equal(mine.labels, wanted.labels)
        else:
            assert (mine.labels != wanted.labels).mean() < 1e-3
            found += len(set(wanted.labels.flatten().tolist())) - 1
    assert found > 0, "nothing was there to be found"


def test_it_is_converted_once_for_its_weights(file: Path) -> None:
    predictor, task = segmenter()
    keep(file)
    said = list[str]()
    converted(predictor, task, said)
    assert said == []
    with torch.no_grad():
        next(predictor.head.parameters()).mul_(1.1)
    ours = converted(predictor, task, said)
    assert said == [CONVERTING]
    _same_predictions(ours, predictor, task, micro.scenes(1, seed=4))
    converted(predictor, task, said)
    assert said == [CONVERTING]


def test_what_lies_there_is_used_only_if_it_is_the_network(file: Path) -> None:
    predictor, task = segmenter()
    said = list[str]()
    path = keep(file)
    path.write_bytes(path.read_bytes()[:1000])
    converted(predictor, task, said)
    assert said == [CONVERTING], "a damaged file"
    other = onnx.load(path)
    largest = max(other.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))
    onnx.save(other, path)
    _same_predictions(converted(predictor, task, said), predictor, task, micro.scenes(1, seed=4))
    assert said == [CONVERTING] * 2, "another network's file"


def test_the_oldest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_KEPT", 2)
    cache_folder(CACHE).mkdir(parents=True)
    for age in range(4):
        file = cache_folder(CACHE) / f"{age}.onnx"
        file.write_bytes(b"")
        os.utime(file, (1000 - age, 1000 - age))
    converted(*segmenter(), [])
    assert len(list(cache_folder(CACHE).iterdir())) == 2
    assert (cache_folder(CACHE) / "0.onnx").exists()


class _Unconvertible(OneConvolution):
    """What a network does depends on what it sees."""

    def forward(self, images: torch.Tensor) -> Any:
        features = super().forward(images)
        return {name: -x for name, x in features.items()} if float(images.mean()) > 1e9 else features


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, task = segmenter()
    wrong: Any = "tensorrt"
    with pytest.raises(ValueError, match="the engine is torch or onnxruntime, got 'tensorrt'"):
        with_engine(predictor, task, wrong)
    assert isinstance(with_engine(predictor, task, "torch"), Predictor)
    on_another = micro.network("fcn")[0].to("meta")
    monkeypatch.setattr(Predictor, "ready", lambda self: self)
    with pytest.raises(ValueError, match="the engine onnxruntime runs on the CPU, and the network is on meta"):
        with_engine(on_another, task, "onnxruntime")
    monkeypatch.undo()
    predictor.backbone = _Unconvertible(predictor.backbone.specs)
    with pytest.raises(ValueError, match="ONNX Runtime cannot take this network; take the engine torch"):
        with_engine(predictor.eval(), task, "onnxruntime")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnxruntime must be installed: pip install 'detseg\[onnx\]'"):
        with_engine(predictor, task, "onnxruntime")


def test_a_model_that_is_told_its_engine(file: Path) -> None:
    predictor, task = segmenter()
    keep(file)
    model = Model(predictor, task, title="micro").run_with("onnxruntime")
    picture = micro.scenes(1, seed=4)[0]
    assert model.network.form == "ONNX Runtime"
    assert model.to("cpu").network.form == "ONNX Runtime"
    assert (model(picture).labels != Model(predictor, task, title="micro")(picture).labels).mean() < 1e-3
    with pytest.raises(ValueError, match="the engine onnxruntime runs on the CPU; to use cuda, take the engine torch"):
        model.to("cuda")
    assert model.run_with("torch").network.form != "ONNX Runtime"


def test_the_benchmark_times_it(file: Path) -> None:
    path = keep(file)
    loaded = discovery.small_config(discovery.config_of_head("fcn"))
    predictor, _ = segmenter()
    picture = micro.scenes(1, seed=4)[0]
    use = benchmark._inference(predictor, None, loaded, image=picture, engine="onnxruntime")["detseg"]
    assert list(cache_folder(CACHE).iterdir()) == [path]
    assert path.stat().st_mtime > 1000, "it was used"
    assert tree_leaves(use.network())
    assert use.predict_image(picture).labels.shape == picture.shape[:2]


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    generate(tmp_path / "data" / "shades")
    code, _, errors = run("train", "shades.py", "--out", "run", "--set", "schedule.epochs=2", capsys=capsys)
    assert code == 0, errors
    numbers = {}
    for name in ENGINES:
        code, out, errors = run("test", "run", "--engine", name, "--json", f"{name}.json", capsys=capsys)
        assert code == 0, errors
        assert ("ONNX Runtime" in out) == (name == "onnxruntime")
        numbers[name] = json.loads(Path(f"{name}.json").read_text())
    assert numbers["onnxruntime"] == pytest.approx(numbers["torch"], abs=1e-3)
    image = next((tmp_path / "data").rglob("*.png"))
    code, out, _ = run("predict", "run", str(image), "--engine", "onnxruntime", capsys=capsys)
    assert code == 0
    assert "converting" not in out, "it was kept"
    code, _, errors = run("predict", "run.onnx", str(image), "--engine", "onnxruntime", capsys=capsys)
    assert (code, errors) == (2, "error: there is no file run.onnx\n")
