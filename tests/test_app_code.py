"""App code for exported files: what is written for every target, what is refused, that docs/ shows the same, and that
what can be built here gives what Python gives."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detseg
from detseg.export.app_code import app_code, source, targets_for
from detseg.export.app_docs import example, fill, write_docs
from detseg.export.app_targets import NOT_RUN, RUN, TARGETS, Target, target_named
from detseg.export.artefact import open_artefact
from detseg.export.contract import ExportedNetwork, Input, output_specs, task_values
from detseg.export.convert import Source, export
from detseg.export.format import Options
from detseg.export.formats import format_named
from detseg.export.manifest import Manifest, fixed_resize
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.resize import Letterbox, Resize, Rounded, Stretch, TensorFlowStretch
from detseg.structures import Classes, ImageDetections, Pixels, Size, Threshold

from . import micro
from .commands import run
from .conftest import ROOT

HEADS = ("ssd", "lraspp")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
RESIZES: tuple[Resize, ...] = (
    Stretch(micro.SIZE), Letterbox(micro.SIZE, fill=(9, 90, 200)), TensorFlowStretch(micro.SIZE))
CASES = (("ssd", RESIZES[0], "uint8", "nhwc"), ("ssd", RESIZES[1], "float", "nchw"),
         ("lraspp", RESIZES[1], "uint8", "nhwc"), ("lraspp", RESIZES[0], "float", "nchw"),
         ("ssd", RESIZES[2], "uint8", "nhwc"), ("lraspp", RESIZES[2], "float", "nchw"))
"""Detectors and segmenters, every resize, every type and layout."""
ODD = Classes(names=('a "quoted" \\ name', "dollar $name", "line\nbreak\x01", "größe 🚲"), source_ids=(1, 2, 3, 4))
"""Names that a language would take for something else."""

pytestmark = [pytest.mark.conversion, pytest.mark.filterwarnings("ignore")]


@cache
def _specs(head: str, size: Size) -> Any:
    predictor, task = micro.network(head)
    given = Input(size, "uint8", "nchw")
    return task, predictor.classes, output_specs(ExportedNetwork(predictor, task, contract="final", given=given).eval())


def manifest(head: str, format_name: str, *, resize: Resize = RESIZES[0], pixels: Any = "uint8", layout: Any = None,
             dynamic_batch: bool = False, **changes: Any) -> Manifest:
    """What a micro network's file would say of itself."""
    task, classes, outputs = _specs(head, resize.size)
    rule, resize = fixed_resize(resize, None)
    if dynamic_batch:
        outputs = tuple(dataclasses.replace(one, shape=(-1, *one.shape[1:])) for one in outputs)
    given = Input(resize.size, pixels, layout or format_named(format_name).layouts[0], dynamic_batch)
    made = Manifest(
        detseg="0", format=format_name, contract="final", precision="fp32", task=task_values(task), classes=classes,
        input=given, resize=rule, fill=resize.fill, mean=(0.0,) * 3, std=(1.0,) * 3, outputs=outputs, fingerprint={},
        checkpoint={"name": "runs/x\nlast.pt\\"}, licence=None, created="", tools={})
    return dataclasses.replace(made, **changes)


def variants(target: Target) -> Iterator[tuple[str, Manifest]]:
    """Every file that a target may meet, and what to call it."""
    kind = format_named(target.format)
    for head in HEADS:
        for resize in RESIZES:
            for pixels in kind.pixels:
                for layout in kind.layouts:
                    yield (f"{head}-{type(resize).__name__}-{pixels}-{layout}",
                           manifest(head, target.format, resize=resize, pixels=pixels, layout=layout))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.name))
def test_every_target_writes_code_for_every_file(target: Target) -> None:
    assert TARGETS
    for what, one in variants(target):
        texts = source(one, target, file="model.bin")
        assert len(texts) == len(target.templates), what
        together = "\n".join(texts.values())
        for mark in ("@{", "}@", "\n%%", "{kind}"):
            assert mark not in together, (what, mark)
        assert all(f'"{name}"' in together for name in one.classes.names), what
        assert all(str(size) in together for size in micro.SIZE), what
        assert ("9, 90, 200" in together) == (one.resize == "letterbox"), "bars have their colour"
        for name, text in texts.items():
            assert f"is {target.proof_of(name)}" in text, "a head says what the tests do with it"
            assert text.endswith("\n")
            assert not [line for line in text.splitlines() if line != line.rstrip() or len(line) > 120], name
            assert "\n\n\n" not in text, name


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.name))
def test_every_target_holds_the_threshold_of_each_class(target: Target) -> None:
    measured = {"nut": 0.8125, "washer": 1, "no class of this file": 0.3}
    texts = source(manifest("ssd", target.format, thresholds=measured), target, file="model.bin")
    lines = [line for text in texts.values() for line in text.splitlines() if "//" not in line]
    for name, threshold in (("nut", 0.8125), ("bolt", 0.4), ("washer", 1.0)):
        (line,) = [line for line in lines if f'"{name}"' in line]
        assert line.rstrip(" ,)}").endswith(f" {threshold}"), "0.4 where it was not measured; always a double"
    together = "\n".join(source(manifest("ssd", target.format), target, file="model.bin").values())
    assert len(re.findall(r"\b0\.4\b", together)) == len(manifest("ssd", target.format).classes), "and nowhere else"
    segmenter = "\n".join(source(manifest("lraspp", target.format), target, file="model.bin").values())
    assert "threshold" not in segmenter.lower()


