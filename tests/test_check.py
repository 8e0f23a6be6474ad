from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from detseg.data.check import Finding, NetworkView, check_place
from detseg.data.check.looks import alike, difference_hash, look_at
from detseg.data.check.names import near_names
from detseg.data.check.network import anchor_fit, at_network_size
from detseg.data.layouts import read_boxes
from detseg.data.location import Location
from detseg.data.sample import generate_sample
from detseg.resize import KeepAspect, Stretch

from .commands import run
from .crockery import TRAIN, VAL, coco, coco_json, masks, roboflow_coco, save, write, xml_apart


def by_kind(folder: Path, *, val_share: float | None = None) -> dict[tuple[str, str], Finding]:
    """What is found, by kind and split."""
    findings = check_place(Location(folder, val_share=val_share)).report.findings
    found = {(finding.kind, finding.split): finding for finding in findings}
    assert len(found) == len(findings)
    return found


def change(folder: Path, split: str, by: Callable[[dict[str, list[dict[str, object]]]], None]) -> None:
    path = folder / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    by(content)
    path.write_text(json.dumps(content))


def picture(seed: int, size: tuple[int, int] = (60, 80)) -> NDArray[np.uint8]:
    """Smooth, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def test_sound_data_have_no_findings_but_those_of_their_size(tmp_path: Path) -> None:
    coco(tmp_path)
    checked = check_place(Location(tmp_path))
    assert {(finding.level, finding.kind) for finding in checked.report.findings} == {("note", "rare classes")}
    assert checked.report.num_images == 6
    assert checked.report.verdict == "it can be trained on; 1 note worth a look"
    (boxes, images, classes) = checked.report.tables
    assert boxes.rows == (("train", "4", "1", "5", "0", "3 of 3"), ("val", "2", "0", "3", "0", "3 of 3"))
    assert images.rows[1] == ("val", "66 x 42, 44 x 52", "PNG 2", "RGB 2", "0")
    # Two cups of 10 x 12 in 64 x 40 and 20 x 24 in 56 x 48, at 320 x 320: 50 x 96 and 114.3 x 160.
    side = (np.sqrt(50 * 96) + np.sqrt(20 * 320 / 56 * 24 * 320 / 48)) / 2
    assert classes.rows[0] == ("cup", "2 (2)", "1 (1)", f"{side:.0f} px", "0")


def test_odd_boxes_are_found_each_with_its_place(tmp_path: Path) -> None:
    coco(tmp_path)

    def odd(content: dict[str, list[dict[str, object]]]) -> None:
        first = content["annotations"][0]
        for number, (box, category, crowd) in enumerate((
            ([4, 6, 40, 29], 3, 0),  # almost the first
            ([4, 6, 40, 30], 2, 0),  # the first as a fork
            ([0, 0, 64, 40], 1, 0),  # all of the image
            ([30, 5, 1, 9], 1, 0),  # 5 pixels wide at 320 x 320
            ([5, 5, 0, 9], 1, 0),
            ([70, 5, 9, 9], 1, 0),
            ([40, 5, 30, 9], 1, 0),
            ([4, 6, 40, 30], 3, 1),
        )):
            content["annotations"].append(first | {"id": 100 + number, "bbox": box, "category_id": category,
                                                   "iscrowd": crowd, "segmentation": []})

    change(tmp_path, "train", odd)
    found = by_kind(tmp_path)
    ids = {kind: finding.spots[0].where.split("annotation ")[-1].split(":")[0]
           for (kind, split), finding in found.items() if finding.spots}
    assert ids == {"duplicate boxes": "100", "two classes": "101", "enormous boxes": "102", "tiny objects": "103",
                   "no area": "104", "outside": "105", "beyond the edge": "106"}
    assert all(finding.level == "note" for finding in found.values())
    spot = found["duplicate boxes", "train"].spots[0]
    assert [box.xyxy for box in spot.boxes] == [(4, 6, 44, 36), (4, 6, 44, 35)]
    assert spot.image == tmp_path / "train2017" / "table 1.png"
    assert found["tiny objects", "train"].text.startswith("1 object (10.0%) with a side below 8 pixels at 320 x 320")


def test_broken_images_and_records_are_problems_with_every_place(tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "train2017" / "shelf.png").write_bytes((tmp_path / "train2017" / "shelf.png").read_bytes()[:-900])
    save(tmp_path / "train2017" / "wall.png", picture(1, (10, 10)))
    (tmp_path / "val2017" / "desk.png").unlink()
    change(tmp_path, "train", lambda content: content["annotations"][0].update(bbox=[1, 2, 3]))
    found = by_kind(tmp_path)
    broken = found["broken images", "train"]
    assert (broken.level, broken.num_places) == ("problem", 2)
    assert "shelf.png" in broken.spots[0].where
    assert "wall.png is 10 x 10 (height x width), its annotations say 44 x 52" in broken.spots[1].where
    assert "annotation 1" in found["broken records", "train"].spots[0].where
    assert "desk.png" in found["broken records", "val"].spots[0].where
    verdict = check_place(Location(tmp_path)).report.verdict
    assert verdict == ("mend first: 4 problems (broken records 2, broken images 2); or go on without what is broken: "
                       "train with --skip-broken, or a copy by --fix DIR")


def test_nothing_to_learn_is_a_problem(tmp_path: Path) -> None:
    coco(tmp_path)
    def crowds(content: dict[str, list[dict[str, object]]]) -> None:
        for one in content["annotations"]:
            one["iscrowd"] = 1

    change(tmp_path, "train", crowds)
    finding = by_kind(tmp_path)["nothing to learn", "train"]
    assert finding.level == "problem"
    assert "every one of the 5 boxes is a region to ignore" in finding.text


def test_boxes_that_look_like_corners_are_a_problem(tmp_path: Path) -> None:
    coco(tmp_path)

    def corners(content: dict[str, list[dict[str, object]]]) -> None:
        for one in content["annotations"]:
            one["bbox"], one["segmentation"] = [20, 20, 38, 36], []

    change(tmp_path, "train", corners)
    finding = by_kind(tmp_path)["corners", "train"]
    assert finding.level == "problem"
    assert finding.text.startswith("DO THE BOXES HOLD CORNERS? 5 of 5")


def test_splits_of_other_classes_are_a_problem_and_unlearned_ones_a_note(tmp_path: Path) -> None:
    coco(tmp_path)
    change(tmp_path, "val", lambda content: content["categories"][0].update(name="Cup"))
    found = by_kind(tmp_path)
    assert found["unequal classes", ""].level == "problem"
    assert "id 1: 'cup' here, 'Cup' there" in found["unequal classes", ""].text
    assert found["near names", ""].spots[0].where == "'Cup' and 'cup'"
    assert found["never trained on", "val"].text == "boxes of classes that train has no box of: Cup 1"


def test_layouts_that_have_names_only_agree_by_these(tmp_path: Path) -> None:
    xml_apart(tmp_path)
    assert ("unequal classes", "") not in by_kind(tmp_path, val_share=0.34)


@pytest.mark.parametrize(("names", "near"), [
    (("hard hat", "hardhat", "Hardhat", "vest"), [("hard hat", "hardhat"), ("hard hat", "Hardhat"),
                                                 ("hardhat", "Hardhat")]),
    (("car", "cars", "cat"), [("car", "cars")]),
    (("helmet", "helmt", "hemlet"), [("helmet", "helmt"), ("helmet", "hemlet")]),
    (("class_1", "class_2", "C", "C++"), []),
    (("\uff42\uff55\uff53", "bus", "+", "-", "."), [("\uff42\uff55\uff53", "bus")]),
])
def test_names_that_may_be_one(names: Sequence[str], near: Sequence[tuple[str, str]]) -> None:
    assert list(near_names(names)) == near


def test_unused_classes_are_named_in_every_layout(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / f"images/{number}.png", picture(number))
        write(tmp_path / f"labels/{number}.txt", "0 0.5 0.5 0.25 0.25\n")
    write(tmp_path / "classes.txt", "cup\nfork\n")
    assert by_kind(tmp_path)["unused classes", "whole"].text == (
        "1 class of 2 without a box: fork; each is an output that learns nothing")


def test_one_split_or_none_for_validation_says_how_to_go_on(tmp_path: Path) -> None:
    roboflow_coco(tmp_path)
    shutil.rmtree(tmp_path / "valid")
    assert "--val-share 0.1" in by_kind(tmp_path)["no validation data", ""].text
    shutil.move(tmp_path / "train", tmp_path / "valid")
    assert by_kind(tmp_path)["no training data", ""].level == "problem"
    assert "--val-share 0.1" in by_kind(tmp_path / "valid")["one split", ""].text
    assert ("one split", "") not in by_kind(tmp_path / "valid", val_share=0.5)


# ---------------------------------------------------------------------------------------------- images


def test_a_hash_stays_when_a_picture_is_resized_brightened_or_compressed(tmp_path: Path) -> None:
    image = picture(3, (240, 320))
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image).resize((200, 150)).save(tmp_path / "small.jpg", quality=70)
    Image.fromarray((image * 0.97).astype(np.uint8)).save(tmp_path / "darker.png")
    Image.fromarray(picture(4, (240, 320))).save(tmp_path / "other.png")
    looks = [look_at(tmp_path / name, size) for name, size in (
        ("a.png", (240, 320)), ("other.png", (240, 320)), ("small.jpg", (150, 200)), ("darker.png", (240, 320)),
        ("gone.png", (240, 320)))]
    assert alike(looks) == [[0, 2, 3]]
    assert looks[4].problem.startswith("no image gone.png")
    assert alike([]) == []


def test_a_hash_is_that_of_falling_grey_values() -> None:
    ramp = np.repeat(np.repeat(np.arange(0, 90, 10, dtype=np.uint8)[None, :, None], 8, axis=0), 3, axis=2)
    assert difference_hash(ramp) == 2**64 - 1
    assert difference_hash(ramp[:, ::-1]) == 0


def test_every_pair_of_near_hashes_is_found_by_its_buckets() -> None:
    rng = np.random.default_rng(0)
    thumbnail = np.zeros(256, np.uint8)
    from detseg.data.check.looks import Look

    hashes = [int(value) for value in rng.integers(0, 2**63, 300, dtype=np.uint64)]
    for bits in ((0, 20, 40), (5, 50), (63,)):
        hashes.append(hashes[len(hashes) - 300] ^ sum(1 << bit for bit in bits))
    looks = [Look("", None, value, thumbnail) for value in hashes]
    near = {(i, k) for i in range(len(hashes)) for k in range(i) if (hashes[i] ^ hashes[k]).bit_count() <= 3}
    found = alike(looks)
    assert {(max(group), min(group)) for group in found} == near
    assert len(near) == 3


def test_plain_pictures_of_other_colours_are_not_alike(tmp_path: Path) -> None:
    for grey in (0, 128, 255):
        Image.fromarray(np.full((20, 20, 3), grey, np.uint8)).save(tmp_path / f"{grey}.png")
    assert alike([look_at(tmp_path / f"{grey}.png", (20, 20)) for grey in (0, 128, 255)]) == []


def test_images_in_two_splits_and_near_copies_are_notes_and_the_verdict_says_what_follows(tmp_path: Path) -> None:
    coco(tmp_path)
    folders = [tmp_path / "train2017", tmp_path / "val2017"]
    shutil.copyfile(folders[0] / "shelf.png", folders[1] / "again.png")
    save(folders[0] / "smooth.png", picture(9))
    Image.fromarray(picture(9)).save(folders[1] / "smooth.jpg", quality=60)
    change(tmp_path, "train", lambda content: content["images"].append(
        {"id": 50, "file_name": "smooth.png", "height": 60, "width": 80}))
    change(tmp_path, "val", lambda content: content["images"].extend((
        {"id": 50, "file_name": "again.png", "height": 48, "width": 56},
        {"id": 51, "file_name": "smooth.jpg", "height": 60, "width": 80})))
    report = check_place(Location(tmp_path)).report
    assert report.verdict.startswith("it can be trained on, but its score will be too good; ")
    assert report.findings[0].kind == "images in two splits"
    found = by_kind(tmp_path)
    assert "1 image in two splits, to the byte (25.0% of the smaller one)" in found["images in two splits", ""].text
    assert found["images in two splits", ""].spots[0].where == (
        f"{folders[0] / 'shelf.png'} = {folders[1] / 'again.png'}")
    assert found["near copies in two splits", ""].spots[0].where == (
        f"{folders[0] / 'smooth.png'} = {folders[1] / 'smooth.jpg'}")


def turned(folder: Path) -> None:
    """VAL's desk as a camera writes it that was held on its side."""
    path = folder / "val2017" / "desk.png"
    image = Image.open(path).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def test_turned_images_strips_and_channels_are_told(tmp_path: Path) -> None:
    coco(tmp_path)
    turned(tmp_path)
    Image.open(tmp_path / "val2017" / "drawer.png").convert("L").save(tmp_path / "val2017" / "drawer.png")
    save(tmp_path / "val2017" / "strip.png", picture(2, (10, 80)))
    change(tmp_path, "val", lambda content: content["images"].append(
        {"id": 50, "file_name": "strip.png", "height": 10, "width": 80}))
    checked = check_place(Location(tmp_path))
    found = {finding.kind: finding for finding in checked.report.findings}
    assert [spot.image for spot in found["turned images"].spots] == [tmp_path / "val2017" / "desk.png"]
    assert [box.name for box in found["turned images"].spots[0].boxes] == ["cup", "plate"]
    assert [spot.image for spot in found["strips"].spots] == [tmp_path / "val2017" / "strip.png"]
    assert checked.report.tables[1].rows[1][2:] == ("PNG 3", "RGB 2, grey 1", "1")


