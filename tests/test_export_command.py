"""tools/export.py from a run to a file, and the file in place of the run: the same numbers and predictions."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import detseg
from detseg.export.formats import formats

from . import tiny_segmenter
from .commands import run

CHANGED = """    predictor = tiny_segmenter.model(classes)
    predictor.set_normalisation((0.1, 0.1, 0.1), (0.25, 0.25, 0.25))
    return predictor
"""

pytestmark = [pytest.mark.conversion, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has learnt, another run, and the first one's file."""
    folder = tmp_path_factory.mktemp("export")
    tiny_segmenter.train_in(folder, ["--out", "runs/one"], ["--out", "runs/two", "--set", "seed=1"])
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        assert importlib.import_module("detseg.commands.export").main(["runs/one", "--format", "onnx"]) == 0
    return folder


@pytest.fixture(autouse=True)
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copied = tmp_path / "copied"
    shutil.copytree(trained, copied)
    monkeypatch.chdir(copied)
    return copied


def test_a_file_is_written_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("export", "runs/one", "--format", "onnx", "--out", "there/x.onnx", "--contract", "decoded",
                       "--input", "float", "--layout", "nchw", capsys=capsys)
    assert code == 0
    assert "there/x.onnx: ONNX, " in out
    assert "takes images float32 [1, 3, " in out
    assert "gives scores float32 [1, " in out
    assert "validation images of data/shades" in out
    assert "100.00% of" in out
    assert json.loads(Path("there/x.onnx.parity.json").read_text())["passed"]
    assert sorted(path.name for path in Path("there").iterdir()) == ["x.onnx", "x.onnx.parity.json"]


def test_the_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("export", "--formats", capsys=capsys)
    assert code == 0
    assert all(name in out for name in formats())


def test_a_file_gets_its_run_s_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test", "runs/one", "--json", "run.json", capsys=capsys)[0] == 0
    code, out, _ = run("test", "exports/one.onnx", "--data", "data/shades", "--json", "file.json", capsys=capsys)
    assert code == 0
    assert "exports/one.onnx, made of runs/one/best.pt on " in out
    of_run, of_file = (json.loads(Path(name).read_text()) for name in ("run.json", "file.json"))
    assert of_run.keys() == of_file.keys()
    assert of_file == pytest.approx(of_run, abs=2e-3), "pixels are rounded"


def test_a_file_predicts_what_its_run_does(capsys: pytest.CaptureFixture[str]) -> None:
    images = sorted(map(str, Path("data/shades").rglob("images/val/*.*")))
    assert len(images) > 1
    lines = []
    for model in ("runs/one", "exports/one.onnx"):
        code, out, _ = run("predict", model, *images, "--out", f"{model}-out", "--labels", f"{model}-labels",
                           capsys=capsys)
        assert code == 0
        lines.append(out.splitlines()[1:-1])
    assert lines[0] == lines[1]
    for image in images:
        mine, other = (np.asarray(cv2.imread(f"{model}-labels/{Path(image).stem}.png", cv2.IMREAD_UNCHANGED))
                       for model in ("runs/one", "exports/one.onnx"))
        assert np.count_nonzero(mine != other) < 0.005 * mine.size


