"""Trains a config.

    detseg train CONFIG [--data PLACE | --sample] [--out DIR] [--weights FILE|NAME] [--resume] [--set a.b=c ...]
    detseg train CONFIG --qat --weights RUN [--data PLACE | --sample] [--set a.b=c ...]
    detseg train CONFIG --teacher RUN | --teacher CONFIG CHECKPOINT [--set distill.feature_weight=0 ...]
    detseg train CONFIG --data DIR --val-share 0.1
    detseg train CONFIG --data train.json --images DIR --val val.json

The data's layout is found by content; what is validated on is the split `val` or `valid`, what --val names, or the
share of the images that --val-share keeps. With --show it prints what would run instead: every setting, and who set it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.cli import add_images, command_parser, exit_code
from detseg.config_files import CONFIG_HELP, find_config

if TYPE_CHECKING:
    from detseg import config as configs
    from detseg.data.location import Location
    from detseg.model import Predictor

_SAMPLE = Path("data/sample")


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help=CONFIG_HELP)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, metavar="PLACE",
                        help="the data set's folder, or an annotation file (the config's own folder)")
    source.add_argument("--sample", action="store_true", help="train on a data set generated here")
    add_images(parser)
    parser.add_argument("--val", type=Path, metavar="PLACE",
                        help="validation data: a folder, an annotation file, or the name of one of the data's splits")
    parser.add_argument("--val-share", type=float, metavar="SHARE",
                        help="keep a share of the images for validation, such as 0.1, by a hash of their names")
    parser.add_argument("--out", type=Path, help="the run's folder (runs/<config>, then -2, -3 ...)")
    parser.add_argument("--weights",
                        help="weights to start from: a file, a run (of a classifier its backbone), or a name of "
                             "published ones to download")
    parser.add_argument("--qat", action="store_true",
                        help="quantisation-aware training: goes on from --weights, a run or a checkpoint of the same "
                             "config, in a tenth of the epochs at a hundredth of the learning rate unless --set "
                             "says otherwise (qat.* are its settings)")
    parser.add_argument("--teacher", nargs="+", default=[], metavar="RUN",
                        help="learn from a trained network too: a run, or a config and its checkpoint, of the same "
                             "classes (distill.* are its settings)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, or with the newest")
    parser.add_argument("--config-changed", action="store_true",
                        help="resume although the config is not the one that the run was started with")
    parser.add_argument("--skip-broken", action="store_true",
                        help="go on without images, records and labels that are broken; the run's skipped.txt has them")
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

    config = configs.load(path, options.overrides, sample=options.sample, qat=options.qat,
                          teacher=options.teacher)
    if options.show:
        print(config.describe())
        return
    # Lightning takes seconds more, which a misspelt setting should not wait for.
    from detseg.train import fit
    from detseg.weights.load import load_weights
    from detseg.weights.trained import load_trained, with_trained_settings

    location = _location(options, config.experiment.data)
    initialise: Callable[[Predictor], str] | None = None
    if options.weights is not None and config.experiment.qat is not None:
        config = with_trained_settings(config, options.weights)
        initialise = partial(load_trained, source=options.weights, task=config.experiment.task,
                             config_changed=options.config_changed)
    elif options.weights is not None:
        initialise = lambda model: str(load_weights(model, options.weights))  # noqa: E731
    fit(config, location, out=options.out, resume=options.resume, config_changed=options.config_changed,
        skip_broken=options.skip_broken, initialise=initialise)


def _location(options: argparse.Namespace, data: configs.Data) -> Location | None:
    """Where the data lie; None where the command line says nothing about it."""
    from detseg.data.location import Location

    others = (options.images, options.val, options.val_share)
    if options.sample:
        if any(other is not None for other in others):
            raise ValueError("the sample has its images and its split; leave out --images, --val and --val-share")
        return Location(data.generate(_SAMPLE))
    if options.data is None and all(other is None for other in others):
        return None
    return Location(options.data or Path(data.folder), *others)
