"""Lists the configs that come with detseg, with cost and score, or copies one to edit.

    detseg configs [--json | --markdown]
    detseg configs copy NAME [FILE|DIR]

A config's name stands for its file wherever a command takes a CONFIG; a file of your own comes first. Multiply-adds are
those of one image of the input's size. The score is the published one of the source named.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from detseg.cli import command_parser, exit_code
from detseg.config_files import ConfigFile, Kind, built_in_configs, copy_config, describe_config

START, END = "<!-- detseg configs --markdown -->", "<!-- end of the configs -->"
"""What stands around the tables in a document."""

_KINDS: tuple[tuple[Kind, str], ...] = (("detector", "AP"), ("segmenter", "mIoU"), ("classifier", "top-1"))


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything that is known of each, for programs")
    form.add_argument("--markdown", action="store_true", help="the README's tables")
    verbs = parser.add_subparsers(dest="verb", metavar="copy", title="to edit one")
    copy = verbs.add_parser("copy", help="copy a config to edit it", description="Copies a config, to be edited.")
    copy.add_argument("name", metavar="NAME", help="as detseg configs lists it")
    copy.add_argument("to", type=Path, nargs="?", metavar="FILE|DIR",
                      help="a new file, or a folder that exists (NAME.py)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _configs(build_parser().parse_args(arguments)))


def _configs(options: argparse.Namespace) -> None:
    if options.verb == "copy":
        path = copy_config(options.name, options.to)
        print(f"{path}: edit it, and train it with detseg train {path} --data DIR")
        return
    known = [describe_config(path) for path in built_in_configs().values()]
    if options.json:
        print(json.dumps([asdict(one) | {"path": str(one.path)} for one in known], indent=1))
    elif options.markdown:
        print(markdown(known))
    else:
        print(listing(known))


def listing(configs: Sequence[ConfigFile]) -> str:
    """For people, in columns: names, and numbers that are rounded."""
    blocks = []
    for kind, metric in _KINDS:
        rows = [(f"{kind}s", "parameters", "multiply-adds", "input", "source of the wiring", f"published {metric}")]
        rows += [(one.name, f"{one.parameters / 1e6:.2f} M", f"{one.macs / 1e9:.2f} B", _size(one), one.source,
                  one.score.replace(f" {metric}", "")) for one in configs if one.kind == kind]
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        blocks.append("\n".join("  ".join(
            text.rjust(width) if 0 < column < 4 else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows))
    return "\n\n".join([*blocks, "detseg train NAME --data DIR trains one, detseg configs copy NAME gives one to edit"])


def markdown(configs: Sequence[ConfigFile]) -> str:
    """For the README: a table of each kind, exact."""
    lines = [START]
    for kind, metric in _KINDS:
        lines += ["", f"| {kind} | parameters | multiply-adds | input | source of the wiring | published {metric} |",
                  "|--|--|--|--|--|--|"]
        for one in (one for one in configs if one.kind == kind):
            macs = f"{one.macs:,}" + ("" if one.region_macs is None else f" + {one.region_macs:,} a region")
            lines.append(f"| `{one.name}` | {one.parameters:,} | {macs} | {_size(one)} | {one.source} | "
                         f"{one.score.replace(f' {metric}', '')} |")
    return "\n".join([*lines, "", END])


def _size(config: ConfigFile) -> str:
    height, width = config.size
    return f"{height}" if height == width else f"{height} x {width}"
