"""Writes a network into a file for another runtime, runs it there and compares the two.

    detseg export RUN --format onnx|executorch|litert|coreml|openvino|ncnn|pt2 [--out FILE] ...
    detseg export CONFIG CHECKPOINT --format FORMAT ...
    detseg export RUN --format FORMAT --int8 [--max-drop 1.0] [--keep-float LAYER ...] [--report] ...
    detseg export RUN --check FILE          compare a file that was written earlier
    detseg export --formats                 what each format can hold, and what it needs

The file takes uint8 RGB images of one size, with the normalisation inside, and gives final predictions: boxes after
suppression, or a label map. It carries a manifest, so that detseg test, detseg predict and detseg.load take it
alone. Compared are images of the config's validation data, of --images, or of the generated sample; the numbers are
left beside the file (FILE.parity.json). A file that differs is not left under its name, and the exit code is 1.

With --int8, ranges are taken from training images, and the checkpoint and the file are measured by the task's metric on
the validation data. Where the file loses more than --max-drop points, the layers that cost most are left in floating
point, as few as will do, or no file is left; FILE.int8.json has what was found.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from detseg.choices import CALIBRATION_IMAGES, CONTRACTS, EXECUTIONS, PARTS, RANGES
from detseg.cli import add_model_settings, check_config, command_parser, exit_code
from detseg.export.formats import format_named, format_names, formats

if TYPE_CHECKING:
    from rich.console import Console

    from detseg.api import Model
    from detseg.export.convert import Exported
    from detseg.export.format import Format, Options
    from detseg.structures import Pixels


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("model", type=Path, nargs="?", metavar="RUN|CONFIG",
                        help="a run folder, or the config that was trained")
    parser.add_argument("checkpoint", type=Path, nargs="?",
                        help="another checkpoint of the run; with a config: best.pt or last.pt of its run, or "
                             "published weights")
    parser.add_argument("--format", metavar="FORMAT", help=", ".join(format_names()))
    parser.add_argument("--contract", choices=CONTRACTS, default="final",
                        help="where the file ends: the head's raw outputs, decoded boxes or scores, final predictions "
                             "(%(default)s)")
    parser.add_argument("--fp16", action="store_true", help="weights in half precision")
    int8 = parser.add_argument_group("int8")
    int8.add_argument("--int8", action="store_true", help="weights and activations in 8 bits")
    int8.add_argument("--data", type=Path, metavar="PLACE",
                      help="what it is calibrated and measured on: a data set's folder or an annotation file (the "
                           "run's, or the config's own)")
    int8.add_argument("--common-classes", action="store_true",
                      help="measure on the classes that the network and the data both have")
    int8.add_argument("--calibrate", metavar="DIR|GLOB|FILE", nargs="+",
                      help="images to take ranges from (training images; after --qat the ranges of training)")
    int8.add_argument("--calibration-images", type=int, default=CALIBRATION_IMAGES, metavar="N",
                      help="how many of them (%(default)s)")
    int8.add_argument("--calibration-seed", type=int, default=0, metavar="SEED", help="of their draw (%(default)s)")
    int8.add_argument("--max-drop", type=float, metavar="POINTS",
                      help="of AP or mIoU that int8 may cost: 1.0 is from 0.300 to 0.290 (1.0)")
    int8.add_argument("--keep-float", nargs="+", action="extend", default=[], metavar="LAYER",
                      help="layers that stay in floating point, as the report names them")
    int8.add_argument("--ranges", choices=RANGES, default="minmax",
                      help="of activations: all that was seen, or what makes the error smallest (%(default)s)")
    int8.add_argument("--report", action="store_true",
                      help="what every layer costs, and why: a table, FILE.layers.png, and FILE.int8.json")
    parser.add_argument("--input", choices=("uint8", "float"),
                        help="what the file takes: 0..255 as bytes, or as floats that need not be whole (uint8 where "
                             "the format has it)")
    parser.add_argument("--layout", choices=("nhwc", "nchw"), help="of the images (nhwc where the format has it)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the images (the config's)")
    parser.add_argument("--dynamic-batch", action="store_true", help="batches of any size")
    parser.add_argument("--candidates", type=int, metavar="N",
                        help="boxes that enter suppression, the surest (the config's); fewer are faster")
    parser.add_argument("--execution", choices=EXECUTIONS, default="whole",
                        help="split: compute inverted bottlenecks in parts of their channels, with less memory where "
                             "the runtime keeps to it (%(default)s)")
    parser.add_argument("--parts", type=int, metavar="T", help=f"of a bottleneck that is split ({PARTS})")
    parser.add_argument("--images", metavar="DIR|GLOB|FILE", nargs="+", help="images to compare on")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="the file to write (exports/NAME with the format's ending)")
    parser.add_argument("--unchecked", action="store_true",
                        help="leave the file also where it differs or cannot be compared")
    parser.add_argument("--check", type=Path, metavar="FILE", help="only compare this file with the checkpoint")
    parser.add_argument("--formats", action="store_true", help="list the formats, and stop")
    parser.add_argument("--config-changed", action="store_true",
                        help="take the checkpoint although it was trained with another config")
    add_model_settings(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _export(build_parser().parse_args(arguments)))


def _export(options: argparse.Namespace) -> None:
    if not options.formats:
        if options.model is None:
            raise ValueError("name a run folder, or a config and a checkpoint; --formats lists the formats")
        if options.check is None and options.format is None:
            raise ValueError(f"name a format with --format: {', '.join(format_names())}")
        check_config(options)
    from detseg.report.console import plain_console

    console = plain_console(file=sys.stdout)  # and not whatever it is while converters are kept quiet
    if options.formats:
        console.print(_listed())
        return
    from detseg.api import load_model
    from detseg.export.convert import check, check_options, export
    from detseg.export.format import Options

    model = load_model(options.model, options.checkpoint, config_changed=options.config_changed,
                       settings=options.settings, classes=options.classes)
    if model.source is None:
        raise ValueError(f"{options.model} is an exported file; export the checkpoint it was made of")
    for note in model.notes:
        console.print(note, soft_wrap=True)
    if options.check is not None:
        images, origin = _images(model, options.images)
        parity = check(options.check, model.source, images)
        console.print(f"{options.check} is {model.title}: {parity.summary()} ({origin})",
                      soft_wrap=True)
        return
    kind = format_named(options.format)
    usual = kind.usual_options()
    if options.fp16 and options.int8:
        raise ValueError("a file has weights of one kind: take --fp16 or --int8")
    if not options.int8 and (named := _int8_named(options)):
        raise ValueError(f"{named} is for int8 files; add --int8")
    wanted = Options(
        contract=options.contract, precision="fp16" if options.fp16 else "int8" if options.int8 else "fp32",
        pixels=options.input or usual.pixels, layout=options.layout or usual.layout,
        size=tuple(options.size) if options.size else None, dynamic_batch=options.dynamic_batch,
        candidates=options.candidates, execution=options.execution,
        parts=options.parts)
    # Export asks the same; but reading a data set's index for the images takes its time.
    check_options(kind, wanted, model.source)
    kind.check_installed(kind.converter, to="write")
    path = options.out or Path("exports") / f"{model.name}{'-int8' if options.int8 else ''}{kind.suffix}"
    started = time.perf_counter()
    if options.int8:
        lines = _export_int8(options, model, kind, wanted, path, console)
        console.print("\n".join([*lines, f"{time.perf_counter() - started:.0f} s in all"]), soft_wrap=True)
        return
    images, origin = _images(model, options.images)
    with console.status("") as status:
        written = export(model.source, path, kind, wanted, images=images, unchecked=options.unchecked,
                         say=lambda what: status.update(f"{what} ..."))
    lines = _written(written, kind)
    if written.parity is None:
        lines.append("not compared")
    else:
        lines.append(f"{written.parity.summary()} ({origin}); see {written.report}")
        lines += [f"differs: {problem}" for problem in (*written.parity.problems(), *written.parity.causes)]
    if kind.note:
        lines.append(f"note: {kind.note}")
    console.print("\n".join(lines), soft_wrap=True)


def _written(written: Exported, kind: Format) -> list[str]:
    manifest = written.manifest
    outputs = ", ".join(f"{one.name} {one.dtype} {list(one.shape)}" for one in manifest.outputs)
    given = manifest.input
    spent = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in written.seconds.items())
    return [
        f"{written.path}: {kind.title}, {written.megabytes:.1f} MB, {sum(written.seconds.values()):.0f} s ({spent})",
        f"takes images {str(given.dtype).removeprefix('torch.')} {list(given.shape)} RGB, gives {outputs}"]


def _int8_named(options: argparse.Namespace) -> str | None:
    """The first argument of int8 that was given."""
    given = {"--data": options.data, "--common-classes": options.common_classes or None,
             "--calibrate": options.calibrate, "--max-drop": options.max_drop,
             "--keep-float": options.keep_float or None, "--report": options.report or None}
    return next((name for name, value in given.items() if value is not None), None)


def _export_int8(
    options: argparse.Namespace, model: Model, kind: Format, wanted: Options, path: Path, console: Console
) -> list[str]:
    from detseg.data.images import read_image
    from detseg.data.loading import drawn
    from detseg.data.location import Location
    from detseg.export.int8 import Budget, Calibration, export_int8, int8_path
    from detseg.predict import find_images
    from detseg.quantization.post_training import Recipe

    assert model.source is not None
    if options.calibration_images < 1:
        raise ValueError(f"--calibration-images is at least 1, got {options.calibration_images}")
    budget = Budget() if options.max_drop is None else Budget(max_drop=options.max_drop)
    location = model.location if options.data is None else Location(options.data)
    try:
        validation = model.validation(location, common=options.common_classes)
    except FileNotFoundError as error:
        if not options.unchecked:
            raise FileNotFoundError(f"{error}\nint8 is measured on validation data: name some with --data, or insist "
                                    "on a file that was not measured with --unchecked") from None
        validation = None
    if options.calibrate:
        paths = find_images(options.calibrate)
        chosen = [paths[k] for k in drawn(len(paths), options.calibration_images, seed=options.calibration_seed)]
        calibration = Calibration(
            tuple(read_image(one) for one in chosen), tuple(one.name for one in chosen), " ".join(options.calibrate),
            options.calibration_seed, options.calibration_images)
    else:
        calibration = model.calibration(
            location, number=options.calibration_images, seed=options.calibration_seed)
    source = model.source
    if options.calibrate:
        source = source._replace(ranges=None)
    images = _images(model, options.images)[0] if options.images else ()
    for note in () if validation is None else validation.notes:
        console.print(note, soft_wrap=True)
    with console.status("") as status:
        made = export_int8(
            source, path, kind, wanted, calibration=calibration, validation=validation, budget=budget,
            recipe=Recipe(keep_float=tuple(options.keep_float), ranges=options.ranges), images=images,
            report=options.report, say=lambda what: status.update(f"{what} ..."))
    lines = [*_written(made.exported, kind), *made.lines(), f"see {int8_path(path)}"]
    if made.report is not None:
        from detseg.quantization.picture import write_layers

        picture = path.with_name(f"{path.name}.layers.png")
        write_layers(picture, made.report)
        console.print(made.report.table(number=20))
        lines += ["the layers that cost most:", *(f"  {note}" for note in made.report.notes()), f"all: {picture}"]
    return lines


def _images(model: Model, named: list[str] | None) -> tuple[list[Pixels], str]:
    """What to compare on, and what to call it."""
    if named:
        from detseg.data.images import read_image
        from detseg.predict import find_images

        paths = find_images(named)
        return [read_image(path) for path in paths], f"{len(paths)} images of {', '.join(named)}"
    return model.comparison_images()


def _listed() -> Table:
    """What each can hold, and whether its packages are there: those of pip install 'detseg[FORMAT]'."""
    table = Table("format", "file", "contracts", "weights", "input", "any batch", "installed")
    for one in formats().values():
        there = not one.missing((*one.converter, *one.runtime))
        table.add_row(one.name, one.suffix, "\n".join(one.contracts), "\n".join(one.precisions),
                      "\n".join((*one.pixels, *one.layouts)), "yes" if one.dynamic_batch else "no",
                      "yes" if there else f"no: 'detseg\\[{one.extra}]'")
    return table
