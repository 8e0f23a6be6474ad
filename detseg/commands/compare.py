"""Compares trained networks on the same validation data, and says which differences hold.

    detseg compare RUN RUN [...]
    detseg compare RUN ARTEFACT --latency 20
    detseg compare RUN RUN,CHECKPOINT CONFIG,CHECKPOINT --data DIR

The first is what the others are compared with. The metric is computed again on draws of the images (a paired
bootstrap): a difference is called better or worse where 95 % of the draws agree. Runs that differ in their seed alone
are taken for one recipe; with two or more of each, the verdict counts that another seed gives another number.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detseg.cli import add_images, check_images, command_parser, exit_code


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("models", nargs="+", metavar="RUN|ARTEFACT|RUN,CHECKPOINT",
                        help="run folders, exported files, or a run or config and its checkpoint with a comma between")
    parser.add_argument("--data", type=Path, metavar="PLACE",
                        help="the data set's folder, or an annotation file (the runs')")
    add_images(parser)
    parser.add_argument("--latency", type=float, metavar="S",
                        help="time whole predictions too, in turns, for about S seconds in all")
    parser.add_argument("--threads", type=int, default=1, metavar="N",
                        help="threads while predictions are timed (%(default)s)")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N",
                        help="draws of the images for the intervals (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _compare(build_parser().parse_args(arguments)))


def _compare(options: argparse.Namespace) -> None:
    check_images(options)
    from detseg.atomic import write_text
    from detseg.compare import compare, on_device, read_models
    from detseg.data.location import Location
    from detseg.launch import evaluation_device
    from detseg.report.console import plain_console, render, shown_turns

    models = read_models(options.models)
    on_device(models, evaluation_device()[0])
    console = plain_console()
    location = None if options.data is None else Location(options.data, options.images)
    with shown_turns(console) as progress:
        found = compare(models, location, resamples=options.resamples, seconds=options.latency,
                        num_threads=options.threads, progress=progress)
    if options.json is not None:
        write_text(options.json, json.dumps(found.as_json(), indent=1) + "\n")
    for note in found.notes:
        console.print(note, soft_wrap=True)
    console.print(render(found.comparison.table()), render(found.cost_table()), sep="\n")
    for line in found.comparison.verdicts():
        console.print(line, soft_wrap=True)
