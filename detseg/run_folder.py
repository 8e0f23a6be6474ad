"""The folder of a run: which one it is, what lies in it, and its log."""

from __future__ import annotations

import json
import math
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from detseg.config import Config

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run. The folder holds one as soon as it has a `last.pt`."""

    path: Path

    @property
    def last(self) -> Path:
        """The newest checkpoint: what --resume goes on from."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.path / "best.pt"

    @property
    def log(self) -> Path:
        """One JSON object a line: training steps and validations."""
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same numbers for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def resolved(self) -> Path:
        """Every setting with its value and who set it, and the versions of what ran."""
        return self.path / "resolved.json"

    @property
    def picture(self) -> Path:
        """Validation images with predictions, made at the end."""
        return self.path / "predictions.jpg"

    def create(self, config: Config) -> None:
        """Makes the folder, with a copy of the config and its resolved values."""
        self.path.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(config.path, self.path / config.path.name)
        entries = {name: {"value": entry.value, "from": entry.origin} for name, entry in config.entries().items()}
        self.resolved.write_text(json.dumps({"settings": entries, "versions": versions()}, indent=1) + "\n", "utf-8")
        self.log.write_text("", "utf-8")
        shutil.rmtree(self.tensorboard, ignore_errors=True)

    def write_log(self, line: Mapping[str, float | str]) -> None:
        """Adds a line to the log. Numbers that do not exist (NaN) become null."""
        plain = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                 for name, value in line.items()}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")

    def cut_log(self, *, step: int, validated: int) -> None:
        """Drops what was logged after a checkpoint: steps after `step`, validations after `validated`."""
        kept = []
        for line in self.log.read_text("utf-8").splitlines() if self.log.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when the run was killed
                continue
            if record["step"] <= (validated if record["kind"] == "val" else step):
                kept.append(line + "\n")
        self.log.write_text("".join(kept), "utf-8")


def new_run(out: Path | None, stem: str) -> RunFolder:
    """A folder for a new run: `out`, or the first free of runs/<stem>, runs/<stem>-2, ...

    ValueError where `out` holds a run.
    """
    if out is None:
        free = (name for name in _names(stem) if not RunFolder(name).last.exists())
        return RunFolder(next(free))
    run = RunFolder(out)
    if run.last.exists():
        raise ValueError(f"{out} holds a run already: go on with it with --resume, or choose another --out")
    return run


def existing_run(out: Path | None, stem: str) -> RunFolder:
    """The run to go on with: that in `out`, or the newest of runs/<stem>, runs/<stem>-2, ...

    ValueError where there is none.
    """
    if out is not None:
        if not RunFolder(out).last.is_file():
            raise ValueError(f"{out} holds no run to resume (no last.pt): leave out --resume to start one there")
        return RunFolder(out)
    numbered = [RunFolder(path) for path in RUNS.glob(f"{stem}*") if path.name == stem or
                path.name.removeprefix(f"{stem}-").isdigit()]
    runs = [run for run in numbered if run.last.is_file()]
    if not runs:
        raise ValueError(f"there is no run to resume in {RUNS / stem}: leave out --resume to start one, or name its "
                         "folder with --out")
    return max(runs, key=lambda run: run.last.stat().st_mtime)


def versions() -> dict[str, str]:
    """What a result depends on besides its settings."""
    found = {"python": platform.python_version()}
    for package in ("detseg", "torch", "torchvision", "lightning", "numpy", "albumentations", "opencv-python-headless"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _names(stem: str) -> list[Path]:
    taken = len(list(RUNS.glob(f"{stem}*"))) if RUNS.is_dir() else 0
    return [RUNS / (stem if number == 1 else f"{stem}-{number}") for number in range(1, taken + 3)]
