"""Formats x heads x contracts: exported, run in the real runtime, and compared with eager code; what is refused; and
what was tampered with.

Networks are small, but used (`micro`). By default every head goes to ONNX, every format takes a detector and a
segmenter as far as it can hold them, and ONNX ends in every contract; the whole product, and every config whole, is
`slow`.
"""

from __future__ import annotations

import copy
import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor

from detseg.benchmark.synthetic import OneConvolution
from detseg.choices import CONTRACTS, Contract
from detseg.data.images import read_image
from detseg.export.artefact import Artefact, open_artefact
from detseg.export.contract import Input
from detseg.export.convert import Exported, ParityError, Source, check, check_options, export
from detseg.export.format import Format, Options
from detseg.export.formats import format_named, format_of, formats
from detseg.export.formats import onnx as onnx_format
from detseg.export.manifest import DamagedFileError, Manifest
from detseg.export.parity import TOLERANCES, Difference, Parity, _roundings, reference
from detseg.export.quiet import quiet
from detseg.layers import ConvNormAct
from detseg.model import Predictor
from detseg.ops import suppression
from detseg.ops.anchors import SSDAnchors
from detseg.resize import KeepAspect, Letterbox, Rounded, Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.classification import Classification
from heads.ssdlite import SSDLite

from . import discovery, micro
from .conftest import ROOT

HEADS = sorted(discovery.one_config_a_head())
FORMATS = sorted(formats())
QUICK = ("ssd", "fcn")
"""Of every format; all heads go to ONNX."""
PICTURES = micro.scenes(4, seed=1)

pytestmark = [pytest.mark.conversion, pytest.mark.filterwarnings("ignore")]


@cache
def source(head: str) -> Source:
    predictor, task = micro.network(head)
    return Source(predictor, task, f"{head}.pt", step=7)


def usual(kind: Format, **changes: Any) -> Options:
    return replace(kind.usual_options(), **changes)