# ---------------------------------------------------------------------------------------------- networks


def view_of(boxes: Sequence[Sequence[float]], *, fixed: bool = True) -> NetworkView:
    resize = Stretch((100, 100)) if fixed else KeepAspect(100, 200)
    return NetworkView("100 x 100", resize, np.array(boxes, np.float32))


def test_boxes_are_placed_as_the_network_sees_them(tmp_path: Path) -> None:
    coco(tmp_path)
    index = read_boxes(tmp_path, "val")
    placed = at_network_size(index, NetworkView("", Stretch((84, 132))))
    assert placed[0].tolist() == [16, 16, 60, 60]
    assert placed[2].tolist() == [30, 84 / 52 * 4, 120, 84 / 52 * 30]


def test_anchors_meet_boxes_where_they_lie_or_by_their_shape() -> None:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 20], [0, 0, 0, 0]], np.float64)
    usable = np.array([True, True, True, False])
    fit = anchor_fit(boxes, usable, view_of([[0, 0, 10, 10], [90, 90, 95, 95]]))
    assert fit.rows.tolist() == [0, 1, 2]
    assert fit.best_iou == pytest.approx([1, 0, 0.5])
    fit = anchor_fit(boxes, usable, view_of([[0, 0, 10, 10], [90, 90, 95, 95]], fixed=False))
    assert fit.best_iou == pytest.approx([1, 1, 0.5])


