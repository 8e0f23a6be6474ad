"""Evaluates a checkpoint with the official metric.

    python tools/test.py CONFIG CHECKPOINT [--data DIR | --sample] [--per-class] [--json FILE] [--results FILE]

Detections get COCO's AP and AR, label maps get mIoU; both in original pixels, against the original annotations.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from rich.console import Console

from detseg import config as configs
from detseg.checkpoint import check_classes
from detseg.evaluate import evaluate
from detseg.files import write_records
from detseg.report.command import exit_code, write_whole
from detseg.report.console import Reporter
from detseg.trained import load_trained

_SAMPLE = Path("data/sample")


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="the config that was trained")
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt of its run, or published weights")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, metavar="DIR", help="the data set's folder (the config's own)")
    source.add_argument("--sample", action="store_true", help="evaluate on the data set generated here")
    parser.add_argument("--per-class", action="store_true", help="the metric of each class too")
    parser.add_argument("--reference", action="store_true",
                        help="use the field's own slow code where a faster equal of it is the default (COCO's AP)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the predictions in COCO's results format")
    return exit_code(lambda: _test(parser.parse_args(arguments)))


def _test(options: argparse.Namespace) -> None:
    model, config, title = load_trained(configs.load(options.config, sample=options.sample), options.checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    experiment, classes = config.experiment, model.classes

    data = experiment.data
    folder = data.generate(_SAMPLE) if options.sample else options.data or Path(data.folder)
    index = data.read(folder, "val")
    check_classes(index.classes, classes, what=str(options.checkpoint))
    dataset = data.dataset(index.relabel(classes), model.resize, augment=None, seed=experiment.seed)
    metric = experiment.task.metric(dataset, per_class=options.per_class, reference=options.reference)
    console = Console()
    with Reporter(console, len(dataset), first=0, title="image", unit="images") as report:
        numbers, predictions = evaluate(
            model, experiment.task, dataset, batch_size=experiment.batch_size, metric=metric,
            workers=1 if experiment.workers is None else experiment.workers, progress=report.advance,
            keep_predictions=options.results is not None)
    console.print(title, metric.table(numbers), sep="\n", soft_wrap=True)
    if options.json is not None:
        existing = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        write_whole(options.json, json.dumps(existing, indent=1) + "\n")
    if options.results is not None:
        write_records(options.results, (record for prediction in predictions
                                        for record in experiment.task.records(prediction, classes)))


if __name__ == "__main__":
    sys.exit(main())
