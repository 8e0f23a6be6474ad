"""Where data lie: which images are trained on and which are for validation, by name, elsewhere, or by a share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detseg.data.box_index import BoxIndex
from detseg.data.layouts import read_boxes, read_labels
from detseg.data.location import Location, read_splits, read_validation
from detseg.data.masks import read_masks
from detseg.run_folder import RunFolder
from detseg.structures import Classes
from tests import tiny
from tests.commands import run


def picture(path: Path, *, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 9, 3), shade, np.uint8)).save(path)


def xml(path: Path, *names: str) -> None:
    """An image of 9 x 6 with an object of each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(f"<object><name>{name}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>3</ymax>"
                      "</bndbox></object>" for name in names)
    path.write_text(f"<annotation><size><width>9</width><height>6</height></size>{objects}</annotation>")


def beside(folder: Path, stems: Sequence[str], *names: str) -> Path:
    """XML files beside their images."""
    for number, stem in enumerate(stems):
        picture(folder / f"{stem}.png", shade=number)
        xml(folder / f"{stem}.xml", *names)
    return folder


def coco_file(path: Path, stems: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": f"{stem}.png", "width": 9, "height": 6} for i, stem in enumerate(stems, 1)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 4, 3], "area": 12, "iscrowd": 0}
             for i in range(1, len(stems) + 1)]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}))
    return path


def stems(index: Any) -> list[str]:
    return [index.path(i).stem for i in range(len(index))]


LETTERS = [f"{a}{b}" for a in "abcdefgh" for b in "klmno"]


def test_folders_named_for_splits_are_the_splits(tmp_path: Path) -> None:
    for val in ("val", "valid", "validation"):
        data = tmp_path / val
        beside(data / "train", ["a", "b"], "cat", "dog")
        beside(data / val, ["c"], "cat")
        splits = read_splits(read_boxes, Location(data))
        assert (stems(splits.train), stems(splits.val)) == (["a", "b"], ["c"])
        assert splits.val.classes == splits.train.classes, "the classes are those of both"
        assert splits.kept is None
        assert splits.lines == (f"layout of {data}: Roboflow, PASCAL VOC, because there are XML files with an "
                                f"annotation in train/, {val}/",)


def test_test_is_taken_for_validation_as_a_last_resort_and_that_is_said(tmp_path: Path) -> None:
    beside(tmp_path / "train", ["a"], "cat")
    beside(tmp_path / "test", ["b"], "cat")
    splits = read_splits(read_boxes, Location(tmp_path))
    assert stems(splits.val) == ["b"]
    assert splits.lines[1].startswith("there is no validation split, so the test split takes its place: best.pt is "
                                      "chosen by it, and its score no longer says")
    kept = read_splits(read_boxes, Location(beside(tmp_path / "train", LETTERS, "cat").parent, val_share=0.2))
    assert "b" not in stems(kept.val), "--val-share leaves test alone"
    beside(tmp_path / "valid", ["c"], "cat")
    splits = read_splits(read_boxes, Location(tmp_path))
    assert stems(splits.val) == ["c"]
    assert len(splits.lines) == 1
    assert stems(read_splits(read_boxes, Location(tmp_path, val=Path("test"))).val) == ["b"]


def test_without_anything_to_validate_on_both_ways_out_are_said(tmp_path: Path) -> None:
    beside(tmp_path / "data", ["a", "b"], "cat")
    message = (r"there is nothing to validate on in .*data: it is in the layout XML files, because 2 XML files .* and "
               r"has no splits\. Name validation data with --val DIR or --val FILE, or keep .* --val-share 0\.1")
    with pytest.raises(FileNotFoundError, match=message):
        read_splits(read_boxes, Location(tmp_path / "data"))
    beside(tmp_path / "data/train", ["a"], "cat")
    with pytest.raises(FileNotFoundError, match=r"and has only train\. Name validation data"):
        read_splits(read_boxes, Location(tmp_path / "data" / "train" / ".."))
    beside(tmp_path / "more/valid", ["a"], "cat")
    with pytest.raises(FileNotFoundError, match=r"there is nothing to train on: .* and has only val; name the folder"):
        read_splits(read_boxes, Location(tmp_path / "more"))


