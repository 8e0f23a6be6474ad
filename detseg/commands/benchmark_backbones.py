"""Measures our backbones against timm's or torchvision's on this CPU.

    detseg benchmark-backbones [NAME ...] [--seconds S] [--threads N] [--channels-last] [--json FILE]

Models of the same architecture: forward pass of one image, forward and backward pass of a batch, and the memory of
that: see detseg/benchmark/backbones.py for what is compared. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detseg.atomic import write_text
from detseg.cli import command_parser, exit_code


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="as in mobilenet_v2; all of them if none is named")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S",
                        help="for each of the two times of a backbone (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N",
                        help="CPU threads (1 for the forward pass, every core for training)")
    parser.add_argument("--size", type=int, default=320, metavar="N", help="of the images (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="of the training step (%(default)s)")
    parser.add_argument("--channels-last", action="store_true", help="lay out their models as ours, not as they come")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _benchmark(build_parser().parse_args(arguments)))


def _benchmark(options: argparse.Namespace) -> None:
    from detseg.benchmark.backbones import Setup, as_json, markdown, measurable, measure, notes
    from detseg.report.console import plain_console

    setup = Setup(seconds=options.seconds, threads=options.threads, size=options.size, batch_size=options.batch_size,
                  channels_last=options.channels_last)
    console, figures = plain_console(), []
    with console.status("") as status:
        for name, build in measurable(options.names).items():
            status.update(f"measuring {name}")
            figures.append(measure(name, build, setup=setup))
    console.print(markdown(figures), notes(figures, setup), sep="\n\n", soft_wrap=True)
    if options.json is not None:
        write_text(options.json, json.dumps(as_json(figures, setup), indent=1) + "\n")
