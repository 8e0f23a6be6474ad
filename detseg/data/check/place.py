"""The whole check of a data set: its boxes, its label maps, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from detseg.data.box_index import BoxIndex
from detseg.data.check import boxes as of_boxes
from detseg.data.check import labels as of_labels
from detseg.data.check.findings import IN_TWO_SPLITS, Finding, Report, Spot, Table, counted
from detseg.data.check.images import IMAGE_COLUMNS, Images, copy_findings, image_findings, image_row
from detseg.data.check.labels import LabelLook
from detseg.data.check.looks import look_at, of_all
from detseg.data.check.names import near_names
from detseg.data.check.network import NetworkView, usual_view
from detseg.data.faults import Fault
from detseg.data.label_index import LabelIndex
from detseg.data.layouts import SPLITS, read_boxes, read_image_classes, read_labels
from detseg.data.layouts.layout import PartName, Place
from detseg.data.location import Location
from detseg.data.parts import Parts, read_parts
from detseg.structures import Classes

Progress: TypeAlias = Callable[[int, int], None]
"""Is told how many images are through, and of how many."""


class Checked(NamedTuple):
    """What a check has read, for who mends it."""

    report: Report
    boxes: Parts[BoxIndex] | None
    labels: Parts[LabelIndex] | None
    broken: frozenset[Path]
    """Images that cannot be used, themselves or for their label maps."""
    turned: frozenset[Path]
    """Images that EXIF data turn."""


def check_place(
    location: Location, *, view: Callable[[BoxIndex | None], NetworkView] = usual_view,
    progress: Progress | None = None,
) -> Checked:
    """Reads every split, decodes every image and every label map, and says what it finds.

    Boxes are checked where there are boxes, and label maps where there are files of them. Raises nothing about the
    data: what cannot be read is a finding.

    view: what a network makes of the boxes, which may follow from those that it is trained on.
    """
    boxes, no_boxes = _read_boxes(location)
    labels, no_labels = _read_labels(location)
    seen_by_network = view(None if boxes is None else _training_index(boxes))
    if boxes is not None and labels is not None and labels.layout.label_maps != "files":
        labels = None
    findings: list[Finding] = []
    if boxes is None and labels is None:
        # The same where two files are of one split.
        texts = dict.fromkeys([*_class_folders(location), no_boxes, no_labels])
        findings.append(Finding("problem", "nothing to read", "\n".join(texts)))
    total = sum(len(index) for parts in (boxes, labels) if parts is not None for index in parts.indexes.values())
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    tables: list[Table] = []
    looked: list[dict[str, Images]] = []
    broken: set[Path] = set()
    if boxes is not None:
        found = {str(name): _looked_at_boxes(index, advance) for name, index in boxes.indexes.items()}
        numbers = {}
        for name, index in boxes.indexes.items():
            findings += [*_faults(index.faults, name), *image_findings(found[name], name)]
            more, numbers[str(name)] = of_boxes.box_findings(index, name, seen_by_network)
            findings += more
        by_name: dict[str, BoxIndex] = {str(name): index for name, index in boxes.indexes.items()}
        tables.append(Table("boxes", of_boxes.SPLIT_COLUMNS, tuple(
            of_boxes.split_row(index, name) for name, index in by_name.items())))
        findings += [*_of_parts(boxes), *of_boxes.balance_findings(by_name, numbers)]
        tables += [of_boxes.class_table(by_name, numbers, seen_by_network)] if by_name else []
        looked.append(found)
    if labels is not None:
        label_looks = {str(name): _looked_at_labels(index, advance) for name, index in labels.indexes.items()}
        label_numbers = {}
        seen: dict[str, Images] = {}
        rows = []
        for name, labelled in labels.indexes.items():
            looks = label_looks[name]
            seen[name] = _images_of_labels(labelled, looks)
            findings += [*_faults(labelled.faults, name), *image_findings(seen[name], name)]
            more, label_numbers[str(name)] = of_labels.label_findings(labelled, looks, name)
            findings += more
            rows.append(of_labels.split_row(labelled, looks, label_numbers[name], split=name))
            broken |= {labelled.path(i) for i, look in enumerate(looks) if look.problem}
        tables.append(Table("label maps", of_labels.SPLIT_COLUMNS, tuple(rows)))
        findings += _of_parts(labels)
        tables += [of_labels.class_table({str(name): index for name, index in labels.indexes.items()}, label_numbers)]
        looked.append(seen)
    if looked:
        tables.insert(1, Table("images", IMAGE_COLUMNS, tuple(
            image_row(images, split) for split, images in looked[0].items())))
        findings += copy_findings(looked[0])
    every = [(path, look) for found in looked for images in found.values()
             for path, look in zip(images.paths, images.looks, strict=True)]
    broken |= {path for path, look in every if look.problem}
    turned = {path for path, look in every if look.kind is not None and look.kind.is_turned}
    lines = dict.fromkeys(line for parts in (boxes, labels) if parts is not None for line in parts.lines)
    ordered = sorted(dict.fromkeys(findings),
                     key=lambda finding: (finding.level != "problem", finding.kind != IN_TWO_SPLITS))
    report = Report(str(location), tuple(lines), tuple(tables), tuple(ordered), done)
    return Checked(report, boxes, labels, frozenset(broken), frozenset(turned))


def _training_index(boxes: Parts[BoxIndex]) -> BoxIndex | None:
    """The split that is trained on, or the only one."""
    return boxes.indexes.get("train", next(iter(boxes.indexes.values()), None))


def _read_boxes(location: Location) -> tuple[Parts[BoxIndex] | None, str]:
    """What there is, or why there is nothing."""
    try:
        return read_parts(read_boxes, location), ""
    except (OSError, ValueError) as problem:
        return None, str(problem)


def _read_labels(location: Location) -> tuple[Parts[LabelIndex] | None, str]:
    try:
        return read_parts(read_labels, location), ""
    except (OSError, ValueError) as problem:
        return None, str(problem)


def _class_folders(location: Location) -> Iterator[str]:
    """What to say where there is something for classifiers."""
    try:
        found = read_image_classes.recognises(Place(location.path))
    except ValueError:
        return
    if found is not None:
        yield ("these are folders of classes, which classifiers are trained on; boxes and label maps are checked here, "
               "and of classes training names all that is broken before its first step")


def _looked_at_boxes(index: BoxIndex, advance: Callable[[int], None]) -> Images:
    looks = [*of_all(lambda i: look_at(index.path(i), index.size(i)), len(index), done=advance)]
    return Images([index.path(i) for i in range(len(index))], [index.size(i) for i in range(len(index))], looks,
                  lambda i: of_boxes.marked_boxes(index, range(index.offsets[i], index.offsets[i + 1])))


def _looked_at_labels(index: LabelIndex, advance: Callable[[int], None]) -> list[LabelLook]:
    return [*of_all(lambda i: of_labels.look_at_labels(index, i), len(index), done=advance)]


def _images_of_labels(index: LabelIndex, looks: Sequence[LabelLook]) -> Images:
    # A label map whose size cannot be read is a broken image too, and its size nobody asks for.
    sizes = [index.size(i) if not look.problem or look.look.kind is not None else (1, 1)
             for i, look in enumerate(looks)]
    return Images([index.path(i) for i in range(len(index))], sizes, [look.look for look in looks])


def _faults(faults: Sequence[Fault], split: str) -> Iterator[Finding]:
    if faults:
        yield Finding("problem", "broken records", f"{counted(len(faults), 'record')} that cannot be used, and "
                      "training would refuse", split, tuple(Spot(str(fault)) for fault in faults))


def _of_parts(parts: Parts[BoxIndex] | Parts[LabelIndex]) -> Iterator[Finding]:
    """About the splits, and what they have in common."""
    for name, reason in parts.failures.items():
        yield Finding("problem", "unreadable split", reason, name)
    names: list[PartName] = [*parts.indexes, *parts.failures]
    if "whole" not in names:
        if "train" not in names:
            yield Finding("problem", "no training data", f"there is no train split, only {' and '.join(names)}")
        elif not {"val", "test"} & {*names}:
            yield Finding("note", "no validation data", "there is nothing to validate on: keep a share of the images "
                          "for it with --val-share 0.1, or name validation data with --val")
    else:
        yield Finding("note", "one split", "there is one split: keep a share of the images for validation with "
                      "--val-share 0.1, or name validation data with --val")
    classes: Mapping[PartName, Classes] = {name: index.classes for name, index in parts.indexes.items()}
    order: tuple[PartName, ...] = (*SPLITS, "whole")
    first = next((name for name in order if name in classes), None)
    for name in classes:
        if first is not None and name != first and (difference := classes[first].difference(classes[name])):
            yield Finding("problem", "unequal classes", f"the classes of {first} (here) and {name} (there) differ:\n"
                          f"{difference}")
    every = sorted({name for known in classes.values() for name in known.used.values()})
    near = [f"{one!r} and {other!r}" for one, other in near_names(every)]
    if near:
        yield Finding("note", "near names", f"classes with almost the same name, which may be one: {', '.join(near)}",
                      "", tuple(Spot(pair) for pair in near))