def test_python_loads_a_file_by_the_same_call() -> None:
    image = next(Path("data/shades").rglob("images/val/*.*"))
    of_run, of_file = detseg.load("runs/one"), detseg.load("exports/one.onnx")
    same = np.count_nonzero(np.equal(of_file(image).labels, of_run(image).labels))
    assert same > 0.995 * of_run(image).labels.size
    assert of_file.classes == of_run.classes
    assert of_file.draw(image).shape == of_run.draw(image).shape
    written = of_run.export("python.onnx", images=[image, np.asarray(of_run.draw(image))])
    assert written.parity is not None
    assert written.parity.images == 2
    assert detseg.load("python.onnx")(image).names == of_run(image).names
    with pytest.raises(ValueError, match=r"python.onnx.* is an exported file; export the checkpoint"):
        detseg.load("python.onnx").export("again.onnx")
    with pytest.raises(ValueError, match=r"one.onnx is an exported file, which runs on the CPU; to use cuda, load"):
        of_file.to("cuda")
    with pytest.raises(ValueError, match=r"the ending of x.bin is of no format; name one of coreml, "):
        of_run.export("x.bin")


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["export", "runs/one"], 2, "name a format with --format: coreml, "),
    (["export", "runs/one", "--format", "onyx"], 2, "there is no format 'onyx'; did you mean onnx?"),
    (["export"], 2, "name a run folder, or a config and a checkpoint"),
    (["export", "exports/one.onnx", "--format", "onnx"], 2, "is an exported file; export the checkpoint"),
    (["export", "runs/one", "--format", "onnx", "--images", "nowhere"], 2, "no image, folder or pattern nowhere"),
    (["export", "runs/one", "--format", "onnx", "--size", "0", "8"], 2, "each at least 1, got (0, 8)"),
    (["export", "runs/one", "--format", "onnx", "--out", "shades.py/x.onnx"], 1, "shades.py"),
    (["export", "runs/one", "--format", "ncnn"], 2, "ncnn files cannot hold the contract final"),
    (["export", "runs/two", "--check", "exports/one.onnx"], 1, "it was made of other weights: runs/one/best.pt"),
    (["test", "exports/one.onnx"], 2, "name the data to evaluate it on with --data DIR or --sample"),
    (["test", "shades.py", "exports/one.onnx"], 2, "is an exported file, which needs no config; name it alone"),
    (["test", "exports/one.onnx", "runs/one/best.pt"], 2, "is an exported file, which needs no weights"),
    (["test", "exports/one.onnx", "--data", "data/shades", "--engine", "onnxruntime"], 2,
     "exports/one.onnx is an exported file with a runtime of its own; leave the engine out"),
    (["test", "exports/none.onnx", "--data", "data/shades"], 2, "there is no file exports/none.onnx"),
])
def test_what_a_user_does_wrong(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = run(arguments[0], *arguments[1:], capsys=capsys)
    assert message in err
    assert found == code


def test_a_checkpoint_of_another_config_is_not_exported(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("shades.py").read_text()
    changed = text.replace("    return tiny_segmenter.model(classes)\n", CHANGED)
    assert changed != text
    Path("shades.py").write_text(changed)
    code, _, err = run("export", "shades.py", "runs/one/best.pt", "--format", "onnx", capsys=capsys)
    assert code == 2
    assert "normalisation: mean (0.5, 0.5, 0.5), std (0.25, 0.25, 0.25) there, mean (0.1, 0.1, 0.1)" in err


@pytest.mark.parametrize("command", ["test", "predict"])
def test_a_damaged_file_is_refused_everywhere(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("exports/one.onnx")
    content = path.read_bytes()
    arguments = ["--data", "data/shades"] if command == "test" else ["data/shades/images/val"]
    for damaged, message in ((content[: len(content) // 2], "it was cut short"),
                             (content.replace(b'"bright', b'"BRIGHT'), "its manifest was edited since"),
                             (content[:2000] + bytes([content[2000] ^ 1]) + content[2001:], "is not what was written")):
        assert damaged != content
        path.write_bytes(damaged)
        code, _, err = run(command, str(path), *arguments, capsys=capsys)
        assert (code, message in err) == (1, True), err


def test_a_file_with_scores_is_seen_from_several_sides(capsys: pytest.CaptureFixture[str]) -> None:
    """A file of the contract "decoded" averages views as its checkpoint does; one with label maps alone cannot."""
    assert run("export", "runs/one", "--format", "onnx", "--out", "decoded.onnx", "--contract", "decoded", "--input",
               "float", capsys=capsys)[0] == 0
    for model in ("runs/one", "decoded.onnx"):
        code, out, _ = run("test", model, "--data", "data/shades", "--tta", "flip", "1.5", "--json",
                           f"{Path(model).name}.json", capsys=capsys)
        assert code == 0
        assert "TTA (flip 1.5)" in out
    numbers, others = (json.loads(Path(name).read_text()) for name in ("one.json", "decoded.onnx.json"))
    assert numbers == pytest.approx(others, abs=2e-3)
    code, _, errors = run("test", "exports/one.onnx", "--data", "data/shades", "--tta", "flip", capsys=capsys)
    assert code == 2
    assert errors == ("error: exports/one.onnx gives final predictions, and not the scores of every class, which are "
                      "averaged here; export the checkpoint with --contract decoded\n")