def test_what_no_anchor_meets_is_told_by_class(tmp_path: Path) -> None:
    coco(tmp_path)
    # The cup of desk is at 12.1, 19.0 to 45.5, 71.4 and the fork of drawer at 22.7, 7.7 to 90.9, 57.7 of 100 x 100.
    checked = check_place(Location(tmp_path), view=lambda _: view_of([[12, 19, 45, 71], [23, 8, 91, 58]]))
    finding = next(one for one in checked.report.findings if (one.kind, one.split) == ("no anchor", "val"))
    assert finding.text.startswith("33.3% of the boxes meet no anchor with an IoU of 0.5 at 100 x 100: plate 100%.")
    assert [box.name for spot in finding.spots for box in spot.boxes] == ["plate"]
    classes = checked.report.tables[2]
    assert classes.columns[-1] == "no anchor"


# ---------------------------------------------------------------------------------------------- label maps


def test_a_class_that_is_255_is_named_with_the_line_to_write(tmp_path: Path) -> None:
    masks(tmp_path)
    write(tmp_path / "classes.txt", "0 ground\n1 crockery\n")
    for path in (tmp_path / "masks").rglob("*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8)).save(path)
    finding = by_kind(tmp_path)["nothing to learn", "train"]
    assert finding.level == "problem"
    assert "every labelled pixel is ground, none is crockery" in finding.text
    assert "write `255 crockery` in classes.txt in place of `1 crockery`" in finding.text


def test_flavours_of_label_maps_and_void_are_told(tmp_path: Path) -> None:
    masks(tmp_path)
    write(tmp_path / "classes.txt", "0 background\n1 cup\n2 fork\n3 plate\n4 spoon\n9 void\n")
    path = tmp_path / "masks/val/desk.png"
    palette = Image.fromarray(np.asarray(Image.open(path)), mode="P")
    palette.putpalette([value for value in range(256) for _ in range(3)])
    palette.save(path)
    drawer = tmp_path / "masks/val/drawer.png"
    Image.fromarray(np.full((52, 44), 9, np.uint8)).save(drawer)
    checked = check_place(Location(tmp_path))
    found = {(finding.kind, finding.split): finding for finding in checked.report.findings}
    assert found["mixed label maps", "val"].text == "label maps are of several kinds: palette 1, grey 1"
    assert found["only void", "val"].spots[0].where == str(drawer)
    assert found["absent classes", "train"].text == "no pixel is spoon"
    share = 52 * 44 / (52 * 44 + 42 * 66)
    assert checked.report.tables[0].rows[1] == ("val", "2", "1", f"{share:.1%}", "3 of 5", "palette, grey")
    cup = (VAL[0].labels() == 1).mean()
    assert checked.report.tables[2].rows[1][2] == f"{cup:.2%} (1)"


def test_broken_label_maps_are_problems(tmp_path: Path) -> None:
    masks(tmp_path)
    Image.fromarray(np.full((40, 64), 77, np.uint8)).save(tmp_path / "masks/train/table 1.png")
    (tmp_path / "masks/train/shelf.png").write_bytes(b"no image")
    checked = check_place(Location(tmp_path))
    found = {(finding.kind, finding.split): finding for finding in checked.report.findings}
    assert "77 x 2560 (unknown)" in found["broken label maps", "train"].text
    assert "shelf.png: it is no image" in found["broken images", "train"].text
    assert {path.stem for path in checked.broken} == {"table 1", "shelf"}


def test_much_void_is_a_note(tmp_path: Path) -> None:
    masks(tmp_path)
    write(tmp_path / "classes.txt", "0 void\n1 cup\n2 fork\n3 plate\n")
    assert by_kind(tmp_path)["much void", "train"].text.endswith("of the pixels are void, and taught to nobody")


# ---------------------------------------------------------------------------------------------- the command


def test_the_command_prints_tables_findings_and_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco(tmp_path)
    code, out, _ = run("check_data", str(tmp_path), capsys=capsys)
    assert code == 0
    assert out.startswith(f"layout of {tmp_path}: COCO, because it has annotations/instances_train2017.json")
    assert "│ train │      4 │" in out
    assert out.endswith("verdict: it can be trained on; 1 note worth a look\n")
    for path in (tmp_path / "train2017").iterdir():
        path.write_bytes(b"broken")
    code, out, _ = run("check_data", str(tmp_path), capsys=capsys)
    assert code == 1
    assert out.count("it is no image of a known kind") == 4
    assert "verdict: mend first: 4 problems (broken images 4); or go on" in out


def test_the_command_names_a_few_places_or_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path)
    change(tmp_path, "train", lambda content: content["annotations"].extend(
        dict(content["annotations"][0], id=100 + k, bbox=[50 + k, 2, 1, 1], segmentation=[]) for k in range(6)))
    _, out, _ = run("check_data", str(tmp_path), capsys=capsys)
    assert out.count("table 1.png: plate") == 3
    assert "... and 3 more (--all names them)" in out
    _, out, _ = run("check_data", str(tmp_path), "--all", capsys=capsys)
    assert out.count("table 1.png: plate") == 6


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "valve [/closed] :warning:"
    coco(folder)
    for split in ("train", "val"):
        change(folder, split, lambda content: content["categories"][0].update(name="bolt [small]"))
    page = tmp_path / "gone" / "page.html"
    code, out, _ = run("check_data", str(folder), "--html", str(page), capsys=capsys)
    assert code == 0
    assert "valve [/closed] :warning:" in out
    assert "bolt [small]" in out
    assert "valve [/closed] :warning:" in page.read_text("utf-8")