Written: TypeAlias = Callable[..., Exported]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Gives what came of an export with the given options, compared, and the same again for the same."""
    known: dict[tuple[Any, ...], Exported] = {}

    def write(head: str, name: str, **changes: Any) -> Exported:
        key = (head, name, *sorted(changes.items()))
        if key not in known:
            kind = format_named(name)
            path = tmp_path_factory.mktemp(name) / f"{head}{kind.suffix}"
            known[key] = export(source(head), path, kind, usual(kind, **changes), images=PICTURES)
        return known[key]

    return write


# ------------------------------------------------------------------------------------------ operators of a format


class Suppressed(torch.nn.Module):
    """Greedy suppression alone."""

    def forward(self, boxes: Tensor, labels: Tensor, entered: Tensor) -> Tensor:
        kept: Tensor = torch.ops.detseg.greedily_kept(boxes, labels, entered, 0.5)
        return kept


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_suppression_is_one_operator_and_keeps_the_same(name: str, tmp_path: Path) -> None:
    """Twins of another class, twins of the same, boxes without an area, and images where nothing has entered."""
    generator = torch.Generator().manual_seed(0)
    corners = 8 * torch.randint(0, 12, (6, 60, 2, 2), generator=generator).sort(dim=2).values.float()
    boxes, labels = corners.flatten(2), torch.randint(0, 3, (6, 60), generator=generator)
    entered = (torch.rand(6, 60, generator=generator) < torch.tensor([1, 0.9, 0.5, 0.1, 0, 0.7])[:, None]).float()
    expected = suppression.greedily_kept(boxes, labels, entered, 0.5)
    assert 0 < expected.sum() < entered.sum()
    with quiet():
        program = torch.export.export(Suppressed(), (boxes, labels, entered), strict=False)
        model = onnx_format.model_proto(program, ["kept"], given=["boxes", "labels", "entered"],
                                        inclusive=name == "openvino")
    assert [node.op_type for node in model.graph.node].count("NonMaxSuppression") == 1
    arrays = {"boxes": boxes.numpy(), "labels": labels.numpy(), "entered": entered.numpy()}
    path = tmp_path / "kept.onnx"
    path.write_bytes(model.SerializeToString())
    if name == "onnx":
        import onnxruntime

        (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, arrays)
    else:
        openvino = pytest.importorskip("openvino")
        found = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(arrays)["kept"]
    assert np.array_equal(found, expected.numpy())


def test_a_file_of_torch_asks_for_torch_s_own_operators(written: Written) -> None:
    program = torch.export.load(written("ssd", "pt2").path)
    assert not [node for node in program.graph.nodes if str(node.target).startswith("detseg")]


# ------------------------------------------------------------------------------------------ the product


def cases() -> list[Any]:
    """Every format x head x contract, `slow` but for some."""
    found = []
    for name, kind in formats().items():
        for head in HEADS:
            for contract in CONTRACTS:
                quick = (head in QUICK or name == "onnx") and contract == (kind.contracts or CONTRACTS)[-1]
                quick |= head == "fcn" and name == "onnx"
                found.append(pytest.param(name, head, contract, id=f"{name}-{head}-{contract}",
                                          marks=() if quick else pytest.mark.slow))
    return found


@pytest.mark.parametrize(("name", "head", "contract"), cases())
def test_in_its_runtime_it_gives_what_the_network_gives(
    name: str, head: str, contract: Contract, written: Written, tmp_path: Path
) -> None:
    kind, made = format_named(name), source(head)
    two_stages = made.predictor.head.second_stage is not None
    path = tmp_path / f"{head}{kind.suffix}"
    if contract not in (kind.two_stage_contracts if two_stages else kind.contracts):
        with pytest.raises(ValueError, match="contract"):
            export(made, path, kind, usual(kind, contract=contract), images=PICTURES)
        assert not list(tmp_path.iterdir())
        return
    exported = written(head, name, contract=contract)
    assert exported.parity is not None
    assert exported.parity.passed
    assert exported.parity.predictions.share == 1.0, "the same kept boxes, the same labels"
    assert exported.parity.predictions.score_drift < 1e-4
    assert exported.parity.predictions.wanted >= 8
    artefact = open_artefact(exported.path)
    _assert_contract(artefact, contract)
    _assert_predicts_alone(artefact, made)


def _assert_contract(artefact: Artefact, contract: Contract) -> None:
    """The names, order, shapes and types that every format has."""
    outputs = artefact.outputs(micro.inputs(PICTURES[:1], micro.SIZE))
    shapes = {name: tuple(tensor.shape) for name, tensor in outputs.items()}
    types = {name: tensor.dtype for name, tensor in outputs.items()}
    assert list(shapes) == [output.name for output in artefact.manifest.outputs]
    assert [tuple(output.shape) for output in artefact.manifest.outputs] == list(shapes.values())
    if contract == "raw":
        assert set(types.values()) == {torch.float32}
        return
    height, width = micro.SIZE
    if artefact.task.label_maps:
        if contract == "final":
            assert shapes == {"labels": (1, height, width)}
            assert types["labels"] == (torch.int32 if artefact.format.name == "coreml" else torch.uint8)
        else:
            assert shapes == {"scores": (1, len(discovery.OWN), height, width)}
            assert types == {"scores": torch.float32}
        return
    if isinstance(artefact.task, Classification):
        number = len(discovery.OWN)
        assert shapes == ({"scores": (1, number)} | ({"labels": (1, number)} if contract == "final" else {}))
        assert list(types.values()) == [torch.float32, torch.int32][: len(types)]
        return
    if contract == "final":
        rows = micro.MAX_DETECTIONS
        assert shapes == {"boxes": (1, rows, 4), "scores": (1, rows), "labels": (1, rows), "count": (1,)}
        assert list(types.values()) == [torch.float32, torch.float32, torch.int32, torch.int32]
    else:
        number = shapes["boxes"][1]
        assert shapes == {"boxes": (1, number, 4), "scores": (1, number, len(discovery.OWN))}
        assert set(types.values()) == {torch.float32}


def _assert_predicts_alone(artefact: Artefact, made: Source) -> None:
    """By its manifest: the task, the classes, the resize, and what the runtime does not do."""
    assert artefact.task == made.task
    assert artefact.classes == discovery.OWN
    assert artefact.resize == Rounded(made.predictor.resize) or artefact.manifest.input.pixels == "float"
    assert artefact.manifest.fingerprint
    images = micro.inputs(PICTURES, micro.SIZE).round()
    found = artefact.finished(images, artefact.task, static=True)
    with torch.inference_mode():
        wanted = made.predictor.finished(images, made.task, static=True)
    for name, mine, other in zip(wanted._fields, found, wanted, strict=True):
        assert mine.dtype == other.dtype
        if name != "boxes":  # of two that overlap and tie, either may stay
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_every_format_is_found_and_described() -> None:
    assert set(FORMATS) >= {"onnx", "executorch", "litert", "coreml", "openvino", "ncnn", "pt2"}
    for name, kind in formats().items():
        assert format_of(Path(f"model{kind.suffix}")) is kind
        assert (ROOT / "detseg" / "export" / "formats" / f"{name}.py").is_file()
        extras = (ROOT / "pyproject.toml").read_text("utf-8")
        assert kind.extra is None or f"\n{kind.extra} = [" in extras
        assert not kind.missing((*kind.converter, *kind.runtime)), "what the tests need is installed"


@pytest.mark.parametrize("name", [name for name, kind in formats().items() if kind.operators is not None])
def test_the_runtime_tells_what_computes_its_operators(name: str, written: Written) -> None:
    kind = format_named(name)
    path = written("fcn", name, contract=kind.contracts[-1]).path
    packed = open_artefact(path).manifest.input.pack(micro.inputs(PICTURES[:1], micro.SIZE)).numpy()
    assert kind.operators is not None
    with quiet():
        operators = kind.operators(path, packed)
    left_over = sum(number for _, number, _ in operators.slowest)
    assert operators.total == left_over + (operators.delegated or 0) > 5
    times = [milliseconds for _, _, milliseconds in operators.slowest]
    if name == "litert":
        assert set(times) == {None}
    else:
        assert times == sorted(times, key=lambda one: -(one or 0))
        assert 0 < sum(one or 0 for one in times) < 1000
    if name in ("executorch", "litert"):
        assert left_over < 10, "whole label maps are XNNPACK's"
    else:
        assert operators.delegated is None


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if name in ("ncnn", "openvino") else ()) for name in FORMATS])
def test_half_precision_is_within_its_tolerance_and_smaller(name: str, written: Written, tmp_path: Path) -> None:
    kind = format_named(name)
    if "fp16" not in kind.precisions:
        with pytest.raises(ValueError, match=r"no fp16 weights here .*: take --format coreml or litert or "):
            export(source("fcn"), tmp_path / f"x{kind.suffix}", kind, usual(kind, precision="fp16"), images=PICTURES)
        return
    contract = kind.contracts[-1]
    half = written("fcn", name, precision="fp16", contract=contract)
    assert half.parity is not None
    assert half.parity.predictions.share > 0.99
    weights = sum(tensor.numel() for tensor in source("fcn").predictor.state_dict().values())
    assert half.megabytes * 1e6 < 3 * weights + 60_000, "two bytes a weight and the graph, not four"


@pytest.mark.parametrize("name", [
    "onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "pt2"))])
def test_a_batch_of_any_size(name: str, written: Written) -> None:
    assert format_named(name).dynamic_batch
    artefact = open_artefact(written("ssd" if name == "pt2" else "fcn", name, dynamic_batch=True).path)
    assert artefact.manifest.input.dynamic_batch
    assert artefact.manifest.outputs[0].shape[0] == -1
    images = micro.inputs(PICTURES[:3], micro.SIZE)
    together = artefact.outputs(images)
    for row in range(3):
        for name, tensor in artefact.outputs(images[row : row + 1]).items():
            torch.testing.assert_close(together[name][row].float(), tensor[0].float(), rtol=1e-4, atol=1e-4)


def test_floats_channels_first_another_size_and_fewer_candidates(written: Written) -> None:
    made = written("ssd", "pt2", pixels="float", layout="nchw", size=(96, 64), candidates=5)
    artefact = open_artefact(made.path)
    assert artefact.manifest.input == Input((96, 64), "float", "nchw")
    assert artefact.outputs(torch.rand(1, 3, 96, 64) * 255)["boxes"].shape == (1, 5, 4)
    assert artefact.resize.size == (96, 64)


def test_images_of_many_sizes_get_bars(tmp_path: Path) -> None:
    """Where the network takes any size, a file takes one, by a letterbox; of 4:3 images it is the same."""
    made = source("fcn")
    predictor = copy.deepcopy(made.predictor)
    predictor.resize = KeepAspect(64, 128)
    path = tmp_path / "x.onnx"
    kind = format_named("onnx")
    export(made._replace(predictor=predictor), path, kind, usual(kind), images=PICTURES[:2])
    artefact = open_artefact(path)
    assert artefact.manifest.resize_rule == Letterbox((64, 85))
    photo = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    assert np.array_equal(artefact.resize.apply(photo), predictor.resize.apply_rounded(photo))


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(("name", "head", "changes", "message"), [
    ("ncnn", "ssd", {"contract": "final"},
     "ncnn files cannot hold the contract final of SSD (ncnn has no topk and no gather (Tencent/ncnn issues 5520 and "
     "4156), and no whole numbers): take --contract raw or decoded, or --format coreml or executorch or litert or onnx "
     "or openvino or pt2"),
    ("ncnn", "faster_rcnn", {"contract": "decoded"},
     "ncnn files cannot hold the contract decoded of FasterRCNN (pnnx records"),
    ("onnx", "faster_rcnn", {"contract": "raw"}, "a head with a second stage has no raw contract"),
    ("ncnn", "ssd", {"contract": "raw", "pixels": "uint8"},
     "ncnn files take no uint8 images (ncnn takes floats; Mat.from_pixels makes them of bytes): take --input float"),
    ("coreml", "ssd", {"layout": "nhwc"},
     "Core ML files take no images as nhwc (Core ML's images are pixel buffers): take --layout nchw, or --format "),
    ("executorch", "ssd", {"dynamic_batch": True},
     "ExecuTorch files take batches of one size (the program's memory is planned for one size): take no "
     "--dynamic-batch, or --format onnx or openvino or pt2"),
    ("pt2", "ssd", {"precision": "fp16"},
     "PyTorch files have no fp16 weights here (torch computes in the precision of its weights, and half is slow on a "
     "CPU): take --format coreml or litert or"),
    ("onnx", "fcn", {"candidates": 100}, "--candidates is for detectors"),
    ("onnx", "ssd", {"candidates": 0}, "--candidates is at least 1, got 0"),
])
def test_what_a_format_cannot_hold_is_refused_with_the_alternative(
    name: str, head: str, changes: dict[str, Any], message: str
) -> None:
    kind = format_named(name)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_options(kind, usual(kind, **changes), source(head))


def test_nothing_heavy_is_imported_before_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor to list the formats: all of detseg is imported once more, where converters and runtimes cannot be."""
    heavy = {module for kind in formats().values() for module in (*kind.converter, *kind.runtime)}
    assert {"onnx", "executorch", "litert_torch"} <= heavy
    imported = set(sys.modules)
    for name in [name for name in imported if name.partition(".")[0] == "detseg"]:
        monkeypatch.delitem(sys.modules, name)
    for name in heavy:
        monkeypatch.setitem(sys.modules, name, None)
    try:
        for name in ("artefact", "convert"):
            importlib.import_module(f"detseg.export.{name}")
        again = importlib.import_module("detseg.export.formats").formats()
        assert again.keys() == formats().keys()
        for kind in again.values():
            kind.missing((*kind.converter, *kind.runtime))
    finally:
        for name in set(sys.modules) - imported:
            del sys.modules[name]


