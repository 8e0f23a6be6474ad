"""What stands out in an analysis, and what to do about it, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator

from detseg.analysis.detection_result import DetectionAnalysis, ErrorCost
from detseg.analysis.segmentation_result import SegmentationAnalysis
from detseg.data.check.findings import counted

_WORTH = 0.01
"""AP50 that a kind of error costs before anything is said of it."""
_MOST_KINDS = 3
_FEW_OBJECTS = 20
"""Fewer say little."""
_WORSE = 0.15
"""By which a group's recall is below that of all objects before it is named; and three standard errors at least."""
_MISCALIBRATED = 0.1
_SHARE = 0.1
"""Of missed objects, or of wrong pixels, before it is named."""
_NEAR = 4.0
"""Pixels from a label's edge."""
_MOST_NAMES = 8

_ADVICE = {
    "classification": "Look whether both classes are labelled consistently, and bring more images of the rarer one.",
    "localisation": "Look whether boxes are drawn alike in all images; a larger model.size, other anchors or "
                    "box_loss=giou place boxes better.",
    "both": "These are guesses: more images of these objects, or a longer training.",
    "duplicate": "A smaller iou_threshold of the task's suppression leaves fewer.",
    "background": "Look at them first: objects that nobody has annotated are common. Else images of such background, "
                  "without objects, in training teach it.",
    "missed": "More images of such objects, or a longer training.",
}
_MISSED_SMALL = "A larger model.size shows them larger."


def detection_findings(of: DetectionAnalysis) -> tuple[str, ...]:
    """The most important first."""
    dear = sorted((error for error in of.errors if error.ap50_gain >= _WORTH), key=lambda error: -error.ap50_gain)
    found = [_of_kind(of, error, first=error is dear[0]) for error in dear[:_MOST_KINDS]]
    return (*found, *_anchors(of), *_classes(of), *_groups(of), *_calibration(of)) or (
        f"No kind of error costs {_WORTH:g} AP50: what is left to gain is closer boxes, above IoU 0.5.",)


def _of_kind(of: DetectionAnalysis, error: ErrorCost, *, first: bool) -> str:
    begin = "Most AP50 is lost to" if first else "Also to"
    what = {"classification": "wrong classes", "localisation": "boxes that are not close enough",
            "both": "wrong classes in wrong places", "duplicate": "second boxes on one object",
            "background": "boxes where there is no object", "missed": "missed objects"}[error.kind]
    detail, advice = "", _ADVICE[error.kind]
    if error.kind == "classification" and error.shown:
        detail = f", most often {_largest_class_error(of)}"
        if of.class_errors_besides * 2 > error.shown:
            detail += f"; {of.class_errors_besides} are second boxes, on objects that are found"
    if error.kind == "missed":
        sizes = next(one for one in of.sensitivities if one.name == "size").groups
        lost = [group.objects - group.found for group in sizes]
        most = max(range(len(sizes)), key=lost.__getitem__)
        if lost[most] * 2 >= sum(lost) > 0:
            detail = f"; of all that are not found from there on, {lost[most] / sum(lost):.0%} are {sizes[most].name}"
            advice = _MISSED_SMALL if most < len(sizes) // 2 else advice
    counts = (f"{error.count} at any score, {error.shown} from the thresholds on" if error.kind == "missed" else
              f"{error.shown} from the thresholds on, {error.count} in all")
    return f"{begin} {what} ({error.ap50_gain:.3f}; {counts}){detail}. {advice}"


def _largest_class_error(of: DetectionAnalysis) -> str:
    names = [one.name for one in of.classes]
    count, true, predicted = max((count, true, predicted) for true, row in enumerate(of.class_errors)
                                 for predicted, count in enumerate(row))
    return f"{names[predicted]} on {names[true]} ({counted(count, 'time', 'times')})"


def _anchors(of: DetectionAnalysis) -> Iterator[str]:
    if of.anchors is not None and of.anchors.missed and of.anchors.missed_unmet >= _SHARE * of.anchors.missed:
        yield (f"{of.anchors.missed_unmet} of {counted(of.anchors.missed, 'missed object', 'missed objects')} meet no "
               f"anchor with an IoU of {of.anchors.iou:g} ({of.anchors.objects_unmet:.0%} of all objects): other "
               "anchor scales or ratios, or a head without anchors, can learn them.")


