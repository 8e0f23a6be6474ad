"""Prints the table of all backbones: parameters, multiply-adds, channels of the taps, and latency on this CPU.

    python tools/backbone_table.py [NAME ...] [--seconds S] [--threads N]

Up to the tap c5, without classifier; multiply-adds and latency of one image of 224 x 224, BatchNorm folded.
"""

from __future__ import annotations

import argparse

from detseg.backbones import chosen
from detseg.benchmark.table import latencies, markdown, row
from detseg.cli import exit_code


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="as in mobilenet_v2; all of them if none is named")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S",
                        help="to time each backbone (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (%(default)s)")
    return exit_code(lambda: _print(parser.parse_args(arguments)))


def _print(options: argparse.Namespace) -> None:
    networks = chosen(options.names)
    latency = latencies(networks, seconds=options.seconds, num_threads=options.threads)
    print(markdown([row(name, build) for name, build in networks.items()], latency))
