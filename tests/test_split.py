"""Splits by a hash of names: stable, together what belongs together, and close to the share that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from detseg.data.split import KeptSplit, series_of, split_by_name


def names_of(folder: Path, names: list[str]) -> list[Path]:
    """Files of different content."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return [folder / name for name in names]


def split(folder: Path, names: list[str], share: float) -> KeptSplit:
    return split_by_name(names, names_of(folder, names), share)


WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdgkmnprst"]


@pytest.mark.parametrize(("name", "series"), [
    ("clip_0012.png", ("clip_", 12)),
    ("a/clip_0012.png", ("a/clip_", 12)),
    ("000123.jpg", ("", 123)),
    ("street.jpg", ("street", None)),
    ("video 3 frame-07.jpeg", ("video 3 frame-", 7)),
    ("clip_12_left.png", ("clip_12_left", None)),
    ("IMG_0007_jpg.rf.0123456789abcdef.jpg", ("IMG_", 7)),
    ("street_png.rf.aBcDeF0123456789.jpg", ("street", None)),
    ("v1.2.jpg", ("v1.", 2)),
])
def test_the_series_of_a_name(name: str, series: tuple[str, int | None]) -> None:
    assert series_of(name) == series


def test_the_share_is_nearly_what_was_asked_for_and_every_image_is_on_one_side(tmp_path: Path) -> None:
    names = [f"{word}.jpg" for word in WORDS]
    kept = split(tmp_path, names, 0.1)
    assert sorted((*kept.train, *kept.val)) == sorted(names)
    assert 0.07 < len(kept.val) / len(names) < 0.13
    assert not kept.notes
    assert str(kept) == (f"split: {len(kept.val)} of 600 images ({len(kept.val) / 600:.1%}) are kept for "
                         f"validation, by a "
                         "hash of their names (--val-share 0.1)")


def test_an_image_stays_where_it_is_when_others_are_added_and_in_any_order(tmp_path: Path) -> None:
    names = [f"{word}.jpg" for word in WORDS]
    few, many = split(tmp_path, names[:300], 0.2), split(tmp_path, names[::-1], 0.2)
    assert set(few.val) == set(many.val) & set(names[:300])
    assert split(tmp_path, names[299::-1], 0.2).val == few.val[::-1]


def test_a_series_stays_together(tmp_path: Path) -> None:
    names = [f"{word}/frame_{k:03}.png" for word in WORDS[:40] for k in range(8)]
    kept = split(tmp_path, names, 0.15)
    assert not {name.split("/")[0] for name in kept.train} & {name.split("/")[0] for name in kept.val}
    assert 0.05 < len(kept.val) / len(names) < 0.3
    assert not kept.notes


def test_copies_that_roboflow_has_augmented_stay_together(tmp_path: Path) -> None:
    names = [f"{word}_jpg.rf.{copy}{'0123456789abcdef'}.jpg" for word in WORDS[:60] for copy in "abc"]
    kept = split(tmp_path, names, 0.2)
    assert not {name.split("_")[0] for name in kept.train} & {name.split("_")[0] for name in kept.val}


def test_a_series_that_is_too_long_is_cut_into_blocks_and_that_is_said(tmp_path: Path) -> None:
    names = [f"frame_{k:05}.jpg" for k in range(400)]
    kept = split(tmp_path, names, 0.1)
    blocks = {side: {int(name[6:11]) // 10 for name in getattr(kept, side)} for side in ("train", "val")}
    assert not blocks["train"] & blocks["val"]
    assert 0.02 < len(kept.val) / 400 <= 0.25
    (note,) = kept.notes
    assert note.startswith("1 numbered series too long to be kept for validation whole, frame_* (400 images): taken as "
                           "blocks of 10 consecutive numbers. If these are frames of one video, name the validation")


def test_a_few_numbered_images_are_taken_one_by_one(tmp_path: Path) -> None:
    kept = split(tmp_path, [f"{k}.jpg" for k in range(12)], 0.1)
    assert 1 <= len(kept.val) <= 3
    assert "* (12 images): taken as single images." in kept.notes[0]


def test_one_long_series_among_others_is_cut_and_the_others_are_not(tmp_path: Path) -> None:
    names = [f"long_{k:04}.jpg" for k in range(500)] + [f"{word}_{k}.jpg" for word in WORDS[:30] for k in range(5)]
    kept = split(tmp_path, names, 0.1)
    assert 0.04 < len(kept.val) / len(names) < 0.25
    sides = [{name.split("_")[0] for name in side if not name.startswith("long")} for side in (kept.train, kept.val)]
    assert not sides[0] & sides[1]


def test_files_of_the_same_content_stay_together(tmp_path: Path) -> None:
    names = [f"{word}.jpg" for word in WORDS[:200]]
    paths = names_of(tmp_path, names)
    long = "x" * 70_000
    for i in range(0, 200, 2):  # pairs that are equal, and pairs that differ in their last byte alone
        paths[i].write_text(f"{long}{i}")
        paths[i + 1].write_text(f"{long}{i}" if i < 100 else f"{long}{i + 1}")
    kept = split_by_name(names, paths, 0.3)
    val = set(kept.val)
    together = [names[i] in val for i in range(0, 100, 2)], [names[i + 1] in val for i in range(0, 100, 2)]
    assert together[0] == together[1]
    assert [names[i] in val for i in range(100, 200, 2)] != [names[i + 1] in val for i in range(100, 200, 2)]
    assert kept.notes == (f"100 images are files of the same content as another, {names[0]} and {names[1]} for "
                          f"example; "
                          "these stay on one side",)


def test_a_file_that_is_not_there_is_like_no_other(tmp_path: Path) -> None:
    kept = split_by_name(["a.jpg", "b.jpg", "c.jpg"], [tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg")], 0.34)
    assert len(kept.val) == 1


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 image cannot be split into training and validation without taking apart "
                                         "what belongs together; name other validation data with --val"):
        split(tmp_path, ["a.jpg"], 0.5)
    paths = names_of(tmp_path, ["a.jpg", "b.jpg"])
    for path in paths:
        path.write_text("same")
    with pytest.raises(ValueError, match="2 images cannot be split"):
        split_by_name(["a.jpg", "b.jpg"], paths, 0.5)


def test_a_kept_split_comes_back(tmp_path: Path) -> None:
    kept = split(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], 0.4)
    assert KeptSplit.from_plain(kept.as_plain()) == kept
