"""The folder of a run: which one it is, what lies in it, and its log."""

from __future__ import annotations

import json
import math
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from detseg.config import Config
from detseg.data.faults import Fault
from detseg.data.location import Location
from detseg.data.split import KeptSplit

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
    def weights(self) -> Path:
        """What to evaluate and predict with: the best checkpoint, before the first validation the newest."""
        return self.best if self.best.is_file() else self.last

    def kept_after(self, step: int) -> Path:
        """The checkpoint of a step that a run with `keep_every` keeps."""
        return self.path / f"step-{step:07d}.pt"

    @property
    def kept(self) -> dict[int, Path]:
        """Such checkpoints by step."""
        return {int(path.stem.removeprefix("step-")): path for path in sorted(self.path.glob("step-*.pt"))}

    @property
    def average(self) -> Path:
        """The checkpoint that `detseg average` makes."""
        return self.path / "average.pt"

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
    def split(self) -> Path:
        """Which images are trained on and which are kept for validation, where the run has decided it."""
        return self.path / "split.json"

    @property
    def skipped(self) -> Path:
        """What was left out because it is broken, a line each: when it was found, which it is, and why."""
        return self.path / "skipped.txt"

    @property
    def picture(self) -> Path:
        """Validation images with predictions, made at the end."""
        return self.path / "predictions.jpg"

    @property
    def analysis(self) -> Path:
        """What `detseg analyze` has found."""
        return self.path / "analysis.json"

    @property
    def thresholds(self) -> Path:
        """The score from which each class is shown, and the weights that this is known of."""
        return self.path / "thresholds.json"

    @property
    def report(self) -> Path:
        """The page that tells all of it, made at the end."""
        return self.path / "report.html"

    def create(
        self, config: Config, data: Location, *, kept: KeptSplit | None = None,
        teacher: Mapping[str, str] | None = None, start: str | None = None,
    ) -> None:
        """Makes the folder, with a copy of the config, its resolved values, where the data lie, which of them are kept
        for validation, where the run has decided it, and what a teacher is and what the weights start from, where there
        is such a thing."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._describe(config, data=data.as_plain(), teacher=teacher, start=start)
        for left in (self.split, self.average, self.analysis, self.thresholds, *self.kept.values()):
            left.unlink(missing_ok=True)
        if kept is not None:
            self.split.write_text(json.dumps(kept.as_plain(), indent=1) + "\n", "utf-8")
        self.log.write_text("", "utf-8")
        shutil.rmtree(self.tensorboard, ignore_errors=True)

    def record_change(
        self, config: Config, changes: str, *, step: int, teacher: Mapping[str, str] | None = None
    ) -> None:
        """Keeps a config that goes on with a run which another one began, and notes in the log what has changed."""
        if not changes:
            return
        described = self.described()
        self._describe(config, data=described["data"], teacher=teacher, start=described["start"])
        self.append_log({"kind": "config", "step": step, "changes": changes})

    def described(self) -> dict[str, Any]:
        """What stands in `resolved.json`: "config", the name of its copy; "data", a `Location` as plain values;
        "settings"; "versions"; "start", what the first weights came from, or None; "teacher", where there is one: its
        fingerprint and a digest of its weights. ValueError where the folder holds no run."""
        try:
            content: dict[str, Any] = json.loads(self.resolved.read_text("utf-8"))
        except (OSError, json.JSONDecodeError):
            raise ValueError(f"{self.path} is no run folder: it has no readable {self.resolved.name}") from None
        if "config" not in content:  # written by an older version
            content["config"] = next((path.name for path in sorted(self.path.glob("*.py"))), "")
        return {"data": None, "start": None} | content

    @property
    def config(self) -> Path:
        """The copy of the config. ValueError where the folder holds none."""
        path = self.path / str(self.described()["config"])
        if not path.is_file():
            raise ValueError(f"{self.path} has no copy of its config; name the config and the checkpoint instead")
        return path

    @property
    def location(self) -> Location | None:
        """Where the data lie that it was trained on; None where that is not known."""
        data = self.described()["data"]
        return None if data is None else Location.from_plain(data)

    @property
    def kept_split(self) -> KeptSplit | None:
        """What `split` says; None where the run has decided nothing. ValueError where the file is broken."""
        if not self.split.is_file():
            return None
        try:
            return KeptSplit.from_plain(json.loads(self.split.read_text("utf-8")))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{self.split} is damaged; which images the run has trained on is not known any more, so "
                             "name other validation data with --val") from None

    def _describe(
        self, config: Config, *, data: Any, teacher: Mapping[str, str] | None, start: str | None
    ) -> None:
        (self.path / config.path.name).write_text(config.text, "utf-8")
        entries = {name: {"value": entry.value, "from": entry.origin} for name, entry in config.entries().items()}
        content = {"config": config.path.name, "data": data, "start": start, "settings": entries,
                   "versions": versions()}
        if teacher is not None:
            content["teacher"] = dict(teacher)
        self.resolved.write_text(json.dumps(content, indent=1) + "\n", "utf-8")

    def add_skipped(self, when: str, faults: Sequence[Fault]) -> list[Fault]:
        """Adds to `skipped`, and gives those that were not there."""
        known = {row[1:] for row in self._skipped_rows()}
        new = [fault for fault in dict.fromkeys(faults) if _one_line(fault) not in known]
        if new:
            with self.skipped.open("a", encoding="utf-8") as file:
                file.writelines("\t".join((when, *_one_line(fault))) + "\n" for fault in new)
        return new

    def skipped_places(self, when: str) -> frozenset[str]:
        """What was left out at some time."""
        return frozenset(where for time, where, _ in self._skipped_rows() if time == when)

    def _skipped_rows(self) -> list[tuple[str, ...]]:
        if not self.skipped.is_file():
            return []
        rows = (tuple(line.split("\t")) for line in self.skipped.read_text("utf-8").splitlines())
        return [row for row in rows if len(row) == 3]

    def append_log(self, record: Mapping[str, object]) -> None:
        """Adds a line to the log."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log, without one that was being written when the run was killed."""
        records = []
        for line in self.log.read_text("utf-8").splitlines() if self.log.exists() else []:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def cut_log(self, *, step: int, validated: int) -> None:
        """Drops what was logged after a checkpoint: steps after `step`, validations after `validated`."""
        kept = [record for record in self.read_log()
                if record["step"] <= (validated if record["kind"] == "val" else step)]
        self.log.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")


