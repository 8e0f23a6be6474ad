"""The generated data set: what COCO's own reader makes of it, that it repeats, and that it appears complete or not."""

import contextlib
import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detseg.data import sample
from detseg.data.layouts import read_labels
from detseg.data.sample import CATEGORIES, LABELS, Mask, Thing, draw_scene, generate_sample
from detseg.structures import Pixels

# pycocotools' decode is older than numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_sample(tmp_path_factory.mktemp("data") / "sample", seed=3, num_train=60, num_val=5)


def open_coco(folder: Path, split: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / "annotations" / f"instances_{split}2017.json"))


def open_picture(path: Path) -> Pixels:
    picture = cv2.imread(str(path))
    assert picture is not None, path
    return np.asarray(picture, dtype=np.uint8)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---------------------------------------------------------------------------------------------- content


@pytest.mark.parametrize(("split", "count"), [("train", 60), ("val", 5)])
def test_pycocotools_reads_it_and_every_number_fits_the_pictures(folder: Path, split: str, count: int) -> None:
    coco = open_coco(folder, split)
    assert len(coco.imgs) == count
    assert [(c["id"], c["name"]) for c in coco.loadCats(coco.getCatIds())] == list(CATEGORIES)
    for image in coco.imgs.values():
        picture = open_picture(folder / f"{split}2017" / image["file_name"])
        assert picture.shape == (image["height"], image["width"], 3)
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"]
        assert coco_mask.toBbox(coco.annToRLE(annotation)).tolist() == annotation["bbox"]
        assert isinstance(annotation["segmentation"], dict) == annotation["iscrowd"]


def test_it_holds_what_makes_detection_hard(folder: Path) -> None:
    coco = open_coco(folder, "train")
    annotations = list(coco.anns.values())
    objects = [a for a in annotations if not a["iscrowd"]]
    assert {a["category_id"] for a in objects} == {source_id for source_id, _ in CATEGORIES}
    assert any(a["iscrowd"] for a in annotations)
    assert any(not coco.getAnnIds(image) for image in coco.imgs)
    assert len({(i["height"], i["width"]) for i in coco.imgs.values()}) > 30
    assert all(240 <= side <= 480 for i in coco.imgs.values() for side in (i["height"], i["width"]))
    longest = np.array([max(a["bbox"][2:]) for a in objects])
    assert np.mean((longest >= 40) & (longest <= 200)) > 0.9
    overlapping = sum(
        (coco_mask.iou([a["bbox"] for a in here], [a["bbox"] for a in here], [0] * len(here)) > 0).sum() > len(here)
        for here in (coco.loadAnns(coco.getAnnIds(image)) for image in coco.imgs)
        if here
    )
    assert overlapping > 10


def test_label_maps_show_the_annotated_objects_and_the_ground(folder: Path) -> None:
    index, coco = read_labels(folder, "train"), open_coco(folder, "train")
    assert (index.classes, index.notes, len(index)) == (LABELS, (), 60)
    for i, image in enumerate(coco.imgs.values()):
        assert index.path(i) == folder / "train2017" / image["file_name"]
        labels = index.labels(i, (image["height"], image["width"]))
        expected = np.zeros_like(labels)
        for annotation in coco.imgToAnns[image["id"]]:
            expected[coco.annToMask(annotation) > 0] = LABELS.source_ids.index(annotation["category_id"])
        np.testing.assert_array_equal(labels, expected)


def test_the_pictures_are_those_of_the_first_version() -> None:
    """A change here changes every result on the sample: raise VERSION and say so."""
    scene = draw_scene(np.random.default_rng([0, 0, 0]))
    assert scene.image.shape == (445, 393, 3)
    assert [CATEGORIES[thing.label][1] for thing in scene.things] == ["square", "square", "square", "disc"]
    assert scene.instances.sum() == 109390


def test_training_and_validation_are_different_pictures(folder: Path) -> None:
    first = open_picture(folder / "train2017" / "000000000001.jpg")
    assert not np.array_equal(first, open_picture(folder / "val2017" / "000001000001.jpg"))


def test_a_scene_says_whose_each_pixel_is() -> None:
    scene = draw_scene(np.random.default_rng(1))
    assert scene.image.shape == (*scene.instances.shape, 3)
    assert scene.image.dtype == np.uint8
    assert np.unique(scene.instances).tolist() == list(range(len(scene.things) + 1))


