"""Int8 files in their runtimes, and what `detseg export --int8` says and refuses."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

import detseg
from detseg.benchmark.synthetic import OneConvolution
from detseg.checkpoint import load
from detseg.choices import Contract
from detseg.data.images import read_image
from detseg.export.artefact import open_artefact
from detseg.export.contract import ExportedNetwork, Input, output_specs
from detseg.export.format import Job
from detseg.export.formats import format_named, formats
from detseg.export.quiet import quiet
from detseg.interfaces import Task
from detseg.model import Predictor
from detseg.quantization.post_training import PostTraining, Recipe, snr
from detseg.report.pictures import write_picture

from . import discovery, micro, tiny_segmenter
from .commands import run

pytestmark = [pytest.mark.conversion, pytest.mark.filterwarnings("ignore")]
PLAIN = Recipe(equalised=False, corrected=False)
INT8 = [name for name, kind in formats().items() if "int8" in kind.precisions]


def test_four_formats_have_int8() -> None:
    assert sorted(INT8) == ["executorch", "litert", "onnx", "openvino"]


QUICK = {("onnx", "ssdlite"), ("openvino", "lraspp"), ("executorch", "panlite"), ("litert", "panlite"),
         ("litert", "deeplabv3")}
"""Every kind of trouble once: a classifier that several maps share, with a bias of equal numbers; maps side by side, of
scales of their own; a map that is read in two layouts."""


@pytest.mark.parametrize(("name", "head"), [
    pytest.param(name, head, marks=() if (name, head) in QUICK else pytest.mark.slow)
    for name in INT8 for head in discovery.head_classes()])
def test_a_file_gives_what_its_network_gives(name: str, head: str, tmp_path: Path) -> None:
    """Integers are rounded by each runtime in its own order, which moves a few of them by one step, and with that the
    choice of Faster R-CNN's regions."""
    predictor, task = micro.network(head)
    outputs, wanted = _computed(name, predictor, task, "decoded", tmp_path)
    for key, tensor in wanted.items():
        assert outputs[key].dtype == torch.float32
        if (head, key) != ("faster_rcnn", "boxes"):
            assert snr(tensor, outputs[key]) > 20, key


