"""PASCAL VOC's layout to arrays: its pixels counted from 1, its missing ids, and its broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.data.faults import check_faults
from detseg.data.voc import VOC_21, read_voc, read_voc_labels, voc_list, voc_segmentation_list
from detseg.structures import VOID


def thing(name: str, *corners: float | str, difficult: str = "<difficult>0</difficult>") -> str:
    tags = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    )
    return f"<object><name>{name}</name>{difficult}<bndbox>{tags}</bndbox></object>"


SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


def add(folder: Path, name: str, *, body: str, image: str | None = None) -> None:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")
    (folder / "JPEGImages" / (image or f"{name}.jpg")).touch()


def split(folder: Path, name: str, *images: str) -> None:
    voc_list(folder, name).write_text("".join(f"{image}\n" for image in images))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three training images (the second empty) and one for validation, with a class that only it has."""
    add(tmp_path, "b", body=SIZE + thing("dog", 1, 1, 60, 40) + thing("cat", 11, 5, 20, 9))
    add(tmp_path, "a.1", body=SIZE, image="a.1.png")
    add(tmp_path, "c", body=SIZE + thing("cat", 2, 3, 4, 6, difficult="<difficult>1</difficult>"))
    add(tmp_path, "v", body=SIZE + thing("bird", 2.5, 3, 4, 6, difficult=""))
    split(tmp_path, "train", "b", "a.1", "c", "")
    split(tmp_path, "val", "v")
    return tmp_path


def test_pixels_counted_from_1_become_corners(small: Path) -> None:
    index = read_voc(small, "train")
    assert index.boxes.tolist() == [[0, 0, 60, 40], [10, 4, 10, 5], [1, 2, 3, 4]]
    assert index.targets(0).boxes.tolist() == [[0, 0, 60, 40], [10, 4, 20, 9]]
    assert index.areas.tolist() == [2400, 50, 12]
    assert index.notes == ()


def test_images_keep_the_lists_order_and_are_numbered(small: Path) -> None:
    index = read_voc(small, "train")
    assert [index.path(i) for i in range(3)] == [small / "JPEGImages" / name for name in ("b.jpg", "a.1.png", "c.jpg")]
    assert index.image_ids.tolist() == [1, 2, 3]
    assert index.annotation_ids.tolist() == [1, 2, 3]
    assert index.offsets.tolist() == [0, 2, 2, 3]
    assert index.size(1) == (40, 60)
    assert index.targets(1).boxes.shape == (0, 4)


def test_all_splits_have_the_same_classes(small: Path) -> None:
    train, val = read_voc(small, "train"), read_voc(small, "val")
    assert train.classes == val.classes
    assert train.classes.names == ("bird", "cat", "dog")
    assert train.classes.source_ids == (1, 2, 3)
    assert (train.labels.tolist(), val.labels.tolist()) == ([2, 1, 1], [0])


def test_another_split_counts_for_the_classes_too(small: Path) -> None:
    add(small, "t", body=SIZE + thing("ant", 1, 1, 2, 2))
    split(small, "test", "t")
    assert read_voc(small, "test").classes.names == ("ant", "bird", "cat", "dog")


def test_difficult_objects_are_to_be_ignored(small: Path) -> None:
    index = read_voc(small, "train")
    assert index.crowd.tolist() == [False, False, True]
    assert [row["iscrowd"] for row in index.coco_ground_truth()["annotations"]] == [0, 0, 1]
    assert not read_voc(small, "val").crowd.any()


def test_equal_corners_are_no_object(small: Path) -> None:
    add(small, "b", body=SIZE + thing("dog", 5, 6, 5, 9) + thing("dog", 5, 6, 4, 5) + thing("dog", 5, 6, 6, 7))
    index = read_voc(small, "train")
    assert index.boxes[:3].tolist() == [[4, 5, 0, 4], [4, 5, -1, -1], [4, 5, 2, 2]]
    assert index.areas[:2].tolist() == [0, 0]
    assert index.targets(0).boxes.tolist() == [[4, 5, 6, 7]]
    assert index.notes == ("2 boxes of no area, not trained on (annotation ids: 1 in b.jpg, 2 in b.jpg)",)