def test_colour_is_no_cue() -> None:
    colours: dict[int, list[NDArray[np.float64]]] = {label: [] for label in range(len(CATEGORIES))}
    for seed in range(80):
        scene = draw_scene(np.random.default_rng(seed))
        for index, thing in enumerate(scene.things):
            colours[thing.label].append(scene.image[scene.instances == index + 1].mean(axis=0))
    means = np.array([np.mean(values, axis=0) for values in colours.values()])
    spread = np.array([np.std(values, axis=0) for values in colours.values()])
    assert np.ptp(means, axis=0).max() < 30
    assert spread.min() > 40


# ---------------------------------------------------------------------------------------------- polygons and runs


def test_a_hole_is_cut_through() -> None:
    mask = np.zeros((5, 7), dtype=bool)
    mask[1:4, 1:6] = True
    mask[2, 3] = False
    polygons = sample._annotation(mask, Thing(0, crowd=False))["segmentation"]
    assert len(polygons) == 2
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, 5, 7))
    assert np.array_equal(coco_mask.decode(rle), mask)


def test_a_box_s_polygon_is_its_corners() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:10, 5:17] = True
    annotation = sample._annotation(mask, Thing(2, crowd=False))
    assert annotation["bbox"] == [5, 4, 12, 6]
    assert annotation["area"] == 72
    assert annotation["category_id"] == 4
    (polygon,) = annotation["segmentation"]
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [(5, 4), (5, 10), (17, 4), (17, 10)]


def test_runs_go_down_the_columns() -> None:
    mask = np.array([[False, True], [True, True]])
    runs = sample._annotation(mask, Thing(0, crowd=True))["segmentation"]
    assert runs == {"size": [2, 2], "counts": [1, 3]}


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(lambda mask: bool(mask.any())))
def test_runs_come_back_through_pycocotools(mask: Mask) -> None:
    runs = sample._annotation(mask, Thing(0, crowd=True))["segmentation"]
    assert np.array_equal(coco_mask.decode(coco_mask.frPyObjects(runs, *mask.shape)), mask)


# ---------------------------------------------------------------------------------------------- the folder


def test_the_same_parameters_give_the_same_files(tmp_path: Path) -> None:
    first = digest(generate_sample(tmp_path / "a", seed=1, num_train=3, num_val=2))
    assert first == digest(generate_sample(tmp_path / "deep" / "b", seed=1, num_train=3, num_val=2))
    other = digest(generate_sample(tmp_path / "c", seed=2, num_train=3, num_val=2))
    assert first["train2017/000000000001.jpg"] != other["train2017/000000000001.jpg"]
    longer = digest(generate_sample(tmp_path / "d", seed=1, num_train=4, num_val=2))
    assert all(longer[name] == first[name] for name in first if name.endswith(".jpg"))


def test_a_complete_sample_is_reused_and_another_replaced(tmp_path: Path) -> None:
    folder = generate_sample(tmp_path / "sample", num_train=2, num_val=1)
    picture = folder / "train2017" / "000000000001.jpg"
    assert (folder / "masks" / "val" / "000001000001.png").is_file()
    made = picture.stat().st_mtime_ns
    assert generate_sample(folder, num_train=2, num_val=1) == folder
    assert picture.stat().st_mtime_ns == made
    generate_sample(folder, num_train=1, num_val=1)
    assert len(list((folder / "train2017").iterdir())) == 1
    assert os.listdir(tmp_path) == ["sample"]


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(rng: np.random.Generator) -> sample.Scene:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "draw_scene", stop)
    with pytest.raises(KeyboardInterrupt):
        generate_sample(tmp_path / "sample", num_train=1, num_val=1)
    assert not list(tmp_path.iterdir())


def test_several_at_once_end_with_one_whole_sample(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(generate_sample, tmp_path / "s", num_train=2, num_val=1) for _ in range(4)]
        assert {job.result() for job in jobs} == {tmp_path / "s"}
    assert os.listdir(tmp_path) == ["s"]
    assert len(open_coco(tmp_path / "s", "train").imgs) == 2


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    folder = generate_sample(tmp_path / "sample", num_train=1, num_val=1)
    assert json.loads((folder / "sample.json").read_text())["num_train"] == 1


@pytest.mark.parametrize("content", [None, '{"other": 1}', "[1]", "{"])
def test_what_someone_else_put_there_stays(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "holiday.jpg").touch()
    if content is not None:
        (tmp_path / "sample.json").write_text(content)
    before = digest(tmp_path)
    with pytest.raises(ValueError, match="is not empty and holds no generated sample; name another folder for it"):
        generate_sample(tmp_path)
    assert digest(tmp_path) == before


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sample").touch()
    with pytest.raises(ValueError, match="holds no generated sample"):
        generate_sample(tmp_path / "sample")


def test_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 training and 1 validation image, got 0 and 5"):
        generate_sample(tmp_path / "sample", num_train=0, num_val=5)