def test_the_page_shows_findings_and_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path)
    for split in ("train", "val"):
        change(tmp_path, split, lambda content: content["categories"][0].update(name="<b>cup</b>"))
    change(tmp_path, "train", lambda content: content["annotations"][0].update(bbox=[0, 0, 64, 40], segmentation=[]))
    page = tmp_path / "page.html"
    code, out, _ = run("check_data", str(tmp_path), "--html", str(page), capsys=capsys)
    assert code == 0
    assert f"written: {page}" in out
    text = page.read_text("utf-8")
    assert "enormous boxes" in text
    assert text.count("data:image/jpeg;base64,/9j/") == 1
    assert "&lt;b&gt;cup&lt;/b&gt;" in text
    assert "<b>cup" not in text
    assert "http" not in text


def test_a_config_says_the_size_and_the_anchors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from .conftest import ROOT

    coco(tmp_path)
    config = str(ROOT / "configs" / "ssdlite_v3_small.py")
    code, out, _ = run("check_data", str(tmp_path), "--config", config, "--set", "model.size=64", "model.width=0.35",
                       capsys=capsys)
    assert code == 0
    assert "classes (sides of train at 64 x 64, as ssdlite_v3_small.py has it)" in out
    assert "no anchor" in out
    code, out, _ = run("check_data", str(tmp_path), "--config", "ssdlite_v2_finetune", "--set", "model.size=64",
                       "model.width=0.35", capsys=capsys)
    assert code == 0
    assert "64 x 64, as ssdlite_v2_finetune.py chooses it)" in out, "the anchors that training would have"
    code, _, error = run("check_data", str(tmp_path), "--set", "model.size=64", capsys=capsys)
    assert (code, error) == (2, "error: --set changes a config; name one with --config\n")
    code, _, error = run("check_data", str(tmp_path), "--config", str(tmp_path / "gone.py"), capsys=capsys)
    assert code == 2
    assert "there is no config" in error