def test_targets_are_data_about_formats_that_exist() -> None:
    names = [target.name for target in TARGETS]
    assert len(set(names)) == len(names)
    assert {target.format for target in TARGETS} == {"onnx", "executorch", "litert", "coreml"}
    assert {target.name for target in TARGETS if target.proof == RUN} == {"cpp-executorch", "js-onnxruntime"}
    assert {target.name for target in TARGETS if target.proof == NOT_RUN} == {"swift-coreml", "cpp-onnxruntime"}
    for target in TARGETS:
        assert targets_for(manifest("ssd", target.format), what="x", name=target.name) == (target,)
        assert target in targets_for(manifest("lraspp", target.format), what="x")


def test_a_free_batch_is_fed_with_one_image() -> None:
    texts = source(manifest("ssd", "onnx", dynamic_batch=True), target_named("js-onnxruntime"), file="x.onnx")
    height, width = micro.SIZE
    assert f"[1, {height}, {width}, 3])" in texts["model.mjs"]
    assert f"takes images uint8 [B, {height}, {width}, 3]" in texts["model.mjs"]
    assert "gives boxes float32 [B, 8, 4]" in texts["model.mjs"]


def test_core_ml_takes_an_image_and_gives_wide_labels() -> None:
    target = target_named("swift-coreml")
    segmenter = source(manifest("lraspp", "coreml"), target, file="x.mlpackage")["Segmenter.swift"]
    assert "MLFeatureValue(pixelBuffer: buffer)" in segmenter
    assert "gives labels int32 [1, 64, 96]" in segmenter
    floats = source(manifest("ssd", "coreml", pixels="float"), target, file="x.mlpackage")
    assert "MLFeatureValue(multiArray: " in floats["Detector.swift"]


def test_outputs_without_names_are_read_in_the_manifest_s_order() -> None:
    usual = manifest("ssd", "executorch")
    turned = dataclasses.replace(usual, outputs=tuple(reversed(usual.outputs)))
    for target, line in (("cpp-executorch", "values<float>(*result, {}, ScalarType::Float, kRows * 4)"),
                         ("kotlin-executorch", "outputs[{}].toTensor().dataAsFloatArray, ")):
        for one, place in ((usual, 0), (turned, 3)):
            texts = source(one, target_named(target), file="x.pte")
            assert line.format(place) in "\n".join(texts.values())


def _needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")


