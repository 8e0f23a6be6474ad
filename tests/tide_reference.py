"""What the authors' own toolbox says of detections: `tidecv` 1.0.1 (MIT).

It asks for another OpenCV than detseg has, and for plotting packages; it runs without:
`pip install --no-deps --target DIR tidecv appdirs seaborn`, and DIR on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from detseg.data.box_index import BoxIndex
from detseg.metrics.detections import detection_rows
from detseg.structures import ImageDetections

NAMES = {
    "Cls": "classification", "Loc": "localisation", "Both": "both", "Dupe": "duplicate", "Bkg": "background",
    "Miss": "missed"}


def reference(predictions: Sequence[ImageDetections], index: BoxIndex) -> dict[str, float]:
    """AP50 and what each kind of error costs, as fractions; the mean over the classes that have objects, see
    `detseg.analysis.tide.costs`."""
    tidecv = pytest.importorskip("tidecv", reason="tidecv is not installed; tests/tide_reference.py says how")
    from tidecv.ap import ClassedAPDataObject
    from tidecv.data import Data

    truth, found = Data("truth"), Data("found")
    image_ids = index.image_ids[index.image_of_box()].tolist()
    rows = zip(image_ids, index.labels.tolist(), index.boxes.tolist(), index.crowd.tolist(), strict=True)
    for image_id in index.image_ids.tolist():
        truth.add_image(image_id, str(image_id))
    for image_id, label, box, crowd in rows:
        (truth.add_ignore_region if crowd else truth.add_ground_truth)(image_id, label, box)
    for prediction in predictions:
        for *box, score, label in detection_rows(prediction, index.classes).tolist():
            found.add_detection(prediction.image_id, int(label), score, box)
    asked = set(index.labels[~index.crowd].tolist())

    def mean_over_asked(self: ClassedAPDataObject) -> float:
        values = [one.get_ap() for label, one in self.objs.items() if label in asked and not one.is_empty()]
        return float(sum(values) / len(values))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassedAPDataObject, "get_mAP", mean_over_asked)
        run = tidecv.TIDE().evaluate(truth, found, mode=tidecv.TIDE.BOX)
        main = {NAMES[kind.short_name]: value / 100 for kind, value in run.fix_main_errors().items()}
        special = {kind.short_name: value / 100 for kind, value in run.fix_special_errors().items()}
    return {"ap50": run.ap / 100, **main, "false positives": special["FalsePos"],
            "false negatives": special["FalseNeg"]}