def _one_line(fault: Fault) -> tuple[str, str]:
    where, reason = (" ".join(text.split()) for text in fault)
    return where, reason


class LogWriter:
    """Writes numbers to a run's log and to TensorBoard alike. Use as a context.

    Args:
        run: the folder.
        first_step: what TensorBoard has of later steps is dropped.
        enabled: of several processes only one writes.
    """

    def __init__(self, run: RunFolder, *, first_step: int, enabled: bool) -> None:
        # Imported only now: it takes a second, which whoever only reads a run should not wait.
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        self._board = SummaryWriter(str(run.tensorboard), purge_step=first_step + 1) if enabled else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()

    def write(
        self, kind: str, *, step: int, epoch: float, numbers: Mapping[str, float],
        others: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """One line of the log, and a point of each of `numbers`. Numbers that do not exist (NaN) become null."""
        if self._board is None:
            return
        line = {"kind": kind, "step": step, "epoch": epoch, **numbers, **others}
        plain = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                 for name, value in line.items()}
        self.run.append_log(plain)
        for name, value in numbers.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)


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


def trained_run(path: Path) -> RunFolder:
    """The run in a folder, to use what was trained in it. ValueError where it holds none."""
    run = RunFolder(path)
    if not path.is_dir():
        raise ValueError(f"{path} is no run folder; name one, or a config and a checkpoint")
    if not run.weights.is_file():
        raise ValueError(f"{path} holds no run: it has neither {run.best.name} nor {run.last.name}")
    return run


_PACKAGES = ("detseg", "torch", "torchvision", "lightning", "numpy", "albumentations", "opencv-python-headless")


def versions(*others: str) -> dict[str, str]:
    """What a result depends on besides its settings; others: further packages."""
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *others):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _names(stem: str) -> list[Path]:
    taken = len(list(RUNS.glob(f"{stem}*"))) if RUNS.is_dir() else 0
    return [RUNS / (stem if number == 1 else f"{stem}-{number}") for number in range(1, taken + 3)]