def _classes(of: DetectionAnalysis) -> Iterator[str]:
    never = [one.name for one in of.classes if one.objects and not one.detections]
    wrong = [one.name for one in of.classes if one.objects and one.detections and math.isnan(one.curves.threshold)]
    absent = [one.name for one in of.classes if not one.objects]
    few = [one.name for one in of.classes if 0 < one.objects < _FEW_OBJECTS]
    if never:
        yield f"Never predicted: {_named(never)}. Look whether training shows them (detseg browse), and bring more."
    if wrong:
        yield f"Predicted, but never right: {_named(wrong)}."
    if absent:
        yield f"Without objects in these images, so nothing is known of them: {_named(absent)}."
    if few:
        yield f"Their numbers and thresholds say little, with fewer than {_FEW_OBJECTS} objects: {_named(few)}."


def _groups(of: DetectionAnalysis) -> Iterator[str]:
    recall = sum(one.found for one in of.images) / of.num_objects
    for one in of.sensitivities:
        groups = [group for group in one.groups if group.objects >= _FEW_OBJECTS]
        worst = min(groups, key=lambda group: group.recall, default=None)
        if worst is not None and recall - worst.recall > max(
                _WORSE, 3 * math.sqrt(recall * (1 - recall) / worst.objects)):
            yield (f"By {one.name}, objects that are {worst.name} are found least: {worst.recall:.0%} of "
                   f"{worst.objects}, of all {recall:.0%}. More training images of such would help.")


def _calibration(of: DetectionAnalysis) -> Iterator[str]:
    one = of.calibration
    if one.error >= _MISCALIBRATED and not math.isnan(one.temperature):
        total = sum(part.count for part in one.bins)
        gap = math.fsum(part.count * (part.score - part.precision) for part in one.bins if part.count) / total
        if abs(gap) * 2 > one.error:
            how = f"on average they are {abs(gap):.2f} too {'high' if gap > 0 else 'low'}"
        else:
            how = ("high ones are right less and low ones more often than they say" if one.temperature > 1 else
                   "high ones are right more and low ones less often than they say")
        yield (f"Scores are no probabilities: {how} (calibration error {one.error:.2f}, {one.scaled_error:.2f} with "
               f"logits divided by {one.temperature:.2f}). AP does not mind; whoever reads them as "
               "probabilities should.")


def segmentation_findings(of: SegmentationAnalysis) -> tuple[str, ...]:
    """The most important first."""
    return (*_pairs(of), *_edges(of), *_label_classes(of), *_images(of)) or ("Nothing stands out.",)


def _pairs(of: SegmentationAnalysis) -> Iterator[str]:
    if of.pairs and of.pairs[0].share_of_errors >= _SHARE:
        pair = of.pairs[0]
        yield (f"{pair.share_of_errors:.0%} of all wrong pixels are {pair.true} taken for {pair.predicted} "
               f"({pair.share_of_true:.0%} of {pair.true}). Look whether both are labelled consistently; more images "
               "or a larger class weight for the rarer.")


def _edges(of: SegmentationAnalysis) -> Iterator[str]:
    wrong = sum(band.wrong for band in of.edges)
    near = sum(band.wrong for band in of.edges if band.high <= _NEAR)
    if not wrong:
        return
    if near * 2 >= wrong:
        yield (f"{near / wrong:.0%} of all wrong pixels lie within {_NEAR:g} pixels of an edge between labels: a "
               "larger input or finer features, and labels with exact edges, are what is left to gain.")
    else:
        yield (f"{1 - near / wrong:.0%} of all wrong pixels lie more than {_NEAR:g} pixels from any edge between "
               "labels: whole regions have the wrong class, which more or other training images mend, and "
               "finer edges do not.")


def _label_classes(of: SegmentationAnalysis) -> Iterator[str]:
    never = [one.name for one in of.classes if one.pixels and not one.predicted]
    absent = [one.name for one in of.classes if not one.pixels]
    if never:
        yield f"Never predicted: {_named(never)}. Class weights, or more images that show them."
    if absent:
        yield f"Not in these label maps, so nothing is known of them: {_named(absent)}."


def _images(of: SegmentationAnalysis) -> Iterator[str]:
    if of.worst:
        worst = of.worst[0]
        yield (f"The worst image is {worst.file}: {worst.accuracy:.0%} of its pixels are right, of all "
               f"{of.pixel_accuracy:.0%}. Look whether its label map is right.")


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