@pytest.mark.parametrize(
    ("body", "place", "message"),
    [
        ("<object>", "", "broken XML: mismatched tag: line 1"),
        (SIZE + thing("", 1, 1, 2, 2), ", object 1", "it has no <name>"),
        (SIZE + thing(" ", 1, 1, 2, 2), ", object 1", "it has no <name>"),
        (SIZE + thing("dog", 1, 1, 2, 2) + thing("dog", 1, 1, 2), ", object 2", "it has no <bndbox/ymax>"),
        (SIZE + thing("dog", 1, "x", 2, 2), ", object 1", "<bndbox/ymin> must be a number, got 'x'"),
        (SIZE + thing("dog", 1, 1, "nan", 2), ", object 1", "<bndbox/xmax> must be finite, got 'nan'"),
        (SIZE + thing("dog", 1, 1, 2, "inf"), ", object 1", "<bndbox/ymax> must be finite, got 'inf'"),
        (
            SIZE + thing("dog", 1, 1, 2, 2, difficult="<difficult>very</difficult>"),
            ", object 1",
            "<difficult> must be 0 or 1, got 'very'",
        ),
        (SIZE + thing("hérisson", 1, 1, 2, 2), "", "broken XML: not well-formed (invalid token): line 1, col"),
    ],
)
def test_what_is_wrong_in_an_annotation_is_a_fault(small: Path, body: str, place: str, message: str) -> None:
    add(small, "c", body=body)
    path = small / "Annotations" / "c.xml"
    path.write_text(path.read_text(), "latin-1")
    index = read_voc(small, "train")
    (fault,) = index.faults
    assert fault.where == f"{path}{place}"
    assert fault.reason.startswith(message)
    assert len(index) == (3 if place else 2), "an object that is broken leaves its image"


def test_every_broken_place_is_named_and_the_rest_is_there(small: Path) -> None:
    add(small, "c", body="<object>")
    add(small, "d", body=SIZE + thing("dog", 1, 1, 2) + thing("dog", 2, 2, 3, 3) + thing("", 1, 1, 2, 2))
    add(small, "e", body=SIZE)
    (small / "JPEGImages" / "e.jpg").unlink()
    split(small, "train", "b", "a.1", "c", "gone", "d", "e")
    index = read_voc(small, "train")
    assert [index.path(i).name for i in range(len(index))] == ["b.jpg", "a.1.png", "d.jpg"]
    assert index.boxes.tolist() == [[0, 0, 60, 40], [10, 4, 10, 5], [1, 1, 2, 2]]
    with pytest.raises(ValueError, match="5 places are broken") as error:
        check_faults(index.faults, "train")
    lines = str(error.value).splitlines()[1:]
    listing, annotations = voc_list(small, "train"), small / "Annotations"
    assert lines == [
        f"  {listing}, gone: there is no file 'gone.xml' in {annotations}",
        f"  {listing}, e: there is no file 'e' in {small / 'JPEGImages'}",
        f"  {annotations / 'c.xml'}: broken XML: mismatched tag: line 1, column 22",
        f"  {annotations / 'd.xml'}, object 1: it has no <bndbox/ymax>",
        f"  {annotations / 'd.xml'}, object 3: it has no <name>",
    ]
    assert read_voc(small, "val").faults == (), "each split has its own"


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>",
                                  "<size><width>60</width></size>", "<size><width>?</width><height>40</height></size>"])
def test_a_missing_size_is_read_from_the_image(small: Path, size: str) -> None:
    add(small, "b", body=size + thing("dog", 1, 1, 60, 40))
    Image.new("RGB", (64, 48)).save(small / "JPEGImages" / "b.jpg")
    index = read_voc(small, "train")
    assert index.size(0) == (48, 64)
    assert index.notes == ("1 annotation without the image's size, which was read from the image",)
    assert index.faults == ()
    (small / "JPEGImages" / "b.jpg").write_bytes(b"text")
    (fault,) = read_voc(small, "train").faults
    assert str(fault).endswith("b.jpg: it is no image of a known kind")


@pytest.mark.parametrize(("word", "difficult"), [
    ("True", True), ("false", False), ("Unspecified", False), (" 1 ", True), ("", False), ("0.0", False), ("Yes", True),
])
def test_words_for_difficult_are_understood(small: Path, word: str, difficult: bool) -> None:
    add(small, "b", body=SIZE + thing("dog", 1, 1, 60, 40, difficult=f"<difficult>{word}</difficult>"))
    index = read_voc(small, "train")
    assert index.crowd.tolist()[:1] == [difficult]
    assert index.faults == ()


def test_parts_are_no_objects(small: Path) -> None:
    part = thing("head", 5, 5, 9, 9).replace("object>", "part>")
    add(small, "b", body=SIZE + thing("person", 1, 1, 60, 40).replace("</object>", f"{part}</object>"))
    index = read_voc(small, "train")
    assert index.classes.names == ("bird", "cat", "person")
    assert index.boxes[0].tolist() == [0, 0, 60, 40]