def _computed(
    name: str, predictor: Predictor, task: Task[Any, Any, Any, Any], contract: Contract, folder: Path
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a runtime gives for an image, and what torch gives for the file's network."""
    kind = format_named(name)
    kind.check_installed((*kind.converter, *kind.runtime), to="test")
    images = list(torch.split(micro.inputs(micro.scenes(4, seed=3), micro.SIZE), 1))
    network = PostTraining(predictor, images, fold_weights=kind.folds_weights,
                           sums_in_16_bits=kind.sums_in_16_bits).quantized(PLAIN)
    given = Input(micro.SIZE)
    exported = ExportedNetwork(predictor, task, contract=contract, given=given, int8=network.module).eval()
    names = tuple(output.name for output in output_specs(exported))
    path = folder / f"x{kind.suffix}"
    with quiet():
        kind.write(Job(exported, "int8", names), path)
        outputs = kind.run(path, 1, names)(given.pack(images[0]).numpy())
    with torch.no_grad():
        wanted = exported(given.pack(images[0]))
    return {key: torch.from_numpy(np.array(value)) for key, value in outputs.items()}, wanted


@pytest.mark.parametrize(("name", "head"), [
    ("executorch", "lraspp"), ("executorch", "raspp"),
    *(pytest.param(name, "lraspp", marks=pytest.mark.slow) for name in ("litert", "onnx", "openvino"))])
def test_label_maps_have_all_classes(name: str, head: str, tmp_path: Path) -> None:
    """Classes are enlarged one by one, and none is lost on the way."""
    predictor, task = micro.network(head)
    outputs, wanted = _computed(name, predictor, task, "final", tmp_path)
    share = wanted["labels"].flatten().bincount(minlength=len(predictor.classes)) / wanted["labels"].numel()
    assert (share > 0.02).sum() > 1
    assert (outputs["labels"] == wanted["labels"]).float().mean() > 0.97


@pytest.mark.parametrize("name", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_sums_do_not_overflow(name: str, tmp_path: Path) -> None:
    """Large weights of one sign: on x86 without VNNI, pairs of their products are beyond 16 bits."""
    predictor, task = micro.network("ssdlite")
    with torch.no_grad():
        for module in predictor.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.abs_()
    outputs, wanted = _computed(name, predictor, task, "raw", tmp_path)
    for key, tensor in wanted.items():
        assert snr(tensor, outputs[key]) > 50, key


def test_onnx_runtime_computes_all_layers_in_integers(tmp_path: Path) -> None:
    predictor, task = micro.network("ssdlite")
    images = list(torch.split(micro.inputs(micro.scenes(4, seed=3), micro.SIZE), 1))
    network = PostTraining(predictor, images)
    given, kind = Input(micro.SIZE), format_named("onnx")
    exported = ExportedNetwork(
        predictor, task, contract="raw", given=given, int8=network.quantized(PLAIN).module).eval()
    with quiet():
        names = tuple(output.name for output in output_specs(exported))
        kind.write(Job(exported, "int8", names), tmp_path / "x.onnx")
        assert kind.operators is not None
        operators = kind.operators(tmp_path / "x.onnx", given.example().numpy())
    kinds = {name: number for name, number, _ in operators.slowest}
    assert "Conv" not in kinds
    assert kinds["QLinearConv"] == len(network.layers)


def test_xnnpack_computes_all_of_litert(tmp_path: Path) -> None:
    """h-swish in floats, between integers, and nothing besides: no sum that was there for the converter alone."""
    predictor, task = micro.network("ssdlite")
    trunk = predictor.backbone
    assert isinstance(trunk, OneConvolution)
    for layer in trunk.convs:
        layer.act = nn.Hardswish()
    outputs, wanted = _computed("litert", predictor, task, "raw", tmp_path)
    for key, tensor in wanted.items():
        assert snr(tensor, outputs[key]) > 20, key
    kind = format_named("litert")
    assert kind.operators is not None
    operators = kind.operators(tmp_path / "x.tflite", Input(micro.SIZE).example().numpy())
    assert {name for name, _, _ in operators.slowest} == {"CAST"}
    details = Interpreter(model_path=str(tmp_path / "x.tflite"))._get_ops_details()
    kinds = Counter(str(operator["op_name"]) for operator in details)
    assert kinds["HARD_SWISH"] == len(trunk.convs)
    assert kinds["ADD"] == 1, "of the images' normalisation"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    tiny_segmenter.train_in(folder, ["--out", "runs/one"])
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copied = tmp_path / "copied"
    shutil.copytree(trained, copied)
    monkeypatch.chdir(copied)
    return copied


def int8(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    return run("export", "runs/one", "--format", "onnx", "--int8", "--out", "x.onnx", *arguments, capsys=capsys)


def test_a_file_within_the_budget_is_written_and_described(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = int8("--max-drop", "100", "--report", capsys=capsys)
    assert code == 0, err
    assert "points lost" in out
    assert "calibrated on 12 images of data/shades: there are no 128" in out
    assert sorted(path.name for path in Path().glob("x.onnx*")) == [
        "x.onnx", "x.onnx.int8.json", "x.onnx.layers.png", "x.onnx.parity.json"]
    assert json.loads(Path("x.onnx.parity.json").read_text())["predictions"]["share"] > 0.5
    written = json.loads(Path("x.onnx.int8.json").read_text())
    assert written["metric"] == "mIoU"
    assert written["drop"] == pytest.approx(100 * (written["checkpoint"] - written["artefact"]))
    assert [layer["name"] for layer in written["layers"]]
    manifest = open_artefact(Path("x.onnx")).manifest
    assert manifest.precision == "int8"
    assert manifest.quantization is not None
    assert len(manifest.quantization["calibration"]["images"]) == 12
    code, _, _ = run("test", "x.onnx", "--data", "data/shades", "--json", "file.json", capsys=capsys)
    assert code == 0
    assert json.loads(Path("file.json").read_text())["mIoU"] == pytest.approx(written["artefact"], abs=1e-6)


def test_after_qat_activations_have_the_ranges_of_training(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the file has the score that validation told in training; other images, or a split network, bring others."""
    code, _, err = run("train", "shades.py", "--qat", "--weights", "runs/one", "--out", "runs/qat",
                       "--set", "schedule.epochs=1", capsys=capsys)
    assert code == 0, err
    checkpoint = load(Path("runs/qat/best.pt"))
    arguments = ("export", "runs/qat", "--format", "onnx", "--int8", "--out", "x.onnx", "--max-drop", "100")
    code, out, err = run(*arguments, capsys=capsys)
    assert code == 0, err
    assert "the ranges of quantisation-aware training" in out
    assert json.loads(Path("x.onnx.int8.json").read_text())["artefact"] == pytest.approx(
        checkpoint.numbers["mIoU"], abs=0.01)
    assert (open_artefact(Path("x.onnx")).manifest.quantization or {})["ranges"] == "training"
    for others in (["--calibrate", "data/shades/images/train"], ["--ranges", "mse"]):
        code, out, err = run(*arguments, *others, capsys=capsys)
        assert code == 0, err
        assert "quantisation-aware" not in out
        assert (open_artefact(Path("x.onnx")).manifest.quantization or {})["ranges"] == "calibration"


def test_the_draw_of_images_follows_from_its_seed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = detseg.load("runs/one")
    one, again, other = (model.calibration(model.location, number=4, seed=seed).names for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert len(one) == 4


def test_layers_are_left_in_floating_point_until_the_budget_holds(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = int8("--max-drop", "0", "--keep-float", "backbone", "head", capsys=capsys)
    assert code == 0, err
    assert "+0.00 points lost" in out or "-0.0" in out
    assert "layers in floating point: backbone, head" in out


def test_a_file_beyond_the_budget_is_not_left(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calibrated on black pictures, every activation is cut."""
    for k in range(3):
        write_picture(Path("black") / f"{k}.png", np.zeros((40, 56, 3), np.uint8))
    code, _, err = int8("--max-drop", "0.1", "--calibrate", "black", capsys=capsys)
    assert code == 1
    assert "points, allowed are 0.1 (--max-drop)" in err
    assert "calibration images of black do, or further, and int8 cuts that off" in err
    assert "The layers that cost most:" in err
    assert not list(Path().glob("x.onnx*"))


@pytest.mark.parametrize("name", ["grey", "dark"])
def test_images_of_another_domain_are_told(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any structure, or with that of the training images in the dark."""
    files = sorted(Path("data/shades/images/train").iterdir())
    for file in files:
        image = read_image(file)
        write_picture(Path(name) / f"{file.stem}.png", np.full_like(image, 128) if name == "grey" else image // 4)
    code, out, err = int8("--max-drop", "100", "--calibrate", name, capsys=capsys)
    assert code == 0, err
    assert f"times as far as the calibration images of {name} do" in out
    code, out, err = int8("--max-drop", "100", capsys=capsys)
    assert code == 0, err
    assert "times as far" not in out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--fp16"], "take --fp16 or --int8"),
    (["--calibration-images", "0"], "--calibration-images is at least 1, got 0"),
    (["--max-drop", "-1"], "--max-drop is in points of AP or mIoU, 0 or more, got -1"),
    (["--keep-float", "head.nothing"], "there is no layer head.nothing; near are "),
    (["--data", "nowhere"], "no label maps in nowhere"),
    (["--calibrate", "nowhere"], "nowhere"),
])
def test_what_a_user_does_wrong(
    arguments: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = int8(*arguments, capsys=capsys)
    assert code == 2
    assert message in err
    assert not list(Path().glob("x.onnx*"))


def test_arguments_of_int8_need_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("export", "runs/one", "--format", "onnx", "--max-drop", "1", capsys=capsys)
    assert code == 2
    assert "--max-drop is for int8 files; add --int8" in err


def test_a_format_without_int8_names_those_with(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("export", "runs/one", "--format", "pt2", "--int8", capsys=capsys)
    assert code == 2
    assert "have no int8 weights here: take --format " in err
    assert "onnx" in err


def test_without_validation_data_a_file_must_be_insisted_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("data")
    code, _, err = int8(capsys=capsys)
    assert code == 2
    assert "insist on a file that was not measured with --unchecked" in err


def test_the_same_from_python(place: Path) -> None:
    with pytest.raises(ValueError, match="an int8 file needs images to calibrate with"):
        detseg.load("runs/one").export("y.onnx", options=replace(
            format_named("onnx").usual_options(), precision="int8"))
    made = detseg.load("runs/one").export_int8("y.onnx")
    assert Path("y.onnx").exists()
    assert made.exported.path == Path("y.onnx")
    assert detseg.load("y.onnx")(np.zeros((40, 56, 3), np.uint8)).labels.shape == (40, 56)
