"""Boxes of neighbouring tiles, by hand: two tiles of 100 x 100 that have 20 columns in common."""

from __future__ import annotations

import torch

from detseg.ops.stitching import Boxes, covered, stitch

LEFT, RIGHT = (0.0, 0.0, 100.0, 100.0), (80.0, 0.0, 180.0, 100.0)


def boxes(*rows: tuple[float, float, float, float, float, int]) -> Boxes:
    """Each (left, top, right, bottom, score, label)."""
    return Boxes(torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4),
                 torch.tensor([row[4] for row in rows]), torch.tensor([row[5] for row in rows], dtype=torch.long))


def test_parts_that_agree_where_both_tiles_look_become_one_box() -> None:
    parts = boxes((40, 10, 99, 30, 0.7, 1), (81, 11, 140, 30, 0.9, 1),
                  (50, 60, 98, 90, 0.8, 0), (82, 60, 99, 90, 0.6, 1))
    stitched, single = stitch(parts, torch.tensor([LEFT, RIGHT, LEFT, RIGHT]))
    assert stitched.boxes.tolist() == [[40, 10, 140, 30]]
    assert stitched.scores.tolist() == torch.tensor([0.9]).tolist()
    assert stitched.labels.tolist() == [1]
    assert single.boxes.tolist() == [[50, 60, 98, 90], [82, 60, 99, 90]], "of two classes"


def test_the_surest_part_takes_the_surest_of_each_other_tile() -> None:
    """The second box of the same object in a tile stays for itself; parts of one tile are never joined."""
    parts = boxes((40, 10, 100, 30, 0.9, 0), (80, 10, 120, 30, 0.5, 0),
                  (80, 10, 130, 31, 0.8, 0), (42, 10, 100, 30, 0.4, 0))
    stitched, single = stitch(parts, torch.tensor([LEFT, RIGHT, RIGHT, LEFT]))
    assert stitched.boxes.tolist() == [[40, 10, 130, 31], [42, 10, 120, 30]]
    assert len(single.boxes) == 0
    stitched, single = stitch(parts.at(torch.tensor([0, 3])), torch.tensor([LEFT, LEFT]))
    assert len(stitched.boxes) == 0
    assert single.scores.tolist() == torch.tensor([0.9, 0.4]).tolist()


def test_neighbours_elsewhere_or_in_disagreement_are_not_joined() -> None:
    parts = boxes((40, 10, 100, 30, 0.9, 0), (80, 25, 120, 60, 0.8, 0), (10, 80, 60, 100, 0.7, 0))
    stitched, single = stitch(parts, torch.tensor([LEFT, RIGHT, LEFT]))
    assert len(stitched.boxes) == 0
    assert len(single.boxes) == 3
    empty = boxes()
    assert [len(found.boxes) for found in stitch(empty, torch.zeros(0, 4))] == [0, 0]


def test_a_part_is_covered_by_a_box_of_its_class_that_is_sure_enough() -> None:
    parts = boxes((80, 10, 100, 30, 0.8, 0), (80, 50, 100, 60, 0.8, 1), (80, 70, 100, 90, 0.8, 0))
    whole = boxes((85, 10, 120, 30, 0.4, 0), (80, 50, 120, 60, 0.9, 0), (75, 70, 120, 90, 0.39, 0))
    assert covered(parts, whole).tolist() == [True, False, False], "covered, of another class, of a weak box"
    assert covered(parts, boxes()).tolist() == [False] * 3
    assert covered(boxes(), whole).tolist() == []
