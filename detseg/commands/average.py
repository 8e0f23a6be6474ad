"""Averages checkpoints of a run into one network, and says whether it is better.

    detseg train CONFIG --set keep_every=2 ...
    detseg average RUN [--last N | --steps STEP STEP ...] [--out FILE] [--images 1024]

The mean of the weights that are evaluated (of a run with an average of its weights, of those averages), with
BatchNorm's statistics measured anew on training images. It is written as RUN/average.pt, which all commands take in the
place of the run's best: detseg test RUN RUN/average.pt.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from detseg.cli import command_parser, exit_code


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that has kept checkpoints")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--last", type=int, metavar="N", help="the newest N (all that were kept)")
    which.add_argument("--steps", type=int, nargs="+", default=[], metavar="STEP", help="those of these steps")
    parser.add_argument("--images", type=int, default=1024,
                        help="training images to measure BatchNorm's statistics on (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the checkpoint to write (RUN/average.pt)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _average(build_parser().parse_args(arguments)))


def _average(options: argparse.Namespace) -> None:
    for name in ("last", "images"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    from detseg.average import average, chosen_checkpoints
    from detseg.checkpoint import load
    from detseg.evaluate import evaluate
    from detseg.report.console import Reporter, plain_console, render
    from detseg.run_folder import trained_run

    run = trained_run(options.run)
    checkpoints = chosen_checkpoints(run, last=options.last, steps=options.steps)
    console = plain_console()
    console.print(f"the mean of {len(checkpoints)} checkpoints: {', '.join(path.name for path in checkpoints)}",
                  soft_wrap=True)
    out = options.out or run.average
    model, images = average(run, checkpoints, out, images=options.images, say=partial(console.print, soft_wrap=True))
    validation = model.validation(model.location)
    metric = validation.metric()
    with Reporter(console, len(validation.dataset), first=0, title="image", unit="images") as report:
        numbers, _ = evaluate(model.network, model.task, validation.dataset, metric=metric, batch_size=1, workers=1,
                              progress=report.advance)
    if images:
        console.print(f"BatchNorm's statistics are those of {images} training images")
    console.print(f"{out}", render(metric.table(numbers)), sep="\n", soft_wrap=True)
    best = load(run.weights).best.get("value")
    if best is not None:
        console.print(f"{metric.main}: {best:.3f} of the run's best checkpoint, {numbers[metric.main]:.3f} of the mean")
