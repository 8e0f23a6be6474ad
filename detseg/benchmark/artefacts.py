"""Exported files against eager code: latency from a decoded image to the prediction, memory, size.

All take turns in one run on the same image. Files are given, or made here of the config's network with synthetic
weights, which has as many scores above the threshold as `detseg.benchmark.predictor` gives it; in int8 too, with ranges
of synthetic images, which is for time alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from detseg import config as configs
from detseg.benchmark import synthetic
from detseg.benchmark.phone import RUNS, connected
from detseg.benchmark.predictor import SURE, Setup, built, num_threads, reference_for
from detseg.cost import Timing, threads, time_alternating
from detseg.engine import with_engine
from detseg.export.artefact import Artefact, open_artefact
from detseg.export.convert import Source, export
from detseg.export.format import Operators
from detseg.export.formats import format_named, format_of, formats
from detseg.export.int8 import Calibration, export_int8
from detseg.export.quiet import quiet
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.quantization.post_training import Recipe
from detseg.structures import Pixels
from detseg.tasks.detection import Detection

_NAMED = 4
"""Kinds of operators."""
_CALIBRATION = 8
"""Synthetic images for int8's ranges."""


class Row(NamedTuple):
    """One way to predict."""

    name: str
    whole: Timing
    """From a decoded image to the prediction in its pixels; its ratio is to the first row."""
    runtime: Timing | None = None
    """The file alone, from the resized image to its outputs."""
    megabytes: float | None = None
    """Of the file."""
    peak_megabytes: float | None = None
    """What opening the file and predicting add to a process that has imported its runtime; None where the system is
    not Linux, which is asked."""
    operators: Operators | None = None
    """None where the runtime has no profiler."""
    phone: float | None = None
    """Milliseconds of the file alone on the phone, if one was asked; a mean."""


