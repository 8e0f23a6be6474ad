"""Trains every backbone in SSDLite on the generated sample, and prints a table.

    detseg compare-backbones [NAME ...] [--out DIR] [--data DIR] [--set schedule.epochs=12 ...]

Each is trained as long as the others, as the config ssdlite_backbones with its own backbone, and its run is DIR/NAME.
The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli import command_parser, exit_code
from detseg.config_files import find_config

_SAMPLE = Path("data/sample")
_CONFIG = "ssdlite_backbones"


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="as in mobilenet_v2; all of them if none is named")
    parser.add_argument("--out", type=Path, default=Path("runs/backbones"), metavar="DIR",
                        help="where the runs go (%(default)s)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="another data set than the generated sample")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="overrides",
                        help="change numbers of all, as in schedule.epochs=12")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _compare(build_parser().parse_args(arguments)))


def _compare(options: argparse.Namespace) -> None:
    from detseg import config as configs
    from detseg.backbones import chosen

    networks = chosen(options.names)
    # Lightning takes seconds more, which a misspelt name should not wait for.
    from detseg.checkpoint import load
    from detseg.run_folder import RunFolder
    from detseg.train import fit

    lines = ["| backbone | AP | AP50 | steps |", "| -- | -- | -- | -- |"]
    for name in networks:
        run = RunFolder(options.out / name)
        config = configs.load(find_config(Path(_CONFIG)), [*options.overrides, f"model.backbone={name}"], sample=True)
        folder = options.data or config.experiment.data.generate(_SAMPLE)
        numbers = fit(config, folder, out=run.path, resume=run.last.exists()).numbers
        lines.append(f"| `{name}` | {numbers['AP']:.3f} | {numbers['AP50']:.3f} | {load(run.last).step} |")
    print("\n".join(lines))
