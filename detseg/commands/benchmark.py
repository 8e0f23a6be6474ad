"""Measures what a config's network costs on this CPU.

    detseg benchmark CONFIG [--against torchvision] [--size HEIGHT WIDTH] [--threads N] [--json FILE]
        [--set a.b=c ...]
    detseg benchmark CONFIG --artefact FILE|FORMAT ... [--candidates N ...] [--against torchvision]
        [--adb DIR] ...

Parameters, multiply-adds, the latency of the network and of a whole prediction, and the time of a training step: see
detseg/benchmark/predictor.py for what each is. Takes half a minute to a minute a model; nothing else should run
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.atomic import write_text
from detseg.choices import ENGINES
from detseg.cli import command_parser, exit_code
from detseg.config_files import CONFIG_HELP, find_config

if TYPE_CHECKING:
    from detseg.benchmark.artefacts import ArtefactFigures
    from detseg.benchmark.predictor import Figures


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help=CONFIG_HELP)
    parser.add_argument("--against", choices=("torchvision",),
                        help="measure its model of the same architecture in turns with ours")
    parser.add_argument("--artefact", nargs="+", metavar="FILE|FORMAT", default=[],
                        help="time exported files instead, against eager code; or formats, which are made here of the "
                             "config's network")
    parser.add_argument("--candidates", type=int, nargs="+", metavar="N", default=[],
                        help="of the files that are made: boxes that enter suppression, one file for each number")
    parser.add_argument("--adb", type=Path, metavar="DIR", dest="programs",
                        help="time the files on the phone that adb reaches too, with the runtimes' own benchmark "
                             "programs in DIR: benchmark_model (LiteRT), executor_runner (ExecuTorch), "
                             "onnxruntime_perf_test, benchncnn")
    parser.add_argument("--threads", type=int, metavar="N",
                        help="CPU threads (1 for latency, every core for training)")
    parser.add_argument("--engine", choices=ENGINES, default="torch",
                        help="what runs our network's layers in predictions (%(default)s)")
    parser.add_argument("--batch-size", type=int, metavar="N",
                        help="of the training step (16, fewer of large images)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"),
                        help="of the image and of the network's input, without resizing (the config's)")
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S",
                        help="for each of the five measurements (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="overrides",
                        help="change numbers of the config, as in model.width=0.5")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _benchmark(build_parser().parse_args(arguments)))


def _benchmark(options: argparse.Namespace) -> None:
    if not options.artefact and (options.candidates or options.programs is not None):
        option = "--candidates" if options.candidates else "--adb"
        raise ValueError(f"{option} is for files; name some, or formats, with --artefact")
    config = find_config(options.config)
    from detseg.benchmark.artefacts import measure_artefacts
    from detseg.benchmark.predictor import Setup, measure
    from detseg.report.console import plain_console

    setup = Setup(seconds=options.seconds, threads=options.threads, batch_size=options.batch_size,
                  engine=options.engine, size=None if options.size is None else tuple(options.size))
    console = plain_console(file=sys.stdout)  # and not whatever it is while converters are kept quiet
    figures: Figures | ArtefactFigures
    with console.status("") as status:
        if options.artefact:
            figures = measure_artefacts(
                config, options.artefact, options.overrides, candidates=options.candidates,
                against_torchvision=options.against is not None, programs=options.programs, setup=setup,
                say=status.update)
        else:
            figures = measure(config, options.overrides, against_torchvision=options.against is not None,
                              setup=setup, say=status.update)
    console.print(figures.table())
    console.print(figures.notes(), soft_wrap=True)
    if options.json is not None:
        write_text(options.json, json.dumps(figures.as_json(), indent=1) + "\n")
