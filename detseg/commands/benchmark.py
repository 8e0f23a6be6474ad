"""Measures what a config's network costs on this CPU.

    detseg benchmark CONFIG [--against torchvision] [--size HEIGHT WIDTH] [--threads N] [--json FILE]
        [--set a.b=c ...]
    detseg benchmark CONFIG --artefact FILE|FORMAT ... [--int8] [--candidates N ...] [--against torchvision]
        [--adb DIR] ...
    detseg benchmark CONFIG --parts T ... [--artefact FORMAT ...] [--size HEIGHT WIDTH] ...
    detseg benchmark CONFIG|BACKBONE ... --roofline [--precision fp32 fp16 int8] [--ridge X] [--picture FILE] ...

Parameters, multiply-adds, the latency of the network and of a whole prediction, and the time of a training step: see
detseg/benchmark/predictor.py for what each is. Takes half a minute to a minute a model; nothing else should run
meanwhile. With --parts, inverted bottlenecks are computed in parts of their channels too, and memory is told beside
the time. With --roofline nothing is measured: latency is predicted for hardware that one does not have, from each
layer's multiply-adds and memory traffic, as detseg/benchmark/roofline.py explains it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.atomic import write_text
from detseg.choices import ENGINES, PRECISIONS
from detseg.cli import command_parser, exit_code
from detseg.config_files import CONFIG_HELP, find_config

if TYPE_CHECKING:
    from detseg.benchmark.artefacts import ArtefactFigures
    from detseg.benchmark.parts import PartsFigures
    from detseg.benchmark.predictor import Figures


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG",
                        help=f"{CONFIG_HELP}; with --roofline several, and backbones such as mobilenet_v3_large, or "
                             "mobilenet_v3_large@0.75 for a width")
    parser.add_argument("--against", choices=("torchvision",),
                        help="measure its model of the same architecture in turns with ours")
    parser.add_argument("--artefact", nargs="+", metavar="FILE|FORMAT", default=[],
                        help="time exported files instead, against eager code; or formats, which are made here of the "
                             "config's network")
    parser.add_argument("--candidates", type=int, nargs="+", metavar="N", default=[],
                        help="of the files that are made: boxes that enter suppression, one file for each number")
    parser.add_argument("--int8", action="store_true",
                        help="make each of these files in int8 too, for time alone: its ranges are those of synthetic "
                             "images")
    parser.add_argument("--scores-above", type=float, metavar="SHARE",
                        help="of all scores, how many are above the threshold in the files that are made, on which the "
                             "time of suppression depends (0.01)")
    parser.add_argument("--parts", type=int, nargs="+", metavar="T", default=[],
                        help="compare the network with inverted bottlenecks whole and in T parts, in eager code and in "
                             "the formats of --artefact")
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
    parser.add_argument("--seconds", type=float, metavar="S",
                        help="for each of the five measurements (15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="overrides",
                        help="change numbers of the config, as in model.width=0.5")
    roofline = parser.add_argument_group("latency predicted for hardware that one does not have")
    roofline.add_argument("--roofline", action="store_true",
                          help="compare networks at ridge points of 0 to 500 multiply-adds a byte; measure nothing")
    roofline.add_argument("--precision", nargs="+", choices=PRECISIONS,
                          help="what the networks' numbers are kept in (int8)")
    roofline.add_argument("--ridge", type=float, metavar="X",
                          help="list the heaviest layers of each network at this ridge point, and what bounds them")
    roofline.add_argument("--layers", type=int, metavar="N", help="how many (10)")
    roofline.add_argument("--unfused", action="store_true",
                          help="count every operator's memory traffic, and not only that of convolutions and products")
    roofline.add_argument("--regions", type=int, metavar="N", help="that a second stage classifies (100)")
    roofline.add_argument("--picture", type=Path, metavar="FILE", help="draw the sweep, as .png, .svg or .pdf")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _benchmark(build_parser().parse_args(arguments)))


def _benchmark(options: argparse.Namespace) -> None:
    _check(options)
    if options.roofline:
        _compare(options)
    else:
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    config = find_config(options.configs[0])
    from detseg.benchmark.artefacts import measure_artefacts
    from detseg.benchmark.parts import measure_parts
    from detseg.benchmark.predictor import Setup, measure
    from detseg.report.console import plain_console

    setup = Setup(seconds=15.0 if options.seconds is None else options.seconds, threads=options.threads,
                  batch_size=options.batch_size, engine=options.engine, size=_size(options))
    console = plain_console(file=sys.stdout)  # and not whatever it is while converters are kept quiet
    figures: Figures | ArtefactFigures | PartsFigures
    with console.status("") as status:
        if options.parts:
            figures = measure_parts(config, options.parts, options.artefact, options.overrides, setup=setup,
                                    say=status.update)
        elif options.artefact:
            figures = measure_artefacts(
                config, options.artefact, options.overrides, candidates=options.candidates, int8=options.int8,
                scores_above=options.scores_above, against_torchvision=options.against is not None,
                programs=options.programs, setup=setup,
                say=status.update)
        else:
            figures = measure(config, options.overrides, against_torchvision=options.against is not None,
                              setup=setup, say=status.update)
    console.print(figures.table())
    console.print(figures.notes(), soft_wrap=True)
    if options.json is not None:
        write_text(options.json, json.dumps(figures.as_json(), indent=1) + "\n")


def _compare(options: argparse.Namespace) -> None:
    """Predicts, and measures nothing."""
    from detseg.benchmark.roofline import LAYERS, Roofline, networks
    from detseg.report.charts import check_suffix, write_chart
    from detseg.report.console import plain_console

    if options.picture is not None:
        check_suffix(options.picture)
    roofline = Roofline(
        tuple(networks(options.configs, options.overrides, size=_size(options), regions=options.regions)),
        tuple(dict.fromkeys(options.precision or ("int8",))), unfused=options.unfused, ridge=options.ridge,
        num_layers=LAYERS if options.layers is None else options.layers)
    roofline.check()
    console = plain_console(file=sys.stdout)
    if not console.is_terminal:
        console.width = 120
    for title, table in roofline.tables():
        console.print(title, soft_wrap=True)
        console.print(table)
    console.print(roofline.notes(), soft_wrap=True)
    if options.json is not None:
        write_text(options.json, json.dumps(roofline.as_json(), indent=1) + "\n")
    if options.picture is not None:
        write_chart(options.picture, roofline.panels())
        console.print(f"picture: {options.picture}")


def _check(options: argparse.Namespace) -> None:
    """ValueError for options that make no sense together."""
    of_files = {"--candidates": options.candidates, "--int8": options.int8, "--scores-above": options.scores_above,
                "--adb": options.programs}
    measuring = {"--against": options.against, "--artefact": options.artefact, "--parts": options.parts, **of_files,
                 "--threads": options.threads, "--batch-size": options.batch_size, "--seconds": options.seconds,
                 "--engine": options.engine != "torch"}
    predicting = {"--precision": options.precision, "--ridge": options.ridge, "--layers": options.layers,
                  "--unfused": options.unfused, "--regions": options.regions, "--picture": options.picture}
    if options.roofline and (name := _given(measuring)):
        raise ValueError(f"{name} is for measuring, and --roofline predicts from counts alone; leave one out")
    if not options.roofline and (name := _given(predicting)):
        raise ValueError(f"{name} is for predictions; add --roofline")
    if options.layers is not None and options.ridge is None:
        raise ValueError("--layers lists layers at a ridge point; name one with --ridge, as in --ridge 30")
    if not options.roofline and len(options.configs) > 1:
        raise ValueError(f"one config is measured at a time, got {len(options.configs)}; --roofline compares several")
    not_of_parts = {"--against": options.against, "--batch-size": options.batch_size,
                    "--engine": options.engine != "torch", **of_files}
    if options.parts and (name := _given(not_of_parts)):
        raise ValueError(f"{name} is not for --parts, which compares the network with itself; leave one out")
    if not options.artefact and (name := _given(of_files)):
        raise ValueError(f"{name} is for files; name some, or formats, with --artefact")
    if options.scores_above is not None and not 0 < options.scores_above < 1:
        raise ValueError(f"--scores-above is a share between 0 and 1, got {options.scores_above}")


def _given(options: Mapping[str, object]) -> str | None:
    """The first of these options that has a value."""
    return next((name for name, value in options.items() if value not in (None, False, [])), None)


def _size(options: argparse.Namespace) -> tuple[int, int] | None:
    return None if options.size is None else (options.size[0], options.size[1])