def test_padded_names_are_those_without_blanks(small: Path) -> None:
    add(small, "b", body=SIZE + thing("\n  cat ", 1, 1, 60, 40))
    assert read_voc(small, "train").classes.names == ("bird", "cat")


@pytest.mark.parametrize("content", [
    "\ufeff{body}".encode(), '<?xml version="1.0" encoding="gb2312"?>{body}<!-- 安全帽 -->'.encode("gb2312"),
    b'\n<?xml version="1.0"?>{body}', "{body}".encode("utf-16"),
    '<?xml version="1.0" encoding="utf-8"?>{body}<!-- C:\\Jérôme -->'.encode("latin-1")])
def test_annotations_in_other_encodings_are_read(small: Path, content: bytes) -> None:
    body = f"<annotation>{SIZE}{thing('dog', 1, 1, 60, 40)}</annotation>"
    text = content.decode("utf-16").replace("{body}", body).encode("utf-16") if content.startswith(b"\xff\xfe") else (
        content.replace(b"{body}", body.encode()))
    (small / "Annotations" / "b.xml").write_bytes(text)
    index = read_voc(small, "train")
    assert index.boxes[0].tolist() == [0, 0, 60, 40]
    assert index.faults == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_lists_of_windows_are_read(small: Path, encoding: str) -> None:
    add(small, "Übung", body=SIZE)
    voc_list(small, "train").write_bytes("b\r\nÜbung\r\n\r\n".encode(encoding))
    index = read_voc(small, "train")
    assert [index.path(i).name for i in range(len(index))] == ["b.jpg", "Übung.jpg"]
    assert (index.notes, index.faults) == ((), ())


@pytest.mark.parametrize("rows", [
    ["b  1", "a.1 -1", "c 0"], ["b.jpg", "a.1.png", "c.jpg"],
    ["JPEGImages/b.jpg", "JPEGImages/a.1.png", "JPEGImages/c.jpg"],
    ["JPEGImages/b.jpg Annotations/b.xml", "JPEGImages/a.1.png Annotations/a.1.xml", "c.jpg Annotations/c.xml"],
    ["/photos/VOC/JPEGImages/b.jpg", "a.1", "C:\\VOC\\c.jpg"], ["b", "a.1", "c", "b", "b.jpg"]])
def test_lists_name_images_in_many_ways(small: Path, rows: list[str]) -> None:
    split(small, "train", *rows)
    index = read_voc(small, "train")
    assert [index.path(i).name for i in range(len(index))] == ["b.jpg", "a.1.png", "c.jpg"]
    assert index.faults == ()


def test_a_name_may_end_like_a_row_of_a_class(small: Path) -> None:
    for name in ("scan 1", "scan 0"):
        add(small, name, body=SIZE)
    split(small, "train", "scan 1", "scan 0")
    assert [read_voc(small, "train").path(i).name for i in range(2)] == ["scan 1.jpg", "scan 0.jpg"]


def test_a_repetition_is_noted(small: Path) -> None:
    split(small, "train", "b", "c", "b")
    index = read_voc(small, "train")
    assert (len(index), index.notes) == (2, ("1 repetition in the list of images, read once",))


def test_what_lies_beside_the_images_is_no_image(small: Path) -> None:
    for name in ("b.xml", "b.txt", "a.1.json"):
        (small / "JPEGImages" / name).touch()
    assert read_voc(small, "train").path(0).name == "b.jpg"
    (small / "JPEGImages" / "b.png").touch()
    (fault,) = read_voc(small, "train").faults
    assert fault.reason == f"'b' may be any of b.jpg, b.png in {small / 'JPEGImages'}; name one by its path from there"


def test_the_file_may_name_its_image(small: Path) -> None:
    (small / "JPEGImages" / "b.jpg").rename(small / "JPEGImages" / "photo.jpg")
    add(small, "b", body=f"<filename>PHOTO.jpg</filename>{SIZE}", image="photo.jpg")
    index = read_voc(small, "train")
    assert index.path(0).name == "photo.jpg"
    assert index.notes[-1:] == ("1 file listed in another case than the file's name, as 'PHOTO.jpg' for photo.jpg",)


def test_a_missing_image_folder_is_an_error(small: Path) -> None:
    (small / "JPEGImages").rename(small / "pictures")
    with pytest.raises(FileNotFoundError, match=r"no folder .*JPEGImages"):
        read_voc(small, "train")


def test_a_list_must_be_there_and_name_images(small: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"test\.txt"):
        read_voc(small, "test")
    split(small, "train", "")
    with pytest.raises(ValueError, match=r"train\.txt lists no images"):
        read_voc(small, "train")


