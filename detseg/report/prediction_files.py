"""What `detseg predict` leaves beside its pictures: every prediction in the formats that people ask for."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from detseg.atomic import atomic_write, records_file, write_text
from detseg.report.pictures import write_labels, write_picture
from detseg.report.results import crops, csv_rows, label_image, records, yolo_lines
from detseg.structures import Classes, Pixels, Threshold

_COLUMNS = ("image", "frame", "time", "class", "score", "left", "top", "right", "bottom")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which files are written.

    Args:
        out: the folder of predictions.json and images.json.
        threshold: of the score, for csv, yolo and crops.
        csv: a file with a row for each box.
        yolo: a folder for YOLO's label files, and the names of the classes.
        yolo_scores: whether their lines end with the score.
        labels: a folder for label maps.
        crops: a folder for the boxes' pixels, in a folder for each class.
    """

    out: Path
    threshold: Threshold
    csv: Path | None = None
    yolo: Path | None = None
    yolo_scores: bool = False
    labels: Path | None = None
    crops: Path | None = None

    def check(self, *, boxes: bool, label_maps: bool, what: str) -> None:
        """ValueError for what predictions of this kind do not have, and for places that clash."""
        if self.labels is not None and not label_maps:
            raise ValueError(f"{what} predicts no label maps; leave --labels out")
        for name, place in (("--yolo", self.yolo), ("--crops", self.crops)):
            if place is not None and not boxes:
                raise ValueError(f"{what} predicts no boxes; leave {name} out")
        if self.csv is not None and label_maps:
            raise ValueError(f"{what} predicts label maps, which are no rows; leave --csv out and take --labels")
        if self.csv is not None and self.csv.suffix.lower() != ".csv":
            raise ValueError(f"--csv is a file whose name ends in .csv, got {self.csv}")
        if self.yolo_scores and self.yolo is None:
            raise ValueError("--yolo-scores is of YOLO's label files; name their folder with --yolo")
        if self.labels is not None and self.labels.resolve() == self.out.resolve():
            raise ValueError(f"--labels and --out are both {self.out}; label maps would replace pictures")
        if self.crops is not None and self.crops.resolve() == self.out.resolve():
            raise ValueError(f"--crops and --out are both {self.out}; crops would lie among pictures")


class PredictionFiles:
    """Writes them one prediction after the other. Use as a context: lists are there when the block ends well.

    Args:
        asked: which.
        classes: of the network.
        title: what it is, for images.json.
    """

    def __init__(self, asked: Asked, classes: Classes, *, title: str) -> None:
        self.asked, self.classes, self.title = asked, classes, title
        self.images: list[Mapping[str, Any]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._add_records = stack.enter_context(records_file(self.asked.out / "predictions.json"))
            self._rows = None
            if self.asked.csv is not None:
                unfinished = stack.enter_context(atomic_write(self.asked.csv, failure="the table was not written"))
                file = stack.enter_context(unfinished.open("w", encoding="utf-8", newline=""))
                self._rows = csv.writer(file)
                self._rows.writerow(_COLUMNS)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if error is not None:
            return
        categories = [{"id": source_id, "name": name} for source_id, name in self.classes.used.items()]
        content = {"info": {"description": self.title}, "images": self.images, "categories": categories,
                   "annotations": []}
        write_text(self.asked.out / "images.json", json.dumps(content, indent=1) + "\n")
        if self.asked.yolo is not None:
            write_text(self.asked.yolo / "classes.txt", "".join(f"{name}\n" for name in self.classes.used.values()))

    def add(
        self, prediction: Any, image: Pixels, name: str, *, stem: Path, frame: int | None = None,
        time: float | None = None,
    ) -> None:
        """Takes the prediction of an image.

        Args:
            prediction, image: in its own pixels.
            name: of the file.
            stem: what files made of it are called, without a suffix, below their folders.
            frame, time: of a video.
        """
        asked, threshold = self.asked, self.asked.threshold
        size = (image.shape[0], image.shape[1])
        self._add_records(records(prediction, self.classes))
        moment = {} if frame is None else {"frame": frame, "time": time}
        self.images.append(
            {"id": prediction.image_id, "file_name": name, "height": size[0], "width": size[1], **moment})
        if self._rows is not None:
            before = (name, "" if frame is None else frame, "" if time is None else f"{time:.3f}")
            self._rows.writerows((*before, *row) for row in csv_rows(prediction, self.classes, threshold=threshold))
        if asked.labels is not None:
            write_labels(_file(asked.labels, stem, ".png"), label_image(prediction, self.classes))
        if asked.yolo is not None:
            lines = yolo_lines(prediction, self.classes, size, threshold=threshold, scores=asked.yolo_scores)
            write_text(_file(asked.yolo, stem, ".txt"), "".join(f"{line}\n" for line in lines))
        if asked.crops is not None:
            for number, (kind, pixels) in enumerate(crops(prediction, image, self.classes, threshold=threshold)):
                folder = asked.crops / (re.sub(r"[^\w -]+", "_", kind).strip() or "_")
                write_picture(_file(folder, stem, f"_{number}.jpg"), pixels)


def _file(folder: Path, stem: Path, end: str) -> Path:
    """A stem may have dots of its own."""
    return folder / stem.with_name(f"{stem.name}{end}")
