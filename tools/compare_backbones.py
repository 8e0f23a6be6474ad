"""Trains every backbone in SSDLite on the generated sample, each as long as the others, and prints a table.

    python tools/compare_backbones.py [NAME ...] [--out DIR] [--data DIR] [--set schedule.epochs=12 ...]

Each gets the config of ssdlite_v4_conv_small.py with its own backbone and the head's BatchNorm; it is written to
DIR/NAME.py, its run to DIR/NAME. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from detseg import config as configs
from detseg.backbone_table import Builder, chosen, spec_of
from detseg.report.command import exit_code, write_whole
from detseg.run_folder import RunFolder

_SAMPLE = Path("data/sample")
_BASE = Path(__file__).parents[1] / "configs" / "ssdlite_v4_conv_small.py"
_IMPORT = "from detseg.backbones.mobilenet_v4 import mobilenet_v4_conv_small\n"
_CALL = 'mobilenet_v4_conv_small(width=width, taps=("c4.expansion", "c5"))'


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="as in mobilenet_v2; all of them if none is named")
    parser.add_argument("--out", type=Path, default=Path("runs/backbones"), metavar="DIR",
                        help="where configs and runs go (%(default)s)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="another data set than the generated sample")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="overrides",
                        help="change numbers of all configs, as in schedule.epochs=12")
    return exit_code(lambda: _compare(parser.parse_args(arguments)))


def config_text(name: str, build: Builder) -> str:
    """The config of SSDLite on this backbone, complete."""
    function, options = (build.func, build.keywords) if isinstance(build, partial) else (build, {})
    taps = ("c4.expansion" if spec_of(build, "c4.expansion") else "c4", "c5")
    settings = ", ".join(["width=width", f"taps={taps}", "norm=HEAD_NORM", *(f"{k}={v}" for k, v in options.items())])
    text = _BASE.read_text("utf-8").split('"""', 2)[2]
    assert text.count(_IMPORT) == text.count(_CALL) == 1, f"{_BASE} has changed"
    text = text.replace(_IMPORT, f"from {function.__module__} import {function.__name__}\n")
    return f'"""SSDLite on {name}, like the others that it is compared with."""' + text.replace(
        _CALL, f"{function.__name__}({settings})")


def _compare(options: argparse.Namespace) -> None:
    # Imported only now: Lightning takes seconds, and a misspelt name should be answered at once.
    networks = chosen(options.names)
    from detseg.checkpoint import load
    from detseg.train import fit

    lines = ["| backbone | AP | AP50 | steps |", "| -- | -- | -- | -- |"]
    for name, build in networks.items():
        path, run = options.out / f"{name}.py", RunFolder(options.out / name)
        write_whole(path, config_text(name, build))
        config = configs.load(path, options.overrides, sample=True)
        folder = options.data or config.experiment.data.generate(_SAMPLE)
        numbers = fit(config, folder, out=run.path, resume=run.last.exists()).numbers
        lines.append(f"| `{name}` | {numbers['AP']:.3f} | {numbers['AP50']:.3f} | {load(run.last).step} |")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
