"""Shows what a config's network sees in training: a sheet of augmented samples.

    detseg browse CONFIG [--data PLACE | --sample] [--out FILE] [--number 16] [--epoch 0] [--set a.b=c ...]

Each sample is drawn as it comes in that epoch of the run, at the network's size, with its boxes and their classes
(crowds have dashed lines) or under the colours of its label map, where void is left as it is. Look at it before the
first run: at what became of small objects, and whether boxes lie on what they name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli import add_images, command_parser, exit_code
from detseg.config_files import CONFIG_HELP, find_config

_SAMPLE = Path("data/sample")


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help=CONFIG_HELP)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, metavar="PLACE",
                        help="the data set's folder, or an annotation file (the config's own folder)")
    source.add_argument("--sample", action="store_true",
                        help="look at the data set generated here, as training with --sample sees it")
    add_images(parser)
    parser.add_argument("--out", type=Path, default=Path("samples.png"), metavar="FILE",
                        help="the picture to write (%(default)s)")
    parser.add_argument("--number", type=int, default=16, help="how many samples, evenly over the data (%(default)s)")
    parser.add_argument("--epoch", type=int, default=0,
                        help="of the run, counted from 0; a mosaic may end before the last ones (%(default)s)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="overrides",
                        help="change numbers of the config, as in model.size=640 seed=1")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _browse(build_parser().parse_args(arguments)))


def _browse(options: argparse.Namespace) -> None:
    path = find_config(options.config)
    if options.sample and options.images is not None:
        raise ValueError("the sample has its images; leave out --images")
    from detseg import config as configs
    from detseg.browse import browse
    from detseg.data.location import Location
    from detseg.report.pictures import write_picture

    config = configs.load(path, options.overrides, sample=options.sample)
    data = config.experiment.data
    folder = data.generate(_SAMPLE) if options.sample else options.data or Path(data.folder)
    browsed = browse(config, Location(folder, options.images), number=options.number, epoch=options.epoch)
    write_picture(options.out, browsed.sheet)
    print(f"{options.out}: {browsed.summary}")