def test_a_missing_package_is_named_with_the_line_that_installs_it(tmp_path: Path) -> None:
    kind = replace(format_named("onnx"), converter=("onnx", "no_such_converter"), runtime=("no_such_runtime",))
    with pytest.raises(ValueError, match=re.escape(
            "to write ONNX files, no_such_converter must be installed: pip install 'detseg[onnx]'")):
        export(source("fcn"), tmp_path / "x.onnx", kind, usual(kind), images=PICTURES)
    kind = replace(kind, converter=("onnx",))
    with pytest.raises(ValueError, match=re.escape("to compare ONNX files, no_such_runtime must be installed")):
        export(source("fcn"), tmp_path / "x.onnx", kind, usual(kind), images=PICTURES)
    unchecked = export(source("fcn"), tmp_path / "x.onnx", kind, usual(kind), images=PICTURES, unchecked=True)
    assert unchecked.parity is None
    assert unchecked.path.is_file()


def test_what_a_user_does_wrong(tmp_path: Path) -> None:
    kind = format_named("onnx")
    made = source("ssd")
    with pytest.raises(ValueError, match="there are no images to compare the file on; name some with --images"):
        export(made, tmp_path / "x.onnx", kind, usual(kind), images=[])
    with pytest.raises(ValueError, match=r"ONNX files end in .onnx, got x.pte"):
        export(made, tmp_path / "x.pte", kind, usual(kind), images=PICTURES)
    with pytest.raises(ValueError, match=r"input size is \(height, width\) in pixels, each at least 1, got \(0, 96\)"):
        export(made, tmp_path / "x.onnx", kind, usual(kind, size=(0, 96)), images=PICTURES)
    with pytest.raises(ValueError, match=r"there is no format 'onyx'; did you mean onnx\?"):
        format_named("onyx")
    with pytest.raises(ValueError, match=r"x.txt is no exported file; those end in .*\.onnx"):
        open_artefact(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*x.onnx"):
        open_artefact(tmp_path / "x.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        export(made, tmp_path / "file" / "x.onnx", kind, usual(kind), images=PICTURES)
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing else is left"


def test_a_network_that_cannot_take_the_size_is_told_so(tmp_path: Path) -> None:
    class Picky(Predictor):
        def features(self, images: Tensor) -> Any:
            raise RuntimeError("sizes must match")

    made = source("fcn")
    predictor = copy.deepcopy(made.predictor)
    predictor.__class__ = Picky
    kind = format_named("onnx")
    with pytest.raises(ValueError, match="the network cannot take images of 64 x 96: sizes must match"):
        export(made._replace(predictor=predictor), tmp_path / "x.onnx", kind, usual(kind), images=PICTURES)


# ------------------------------------------------------------------------------------------ sabotage


def _bgr(self: Input, packed: Tensor) -> Tensor:
    return packed.permute(0, 3, 1, 2).flip(1).to(torch.float32)


def _already_normal(self: Input, packed: Tensor) -> Tensor:
    return packed.permute(0, 3, 1, 2).to(torch.float32) / 255


def test_a_conversion_that_goes_wrong_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, path = format_named("pt2"), tmp_path / "x.pt2"
    path.write_text("the file from before")
    for mistake, cause in ((_bgr, "the file takes BGR where RGB is meant"),
                           (_already_normal, "x.pt2 was not written")):
        monkeypatch.setattr(Input, "unpack", mistake)
        with pytest.raises(ParityError, match=cause) as caught:
            export(source("fcn"), path, kind, usual(kind), images=PICTURES)
        assert path.read_text() == "the file from before"
        assert caught.value.parity is not None
        report = json.loads((tmp_path / "x.pt2.parity.json").read_text())
        assert report["passed"] is False
        assert report["problems"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.pt2", "x.pt2.parity.json"]
    monkeypatch.setattr(Input, "unpack", _bgr)
    left = export(source("fcn"), path, kind, usual(kind), images=PICTURES, unchecked=True)
    assert left.parity is not None
    assert not left.parity.passed
    assert path.stat().st_size > 1000


def _other_normalisation(predictor: Predictor) -> None:
    predictor.set_normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _taking_bgr(predictor: Predictor) -> None:
    assert isinstance(predictor.backbone, OneConvolution)
    for layer in predictor.backbone.convs:
        assert isinstance(layer, ConvNormAct)
        weight = layer.get_parameter("conv.weight")
        weight.data = weight.data.flip(1)
    for buffer in (predictor.scale, predictor.shift):
        buffer.copy_(buffer.flip(1))


def _shuffled(predictor: Predictor) -> None:
    names = predictor.classes.names
    predictor.classes = Classes((names[1], names[0], names[2]), (5, 2, 40))


def _shuffled_rows(predictor: Predictor) -> None:
    """The classifier's first two classes change places, the names do not."""
    for layer in predictor.head.class_layers:
        for name in ("weight", "bias"):
            tensor = predictor.head.get_parameter(f"{layer}.{name}").data
            rows = tensor.view(-1, predictor.head.num_outputs, *tensor.shape[1:])
            first = predictor.head.num_outputs - 3
            rows[:, [first, first + 1]] = rows[:, [first + 1, first]].clone()


def _another_weight(predictor: Predictor) -> None:
    layer = next(iter(predictor.head.class_layers))
    predictor.head.get_parameter(f"{layer}.weight").data.view(-1)[0] += 1.0


@pytest.mark.parametrize(("head", "change", "messages"), [
    ("fcn", _other_normalisation,
     ["normalisation: mean (0.5, 0.5, 0.5)", "the normalisation is wrong: the file brings images"]),
    ("ssd", _taking_bgr, ["the file takes BGR where RGB is meant"]),
    ("fcn", _shuffled, ["it has the classes in another order"]),
    ("ssd", _shuffled_rows,
     ["it was made of other weights", "the classes are in another order: 0 comes as 1, 1 comes as 0"]),
    ("fcn", _shuffled_rows, ["the classes are in another order: 0 comes as 1, 1 comes as 0"]),
    ("fcn", _another_weight, ["it was made of other weights: other.pt"]),
    ("faster_rcnn", _taking_bgr, ["the file takes BGR where RGB is meant"]),
])
def test_a_file_of_another_network_is_named(
    head: str, change: Callable[[Predictor], None], messages: list[str], tmp_path: Path
) -> None:
    made, kind, path = source(head), format_named("pt2"), tmp_path / "x.pt2"
    other = copy.deepcopy(made.predictor)
    change(other)
    export(made._replace(predictor=other, name="other.pt"), path, kind, usual(kind), images=PICTURES)
    with pytest.raises(ParityError, match=re.escape(f"x.pt2 is not {head}.pt")) as caught:
        check(path, made, PICTURES)
    for message in messages:
        assert message in str(caught.value)


def test_the_file_itself_passes_its_check(written: Written) -> None:
    assert check(written("ssd", "onnx", contract="final").path, source("ssd"), PICTURES).passed


def _content(path: Path) -> Path:
    """Where a format has its weights."""
    if path.is_dir():
        return next(path.rglob("weight.bin"))
    beside = path.with_suffix(".bin")
    return beside if beside.is_file() else path


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_changed_since_is_refused(name: str, written: Written, tmp_path: Path) -> None:
    kind = format_named(name)
    path = written("fcn", name, contract=kind.contracts[-1]).path
    assert open_artefact(path).outputs(micro.inputs(PICTURES[:1], micro.SIZE))

    def damaged(how: Callable[[bytes], bytes], where: Callable[[Path], Path]) -> Path:
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        shutil.copytree(path.parent, tmp_path / "damaged")
        copied = tmp_path / "damaged" / path.name
        file = where(copied)
        file.write_bytes(how(file.read_bytes()))
        return copied

    def weight(content: bytes) -> bytes:
        at = len(content) // 3
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    with pytest.raises(DamagedFileError, match=r"is not what was written|damaged|cut short"):
        open_artefact(damaged(weight, _content))
    with pytest.raises(DamagedFileError, match=r"cut short|is not what was written"):
        open_artefact(damaged(lambda content: content[: len(content) * 2 // 3], _content))

    edited = damaged(lambda content: content, _content)
    text = kind.manifest(edited)
    other = text.replace('"bolt"', '"nail"')
    assert other != text
    _put(kind, edited, text, other)
    with pytest.raises(DamagedFileError, match="its manifest was edited since it was written"):
        open_artefact(edited)


def _put(kind: Format, path: Path, text: str, other: str) -> None:
    """Another manifest into a file, as an editor would do it."""
    for file in [path, *path.parent.rglob("*")]:
        if file.is_file():
            for old, new in ((text, other), *((text.replace('"', quote).replace("\n", line),
                                              other.replace('"', quote).replace("\n", line))
                                             for quote, line in (("&quot;", "&#10;"), ("&quot;", "\n")))):
                if old.encode() in (content := file.read_bytes()):
                    file.write_bytes(content.replace(old.encode(), new.encode()))
                    return
    raise AssertionError("the manifest was not found")


def test_what_lies_beside_must_be_there(written: Written, tmp_path: Path) -> None:
    shutil.copy(written("fcn", "ncnn", contract="decoded").path, tmp_path)
    with pytest.raises(DamagedFileError, match=r"needs its manifest fcn.ncnn.param.json beside it"):
        open_artefact(tmp_path / "fcn.ncnn.param")
    shutil.copy(written("fcn", "openvino", contract="final").path, tmp_path)
    with pytest.raises(DamagedFileError, match=r"needs its weights fcn.bin beside it"):
        open_artefact(tmp_path / "fcn.xml")


# ------------------------------------------------------------------------------------------ the manifest


def test_a_manifest_says_everything_and_no_paths(written: Written) -> None:
    path = written("ssd", "onnx", contract="final").path
    artefact = open_artefact(path)
    manifest = artefact.manifest
    assert (manifest.format, manifest.contract, manifest.precision) == ("onnx", "final", "fp32")
    assert manifest.checkpoint["name"] == "ssd.pt"
    assert manifest.checkpoint["step"] == 7
    assert {"torch", "onnx", "onnxruntime"} <= manifest.tools.keys()
    assert manifest.task["score_threshold"] == 0.05
    assert manifest.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-6)
    values = json.loads(manifest.to_json())
    assert values["input"] | {"size": [64, 96], "pixels": "uint8", "layout": "nhwc", "colour_order": "rgb"} == (
        values["input"])
    assert Manifest.from_json(manifest.to_json(), what="x") == manifest
    assert str(ROOT).encode() not in path.read_bytes(), "it does not name the machine that it was made on"
    session = __import__("onnxruntime").InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["detseg"]) == values


def test_a_newer_manifest_is_refused() -> None:
    with pytest.raises(ValueError, match="x has a manifest of version 9, this detseg reads 1"):
        Manifest.from_json('{"version": 9, "digest": ""}', what="x")
    for text in ("", "{}", "[]", '{"version": 1}'):
        with pytest.raises(DamagedFileError, match="x: its manifest is damaged"):
            Manifest.from_json(text, what="x")


# ------------------------------------------------------------------------------------------ the whole of it


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["onnx", "executorch", "litert"])
@pytest.mark.parametrize("config", [path.stem for path in discovery.configs()])
def test_every_config_on_photographs(config: str, name: str, shared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = discovery.small_config(ROOT / "configs" / f"{config}.py")
    predictor = small.build_model(discovery.OWN)
    micro.use(predictor, predictor.resize.size)
    made, kind = Source(predictor, small.experiment.task, config), format_named(name)
    files = sorted((shared / "data" / "coco_mini" / "val2017").glob("*.jpg"))[:6]
    exported = export(made, tmp_path / f"x{kind.suffix}", kind, usual(kind), images=[*map(read_image, files)])
    assert exported.parity is not None
    assert exported.parity.predictions.wanted > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "executorch", "litert", "coreml"])
@pytest.mark.parametrize("backbone", discovery.backbones())
def test_every_backbone(backbone: str, name: str, tmp_path: Path) -> None:
    """Under SSDLite."""
    torch.manual_seed(0)
    trunk = discovery.backbones()[backbone](width=0.25, taps=("c4", "c5"))
    head = SSDLite(trunk.specs, len(discovery.OWN), anchors=SSDAnchors(), width=0.1)
    predictor = Predictor(trunk, head, classes=discovery.OWN, resize=Stretch(micro.SIZE), mean=IMAGENET_MEAN,
                          std=IMAGENET_STD)
    micro.use(predictor, micro.SIZE)
    kind = format_named(name)
    exported = export(Source(predictor, source("ssdlite").task, backbone), tmp_path / f"x{kind.suffix}", kind,
                      usual(kind, contract="decoded"), images=PICTURES)
    assert exported.parity is not None
    assert exported.parity.predictions.wanted >= 8


# ------------------------------------------------------------------------------------------------- tolerance


def test_a_network_that_loses_digits_itself_may_differ_by_as_many() -> None:
    apart = Difference(largest=4e-4, magnitude=1.0, images=1)
    parity = Parity(1, TOLERANCES["fp32"], {"scores": apart})
    assert parity.problems() == ["scores: off by up to 0.0004, allowed are 0.0001"]
    apart.rounding = 0.9e-4
    assert parity.problems() == ["scores: off by up to 0.0004, allowed are 0.00036"]
    apart.rounding = 1.1e-4
    assert parity.passed


@pytest.mark.parametrize("head", HEADS)
def test_what_a_network_loses_is_found_in_double_precision(head: str) -> None:
    made, images = source(head), [micro.inputs(PICTURES[:1], micro.SIZE)]
    wanted, _ = reference(made.predictor, made.task, images[0], contract="raw")
    found = _roundings(made.predictor, made.task, images, contract="raw")
    assert found.keys() == wanted.keys()
    for name, rounding in found.items():
        assert rounding < 1e-5 * max(1.0, float(wanted[name].abs().max())), name