def test_validation_data_may_lie_elsewhere(tmp_path: Path) -> None:
    beside(tmp_path / "one", ["a", "b"], "dog", "bird")
    beside(tmp_path / "two", ["c"], "cat", "bird")
    splits = read_splits(read_boxes, Location(tmp_path / "one", val=tmp_path / "two"))
    assert (stems(splits.train), stems(splits.val)) == (["a", "b"], ["c"])
    assert splits.train.classes == splits.val.classes
    assert splits.train.classes.names == ("bird", "cat", "dog"), "names alone tell classes apart here"
    assert [splits.val.classes.names[label] for label in splits.val.labels] == ["cat", "bird"]
    assert [line.partition(":")[0] for line in splits.lines] == [
        f"layout of {tmp_path / name}" for name in ("one", "two")]
    beside(tmp_path / "three/train", ["d"], "dog")
    beside(tmp_path / "three/val", ["e"], "dog")
    assert stems(read_splits(read_boxes, Location(tmp_path / "one", val=tmp_path / "three")).val) == ["e"]
    with pytest.raises(FileNotFoundError, match=r"no data in .*gone \(no such folder\)"):
        read_splits(read_boxes, Location(tmp_path / "one", val=tmp_path / "gone"))


def test_annotation_files_may_be_named_with_one_folder_of_images(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        picture(tmp_path / f"photos/{stem}.png")
    train, val = coco_file(tmp_path / "notes/train.json", ["a", "b"]), coco_file(tmp_path / "notes/val.json", ["c"])
    splits = read_splits(read_boxes, Location(train, images=tmp_path / "photos", val=val))
    assert [splits.train.path(i).is_file() for i in range(2)] == [True, True]
    assert splits.val.path(0) == tmp_path / "photos/c.png"
    both = read_splits(read_boxes, Location(tmp_path / "notes", images=tmp_path / "photos"))
    assert (stems(both.train), stems(both.val)) == (["a", "b"], ["c"])
    index, _ = read_validation(read_boxes, Location(val, images=tmp_path / "photos"))
    assert stems(index) == ["c"], "a file that is named is evaluated whole"


def test_a_share_is_kept_and_used_again(tmp_path: Path) -> None:
    data = beside(tmp_path / "data", LETTERS, "cat")
    location = Location(data, val_share=0.2)
    splits = read_splits(read_boxes, location)
    assert splits.kept is not None
    assert sorted(stems(splits.train) + stems(splits.val)) == LETTERS
    assert [f"{stem}.png" for stem in stems(splits.val)] == list(splits.kept.val)
    assert 2 <= len(splits.val) <= 16
    assert splits.lines[1] == str(splits.kept)
    beside(data, ["new1x", "new2x"], "cat")
    again = read_splits(read_boxes, Location(data), kept=splits.kept)
    assert (stems(again.train), stems(again.val)) == (stems(splits.train), stems(splits.val))
    index, lines = read_validation(read_boxes, location, kept=splits.kept)
    assert stems(index) == stems(splits.val)
    assert lines[-1] == f"the {len(splits.val)} images that the run kept for validation"
    moved = data.rename(tmp_path / "moved")
    assert stems(read_validation(read_boxes, Location(moved), kept=splits.kept)[0]) == stems(splits.val)


def test_a_share_of_an_annotation_file_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    kept = []
    for folder in (tmp_path / "here", tmp_path / "there" / "deep"):
        for number, letters in enumerate(LETTERS):
            picture(folder / f"train2017/{letters}.png", shade=number)
        file = coco_file(folder / "annotations/instances_train2017.json", LETTERS)
        kept.append(read_splits(read_boxes, Location(file, val_share=0.2)).kept)
    assert kept[0] == kept[1]
    assert kept[0] is not None
    assert kept[0].val[0].startswith("train2017/")


def test_a_kept_split_is_not_left_silently(tmp_path: Path) -> None:
    data = beside(tmp_path / "data", LETTERS, "cat")
    kept = read_splits(read_boxes, Location(data, val_share=0.2)).kept
    assert kept is not None
    with pytest.raises(ValueError, match=r"the run's images were split with --val-share 0\.2, not 0\.3; leave it out"):
        read_splits(read_boxes, Location(data, val_share=0.3), kept=kept)
    lost = (data / kept.val[0]).with_suffix("")
    lost.with_suffix(".xml").unlink()
    with pytest.raises(ValueError, match=rf"lacks 1 of the {len(kept.val)} images that the run was split into, "
                                         rf"{lost.name}"):
        read_splits(read_boxes, Location(data), kept=kept)
    with pytest.raises(ValueError, match=f"has images that the network was trained on, and lacks some that were "
                                         f"kept for "
                                         f"validation, {lost.name}.png for example; a score on these would mean "
                                         f"nothing"):
        read_validation(read_boxes, Location(data), kept=kept)
    others = beside(tmp_path / "others", ["other"], "cat")
    assert stems(read_validation(read_boxes, Location(others), kept=kept)[0]) == ["other"]


def test_a_share_is_refused_where_there_is_a_split(tmp_path: Path) -> None:
    beside(tmp_path / "train", ["a"], "cat")
    beside(tmp_path / "val", ["b"], "cat")
    with pytest.raises(ValueError, match="has a validation split, and --val-share would take other images; leave it "
                                         "out"):
        read_splits(read_boxes, Location(tmp_path, val_share=0.1))
    with pytest.raises(ValueError, match=r"--val-share is a share of the images, above 0 and below 1, got 1"):
        Location(tmp_path, val_share=1)
    with pytest.raises(ValueError, match=r"--val names validation data and --val-share takes some .* give one"):
        Location(tmp_path, val=tmp_path, val_share=0.1)


def test_label_maps_are_split_too(tmp_path: Path) -> None:
    for number, letter in enumerate(LETTERS):
        picture(tmp_path / f"images/{letter}.png", shade=number)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 9), number % 2, np.uint8)).save(tmp_path / f"masks/{letter}.png")
    (tmp_path / "classes.txt").write_text("0 no\n1 yes\n")
    splits = read_splits(read_labels, Location(tmp_path, val_share=0.2))
    assert splits.kept is not None
    assert sorted(stems(splits.train) + stems(splits.val)) == LETTERS
    turned = splits.val.relabel(Classes(("yes", "no"), (1, 0)))
    for i, stem in enumerate(stems(splits.val)):
        stored = LETTERS.index(stem) % 2
        assert splits.val.labels(i, (6, 9)).max() == stored
        assert turned.labels(i, (6, 9)).max() == 1 - stored
        assert splits.val.origin(i) == str(tmp_path / f"masks/{stem}.png")
        assert splits.val.size(i) == (6, 9)
    assert len(set(splits.val.image_ids) | set(splits.train.image_ids)) == len(LETTERS)