def _done(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _write(texts: dict[str, str], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def test_javascript_is_javascript(tmp_path: Path) -> None:
    _needs("node")
    for k, (head, resize, pixels, layout) in enumerate(CASES):
        one = manifest(head, "onnx", resize=resize, pixels=pixels, layout=layout)
        folder = _write(source(one, target_named("js-onnxruntime"), file='odd "name".onnx'), tmp_path / str(k))
        for path in folder.glob("*.mjs"):
            _done("node", "--check", path)
        assert json.loads((folder / "package.json").read_text())["dependencies"]


def test_cpp_is_cpp(tmp_path: Path) -> None:
    """Without the runtime's part, which needs its headers."""
    _needs("g++")
    for k, (head, resize, pixels, layout) in enumerate(CASES):
        one = manifest(head, "onnx", resize=resize, pixels=pixels, layout=layout)
        folder = _write(source(one, target_named("cpp-onnxruntime"), file="x.onnx"), tmp_path / str(k))
        (folder / "only.cpp").write_text('#include "picture.h"\nint main() { return kNumClasses == 0; }\n')
        _done("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", folder / "only.cpp")


def test_names_arrive_as_they_are(tmp_path: Path) -> None:
    _needs("node", "g++")
    odd = manifest("ssd", "onnx", classes=ODD)
    folder = _write(source(odd, target_named("js-onnxruntime"), file="x.onnx"), tmp_path)
    (folder / "names.mjs").write_text('import { classes } from "./model.mjs";\n'
                                      'console.log(JSON.stringify(classes.map((one) => one.name)));\n')
    assert tuple(json.loads(_done("node", folder / "names.mjs"))) == ODD.names
    _write(source(odd, target_named("cpp-onnxruntime"), file="x.onnx"), tmp_path)
    (folder / "names.cpp").write_text(
        '#include "picture.h"\nint main() { std::string all;'
        ' for (const auto& one : kClasses) all += quoted(one.name) + "\\n"; std::puts(all.c_str()); }\n')
    _done("g++", "-std=c++17", folder / "names.cpp", "-o", folder / "names")
    assert tuple(json.loads(line) for line in _done(folder / "names").split("\n") if line) == ODD.names
    kotlin = source(dataclasses.replace(odd, format="litert"), target_named("kotlin-litert"), file="x.tflite")
    assert '"dollar \\$name"' in kotlin["Picture.kt"]
    assert '"line\\nbreak\\u0001"' in kotlin["Picture.kt"]
    swift = source(manifest("ssd", "coreml", classes=ODD), target_named("swift-coreml"), file="x.mlpackage")
    assert '"line\\nbreak\\u{1}"' in swift["Detector.swift"]


SHOWN_JS = """import { predict } from "./model.mjs";
const outputs = { boxes: { data: new Float32Array(4 * %(count)s) }, scores: { data: new Float32Array([%(scores)s]) },
                  labels: { data: [%(labels)s] }, count: { data: [%(count)s] } };
const picture = { height: 1, width: 1, data: new Uint8Array(4) };
const ort = { Tensor: class {} }, session = { run: async () => outputs };
for (const threshold of [[], [0.7], [0.3], [0]]) {
  const found = await predict(ort, session, picture, ...threshold);
  console.log(JSON.stringify({ scores: found.map((one) => one.score), labels: found.map((one) => one.label) }));
}
"""
SHOWN_CPP = """#include "picture.h"
int main() {
  const float boxes[4 * %(count)s] = {}, scores[] = {%(scores)s};
  const int32_t labels[] = {%(labels)s};
  const Picture picture{1, 1, {0, 0, 0}};
  std::puts(as_json(detections(boxes, scores, labels, %(count)s, picture)).c_str());
  for (const double threshold : {0.7, 0.3, 0.0}) {
    std::puts(as_json(detections(boxes, scores, labels, %(count)s, picture, threshold)).c_str());
  }
}
"""


def test_scores_at_a_threshold_are_compared_as_python_compares_them(tmp_path: Path) -> None:
    """Scores are single precision, thresholds double: 0.7 as a score lies below 0.7, 0.3 above it, and 0.125 at it."""
    _needs("node", "g++")
    measured = {"nut": 0.7, "bolt": 0.3, "washer": 0.125}
    around = {float(np.nextafter(np.float32(value), np.float32(to))) for value in measured.values()
              for to in (0, value, 1)}
    rows = [(score, label) for score in sorted(around, reverse=True) for label in range(3)]
    detections = ImageDetections(0, torch.zeros(len(rows), 4), torch.tensor([score for score, _ in rows]),
                                 torch.tensor([label for _, label in rows]))
    one = manifest("ssd", "onnx", thresholds=measured)
    asked: list[Threshold] = [one.classes.thresholds(measured), 0.7, 0.3, 0.0]
    wanted = [[row for row, kept in zip(rows, detections.shown(threshold), strict=True) if kept] for threshold in asked]
    assert (float(np.float32(0.7)), 0) not in wanted[0]
    assert (float(np.float32(0.3)), 1) in wanted[0]

    folder = _write(source(one, target_named("js-onnxruntime"), file="x.onnx")
                    | source(one, target_named("cpp-onnxruntime"), file="x.onnx"), tmp_path)
    values = {"count": len(rows), "scores": ", ".join(repr(score) for score, _ in rows),
              "labels": ", ".join(str(label) for _, label in rows)}
    _write({"shown.mjs": SHOWN_JS % values, "shown.cpp": SHOWN_CPP % values}, folder)
    _done("g++", "-std=c++17", folder / "shown.cpp", "-o", folder / "shown")
    for printed in (_done("node", folder / "shown.mjs"), _done(folder / "shown")):
        found = [json.loads(line) for line in printed.splitlines()]
        assert [[(float(np.float32(score)), label) for score, label in zip(one["scores"], one["labels"], strict=True)]
                for one in found] == wanted


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with files that say what they are, and hold nothing: final, raw, and of a format without code."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "final.onnx").write_bytes(b"nothing")
    (folder / "raw.onnx").write_bytes(b"nothing")
    with zipfile.ZipFile(folder / "final.pt2", "w") as archive:
        archive.writestr("final/nothing", "")
    for name, contract in (("final.onnx", "final"), ("raw.onnx", "raw"), ("final.pt2", "final")):
        kind = format_named(Path(name).suffix[1:])
        one = manifest("ssd", kind.name, contract=contract, content=kind.digest(folder / name))
        kind.embed(folder / name, one.to_json())
    return folder


def test_the_command_writes_what_fits_the_file(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run("app_code", str(files / "final.onnx"), "--out", str(tmp_path / "all"), capsys=capsys)
    assert code == 0
    fitting = [target for target in TARGETS if target.format == "onnx"]
    assert len(fitting) == 3
    for target in fitting:
        written = {path.name: path.read_text("utf-8") for path in (tmp_path / "all" / target.name).iterdir()}
        assert written == app_code(files / "final.onnx")[target.name]
        assert f"{tmp_path / 'all' / target.name}: {', '.join(app_code(files / 'final.onnx')[target.name])}" in out
    code, out, _ = run("app_code", str(files / "final.onnx"), "--target", "cpp-onnxruntime", "--out",
                       str(tmp_path / "one"), capsys=capsys)
    assert code == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["cpp-onnxruntime"]


def test_the_command_lists_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("app_code", "--targets", capsys=capsys)
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == [target.name for target in TARGETS]
    assert f"swift-coreml: iOS and macOS: Swift, Core ML; {NOT_RUN}" in out


@pytest.mark.parametrize(("arguments", "code", "message"), [
    ([], 2, "name an exported file, or list the targets with --targets"),
    (["raw.onnx"], 2, "raw.onnx ends with raw predictions, and app code reads final ones: write it again with "
                      "detseg export RUN --format onnx --contract final"),
    (["final.pt2", "--target", "cpp-executorch"], 2,
     "there is no app code for pt2 files such as final.pt2; export with --format coreml or executorch or litert or "
     "onnx"),
    (["final.onnx", "--target", "kotlin-litert"], 2,
     "kotlin-litert runs litert files, final.onnx is of onnx: take --target kotlin-onnxruntime or "
     "cpp-onnxruntime or js-onnxruntime, or a file of detseg export RUN --format litert"),
    (["final.onnx", "--target", "kotlin-liter"], 2, "there is no target 'kotlin-liter'; did you mean kotlin-litert?"),
    (["none.onnx"], 2, "there is no file none.onnx"),
    (["runs/one"], 2, "runs/one is no exported file; those end in "),
    (["cut.onnx"], 1, "cut.onnx has no manifest: it was cut short"),
    (["final.onnx", "--out", "cut.onnx"], 1, "cut.onnx"),
])
def test_what_a_user_does_wrong(
    arguments: list[str], code: int, message: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path("cut.onnx").write_bytes(Path("final.onnx").read_bytes()[:999])
    found, out, err = run("app_code", *arguments, capsys=capsys)
    assert message in err
    assert (found, out) == (code, "")
    assert not Path("apps").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_docs_show_what_the_command_writes(page: Path) -> None:
    text = page.read_text("utf-8")
    assert fill(text, configs=ROOT / "configs") == text, "detseg app-code --docs writes it again"


def test_docs_have_a_page_for_everything() -> None:
    together = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert {page.relative_to(ROOT / "docs").as_posix() for page in PAGES} >= {
        "on_device.md", "on_device/android.md", "on_device/ios.md", "on_device/cpp.md", "on_device/browser.md"}
    shown = {template: target.name for target in TARGETS for name, template in target.templates.items()
             if f"<!-- app_code {target.name} detection {name.format(kind='Detector')} -->" in together}
    assert shown.keys() == {template for target in TARGETS for template in target.templates.values()}
    for target in TARGETS:
        assert f"<!-- app_code {target.name} segmentation " in together
    for version in ("litert:2.3.0", "executorch-android:1.5.1", "onnxruntime-android:1.30.0"):
        assert version in together
    for link in ("android.md", "ios.md", "cpp.md", "browser.md"):
        assert f"(on_device/{link})" in (ROOT / "docs" / "on_device.md").read_text("utf-8")
    assert "docs/on_device.md" in (ROOT / "README.md").read_text("utf-8")


def test_the_example_is_what_export_would_write() -> None:
    one = example(ROOT / "configs" / "ssdlite_v3_large.py", "coreml")
    assert one.input == Input((224, 224), "uint8", "nchw")
    assert [output.name for output in one.outputs] == ["boxes", "scores", "labels", "count"]
    assert Manifest.from_json(one.to_json(), what="x") == one


def test_the_command_finds_nothing_to_write_in_docs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("app_code", "--docs", capsys=capsys) == (0, "0 pages changed\n", "")


def test_a_page_is_filled_again(tmp_path: Path) -> None:
    page = tmp_path / "deep" / "page.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- app_code targets -->\nold\n<!-- end -->\nafter\n")
    assert write_docs(tmp_path, configs=ROOT / "configs") == [page]
    assert write_docs(tmp_path, configs=ROOT / "configs") == []
    text = page.read_text()
    assert text.startswith("before\n<!-- app_code targets -->\n| target | for | files | tests |\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert all(f"| `{target.name}` |" in text for target in TARGETS)


@pytest.mark.parametrize(("block", "message"), [
    ("nothing", "a block of docs is <!-- app_code TARGET detection|segmentation FILE -->, got 'nothing'"),
    ("facts counting", "got 'facts counting'"),
    ("cpp-executorc detection main.cpp", "there is no target 'cpp-executorc'; did you mean cpp-executorch?"),
    ("cpp-executorch detection x.c", "cpp-executorch has the files picture.h, main.cpp, CMakeLists.txt, got 'x.c'"),
])
def test_a_block_that_nothing_is_known_of(block: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|").replace("?", r"\?")):
        fill(f"<!-- app_code {block} -->\n<!-- end -->\n", configs=ROOT / "configs")


BUILT = pytest.mark.parametrize(("head", "resize", "pixels", "layout"), CASES,
                                ids=lambda value: value if isinstance(value, str) else type(value).__name__)


@cache
def pictures() -> tuple[Pixels, ...]:
    """Of odd sizes, wide and high, smaller and larger than the input, and twice and half its size."""
    one, two, three = micro.scenes(3, seed=5)
    noise = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    return (one, two, np.ascontiguousarray(three[:40]), np.ascontiguousarray(three[:, :33]), noise,
            np.ascontiguousarray(noise[:32, :48]), np.ascontiguousarray(noise[:7, :5]))


def _ppm(path: Path, image: Pixels) -> Path:
    path.write_bytes(b"P6\n# a comment\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes())
    return path


def _thresholds(predictor: Predictor, task: Any) -> dict[str, float]:
    """Of a detector two that are far apart, where no score is near; what the third class shows is unsure."""
    found = [predict_image(predictor, task, image) for image in pictures()]
    scores, labels = (torch.cat(parts) for parts in zip(*((one.scores, one.labels) for one in found), strict=True))
    chosen = {}
    for label, about in ((1, 0.75), (2, 0.9)):
        own = scores[labels == label].double().sort().values
        own = own[(own - about).abs() < 0.05]
        gaps = own.diff()
        assert gaps.max() > 0.008
        chosen[predictor.classes.names[label]] = float(own[gaps.argmax()] + gaps.max() / 2)
    return chosen


def _exported(folder: Path, format_name: str, head: str, resize: Resize, pixels: Any, layout: Any) -> Path:
    predictor, task = micro.network(head)
    predictor.resize = resize
    thresholds = _thresholds(predictor, task) if head == "ssd" else None
    kind = format_named(format_name)
    path = folder / f"model{kind.suffix}"
    export(Source(predictor, task, f"{head}.pt", thresholds=thresholds), path, kind,
           Options(pixels=pixels, layout=layout), images=pictures()[:2])
    return path


def assert_same(
    program: list[str | Path], path: Path, folder: Path, capsys: pytest.CaptureFixture[str], *,
    number: int | None = None,
) -> None:
    """A program gives for every picture, or some, what `detseg.load` gives, and what detseg predict wrote down."""
    model = detseg.load(path)
    segmenter = model.task.label_maps
    (folder / "png").mkdir()
    for k, image in enumerate(pictures()[:number]):
        Image.fromarray(image).save(folder / "png" / f"{k}.png")
    written = ["--labels", str(folder / "labels")] if segmenter else ["--csv", str(folder / "shown.csv")]
    assert run("predict", str(path), str(folder / "png"), "--out", str(folder / "out"), *written, capsys=capsys)[0] == 0
    told = json.loads((folder / "out" / "predictions.json").read_text())
    lowest, left_out = 1.0, 0.0
    for k, image in enumerate(pictures()[:number]):
        picture = _ppm(folder / f"{k}.ppm", image)
        if segmenter:
            _done(*program, path, picture, folder / "map.pgm", folder / "colours.ppm")
            found = np.asarray(Image.open(folder / "map.pgm"))
            ids = np.asarray(model.classes.source_ids)[found]
            assert found.shape == image.shape[:2]
            for wanted, got in ((np.asarray(model(image).labels), found),
                                (np.asarray(Image.open(folder / "labels" / f"{k}.png")), ids)):
                assert np.count_nonzero(got != wanted) <= 0.001 * wanted.size
            colours = np.asarray(Image.open(folder / "colours.ppm"))
            assert np.array_equal(colours, np.asarray(model.classes.colours)[found])
            continue
        printed = json.loads(_done(*program, path, picture, "0"))
        assert printed["names"] == [model.classes.names[label] for label in printed["labels"]]
        own = model(image)
        wanted_rows = [(*map(float, box), float(score), int(label)) for box, score, label in
                       zip(own.boxes, own.scores, own.labels, strict=True)]
        rows = _rows(printed)
        assert len(wanted_rows) > 1
        _assert_boxes(rows, wanted_rows)
        places = {source_id: place for place, source_id in enumerate(model.classes.source_ids)}
        _assert_boxes(rows, [(x, y, x + w, y + h, one["score"], places[one["category_id"]]) for one in told
                            if one["image_id"] == k for x, y, w, h in [one["bbox"]]])
        sure = json.loads(_done(*program, path, picture, "0.7"))
        assert sure["scores"] == [score for score in printed["scores"] if score >= 0.7]
        shown = _rows(json.loads(_done(*program, path, picture)))
        with (folder / "shown.csv").open(newline="") as file:
            _assert_boxes(shown, [
                (*(float(row[side]) for side in ("left", "top", "right", "bottom")), float(row["score"]),
                 model.classes.names.index(row["class"]))
                for row in csv.DictReader(file) if Path(row["image"]).stem == str(k)])
        lowest = min([lowest, *(row[4] for row in shown)])
        left_out = max([left_out, *(row[4] for row in rows if row not in shown)])
    assert segmenter or left_out > lowest, "one threshold for all classes would do the same"


def _rows(printed: Mapping[str, Any]) -> list[Any]:
    return [(*box, score, label) for box, score, label in
            zip(printed["boxes"], printed["scores"], printed["labels"], strict=True)]


def _assert_boxes(got: list[Any], wanted: list[Any]) -> None:
    """Box for box; those of nearly equal scores may change places."""
    assert len(got) == len(wanted)
    assert [one[4] for one in got] == sorted((one[4] for one in got), reverse=True)
    left = list(wanted)
    for *box, score, label in got:
        near = [one for one in left if one[5] == label and abs(one[4] - score) <= 0.005
                and np.abs(np.subtract(one[:4], box)).max() <= 0.5]
        assert near, (box, score, label, left)
        left.remove(near[0])


@pytest.mark.slow
@BUILT
def test_cpp_with_executorch_gives_what_python_gives(
    head: str, resize: Resize, pixels: str, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _needs("cmake", "g++")
    spec = importlib.util.find_spec("executorch")
    folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    if not any((place / "lib" / "libexecutorch.so").exists() for place in folders):
        pytest.skip("the executorch wheel that is installed here ships no libraries for C++")
    path = _exported(tmp_path, "executorch", head, resize, pixels, layout)
    folder = _write(app_code(path)["cpp-executorch"], tmp_path / "app")
    _done("cmake", "-S", folder, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release",
          "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror", f"-DCMAKE_PREFIX_PATH={folders[0]}")
    _done("cmake", "--build", folder / "build")
    assert_same([folder / "build" / "predict"], path, tmp_path, capsys)
    for arguments, message in ((["x.pte"], "usage: predict"), (["x.pte", "none.ppm", "y"], "none.ppm is no binary PPM"),
                               ([tmp_path / "x.pte", tmp_path / "0.ppm", "0"], "x.pte does not run: error")):
        failed = subprocess.run([folder / "build" / "predict", *arguments], capture_output=True, text=True)
        assert failed.returncode == 1
        assert message in failed.stderr


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX Runtime for Node and for browsers, as npm brings them; without what their installation would download."""
    _needs("node", "npm")
    folder = tmp_path_factory.mktemp("node")
    texts = source(manifest("ssd", "onnx"), target_named("js-onnxruntime"), file="x.onnx")
    (folder / "package.json").write_text(texts["package.json"])
    web = next(line for line in texts["browser.mjs"].splitlines() if "npm install" in line).split()[-1]
    done = subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", web], cwd=folder,
                          capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install onnxruntime-node and {web}: {done.stderr[-300:]}")
    return folder / "node_modules"


@pytest.mark.slow
@BUILT
def test_javascript_with_onnx_runtime_gives_what_python_gives(
    head: str, resize: Resize, pixels: str, layout: str, node_modules: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = _exported(tmp_path, "onnx", head, resize, pixels, layout)
    folder = _write(app_code(path)["js-onnxruntime"], tmp_path / "app")
    (folder / "node_modules").symlink_to(node_modules)
    assert_same(["node", folder / "predict.mjs"], path, tmp_path, capsys)
    failed = subprocess.run(["node", folder / "predict.mjs", path, path, "x"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "is no binary PPM of 8 bits" in failed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[1:3], ids=lambda case: str(case[0]))
def test_browsers_webassembly_gives_what_python_gives(
    case: tuple[str, Resize, str, str], node_modules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs in Node as well, without a page."""
    path = _exported(tmp_path, "onnx", *case)
    folder = _write(app_code(path)["js-onnxruntime"], tmp_path / "app")
    (folder / "node_modules").symlink_to(node_modules)
    program = folder / "predict.mjs"
    program.write_text(program.read_text().replace('"onnxruntime-node"', '"onnxruntime-web"'))
    assert_same(["node", program], path, tmp_path, capsys, number=2)


KOTLIN = tuple((target, case) for target in ("litert", "executorch", "onnxruntime") for case in CASES)
"""Every runtime with every case."""
DETECT = """APP.Detector(path).use { for (found in listOf(it.detect(bitmap, 0.0), it.detect(bitmap))) {
    for (one in found) {
        println("${one.left} ${one.top} ${one.right} ${one.bottom} ${one.score} ${one.label} ${one.name}")
    }
    println("end")
} }"""
SEGMENT = """APP.Segmenter(path).use {
    val map = it.segment(bitmap)
    java.io.File("$path.map").writeBytes(map)
    print(APP.coloured(map).joinToString(" "))
}"""
MAIN = """
fun main(arguments: Array<String>) {
    val (case, path, ppm) = arguments
    val pixels = java.io.File(ppm).readBytes()
    val (width, height) = java.io.File("$ppm.size").readText().split(" ").map(String::toInt)
    val start = pixels.size - 3 * height * width
    val colours = IntArray(height * width) { k ->
        fun byte(c: Int) = pixels[start + 3 * k + c].toInt() and 0xFF
        (0xFF shl 24) or (byte(0) shl 16) or (byte(1) shl 8) or byte(2)
    }
    val bitmap = android.graphics.Bitmap(width, height, colours)
    when (case) {
%s
    }
}
"""


@cache
def fed_and_given(case: tuple[str, Resize, Any, Any]) -> tuple[tuple[torch.Tensor, dict[str, torch.Tensor]], ...]:
    """What a case's network is fed for each picture, and what it gives."""
    head, resize, pixels, layout = case
    predictor, task = micro.network(head)
    given = Input(resize.size, pixels, layout)
    network = ExportedNetwork(predictor, task, contract="final", given=given).eval()
    rule = Rounded(resize) if pixels == "uint8" else resize
    found = []
    for image in pictures():
        fed = given.pack(torch.from_numpy(rule.apply(image)).permute(2, 0, 1)[None])
        with torch.inference_mode():
            found.append((fed, dict(network(fed))))
    return tuple(found)


@cache
def border(case: tuple[str, Resize, Any, Any]) -> dict[str, float]:
    """Thresholds for a case: a score of one class itself, and of another the next number above one, in double
    precision, which single precision cannot tell from it."""
    outputs = [given for _, given in fed_and_given(case)]
    scores, labels = (torch.cat([one[name][0] for one in outputs]) for name in ("scores", "labels"))
    bolt, washer = (float(scores[labels == label].median()) for label in (1, 2))
    return {"bolt": bolt, "washer": float(np.nextafter(washer, 1))}


@pytest.fixture(scope="module")
def kotlin(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The Kotlin of every runtime and case in one program, compiled with stand-ins: what calls it."""
    _needs("java", "npm")
    folder = tmp_path_factory.mktemp("kotlin")
    done = subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "kotlin-compiler@2.4.20"],
                          cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install kotlin-compiler: {done.stderr[-300:]}")
    calls = []
    for k, (runtime, case) in enumerate(KOTLIN):
        head, resize, pixels, layout = case
        target = target_named(f"kotlin-{runtime}")
        thresholds = border(case) if head == "ssd" else None
        texts = source(manifest(head, target.format, resize=resize, pixels=pixels, layout=layout,
                                thresholds=thresholds), target, file="x")
        _write({name: text.replace("package detseg.app", f"package app{k}") for name, text in texts.items()},
               folder / "src" / str(k))
        use = DETECT if head == "ssd" else SEGMENT
        calls.append(f'        "{k}" -> {use.replace("APP", f"app{k}")}')
    (folder / "src" / "Main.kt").write_text(MAIN % "\n".join(calls))
    library = folder / "node_modules" / "kotlin-compiler"
    _done("bash", library / "bin" / "kotlinc", "-Werror", folder / "src", ROOT / "tests" / "kotlin",
          "-d", folder / "app.jar")
    return ["java", "-cp", f"{folder / 'app.jar'}:{library / 'lib' / 'kotlin-stdlib.jar'}", "MainKt"]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(KOTLIN)), ids=lambda k: "-".join((KOTLIN[k][0], *KOTLIN[k][1][::2])))
def test_kotlin_does_the_arithmetic_of_python(number: int, kotlin: list[str | Path], tmp_path: Path) -> None:
    """The stand-in keeps what it is fed, and gives what the network gives to Python's input."""
    _, case = KOTLIN[number]
    head, resize, pixels, _ = case
    classes = micro.network(head)[0].classes
    model = str(tmp_path / "model")
    for k, (image, (fed, outputs)) in enumerate(zip(pictures(), fed_and_given(case), strict=True)):
        size = (image.shape[0], image.shape[1])
        for name, tensor in outputs.items():
            Path(f"{model}.{name}").write_bytes(tensor.numpy().tobytes())
        Path(f"{model}.order").write_text(" ".join(outputs))
        picture = _ppm(tmp_path / f"{k}.ppm", image)
        Path(f"{picture}.size").write_text(f"{size[1]} {size[0]}")
        printed = _done(*kotlin, str(number), model, picture)
        kept = np.frombuffer(Path(f"{model}.images").read_bytes(), dtype=fed.numpy().dtype).reshape(fed.shape)
        apart = np.abs(kept.astype(np.float32) - fed.numpy().astype(np.float32))
        assert apart.max() <= (1 if pixels == "uint8" else 1e-3)
        assert np.count_nonzero(apart >= 1) <= 0.001 * apart.size, "roundings of halves"
        if head == "ssd":
            count = int(outputs["count"])
            boxes = resize.place(size).boxes_to_original(outputs["boxes"][0, :count], size).tolist()
            found, shown, _ = printed.split("end\n")
            lines = [line.split(" ") for line in found.splitlines()]
            assert len(lines) == count > 1
            sure = ImageDetections(k, outputs["boxes"][0], outputs["scores"][0], outputs["labels"][0].long()).shown(
                classes.thresholds(border(case)))[:count]
            assert shown.splitlines() == [line for line, kept in zip(found.splitlines(), sure, strict=True) if kept]
            for line, box, score, label in zip(lines, boxes, outputs["scores"][0], outputs["labels"][0], strict=False):
                assert [float(value) for value in line[:4]] == pytest.approx(box, abs=1e-3)
                assert float(line[4]) == pytest.approx(float(score))
                assert (int(line[5]), line[6]) == (int(label), classes.names[int(label)])
        else:
            wanted = resize.place(size).labels_to_original(outputs["labels"][0].numpy(), size)
            labels = np.frombuffer(Path(f"{model}.map").read_bytes(), dtype=np.uint8).reshape(size)
            assert np.array_equal(labels, wanted)
            argb = np.array(printed.split(), dtype=np.int64) & 0xFFFFFFFF
            red, green, blue = np.moveaxis(np.asarray(classes.colours)[wanted].reshape(-1, 3), 1, 0)
            assert np.array_equal(argb, (0xFF << 24) | (red << 16) | (green << 8) | blue)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_litert_s_compiled_model_is_used_as_the_kotlin_code_does(head: str, tmp_path: Path) -> None:
    """In Python: bytes written as int8, outputs by name. `detseg predict` uses the interpreter."""
    from ai_edge_litert.compiled_model import CompiledModel

    path = _exported(tmp_path, "litert", head, RESIZES[0], "uint8", "nhwc")
    artefact = open_artefact(path)
    compiled = CompiledModel.from_file(str(path))
    (signature,) = compiled.get_signature_list()
    assert signature == "serving_default"
    for image in pictures():
        resized = torch.from_numpy(artefact.resize.apply(image)).permute(2, 0, 1)[None]
        wanted = artefact.outputs(resized)
        images = compiled.create_input_buffer_by_name(signature, "images")
        images.write(artefact.manifest.input.pack(resized).numpy().view(np.int8))
        outputs = {name: compiled.create_output_buffer_by_name(signature, name) for name in wanted}
        compiled.run_by_name(signature, {"images": images}, outputs)
        for name, tensor in wanted.items():
            kind = np.dtype(np.int8) if tensor.dtype == torch.uint8 else tensor.numpy().dtype
            found = outputs[name].read(tensor.numel(), kind).view(tensor.numpy().dtype).reshape(tensor.shape)
            assert np.allclose(found, tensor.numpy(), atol=1e-4)
