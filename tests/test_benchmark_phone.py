"""Files on a phone, against a stand-in for adb that keeps the phone's files in a folder of this machine.

What the stand-in programs say is what the runtimes' own say; no phone was there.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detseg.benchmark.phone import connected
from detseg.export.contract import Input
from detseg.export.convert import Source, export
from detseg.export.formats import formats

from . import micro
from .conftest import ROOT

SAID = {
    "benchmark_model": ("INFO: count=50 first=8010 curr=7700 min=7650 max=9120 avg=7754.1 std=120 p5=7660 median=7700\n"
                        "INFO: Inference timings in us: Init: 20110, First inference: 9876, Warmup (avg): 8000.5, "
                        "Inference (avg): 7754.1", 7.7541),
    "executor_runner": ("I 00:00:00.5 executorch:executor_runner.cpp:502] Model executed successfully 50 time(s) in "
                        "412.500000 ms.", 8.25),
    "onnxruntime_perf_test": ("Session creation time cost: 0.05 s\nFirst inference time cost: 9 ms\n"
                              "Total inference time cost: 0.31 s\nAverage inference time cost total: 6.254100 ms\n"
                              "Min Latency: 0.006 s", 6.2541),
    "benchncnn": ("loop_count = 50\nnum_threads = 1\n        x.ncnn.param  min =   10.90  max =   12.00  avg =   11.30",
                  11.3),
}

ADB = '''#!{python}
import os, shutil, subprocess, sys
phone, (command, *rest) = os.environ["STAND_IN_PHONE"], sys.argv[1:]
with open(os.environ["STAND_IN_LOG"], "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if os.environ.get("STAND_IN_FAILS") == command:
    sys.exit("error: no devices/emulators found")
if command == "get-state":
    print("device")
elif command == "push":
    *sources, target = rest
    for source in sources:
        shutil.copy(source, phone + target)
elif rest == ["getprop ro.product.model"]:
    print("Stand-in 9")
else:
    line = rest[0].replace("/data/local/tmp/detseg", phone + "/data/local/tmp/detseg")
    sys.exit(subprocess.run(["sh", "-c", line]).returncode)
'''


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the benchmark programs; adb is on the path and its phone is empty."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "phone" / "data" / "local" / "tmp").mkdir(parents=True)
    _write(tmp_path / "bin" / "adb", ADB.replace("{python}", sys.executable))
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, (said, _) in SAID.items():
        text = f"#!/bin/sh\necho \"$@\" > ../../../../arguments\ncat <<'END'\n{said}\nEND\n"
        _write(programs / name, text, mode=0o644)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("STAND_IN_PHONE", str(tmp_path / "phone"))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    return programs


def _write(path: Path, text: str, *, mode: int = 0o755) -> None:
    path.write_text(text)
    path.chmod(mode)


def stand_in(name: str, folder: Path) -> Any:
    """A file of a format, as far as the phone sees it."""
    kind = formats()[name]
    path = folder / f"x{kind.suffix}"
    for file in kind.files(path):
        file.write_bytes(b"a network")
    return SimpleNamespace(path=path, format=kind, manifest=SimpleNamespace(input=Input((320, 480))))


@pytest.mark.parametrize(("name", "program", "arguments"), [
    ("litert", "benchmark_model", "--graph=x.tflite --num_threads=2 --num_runs=50"),
    ("executorch", "executor_runner", "--model_path=x.pte --cpu_threads=2 --num_executions=50"),
    ("onnx", "onnxruntime_perf_test", "-e cpu -I -m times -r 50 -x 2 x.onnx"),
    ("ncnn", "benchncnn", "50 2 0 -1 0 param=x.ncnn.param shape=[480,320,3]")])
def test_each_runtime_s_program_is_asked(
    name: str, program: str, arguments: str, programs: Path, tmp_path: Path
) -> None:
    artefact = stand_in(name, tmp_path)
    folder = tmp_path / "phone" / "data" / "local" / "tmp" / "detseg"
    _write(programs / "libruntime.so", "a library")
    with connected(programs, [artefact.format]) as phone:
        assert phone.name == "Stand-in 9"
        assert phone.milliseconds(artefact, 2) == pytest.approx(SAID[program][1])
        assert (tmp_path / "phone" / "arguments").read_text().strip() == arguments
        pushed = {program, "libruntime.so", *(file.name for file in artefact.format.files(artefact.path))}
        assert {file.name for file in folder.iterdir()} == pushed
    assert not folder.exists(), "nothing is left on the phone"


def test_every_program_is_tried_here() -> None:
    assert {kind.phone.program for kind in formats().values() if kind.phone is not None} == set(SAID)


def refused(programs: Path, kind: str) -> Any:
    with connected(programs, [formats()[kind]]):
        raise AssertionError("it was connected")


def test_what_is_not_there(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="OpenVINO has no benchmark program for Android; leave its files out"):
        refused(programs, "openvino")
    with pytest.raises(ValueError, match=r"--adb names a folder with benchmark programs .* nowhere is none"):
        refused(Path("nowhere"), "onnx")
    (programs / "benchncnn").unlink()
    with pytest.raises(ValueError, match="has no benchncnn, which times ncnn files; build it for the phone as the"):
        refused(programs, "ncnn")
    monkeypatch.setenv("STAND_IN_FAILS", "get-state")
    with pytest.raises(OSError, match="adb get-state failed: error: no devices/emulators found"):
        refused(programs, "onnx")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="adb is not installed; Android's platform tools bring it"):
        refused(programs, "onnx")


@pytest.mark.parametrize(("script", "message"), [
    ("echo CANNOT LINK EXECUTABLE", "onnxruntime_perf_test on Stand-in 9 told no time for x.onnx: CANNOT LINK EXECUT"),
    ("echo Segmentation fault; exit 139", "adb shell failed: Segmentation fault")])
def test_a_program_that_fails(script: str, message: str, programs: Path, tmp_path: Path) -> None:
    artefact = stand_in("onnx", tmp_path)
    _write(programs / "onnxruntime_perf_test", f"#!/bin/sh\n{script}\n")
    with connected(programs, [artefact.format]) as phone, pytest.raises(OSError, match=message):
        phone.milliseconds(artefact, 1)
    assert not (tmp_path / "phone" / "data" / "local" / "tmp" / "detseg").exists()


@pytest.mark.slow
def test_the_command(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module("detseg.commands.benchmark").main
    predictor, task = micro.network("fcn")
    file, kind = tmp_path / "small.onnx", formats()["onnx"]
    export(Source(predictor, task, "micro"), file, kind, kind.usual_options(), images=micro.scenes(1, seed=1))
    arguments = [str(ROOT / "configs" / "fcn_v3_large.py"), "--artefact", str(file), "--seconds", "0",
                 "--json", str(tmp_path / "x.json"), "--set", "model.size=96", "model.width=0.35"]
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--adb", str(programs)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"small.onnx .* 6\.3 │", out)
    assert "the file alone on Stand-in 9, the mean of 50 runs of the runtime's own benchmark program" in out
    assert "slowest operators: " in out
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["phone"] == "Stand-in 9"
    eager, row = written["rows"]
    assert eager["phone"] is None
    assert row["phone"] == pytest.approx(6.2541)
    total, delegated, slowest = (row["operators"][name] for name in ("total", "delegated", "slowest"))
    assert delegated is None
    assert total == sum(number for _, number, _ in slowest) > 5
    assert slowest[0][2] == max(milliseconds for _, _, milliseconds in slowest) > 0
    (programs / "onnxruntime_perf_test").unlink()
    assert main([*arguments, "--adb", str(programs)]) == 2
    assert "has no onnxruntime_perf_test" in capsys.readouterr().err
    for option in (["--adb", str(programs)], ["--candidates", "10"]):
        assert main([arguments[0], *option]) == 2
        assert f"error: {option[0]} is for files; name some, or formats, with --artefact" in capsys.readouterr().err
