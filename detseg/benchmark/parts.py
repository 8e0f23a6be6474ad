"""What computing inverted bottlenecks in parts of their channels saves, and what it takes: see
`detseg.split_execution`.

In eager code the activations are counted; a runtime plans its memory by itself, and what it makes of the parts is told
by what a process holds at most.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table

from detseg import config as configs
from detseg.benchmark import synthetic
from detseg.benchmark.artefacts import added_megabytes
from detseg.benchmark.predictor import SURE, Setup, built, num_threads
from detseg.benchmark.tensor_memory import peak_memory
from detseg.cost import Timing, threads, time_alternating
from detseg.export.artefact import open_artefact
from detseg.export.convert import Source, export
from detseg.export.format import Format
from detseg.export.formats import format_named
from detseg.structures import Pixels, Size

_EAGER = "eager"


class Row(NamedTuple):
    """A network in a runtime."""

    runtime: str
    parts: int | None
    """None: whole."""
    megabytes: float | None
    """In eager code what activations hold at most; of a file what opening it and predicting add to a process."""
    time: Timing
    """From the resized image to the raw outputs; its ratio is to the whole network's there."""


class PartsFigures(NamedTuple):
    """Everything measured."""

    config: str
    size: Size
    threads: int
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"config": self.config, "size": self.size, "threads": self.threads, "torch": torch.__version__,
                "rows": [row._asdict() | {"time": row.time._asdict()} for row in self.rows]}

    def table(self) -> Table:
        """One row each."""
        table = Table("", "parts", "memory, MB", "of whole", "ms", "ratio")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in self.rows:
            whole = next(one.megabytes for one in self.rows if one.runtime == row.runtime)
            memory = ("", "") if row.megabytes is None or whole is None else (
                f"{row.megabytes:.1f}", f"{row.megabytes / whole:.2f}")
            table.add_row(row.runtime if row.parts is None else "", "whole" if row.parts is None else f"{row.parts}",
                          *memory, f"{row.time.median:.1f}", f"{row.time.ratio:.2f}")
        return table

    def notes(self) -> str:
        """What the numbers of the table mean."""
        height, width = self.size
        return (f"{height} x {width}, {num_threads(self.threads)}, medians, in turns; memory of {_EAGER}: what tensors "
                "made in the network hold at most; of files: what opening and predicting add to a process, weights "
                "among it; ratio: of paired times, to the whole network's in the same runtime")


def measure_parts(
    path: Path, parts: Sequence[int], formats: Sequence[str], overrides: Sequence[str] = (), *, setup: Setup,
    say: Callable[[str], None],
) -> PartsFigures:
    """Measures a config's network whole and in parts, in eager code and in files of these formats.

    Args:
        path: the config.
        parts: numbers of parts.
        formats: names of formats, in which files are made here.
        overrides: of the config, as `--set` takes them.
        setup: seconds of each measurement, size and threads.
        say: hears what is going on.

    ValueError where the network cannot be split, and as `export` raises it.
    """
    config = configs.load(path, overrides)
    model, task = built(config, setup), config.experiment.task
    kinds = [format_named(name) for name in formats]
    image = synthetic.textures(1, setup.image_size, seed=1)[0]
    synthetic.enliven(model, setup.image_size)
    if task.scored:
        synthetic.lower_scores(model, image, SURE, threshold=task.score_threshold)
    networks = {None: model.ready()} | {number: model.split(number) for number in dict.fromkeys(parts)}
    pixels = synthetic.inputs(model, [image])
    rows = []
    with threads(setup.latency_threads), torch.inference_mode():
        say("timing eager code")
        calls = {number: partial(network, pixels) for number, network in networks.items()}
        times = _times(calls, setup)
        rows += [Row(_EAGER, number, peak_memory(call) / 1e6, times[number]) for number, call in calls.items()]
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            source = Source(model, task, "synthetic weights")
            rows += _file_rows(kind, list(networks), source, image, Path(folder), setup, say)
    return PartsFigures(path.stem, model.resize.size, setup.latency_threads, tuple(rows))


def _file_rows(
    kind: Format, parts: Sequence[int | None], source: Source, image: Pixels, folder: Path, setup: Setup,
    say: Callable[[str], None],
) -> list[Row]:
    two_stages = source.predictor.head.second_stage is not None
    # Without suppression, where that can be: it is the same for all.
    usual = replace(kind.usual_options(), contract=kind.two_stage_contracts[-1] if two_stages else "raw")
    files = dict[int | None, Path]()
    calls = dict[int | None, Callable[[], object]]()
    for number in parts:
        options = usual if number is None else replace(usual, execution="split", parts=number)
        files[number] = folder / f"{number}{kind.suffix}"
        how = "whole" if number is None else f"in {number} parts"
        say(f"converting to {kind.title}, {how} (usually {kind.minutes})")
        export(source, files[number], kind, options, images=[image])
        artefact = open_artefact(files[number], threads=setup.latency_threads)
        calls[number] = partial(artefact.outputs, torch.from_numpy(
            artefact.resize.apply(image)).permute(2, 0, 1)[None])
    say(f"timing {kind.title}")
    with threads(setup.latency_threads):
        times = _times(calls, setup)
    say(f"measuring the memory of {kind.title}")
    return [Row(kind.title, number, added_megabytes(path, setup.latency_threads), times[number])
            for number, path in files.items()]


def _times(calls: Mapping[int | None, Callable[[], object]], setup: Setup) -> dict[int | None, Timing]:
    named = time_alternating({str(number): call for number, call in calls.items()}, seconds=setup.seconds)
    return {number: named[str(number)] for number in calls}