class ArtefactFigures(NamedTuple):
    """Everything measured."""

    config: str
    threads: int
    rows: tuple[Row, ...]
    phone: str | None = None
    """Its name."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"config": self.config, "threads": self.threads, "torch": torch.__version__, "rows": [
            {"name": row.name, "whole": row.whole._asdict(),
             "runtime": None if row.runtime is None else row.runtime._asdict(), "megabytes": row.megabytes,
             "peak_megabytes": row.peak_megabytes,
             "operators": None if row.operators is None else row.operators._asdict(),
             "phone": row.phone} for row in self.rows], "phone": self.phone}

    def table(self) -> Table:
        """One row each."""
        table = Table("", "whole, ms", "p90", "ratio", "alone, ms", "MB", "peak MB", "XNNPACK")
        table.columns[0].no_wrap = True
        if self.phone is not None:
            table.add_column("phone, ms")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in self.rows:
            on_phone = [] if self.phone is None else ["" if row.phone is None else f"{row.phone:.1f}"]
            table.add_row(
                row.name, f"{row.whole.median:.1f}", f"{row.whole.p90:.1f}", f"{row.whole.ratio:.2f}",
                *("" if value is None else f"{value:.1f}" for value in (
                    row.runtime and row.runtime.median, row.megabytes, row.peak_megabytes)), _share(row.operators),
                *on_phone)
        return table

    def notes(self) -> str:
        """What the numbers of the table mean."""
        lines = [
            f"{num_threads(self.threads)}, medians, in turns; whole: from a decoded image to the prediction in its "
            "pixels, and its 90th percentile; ratio: of paired times, to the first row; alone: from the resized "
            "image to what the file gives; peak: what opening and predicting add to a process; XNNPACK: how many of "
            "the operators it computes; a number behind a name: candidates that enter suppression",
            *(f"{row.name}, {_slowest(row.operators)}" for row in self.rows if row.operators is not None)]
        if self.phone is not None:
            lines.append(f"phone: the file alone on {self.phone}, the mean of {RUNS} runs of the runtime's own "
                         "benchmark program")
        return "\n".join(lines)


def measure_artefacts(
    path: Path, artefacts: Sequence[str], overrides: Sequence[str] = (), *, candidates: Sequence[int] = (),
    int8: bool = False, scores_above: float | None = None, against_torchvision: bool = False,
    programs: Path | None = None, setup: Setup, say: Callable[[str], None],
) -> ArtefactFigures:
    """Times exported files and the eager network of a config against each other.

    Args:
        path: the config.
        artefacts: files, or names of formats that are made here.
        overrides: of the config, as `--set` takes them.
        candidates: numbers of boxes that enter suppression in the files that are made; none: the config's.
        int8: whether a file is made in int8 too, of formats that have it.
        scores_above: the share of scores above the task's threshold; None is `SURE`.
        against_torchvision: whether torchvision's model comes first.
        programs: times the files on the phone that adb reaches too, with the benchmark programs of this folder.
        setup: seconds of each measurement, and threads.
        say: hears what is going on.

    ValueError, FileNotFoundError and DamagedFileError as `open_artefact` and `export` raise them; ValueError and
    OSError as `connected` raises them.
    """
    made = [formats()[one] for one in artefacts if one in formats()]
    if scores_above is not None and not made:
        raise ValueError("--scores-above is for files that are made here; name a format with --artefact")
    if int8 and not any("int8" in kind.precisions for kind in made):
        names = [kind.name for kind in formats().values() if "int8" in kind.precisions]
        raise ValueError(f"--int8 is for files that are made here; name {', '.join(names)} with --artefact")
    config = configs.load(path, overrides)
    model = built(config, setup)
    image = synthetic.textures(1, setup.image_size, seed=1)[0]
    synthetic.enliven(model, setup.image_size)
    task = config.experiment.task
    if task.scored:
        synthetic.lower_scores(model, image, scores_above or SURE, threshold=task.score_threshold)
    whole: dict[str, Callable[[], object]] = {}
    kinds = [kind for one in artefacts if (kind := formats().get(one) or format_of(Path(one))) is not None]
    with (threads(setup.latency_threads), tempfile.TemporaryDirectory() as folder,
          nullcontext() if programs is None else connected(programs, kinds) as phone):
        opened = dict(_opened(artefacts, model, task, candidates, image, Path(folder), setup, say, int8=int8))
        if against_torchvision:
            _, reference = reference_for(model, config, setup)
            reference.take_weights(model)
            whole["torchvision"] = partial(reference.predict, image)
        eager = "eager" if setup.engine == "torch" else f"engine {setup.engine}"
        whole[eager] = partial(predict_image, with_engine(model, task, setup.engine, say=say), task, image)
        alone: dict[str, partial[dict[str, Tensor]]] = {}
        for name, artefact in opened.items():
            whole[name] = partial(predict_image, artefact, artefact.task, image)
            alone[name] = partial(artefact.outputs, torch.from_numpy(
                artefact.resize.apply(image)).permute(2, 0, 1)[None])
        say("timing whole predictions")
        whole_times = time_alternating(whole, seconds=setup.seconds)
        say("timing files alone")
        alone_times = time_alternating(dict(alone), seconds=setup.seconds) if alone else {}
        rows = []
        for name, timing in whole_times.items():
            say(f"measuring the memory of {name}")
            row = Row(name, timing)
            if (file := opened.get(name)) is not None:
                row = row._replace(
                    runtime=alone_times[name], megabytes=file.format.megabytes(file.path),
                    peak_megabytes=added_megabytes(file.path, setup.latency_threads),
                    operators=_profiled(file, alone[name].args[0]),
                    phone=None if phone is None else phone.milliseconds(file, setup.latency_threads))
            rows.append(row)
    return ArtefactFigures(path.stem, setup.latency_threads, tuple(rows), phone and phone.name)


def _share(operators: Operators | None) -> str:
    if operators is None or operators.delegated is None:
        return ""
    return f"{operators.delegated}/{operators.total}"


def _slowest(operators: Operators) -> str:
    """The kinds of operators that take longest, or of which most are left to the runtime itself."""
    kinds = [f"{number} x {name}" + ("" if milliseconds is None else f" {milliseconds:.2f} ms")
             for name, number, milliseconds in operators.slowest[:_NAMED]]
    what = "slowest operators" if operators.delegated is None else (
        "slowest operators left over" if operators.slowest and operators.slowest[0][2] is not None
        else "operators left over (its interpreter tells no times)")
    return f"{what}: {', '.join(kinds) or 'none'}"


def _opened(
    artefacts: Sequence[str], model: Predictor, task: Any, candidates: Sequence[int], image: Pixels, folder: Path,
    setup: Setup, say: Callable[[str], None], *, int8: bool,
) -> Iterator[tuple[str, Artefact]]:
    source = Source(model, task, "synthetic weights")
    for one in artefacts:
        if one not in formats():
            same_name = [Path(other).name for other in artefacts].count(Path(one).name) > 1
            yield one if same_name else Path(one).name, open_artefact(Path(one), threads=setup.latency_threads)
            continue
        kind = format_named(one)
        for number in candidates if candidates and isinstance(task, Detection) else (None,):
            options = replace(kind.usual_options(), candidates=number, contract=kind.contracts[-1])
            name = kind.title if number is None else f"{kind.title} {number}"
            path = folder / f"{one}-{number}{kind.suffix}"
            say(f"converting to {name} (usually {kind.minutes})")
            export(source, path, kind, options, images=[image])
            yield name, open_artefact(path, threads=setup.latency_threads)
            if int8 and "int8" in kind.precisions:
                path = path.with_name(f"int8-{path.name}")
                say(f"converting to {name} in int8")
                images = tuple(synthetic.textures(_CALIBRATION, setup.image_size, seed=2))
                export_int8(source, path, kind, options, calibration=Calibration(images, (), "synthetic images"),
                            validation=None, images=[image], recipe=Recipe(equalised=False, corrected=False))
                yield f"{name} int8", open_artefact(path, threads=setup.latency_threads)


def _profiled(file: Artefact, images: Tensor) -> Operators | None:
    if file.format.operators is None:
        return None
    with quiet():
        return file.format.operators(file.path, file.manifest.input.pack(images).numpy())


def added_megabytes(path: Path, number: int) -> float | None:
    """What opening a file and predicting with it add to the largest memory of a process of its own; None where the
    system is not Linux."""
    if not sys.platform.startswith("linux"):
        return None
    code = ("import sys; from pathlib import Path; from detseg.benchmark.file_memory import added_megabytes\n"
            "print(added_megabytes(Path(sys.argv[1]), int(sys.argv[2])))")
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(number)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