@pytest.mark.parametrize(("make", "said"), [
    (lambda folder: None, "no folder or file"),
    (lambda folder: folder.mkdir(), "no data in"),
    (lambda folder: save(folder / "photo.png", picture(1)), "no data in"),
    (lambda folder: write(folder / "train.json", '{"images": [], "annotations": ['), "broken JSON"),
])
def test_what_is_no_data_set_is_said(
    make: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    make(folder)
    code, out, error = run("check_data", str(folder), capsys=capsys)
    assert code == (1 if folder.exists() else 2)
    assert said in out + error


def test_a_page_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path)
    code, _, error = run("check_data", str(tmp_path), "--html", str(tmp_path), capsys=capsys)
    assert (code, error) == (2, f"error: --html {tmp_path} is a folder; name a file in it\n")
    code, _, error = run("check_data", str(tmp_path), "--html", str(tmp_path / "train2017" / "wall.png" / "a.html"),
                         capsys=capsys)
    assert code == 1
    assert "the page was not written" in error


def test_val_is_another_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, pictures in (("mine.json", TRAIN), ("other.json", VAL)):
        write(tmp_path / name, coco_json(pictures))
        for one in pictures:
            save(tmp_path / "photos" / f"{one.name}.png", one.array())
    code, out, _ = run("check_data", str(tmp_path / "mine.json"), "--val", str(tmp_path / "other.json"), capsys=capsys)
    assert code == 0
    assert "│ val   │      2 │" in out


