"""Evaluates a network with the official metric.

    detseg test RUN [--data PLACE | --sample] [--per-class] [--metric NAME ...] [--static] [--json FILE] ...
    detseg test CONFIG CHECKPOINT ...
    detseg test ARTEFACT --data DIR ...
    torchrun --nproc_per_node 8 -m detseg test ...

Of a run folder, its own config and best weights are taken, and the validation images of the data it was trained on.
Of other data, the images of the split val or valid are, or all where there is one split. Detections get COCO's AP and
AR, label maps get mIoU; both in original pixels, against the original annotations. --metric adds others. An exported
file (.onnx, .pte, .tflite, ...) is run by its runtime, and needs no config.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from detseg.atomic import write_records, write_text
from detseg.choices import METRICS
from detseg.cli import add_evaluated, check_config, command_parser, exit_code


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    add_evaluated(parser, what="evaluate")
    parser.add_argument("--per-class", action="store_true", help="the metric of each class too")
    parser.add_argument("--metric", nargs="+", action="extend", default=[], choices=METRICS, metavar="NAME",
                        dest="metrics",
                        help="further metrics, in tables of their own and in --json. Of boxes: voc (AP50 by VOC's "
                             "rules of 2007 and 2010), top300 (AP of the 300 surest detections of an image, LVIS's "
                             "limit), aspect (AP by aspect ratio), crowding (AP by overlap and by objects in the "
                             "image). Of label maps: averages (class accuracy, frequency-weighted IoU, IoU of images; "
                             "with --per-class the confusion in --json), boundary (boundary IoU), edges (mIoU near "
                             "edges and away from them). And coco or miou, where the config has another")
    parser.add_argument("--reference", action="store_true",
                        help="use the field's own slow code where a faster equal of it is the default (COCO's AP)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the predictions in COCO's results format")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _test(build_parser().parse_args(arguments)))


def _test(options: argparse.Namespace) -> None:
    check_config(options)
    from detseg.evaluate import evaluate
    from detseg.evaluated import open_evaluated
    from detseg.report.console import Reporter, render
    from detseg.report.results import records

    model, _, validation, batch_size, workers, is_rank_zero, console = open_evaluated(
        options, per_class=options.per_class, reference=options.reference, metrics=options.metrics)
    dataset, metric = validation.dataset, validation.metric()
    with Reporter(console, len(dataset), first=0, title="image", unit="images") as report:
        numbers, predictions = evaluate(
            model.network, model.task, dataset, metric=metric, batch_size=batch_size, workers=workers,
            static=options.static, progress=report.advance, keep_predictions=options.results is not None)
    if is_rank_zero and options.json is not None:
        existing = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        write_text(options.json, json.dumps(existing, indent=1) + "\n")
    if is_rank_zero and options.results is not None:
        write_records(options.results, (
            record for prediction in predictions for record in records(prediction, model.classes)))
    # Last: whatever a terminal cannot show, the files are there.
    console.print(f"{model.title}, {model.network.form}{', static' if options.static else ''}",
                  render(metric.table(numbers)), sep="\n", soft_wrap=True)