def test_a_folder_without_any_object_is_an_error(tmp_path: Path) -> None:
    add(tmp_path, "a", body=SIZE)
    split(tmp_path, "train", "a")
    with pytest.raises(ValueError, match=r"JPEGImages: none of its 1 annotations has an object; nothing to learn$"):
        read_voc(tmp_path, "train")


@pytest.mark.real
def test_bccd_is_read_whole(shared: Path) -> None:
    train, val = (read_voc(shared / "data/bccd", name) for name in ("train", "val"))
    assert (len(train), len(train.boxes), len(val), len(val.boxes)) == (205, 2805, 87, 1138)
    assert train.classes == val.classes
    assert train.classes.names == ("Platelets", "RBC", "WBC")
    assert train.notes == ("1 box of no area, not trained on (annotation ids: 2288 in BloodImage_00343.jpg)",)
    assert val.notes == ("1 box of no area, not trained on (annotation ids: 887 in BloodImage_00338.jpg)",)
    assert train.path(0).is_file()
    boxes = np.concatenate([train.targets(i).boxes for i in range(len(train))])
    assert len(boxes) == 2804
    assert boxes.min() == 0
    assert boxes[:, 2:].max(0).tolist() == [640, 480]


# ---------------------------------------------------------------------------------------------- segmentation


def label_map(folder: Path, name: str, *, maps: str = "SegmentationClass", shift: int = 0) -> Path:
    """Writes an image of 1 x 4 and its label map with VOC's palette, moved by `shift`, and gives the label map."""
    path = folder / maps / f"{name}.png"
    for part in (path.parent, folder / "JPEGImages", folder / "ImageSets" / "Segmentation"):
        part.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((1, 4, 3), np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
    image = Image.fromarray(np.array([[0, 5, 15, 255]], np.uint8))
    palette = np.full((256, 3), 224, np.uint8)
    palette[:21] = np.roll(VOC_21.colours, shift, axis=0)
    image.putpalette(palette.tobytes())
    image.save(path)
    return path


def test_the_colours_are_the_development_kits() -> None:
    """VOClabelcolormap: the bits of a class number, three at a time, from the top of each channel down."""
    for k, colour in enumerate(VOC_21.colours):
        channels = [sum(((k >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        assert colour == tuple(channels)
    assert (VOC_21.names[0], VOC_21.names[5], VOC_21.names[15], len(VOC_21)) == ("background", "bottle", "person", 21)


def test_label_maps_are_the_palettes_indices_in_the_lists_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        label_map(tmp_path, name)
    voc_segmentation_list(tmp_path, "val").write_text("b\na\n")
    index = read_voc_labels(tmp_path, "val")
    assert [index.path(i).name for i in range(2)] == ["b.jpg", "a.jpg"]
    assert index.image_ids.tolist() == [1, 2]
    np.testing.assert_array_equal(index.labels(1, (1, 4)), [[0, 5, 15, VOID]])


def test_another_list_and_folder_serve_for_training(tmp_path: Path) -> None:
    label_map(tmp_path, "a", maps="SegmentationClassAug")
    label_map(tmp_path, "v", maps="SegmentationClassAug")
    voc_segmentation_list(tmp_path, "trainaug").write_text("a\n")
    voc_segmentation_list(tmp_path, "val").write_text("v\n")
    names = [read_voc_labels(tmp_path, split, train="trainaug", maps="SegmentationClassAug").path(0).name
             for split in ("train", "val")]
    assert names == ["a.jpg", "v.jpg"]


def test_label_maps_that_are_missing_or_no_indices_are_refused(tmp_path: Path) -> None:
    path = label_map(tmp_path, "a")
    voc_segmentation_list(tmp_path, "val").write_text("a\n")
    label_map(tmp_path, "a", shift=1)
    with pytest.raises(ValueError, match="palette index 0 for background, but shows it in the colour of tvmonitor"):
        read_voc_labels(tmp_path, "val").labels(0, (1, 4))
    Image.fromarray(np.zeros((1, 4, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"a\.png holds colours \(RGB\)"):
        read_voc_labels(tmp_path, "val").labels(0, (1, 4))
    path.unlink()
    label_map(tmp_path, "b")
    voc_segmentation_list(tmp_path, "val").write_text("a\nb.jpg\nb\n")
    index = read_voc_labels(tmp_path, "val")
    assert [index.path(i).name for i in range(len(index))] == ["b.jpg"]
    (fault,) = index.faults
    assert str(fault) == (f"{voc_segmentation_list(tmp_path, 'val')}, a: there is no file 'a' in "
                          f"{tmp_path / 'SegmentationClass'}")
