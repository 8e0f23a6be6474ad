"""Evaluates a network with the official metric.

    detseg test RUN [--data PLACE | --sample] [--per-class] [--static] [--json FILE] [--results FILE] ...
    detseg test CONFIG CHECKPOINT ...
    detseg test ARTEFACT --data DIR ...
    torchrun --nproc_per_node 8 -m detseg test ...

Of a run folder, its own config and best weights are taken, and the validation images of the data it was trained on.
Of other data, the images of the split val or valid are, or all where there is one split. Detections get COCO's AP and
AR, label maps get mIoU; both in original pixels, against the original annotations. An exported file (.onnx, .pte,
.tflite, ...) is run by its runtime, and needs no config.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

from detseg.atomic import write_records, write_text
from detseg.cli import add_engine, add_images, add_model_settings, add_views, command_parser, exit_code
from detseg.config_files import find_config

_SAMPLE = Path("data/sample")


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("model", type=Path, metavar="RUN|CONFIG|ARTEFACT",
                        help="a run folder, the config that was trained, or an exported file")
    parser.add_argument("checkpoint", type=Path, nargs="?",
                        help="another checkpoint of the run; with a config: best.pt or last.pt of its run, or "
                             "published weights")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, metavar="PLACE",
                        help="the data set's folder, or an annotation file (the run's, or the config's own)")
    source.add_argument("--sample", action="store_true", help="evaluate on the data set generated here")
    add_images(parser)
    parser.add_argument("--per-class", action="store_true", help="the metric of each class too")
    parser.add_argument("--reference", action="store_true",
                        help="use the field's own slow code where a faster equal of it is the default (COCO's AP)")
    parser.add_argument("--static", action="store_true",
                        help="decode and suppress in the form that is exported: the score of what will ship")
    parser.add_argument("--batch-size", type=int, metavar="N",
                        help="images that are evaluated together (the config's eval_batch_size, or what suits them)")
    add_engine(parser)
    add_views(parser)
    parser.add_argument("--skip-broken", action="store_true",
                        help="evaluate without images, records and labels that are broken, and name them")
    parser.add_argument("--config-changed", action="store_true",
                        help="take the checkpoint although it was trained with another config")
    add_model_settings(parser)
    parser.add_argument("--common-classes", action="store_true",
                        help="evaluate on the classes that the network and the data both have, by name, although they "
                             "do not have the same")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the predictions in COCO's results format")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _test(build_parser().parse_args(arguments)))


def _test(options: argparse.Namespace) -> None:
    if options.checkpoint is not None and not options.model.is_dir():
        find_config(options.model)
    from detseg.api import load_model
    from detseg.data.location import Location
    from detseg.evaluate import evaluate, suitable_batch
    from detseg.launch import evaluation_device
    from detseg.report.console import Reporter, plain_console, render
    from detseg.report.results import records
    from detseg.views import parse_tile, parse_tta

    flip, scales = parse_tta(options.tta)
    tile = None if options.tiles is None else parse_tile(options.tiles)
    model = load_model(options.model, options.checkpoint, sample=options.sample, config_changed=options.config_changed,
                       settings=options.settings, classes=options.classes)
    device, is_rank_zero = evaluation_device()
    if model.source is not None and options.engine == "torch":  # an exported file stays with its runtime
        model.to(device)
    console = plain_console(quiet=not is_rank_zero)
    model.run_with(options.engine, say=partial(console.print, soft_wrap=True))
    model.use_views(flip=flip, scales=scales, tile=tile, overlap=options.overlap)
    task, classes, resize = model.task, model.classes, model.network.resize
    experiment = None if model.config is None else model.config.experiment
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"--batch-size is at least 1, got {options.batch_size}")

    data = model.data
    if experiment is None and options.data is None and not options.sample:
        raise ValueError(f"{options.model} is an exported file; name the data to evaluate it on with --data DIR or "
                         "--sample")
    location = model.location
    if options.sample or options.data is not None:
        location = Location(data.generate(_SAMPLE) if options.sample else options.data, options.images)
    elif options.images is not None:
        location = replace(location, images=options.images)
    validation = model.validation(
        location, common=options.common_classes, skip_broken=options.skip_broken, per_class=options.per_class,
        reference=options.reference, what=str(options.checkpoint or options.model), resize=resize)
    dataset, metric = validation.dataset, validation.metric()
    chosen, most, workers = None, 1, None
    if experiment is not None:
        chosen, workers = experiment.eval_batch_size, experiment.workers
        most = experiment.batch_size // experiment.accumulate
    batch_size = options.batch_size or chosen or suitable_batch(resize.size, most=most)
    for note in (*model.notes, *validation.notes):
        console.print(note, soft_wrap=True)
    with Reporter(console, len(dataset), first=0, title="image", unit="images") as report:
        numbers, predictions = evaluate(
            model.network, task, dataset, metric=metric, batch_size=batch_size,
            workers=1 if workers is None else workers, static=options.static,
            progress=report.advance, keep_predictions=options.results is not None)
    if is_rank_zero and options.json is not None:
        existing = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        write_text(options.json, json.dumps(existing, indent=1) + "\n")
    if is_rank_zero and options.results is not None:
        write_records(options.results, (
            record for prediction in predictions for record in records(prediction, classes)))
    # Last: whatever a terminal cannot show, the files are there.
    console.print(f"{model.title}, {model.network.form}{', static' if options.static else ''}",
                  render(metric.table(numbers)), sep="\n", soft_wrap=True)