def test_a_split_that_cannot_be_read_is_a_problem_and_the_other_is_checked(tmp_path: Path) -> None:
    coco(tmp_path)
    write(tmp_path / "annotations/instances_train2017.json", "{")
    checked = check_place(Location(tmp_path))
    assert "broken JSON" in checked.report.problems[0].text
    assert (checked.report.problems[0].kind, checked.report.problems[0].split) == ("unreadable split", "train")
    assert checked.report.num_images == 2


def test_boxes_and_label_maps_of_one_folder_are_both_looked_at(tmp_path: Path) -> None:
    report = check_place(Location(generate_sample(tmp_path / "sample", num_train=2, num_val=1))).report
    assert [line.split(": ")[1].split(",")[0] for line in report.layouts] == ["COCO", "masks"]
    assert [table.title.split(" ")[0] for table in report.tables] == ["boxes", "images", "classes", "label", "classes"]
    assert report.num_images == 6


@pytest.mark.real
@pytest.mark.parametrize(("name", "images"), [("bccd", 292), ("cityscapes_mini", 67)])
def test_real_data_pass_the_check(shared: Path, name: str, images: int) -> None:
    report = check_place(Location(shared / "data" / name)).report
    assert report.num_images == images
    assert not report.problems


@pytest.mark.real
def test_an_image_of_real_data_that_is_in_both_splits_is_found(shared: Path) -> None:
    report = check_place(Location(shared / "data" / "coco_mini")).report
    assert not report.problems
    (note,) = [note for note in report.notes if note.kind == "images in two splits"]
    assert note.text.startswith("1 image in two splits, to the byte (1.2% of the smaller one)")
    assert [Path(part).name for part in note.spots[0].where.split(" = ")] == ["000000397133.jpg"] * 2
