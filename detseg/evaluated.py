"""What a command line says to predict validation images with: `detseg.cli.add_evaluated`, carried out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from detseg.api import Model, load_model
from detseg.data.location import Location
from detseg.evaluate import batch_and_workers
from detseg.launch import evaluation_device
from detseg.report.console import plain_console
from detseg.validation import Validation
from detseg.views import parse_tile, parse_tta

_SAMPLE = Path("data/sample")


class Evaluated(NamedTuple):
    """A network on its device, and the data to predict."""

    model: Model
    location: Location
    validation: Validation
    batch_size: int
    workers: int
    is_rank_zero: bool
    """Of several processes one writes."""
    console: Console
    """Which says nothing in the others."""


def open_evaluated(
    options: argparse.Namespace, *, per_class: bool = False, reference: bool = False, metrics: Sequence[str] = (),
) -> Evaluated:
    """Loads network and data, and says what a person should know about them.

    Args:
        options: what `add_evaluated` has read.
        per_class, reference, metrics: see `detseg.validation.prepared`.

    ValueError or FileNotFoundError for what does not exist or does not fit.
    """
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
    resize = model.network.resize
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"--batch-size is at least 1, got {options.batch_size}")
    experiment = None if model.config is None else model.config.experiment
    if experiment is None and options.data is None and not options.sample:
        raise ValueError(f"{options.model} is an exported file; name the data to evaluate it on with --data DIR or "
                         "--sample")
    location = model.location
    if options.sample or options.data is not None:
        location = Location(model.data.generate(_SAMPLE) if options.sample else options.data, options.images)
    elif options.images is not None:
        location = replace(location, images=options.images)
    validation = model.validation(
        location, common=options.common_classes, skip_broken=options.skip_broken, per_class=per_class,
        reference=reference, metrics=metrics, what=str(options.checkpoint or options.model), resize=resize)
    batch_size, workers = batch_and_workers(experiment, resize.size)
    for note in (*model.notes, *validation.notes):
        console.print(note, soft_wrap=True)
    return Evaluated(model, location, validation, options.batch_size or batch_size, workers, is_rank_zero,
                     console)
