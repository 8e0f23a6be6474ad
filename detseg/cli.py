"""How every command begins and ends: its parser; an exit code, and a message instead of a traceback for a mistake."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

from detseg.choices import ENGINES
from detseg.config_files import find_config


def command_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `detseg VERB`, whatever ran it, with a module's docstring as help; its last name is the verb."""
    verb = module.rpartition(".")[2].replace("_", "-")
    return argparse.ArgumentParser(
        prog=f"detseg {verb}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_images(parser: argparse.ArgumentParser) -> None:
    """Of commands that read data."""
    parser.add_argument("--images", type=Path, metavar="DIR",
                        help="where an annotation file's images lie, if they are not found by themselves")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Of commands that predict with a model."""
    parser.add_argument("--engine", choices=ENGINES, default="torch",
                        help="what runs the network's layers (%(default)s); onnxruntime is faster on a CPU, and the "
                             "same up to rounding")


def add_views(parser: argparse.ArgumentParser) -> None:
    """Of commands that predict with a model."""
    parser.add_argument("--tta", nargs="+", action="extend", default=[], metavar="flip|SCALE",
                        help="test-time augmentation: predict each image mirrored too (flip), and seen so many times "
                             "as large (0.75 1.25), and merge what is found. flip doubles the time; a scale below 1 "
                             "costs as much as the image, one up to 1.6 four times as much: it is seen in tiles")
    parser.add_argument("--tiles", metavar="SIZE",
                        help="predict images in tiles of SIZE x SIZE pixels, or of 480x640 (height x width), for "
                             "images much larger than the network's input; objects larger than the overlap are taken "
                             "from the whole image")
    parser.add_argument("--overlap", type=float, metavar="SHARE",
                        help="of neighbouring tiles, above 0 and up to 0.5 of their side (0.2)")


def add_model_settings(parser: argparse.ArgumentParser) -> None:
    """Of commands that take published weights where a checkpoint is asked for."""
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="model.NAME=VALUE", dest="settings",
                        help="settings of the config's model that published weights need, as in model.output_stride=8")
    parser.add_argument("--classes", nargs="+", action="extend", default=[], metavar="NAME",
                        help="what published weights predict, in their order (the config's classes)")


def check_images(options: argparse.Namespace) -> None:
    """ValueError where it is said where images lie, and of which data is not, for commands that know no others."""
    if options.images is not None and options.data is None:
        raise ValueError("--images tells where the images of --data lie; name that too")


def check_config(options: argparse.Namespace) -> None:
    """FileNotFoundError or ValueError for a config in front of a checkpoint that does not exist, before anything large
    is imported."""
    if options.checkpoint is not None and not options.model.is_dir():
        find_config(options.model)


def add_evaluated(parser: argparse.ArgumentParser, *, what: str) -> None:
    """Of commands that predict validation images, what `detseg.evaluated.open_evaluated` takes; what: for example
    "evaluate"."""
    parser.add_argument("model", type=Path, metavar="RUN|CONFIG|ARTEFACT",
                        help="a run folder, the config that was trained, or an exported file")
    parser.add_argument("checkpoint", type=Path, nargs="?",
                        help="another checkpoint of the run; with a config: best.pt or last.pt of its run, or "
                             "published weights")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, metavar="PLACE",
                        help="the data set's folder, or an annotation file (the run's, or the config's own)")
    source.add_argument("--sample", action="store_true", help=f"{what} on the data set generated here")
    add_images(parser)
    parser.add_argument("--static", action="store_true",
                        help="decode and suppress in the form that is exported: the score of what will ship")
    parser.add_argument("--batch-size", type=int, metavar="N",
                        help="images that are evaluated together (the config's eval_batch_size, or what suits them)")
    add_engine(parser)
    add_views(parser)
    parser.add_argument("--skip-broken", action="store_true",
                        help=f"{what} without images, records and labels that are broken, and name them")
    parser.add_argument("--config-changed", action="store_true",
                        help="take the checkpoint although it was trained with another config")
    add_model_settings(parser)
    parser.add_argument("--common-classes", action="store_true",
                        help=f"{what} on the classes that the network and the data both have, by name, although they "
                             "do not have the same")


def exit_code(work: Callable[[], None]) -> int:
    """Does the work of a command: 0, or 2 for what the user can change, 1 for what failed on the way, 130 for Ctrl-C.

    What went wrong is said on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console of few characters shows others as ?, and nothing is lost
            stream.reconfigure(errors="replace")
    try:
        work()
    except KeyboardInterrupt:
        return 130
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {_readable(error)}", file=sys.stderr)  # noqa: T201
        return 2
    except ImportError as error:
        if error.name != "cv2":
            raise
        # albumentations brings the OpenCV without windows, mmcv the other over it: pip cannot say that one is enough.
        message = (f"error: {error}: OpenCV with windows needs a desktop's libraries; put the one without in its "
                   "place: pip install --force-reinstall --no-deps opencv-python-headless")
        print(message, file=sys.stderr)  # noqa: T201
        return 1
    except (OSError, ArithmeticError) as error:  # FloatingPointError, and files that do not give what they should
        print(f"error: {_readable(error)}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _readable(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
