"""What a config's network sees in training: samples as they are augmented, with what is to be learned drawn on them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from detseg.config import Config, resolve_classes
from detseg.data.faults import check_faults
from detseg.data.loading import spread
from detseg.data.location import Location, read_training
from detseg.data.screening import screened
from detseg.interfaces import SampleKey
from detseg.report.pictures import contact_sheet, draw
from detseg.structures import Pixels


class Browsed(NamedTuple):
    """A sheet of training samples."""

    sheet: Pixels
    summary: str
    """What it shows, in a line."""


def browse(config: Config, location: Location, *, number: int, epoch: int, columns: int = 4) -> Browsed:
    """Training samples, evenly over the data, as they come in an epoch: with the run's seed, and its number of epochs,
    so that a closing phase shows.

    Broken images are left out. Raises what reading does, and ValueError for an epoch that the run does not have.
    """
    if number < 1:
        raise ValueError(f"--number is how many samples are shown, at least 1, got {number}")
    index, _ = screened(read_training(config.experiment.data.read, location), whole=False)
    if not len(index):
        check_faults(index.faults, f"no image is left to look at in {location}")
    classes = resolve_classes(config.experiment.classes, index.classes)
    index = index.relabel(classes)
    config = config.suited(index, classes)
    experiment = config.experiment
    num_epochs = experiment.schedule.epochs
    if not 0 <= epoch < num_epochs:
        raise ValueError(f"--epoch counts from 0, and the run has {num_epochs} epochs, 0 to {num_epochs - 1}; got "
                         f"{epoch}")
    dataset = experiment.training_set(index, config.build_model(classes).resize)
    items = spread(len(dataset), number)
    pictures = []
    for item in items:
        image, targets = dataset.training(SampleKey(epoch, item))
        pixels: Pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        pictures.append(draw(targets, pixels, classes, threshold=0.0))
    left_out = f", without {len(index.faults)} that are broken" if index.faults else ""
    what = f"{len(items)} of {len(dataset)} training images{left_out}"
    return Browsed(contact_sheet(pictures, columns=columns), f"{what}, in epoch {epoch} of 0 to {num_epochs - 1}")