def test_names_get_the_networks_ids_when_a_part_of_its_classes_is_evaluated(tmp_path: Path) -> None:
    beside(tmp_path, ["a"], "dog")
    known = Classes(("bird", "cat", "dog"), (1, 2, 3))
    index, _ = read_validation(read_boxes, Location(tmp_path), classes=known)
    assert index.classes.source_ids == (3,)
    assert index.relabel(known).labels.tolist() == [2]
    strange, _ = read_validation(read_boxes, Location(tmp_path), classes=Classes(("bird",), (1,)))
    assert strange.classes.source_ids == (1,), "what the network does not know is for the comparison to refuse"


def test_a_function_of_ones_own_reads_folders(tmp_path: Path) -> None:
    tiny.generate(tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two/size.txt").write_text("3")
    splits = read_splits(tiny.read, Location(tmp_path / "one", val=tmp_path / "two"))
    assert (len(splits.train), len(splits.val), splits.lines) == (20, 7, ())
    with pytest.raises(ValueError, match="--images is for layouts that are found by content; this config reads data "
                                         "with a "
                                         "function of its own"):
        read_splits(tiny.read, Location(tmp_path / "one", images=tmp_path))
    with pytest.raises(ValueError, match=r"needs a BoxIndex, a LabelIndex or a ClassIndex; .* gives a Index\. Name "):
        read_splits(tiny.read, Location(tmp_path / "one", val_share=0.1))


def test_a_share_of_what_a_function_of_ones_own_reads(tmp_path: Path) -> None:
    def read(folder: Path, split: str) -> BoxIndex:
        assert split == "train"
        return read_boxes.find(Place(folder)).parts["whole"]()

    from detseg.data.layouts.layout import Place

    splits = read_splits(read, Location(beside(tmp_path, LETTERS, "cat"), val_share=0.2))
    assert sorted(stems(splits.train) + stems(splits.val)) == LETTERS


def test_a_location_comes_back(tmp_path: Path) -> None:
    for location in (Location(tmp_path), Location(tmp_path / "a.json", tmp_path, tmp_path / "b.json"),
                     Location(tmp_path, val_share=0.25)):
        assert Location.from_plain(json.loads(json.dumps(location.as_plain()))) == location
    assert Location.from_plain("data/coco") == Location(Path("data/coco")), "as older runs keep it"


def test_what_is_broken_in_data_that_are_split_is_told_once(tmp_path: Path) -> None:
    data = beside(tmp_path / "data", LETTERS, "cat")
    (data / "ak.png").unlink()
    splits = read_splits(read_boxes, Location(data, val_share=0.2))
    assert len(splits.train.faults) == 1
    assert not splits.val.faults
    assert len(read_validation(read_boxes, Location(data), kept=splits.kept)[0].faults) == 1
    shutil.rmtree(data)


def test_a_configs_partial_reader_still_reads(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / f"images/{split}/a.png")
        (tmp_path / f"masks/{split}").mkdir(parents=True)
        Image.fromarray(np.zeros((6, 9), np.uint8)).save(tmp_path / f"masks/{split}/a.png")
    read = partial(read_masks, classes=Classes(("no", "yes"), (0, 1)))
    assert len(read_splits(read, Location(tmp_path)).val) == 1


# ---------------------------------------------------------------------------------------------- commands


def test_the_command_line_says_where_data_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_config(tmp_path)
    tiny.generate(Path("one"))
    tiny.generate(Path("two"))
    code, out, errors = run("train", "brightness.py", "--data", "one", "--val", "two", "--out", "run", "--set",
                            "schedule.epochs=1", "schedule.warmup_steps=0", capsys=capsys)
    assert (code, errors) == (0, "")
    assert "20 images to train on, 7 to validate on" in out
    trained = RunFolder(Path("run"))
    assert trained.location == Location(Path("one"), val=Path("two"))
    assert trained.kept_split is None
    assert run("test", "run", capsys=capsys)[0] == 0
    for arguments, message in (
        (["--sample", "--val-share", "0.1"], "error: the sample has its images and its split; leave out --images, "
                                             "--val"),
        (["--data", "one", "--val-share", "2"], "error: --val-share is a share of the images, above 0 and below 1, "
                                                "got 2"),
        (["--data", "one", "--images", "two"], "error: --images is for layouts that are found by content"),
    ):
        code, _, errors = run("train", "brightness.py", *arguments, "--out", "other", capsys=capsys)
        assert code == 2
        assert errors.startswith(message)
        assert not Path("other").exists()


def test_a_run_of_an_older_version_knows_its_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.resolved.write_text(json.dumps({"config": "a.py", "data": "data/coco", "settings": {}, "versions": {}}))
    assert folder.location == Location(Path("data/coco"))
    folder.resolved.write_text(json.dumps({"config": "a.py", "settings": {}, "versions": {}}))
    assert folder.location is None
