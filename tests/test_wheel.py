"""The wheel, installed in an environment of its own outside the checkout: what a user gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from PIL import Image

from .conftest import ROOT


@dataclass(frozen=True)
class Environment:
    """One that has the wheel, and beside it what this one has but not the checkout."""

    folder: Path
    wheel: Path

    def run(self, program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """What one of its programs gives, without this environment's variables for Python."""
        kept: Mapping[str, str] = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run([self.folder / "bin" / program, *arguments], cwd=cwd, env=kept, capture_output=True,
                              text=True, check=False)

    @property
    def packages(self) -> Path:
        """Where the wheel's packages lie."""
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """By pip, as a user does, but for what the wheel depends on: that is read from where it is."""
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    venv.create(folder / "env", with_pip=False, symlinks=True)
    environment = Environment(folder / "env", Path(built))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", folder / "env" / "bin" / "python", "install", "--quiet", "--no-deps",
         "--no-index", "--disable-pip-version-check", built], check=True, capture_output=True)
    # A path in a .pth file is searched, but the .pth files in it, such as an editable install's, are not read.
    (environment.packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return environment


def test_the_wheel_holds_all_that_is_needed_and_nothing_else(installed: Environment) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = set(archive.namelist())
    files = [path for folder in ("detseg", "heads") for path in (ROOT / folder).rglob("*") if path.is_file()]
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    expected |= {f"detseg/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"detseg/py.typed", "heads/py.typed", "detseg/demo/web/index.html"} <= expected


def test_nothing_is_of_the_checkout(installed: Environment, tmp_path: Path) -> None:
    code = "import detseg, heads, sys; print(detseg.__file__, *heads.__path__); print(*sys.path, sep='\\n')"
    found, *paths = installed.run("python", "-c", code, cwd=tmp_path).stdout.splitlines()
    assert found == f"{installed.packages / 'detseg' / '__init__.py'} {installed.packages / 'heads'}"
    assert not [path for path in paths if path and Path(path).is_relative_to(ROOT) and (Path(path) / "detseg").exists()]


def test_the_command_knows_its_configs(installed: Environment, tmp_path: Path) -> None:
    done = installed.run("detseg", "configs", "--json", cwd=tmp_path)
    listed = {one["name"]: one for one in json.loads(done.stdout)}
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    assert listed["raspp_v2"]["path"] == str(installed.packages / "detseg" / "configs" / "raspp_v2.py")
    done = installed.run("detseg", "configs", "copy", "raspp_v2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "raspp_v2.py").read_bytes() == (ROOT / "configs" / "raspp_v2.py").read_bytes()
    done = installed.run("detseg", "train", "ssdlite_v3_lrage", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2, "error: there is no config ssdlite_v3_lrage; did you mean ssdlite_v3_large?\n")
    done = installed.run("detseg", "app-code", "--docs", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2, "error: --docs is for a copy of the repository; an installed detseg has no docs/\n")


@pytest.mark.slow
def test_it_trains_evaluates_exports_and_predicts(installed: Environment, tmp_path: Path) -> None:
    def detseg(*arguments: str) -> str:
        done = installed.run("detseg", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    detseg("train", "ssdlite_v3_small", "--sample", "--set", "schedule.epochs=1", "schedule.warmup_steps=2",
           "batch_size=40", "model.size=96", "workers=0")
    run = tmp_path / "runs" / "ssdlite_v3_small"
    assert (run / "ssdlite_v3_small.py").read_bytes() == (ROOT / "configs" / "ssdlite_v3_small.py").read_bytes()
    assert json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"] == 10
    Image.new("RGB", (120, 90), "grey").save(tmp_path / "photo.png")
    assert "1 images, " in detseg("predict", str(run), "photo.png", "--threshold", "0")
    assert (tmp_path / "predictions" / "photo.png").is_file()
    detseg("test", str(run), "--json", "numbers.json")
    assert "AP50" in json.loads((tmp_path / "numbers.json").read_text())
    detseg("export", str(run), "--format", "pt2")
    assert "1 images, " in detseg("predict", "exports/ssdlite_v3_small.pt2", "photo.png")


_PROGRAM = """
import detseg
from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from heads.ssdlite import SSDLite

model = detseg.load("runs/x")
reveal_type(model)
reveal_type(model.classes.names)
backbone = mobilenet_v3_large(width=0.5, taps=("c5",))
reveal_type(backbone.specs["c5"].channels)
reveal_type(SSDLite.decode)
mobilenet_v3_large(widht=0.5)
"""


@pytest.mark.slow
def test_a_users_program_is_checked_against_its_types(installed: Environment, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(_PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed.folder / "bin" / "python",
         "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert lines[:3] == ['note: Revealed type is "detseg.api.Model"',
                         'note: Revealed type is "tuple[str, ...]"',
                         'note: Revealed type is "int"'], done.stdout
    assert lines[3].startswith('note: Revealed type is "def (self: heads.ssdlite.SSDLite, raw: ')
    assert lines[4].startswith('error: Unexpected keyword argument "widht" for "mobilenet_v3_large"')
    assert "Found 1 error in 1 file" in done.stdout
