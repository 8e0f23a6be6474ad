"""Checks that a backbone keeps what detseg's heads, training and export rely on.

    detseg check-backbone module:function [--set width=0.5 ...]
    detseg check-backbone path/to/file.py:function

The function gives a Backbone; each check is explained in detseg/backbones/contract.py. Exit code 0: all promises are
kept; 1: one is broken; 2: the command line is wrong, or the function gives no backbone.
"""

from __future__ import annotations

import argparse

from detseg.cli import command_parser, exit_code


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("builder", metavar="module:function",
                        help="as in detseg.backbones.mobilenet_v2:mobilenet_v2, or path/to/file.py:function")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="overrides",
                        help="numbers that the function is called with, as in width=0.5")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Prints every finding as it comes and gives the exit code."""
    options = build_parser().parse_args(arguments)
    broken: list[str] = []
    return exit_code(lambda: _check(options, broken)) or int(bool(broken))


def _check(options: argparse.Namespace, broken: list[str]) -> None:
    from detseg.backbones.contract import build_backbone, check_backbone, title

    backbone = build_backbone(options.builder, options.overrides)
    print(title(backbone, options.builder), flush=True)
    for finding in check_backbone(backbone):
        print(f"  {finding}", flush=True)
        if not finding.kept:
            broken.append(finding.check)
    print(f"broken: {', '.join(broken) or 'nothing'}")
