"""Says why a network has its score, and what to do about it.

    detseg analyze RUN [--data PLACE | --sample] [--examples N] [--json FILE] ...
    detseg analyze CONFIG CHECKPOINT ...
    detseg analyze ARTEFACT --data DIR ...

Of a detector: which errors it makes and the AP that each kind costs (TIDE), the score from which each class is best
shown, confusion, calibration, and which objects it finds least. Of a segmenter: classes, confusions, errors by distance
to an edge, the worst images. docs/analysis.md explains every number. Of a run folder, everything is also written to its
analysis.json, with the boxes of the worst errors and numbers of every image; and a detector's thresholds to its
thresholds.json, which detseg predict and exported files of these weights then use.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli import add_evaluated, check_config, command_parser, exit_code


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    add_evaluated(parser, what="analyse")
    parser.add_argument("--examples", type=int, default=20, metavar="N",
                        help="errors of each kind that the file lists with their boxes (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="the file to write (a run folder's analysis.json; of others none)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _analyze(build_parser().parse_args(arguments)))


def _analyze(options: argparse.Namespace) -> None:
    check_config(options)
    if options.examples < 0:
        raise ValueError(f"--examples is at least 0, got {options.examples}")
    from detseg.analysis.run import analyze
    from detseg.evaluated import open_evaluated
    from detseg.report.console import Reporter, render

    model, location, validation, batch_size, workers, is_rank_zero, console = open_evaluated(options)
    with Reporter(console, len(validation.dataset), first=0, title="image", unit="images") as report:
        found = analyze(model.network, model.task, validation, batch_size=batch_size, workers=workers,
                        static=options.static, anchors=model.anchors, num_examples=options.examples,
                        progress=report.advance)
    thresholds = found.score_thresholds(weights=model.weights_digest, data=str(location))
    written = options.json or (None if model.run is None else model.run.analysis)
    if is_rank_zero and written is not None:
        found.write(written)
    if is_rank_zero and model.run is not None and thresholds is not None:
        thresholds.write(model.run.thresholds)
    # Last: whatever a terminal cannot show, the files are there.
    console.print(f"{model.title}, {model.network.form}", soft_wrap=True)
    for title, table in found.tables():
        console.print("", title, render(table), sep="\n", soft_wrap=True)
    console.print("\nwhat stands out", *(f"- {finding}" for finding in found.findings), sep="\n", soft_wrap=True)
    if written is not None:
        console.print(f"\nall of it: {written}", soft_wrap=True)
    if model.run is not None and thresholds is not None:
        console.print(f"detseg predict and detseg export take the thresholds from {model.run.thresholds}",
                      soft_wrap=True)
