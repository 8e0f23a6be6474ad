"""Trains a config.

    detseg train CONFIG [--data DIR | --sample] [--out DIR] [--weights FILE|NAME] [--resume] [--set a.b=c ...]

With --show it prints what would run instead: every setting, and who set it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli import command_parser, exit_code
from detseg.config_files import CONFIG_HELP, find_config

_SAMPLE = Path("data/sample")


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help=CONFIG_HELP)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, metavar="DIR", help="the data set's folder (the config's own)")
    source.add_argument("--sample", action="store_true", help="train on a data set generated here")
    parser.add_argument("--out", type=Path, help="the run's folder (runs/<config>, then -2, -3 ...)")
    parser.add_argument("--weights", help="published weights to start from: a file, or a name to download")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, or with the newest")
    parser.add_argument("--config-changed", action="store_true",
                        help="resume although the config is not the one that the run was started with")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="overrides",
                        help="change numbers and choices, as in optimizer.lr=0.1 ema=none precision=bf16-mixed")
    parser.add_argument("--show", action="store_true", help="print every setting and who set it, and stop")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _train(build_parser().parse_args(arguments)))


def _train(options: argparse.Namespace) -> None:
    path = find_config(options.config)
    from detseg import config as configs

    config = configs.load(path, options.overrides, sample=options.sample)
    if options.show:
        print(config.describe())
        return
    # Lightning takes seconds more, which a misspelt setting should not wait for.
    from detseg.train import fit
    from detseg.weights.load import load_weights

    data = config.experiment.data
    folder = data.generate(_SAMPLE) if options.sample else options.data or Path(data.folder)
    fit(config, folder, out=options.out, resume=options.resume, config_changed=options.config_changed,
        initialise=None if options.weights is None else lambda model: str(load_weights(model, options.weights)))
