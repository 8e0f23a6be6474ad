"""Prints the table of all backbones: cost, channels of the taps, latency on this CPU.

    detseg backbone-table [NAME ...] [--seconds S] [--threads N]

Up to the tap c5, without classifier; multiply-adds and latency of one image of 224 x 224, BatchNorm folded.
"""

from __future__ import annotations

import argparse

from detseg.cli import command_parser, exit_code


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="as in mobilenet_v2; all of them if none is named")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S",
                        help="to time each backbone (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (%(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _print(build_parser().parse_args(arguments)))


def _print(options: argparse.Namespace) -> None:
    from detseg.backbones import chosen
    from detseg.benchmark.table import latencies, markdown, row

    networks = chosen(options.names)
    latency = latencies(networks, seconds=options.seconds, num_threads=options.threads)
    print(markdown([row(name, build) for name, build in networks.items()], latency))
