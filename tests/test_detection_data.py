"""From a folder to samples of a detector, and the tool that checks a folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from detseg.data.augment import BoxSample, Context, SSDAugment
from detseg.data.box_index import BoxIndex
from detseg.data.check import check_place
from detseg.data.detection import DetectionDataset
from detseg.data.images import read_image
from detseg.data.layouts import read_boxes
from detseg.data.loading import training_batches
from detseg.data.location import Location
from detseg.interfaces import SampleKey, TrainingBatch
from detseg.resize import KeepAspect, Letterbox, Placement, Resize, Stretch
from detseg.structures import BoxTargets, Classes
from detseg.tasks.detection import Detection

SIZES = {"a.png": (20, 40), "b.png": (30, 10)}


def coco_folder(folder: Path) -> Path:
    """Both splits with two images of noise, the first with two boxes (one a crowd), the second with none."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (folder / f"{split}2017").mkdir(parents=True)
        for name, (height, width) in SIZES.items():
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}2017" / name)
        content = {
            "images": [
                {"id": 7 + i, "file_name": name, "height": height, "width": width}
                for i, (name, (height, width)) in enumerate(SIZES.items())
            ],
            "categories": [{"id": 4, "name": "cat"}, {"id": 8, "name": "dog"}],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 8, "bbox": [4, 2, 8, 10], "area": 80, "iscrowd": 0},
                {"id": 2, "image_id": 7, "category_id": 4, "bbox": [30, 0, 20, 5], "area": 100, "iscrowd": 1},
                {"id": 3, "image_id": 7, "category_id": 4, "bbox": [3, 3, 0, 0], "area": 0, "iscrowd": 0},
            ],
        }
        rewrite(folder, split, json.dumps(content))
    return folder


def rewrite(folder: Path, split: str, text: str) -> None:
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}2017.json").write_text(text)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "data")


def test_coco_is_recognised(small: Path) -> None:
    index = read_boxes(small, "val")
    assert index.classes.source_ids == (4, 8)
    assert index.path(0) == small / "val2017" / "a.png"


def test_missing_images_of_coco_are_an_error(small: Path) -> None:
    shutil.rmtree(small / "val2017")
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json is there, but the folder .*val2017 with"):
        read_boxes(small, "val")


def test_voc_is_recognised(tmp_path: Path) -> None:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    (tmp_path / "JPEGImages/a.jpg").touch()
    (tmp_path / "Annotations/a.xml").write_text(
        "<annotation><size><width>9</width><height>5</height></size><object><name>cell</name><bndbox><xmin>1</xmin>"
        "<ymin>1</ymin><xmax>4</xmax><ymax>3</ymax></bndbox></object></annotation>"
    )
    assert read_boxes(tmp_path, "train").classes.names == ("cell",)


def test_a_folder_without_data_says_what_was_looked_for_and_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        read_boxes(tmp_path / "coco", "train")
    message = str(caught.value)
    for part in (
        f"no train data in {tmp_path / 'coco'} (no such folder)",
        "COCO: annotations/instances_train2017.json and train2017/",
        "PASCAL VOC: ImageSets/Main/train.txt",
        "https://cocodataset.org/#download",
        "train2017.zip, val2017.zip and annotations_trainval2017.zip",
        "--data",
        "--sample",
    ):
        assert part in message
    with pytest.raises(FileNotFoundError, match=r"no val data in [^(]*\. Looked for"):
        read_boxes(tmp_path, "val")


def test_a_sample_for_evaluation_is_resized_and_placed(small: Path) -> None:
    index = read_boxes(small, "val")
    resize = Stretch((10, 30))
    image, source, truth = DetectionDataset(index, resize).evaluation(0)
    assert (image.dtype, image.shape) == (torch.float32, (3, 10, 30))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), resize.apply(read_image(index.path(0))))
    assert (source.image_id, source.size) == (7, (20, 40))
    assert source.placement == Placement(0.5, 0.75, 0.0, 0.0)
    assert truth is None, "the metric has the index"


def test_a_training_sample_without_augmentation_is_resized_and_placed(small: Path) -> None:
    index = read_boxes(small, "val")
    resize = Stretch((10, 30))
    image, targets = DetectionDataset(index, resize).training(SampleKey(epoch=0, item=0))
    assert (image.dtype, image.shape) == (torch.uint8, (3, 10, 30))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), resize.apply_rounded(read_image(index.path(0))))
    assert targets.boxes.dtype == torch.float32
    assert targets.boxes.tolist() == [[3, 1, 9, 6], [22.5, 0, 30, 2.5]]
    assert (targets.labels.dtype, targets.labels.tolist()) == (torch.int64, [1, 0])
    assert (targets.crowd.dtype, targets.crowd.tolist()) == (torch.bool, [False, True])


def test_a_letterboxs_offset_moves_the_boxes(small: Path) -> None:
    dataset = DetectionDataset(read_boxes(small, "val"), Letterbox((40, 40)))
    assert dataset.evaluation(0).source.placement == Placement(1.0, 1.0, 10.0, 0.0)
    assert dataset.training(SampleKey(0, 0)).targets.boxes.tolist() == [[4, 12, 12, 22], [30, 10, 40, 15]]


def test_images_without_a_common_size_keep_theirs(small: Path) -> None:
    dataset = DetectionDataset(read_boxes(small, "val"), KeepAspect(10, 100))
    assert [dataset.training(SampleKey(0, item)).image.shape for item in (0, 1)] == [(3, 10, 20), (3, 30, 10)]
    assert [dataset.evaluation(item).image.shape for item in (0, 1)] == [(3, 10, 20), (3, 30, 10)]
    assert dataset.training(SampleKey(0, 0)).targets.boxes.tolist() == [[2, 1, 6, 6], [15, 0, 20, 2.5]]


@pytest.mark.parametrize("augmented", [False, True])
def test_an_image_without_objects_has_empty_targets(small: Path, augmented: bool) -> None:
    resize = Stretch((16, 24))
    dataset = DetectionDataset(read_boxes(small, "val"), resize, augment=SSDAugment(resize) if augmented else None)
    image, targets = dataset.training(SampleKey(0, 1))
    assert image.shape == (3, 16, 24)
    assert [list(values.shape) for values in targets[:3]] == [[0, 4], [0], [0]]
    assert [values.dtype for values in targets[:3]] == [torch.float32, torch.int64, torch.bool]
    assert dataset.evaluation(1).source.size == (30, 10)


def test_classes_and_index_are_public(small: Path) -> None:
    index = read_boxes(small, "val")
    dataset = DetectionDataset(index, Stretch((8, 8)))
    assert dataset.index is index
    assert dataset.classes is index.classes
    assert len(dataset) == 2


def test_a_negative_seed_is_an_error(small: Path) -> None:
    with pytest.raises(ValueError, match="the seed of the data must be at least 0, got -1"):
        DetectionDataset(read_boxes(small, "val"), Stretch((8, 8)), seed=-1)


def test_the_original_is_the_file_turned_as_annotated(small: Path) -> None:
    dataset = DetectionDataset(read_boxes(small, "val"), Stretch((8, 8)))
    assert [dataset.original(item).shape for item in range(2)] == [(20, 40, 3), (30, 10, 3)]
    path = small / "val2017" / "a.png"
    np.testing.assert_array_equal(dataset.original(0), read_image(path))
    orientation = Image.Exif()
    orientation[0x0112] = 6
    stored = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 40, 3), dtype=np.uint8))
    stored.save(path, exif=orientation)
    np.testing.assert_array_equal(dataset.original(0), np.asarray(stored), "annotated as it is stored")


def test_an_item_outside_is_an_error(small: Path) -> None:
    dataset = DetectionDataset(read_boxes(small, "val"), Stretch((8, 8)))
    with pytest.raises(IndexError, match="image 2 of a data set of 2"):
        dataset.training(SampleKey(0, 2))
    with pytest.raises(IndexError, match="image 2 of a data set of 2"):
        dataset.evaluation(2)


def test_an_image_of_another_size_than_annotated_is_an_error(small: Path) -> None:
    Image.new("RGB", (10, 10)).save(small / "val2017" / "a.png")
    dataset = DetectionDataset(read_boxes(small, "val"), Stretch((8, 8)))
    message = r"a\.png is 10 x 10 \(height x width\), its annotations say 20 x 40"
    with pytest.raises(ValueError, match=message):
        dataset.training(SampleKey(0, 0))
    with pytest.raises(ValueError, match=message):
        dataset.evaluation(0)


@dataclass
class Recorder:
    """An augmentation that paints its seed and gives back one box of its own."""

    def __call__(self, sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        image, boxes, labels, crowd = sample
        assert image.shape == (20, 40, 3)
        assert image.dtype == np.uint8
        assert boxes.tolist() == [[4, 2, 12, 12], [30, 0, 40, 5]]
        assert (labels.tolist(), crowd.tolist()) == ([1, 0], [False, True])
        painted = np.frombuffer(context.seed.to_bytes(8, "little"), np.uint8).reshape(1, 8, 1).repeat(3, axis=2)
        return BoxSample(painted, boxes[:1], labels[:1], crowd[:1])


class Seeds(NamedTuple):
    """What a sample's randomness follows from."""

    augment: tuple[int, ...]
    head: int


def seeds_given(folder: Path, key: SampleKey, *, seed: int) -> Seeds:
    dataset = DetectionDataset(read_boxes(folder, "val"), Stretch((1, 8)), augment=Recorder(), seed=seed)
    image, targets = dataset.training(key)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 1, 8))
    assert targets.boxes.tolist() == [[4, 2, 12, 12]]
    assert targets.seed is not None
    assert (targets.seed.dtype, targets.seed.shape) == (torch.int64, ())
    return Seeds(tuple(image[0, 0].tolist()), int(targets.seed))


def test_all_that_is_random_depends_on_seed_and_epoch_and_item_alone(small: Path) -> None:
    first = seeds_given(small, SampleKey(3, 0), seed=5)
    assert seeds_given(small, SampleKey(3, 0), seed=5) == first
    others = [first, seeds_given(small, SampleKey(4, 0), seed=5), seeds_given(small, SampleKey(3, 0), seed=6)]
    assert len({seeds.augment for seeds in others}) == len({seeds.head for seeds in others}) == 3
    plain = DetectionDataset(read_boxes(small, "val"), Stretch((8, 8)), seed=5)
    here, there = (plain.training(SampleKey(3, item)).targets.seed for item in (0, 1))
    assert here is not None
    assert there is not None
    assert int(here) == first.head, "with or without augmentation"
    assert int(here) != int(there)


def test_the_augmentations_size_is_held(small: Path) -> None:
    dataset = DetectionDataset(read_boxes(small, "val"), Stretch((8, 8)), augment=Recorder())
    with pytest.raises(AssertionError, match=r"augmented to \(1, 8, 3\), the network's is \(8, 8\)"):
        dataset.training(SampleKey(0, 0))


def test_ssds_augmentation_fits(small: Path) -> None:
    resize = Stretch((16, 24))
    dataset = DetectionDataset(read_boxes(small, "train"), resize, augment=SSDAugment(resize), seed=1)
    for epoch in range(5):
        image, targets = dataset.training(SampleKey(epoch, 0))
        again = dataset.training(SampleKey(epoch, 0))
        assert (image.dtype, image.shape) == (torch.uint8, (3, 16, 24))
        assert torch.equal(image, again.image)
        assert torch.equal(targets.boxes, again.targets.boxes)
        assert (targets.boxes[:, 2:] > targets.boxes[:, :2]).all()


# ---------------------------------------------------------------------------------------------- mosaics


@dataclass(frozen=True)
class Mosaic:
    """Half of the picture, and half of another one of the data set: to its right in even epochs, left in odd ones."""

    resize: Resize

    def __call__(self, sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        item = int(np.random.default_rng(context.seed).integers(context.num_items))
        left, right = (self._placed(one) for one in (sample, context.read(item)))
        if context.epoch % 2 == 1:
            left, right = right, left
        middle = self.resize.size[1] // 2
        image = np.concatenate([left.image[:, :middle], right.image[:, middle:]], axis=1)
        boxes = np.concatenate([left.boxes.clip(None, (middle, np.inf) * 2), right.boxes.clip((middle, 0) * 2, None)])
        kept = boxes[:, 0] < boxes[:, 2]
        labels, crowd = np.append(left.labels, right.labels), np.append(left.crowd, right.crowd)
        return BoxSample(image, boxes[kept].astype(np.float32), labels[kept], crowd[kept])

    def _placed(self, sample: BoxSample) -> BoxSample:
        height, width, _ = sample.image.shape
        boxes = self.resize.place((height, width)).boxes_to_network(sample.boxes).astype(np.float32)
        return sample._replace(image=self.resize.apply_rounded(sample.image), boxes=boxes)


def coloured(folder: Path, *, number: int) -> BoxIndex:
    """Item i is an image of the colour 30 * i with an object of class i that fills it; no two have the same size."""
    for i in range(number):
        Image.new("RGB", (20 + i, 12 + i), (30 * i,) * 3).save(folder / f"{i}.png")
    sizes = np.array([(12 + i, 20 + i) for i in range(number)], np.int32)
    return BoxIndex.of(
        Classes(tuple(f"class {i}" for i in range(number)), tuple(range(number))), folder,
        image_ids=np.arange(number), sizes=sizes, names=[f"{i}.png" for i in range(number)],
        image_of_box=np.arange(number), boxes=np.array([(0.0, 0.0, width, height) for height, width in sizes]),
        labels=np.arange(number, dtype=np.int32), crowd=np.zeros(number, np.bool_), areas=np.full(number, 100.0),
        annotation_ids=np.arange(number))


def mosaics(index: BoxIndex, *, seed: int) -> DetectionDataset:
    resize = Stretch((8, 12))
    return DetectionDataset(index, resize, augment=Mosaic(resize), seed=seed)


def test_an_augmentation_may_read_other_samples_and_know_the_epoch(tmp_path: Path) -> None:
    dataset = mosaics(coloured(tmp_path, number=8), seed=3)
    partners = set[int]()
    for epoch in (0, 1):
        for item in range(8):
            image, (boxes, labels, crowd, _) = dataset.training(SampleKey(epoch, item))
            assert boxes.tolist() == [[0, 0, 6, 8], [6, 0, 12, 8]]
            assert (image[:, :, :6] == 30 * labels[0]).all()
            assert (image[:, :, 6:] == 30 * labels[1]).all()
            assert labels[epoch] == item
            assert not crowd.any()
            partners.add(int(labels[1 - epoch]))
    assert len(partners) > 3


def assert_same(one: TrainingBatch[BoxTargets], other: TrainingBatch[BoxTargets]) -> None:
    assert torch.equal(one.images, other.images)
    for values, expected in zip(one.targets, other.targets, strict=True):
        assert values is not None
        assert expected is not None
        assert torch.equal(values, expected)


def test_mosaics_are_a_pure_function_of_seed_epoch_and_item_whoever_reads_them(tmp_path: Path) -> None:
    index = coloured(tmp_path, number=8)

    def read(dataset: DetectionDataset, *, workers: int, first_step: int = 0) -> list[TrainingBatch[BoxTargets]]:
        return list(training_batches(dataset, Detection(), batch_size=4, seed=1, fill=dataset.resize.fill,
                                     first_step=first_step, last_step=4, workers=workers))

    here, there = (read(mosaics(index, seed=3), workers=workers) for workers in (0, 2))
    resumed = read(mosaics(index, seed=3), workers=0, first_step=2)
    assert len(here) == len(there) == 4
    for batch, other in zip([*here, *here[2:]], [*there, *resumed], strict=True):
        assert_same(batch, other)

    keys = [SampleKey(epoch, item) for epoch in range(4) for item in range(8)]

    def drawn(dataset: DetectionDataset, keys: list[SampleKey]) -> list[list[int]]:
        return [dataset.training(key).targets.labels.tolist() for key in keys]

    dataset = mosaics(index, seed=3)
    forth = drawn(dataset, keys)
    assert drawn(dataset, keys[::-1]) == forth[::-1], "what was read before does not matter"
    assert drawn(mosaics(index, seed=4), keys) != forth
    # Two epochs later each item lies on the same side, beside another.
    assert sum(one != other for one, other in zip(forth[:16], forth[16:], strict=True)) > 8


# ---------------------------------------------------------------------------------------------- the check


@pytest.mark.real
@pytest.mark.parametrize("name", ["coco_mini", "bccd"])
def test_real_data_become_samples(shared: Path, name: str) -> None:
    resize = Stretch((320, 320))
    index = read_boxes(shared / "data" / name, "train").select(range(0, 190, 19))
    for dataset in (DetectionDataset(index, resize), DetectionDataset(index, resize, augment=SSDAugment(resize))):
        for item in range(len(dataset)):
            image, targets = dataset.training(SampleKey(0, item))
            assert image.shape == (3, 320, 320)
            assert torch.isfinite(targets.boxes).all()
            assert 0 <= targets.boxes.min() <= targets.boxes.max() <= 320
            assert targets.labels.max() < len(dataset.classes)
            assert dataset.evaluation(item).source.size == index.size(item)


@pytest.mark.real
def test_a_turned_or_cut_real_image_is_found(shared: Path, tmp_path: Path) -> None:
    index = read_boxes(shared / "data" / "coco_mini", "val").select([0, 1, 2])
    (tmp_path / "val2017").mkdir()
    for i in range(3):
        shutil.copyfile(index.path(i), tmp_path / "val2017" / index.path(i).name)
    rewrite(tmp_path, "val", json.dumps(index.coco_ground_truth()))
    turned, cut = (tmp_path / "val2017" / index.path(i).name for i in (0, 1))
    Image.open(turned).rotate(90, expand=True).save(turned)
    cut.write_bytes(cut.read_bytes()[:-1000])
    report = check_place(Location(tmp_path)).report
    assert [finding.kind for finding in report.problems] == ["broken images", "no training data"]
    first, second = report.problems[0].spots
    assert "its annotations say" in first.where
    assert "truncated or damaged" in second.where


def test_relabel_moves_labels_to_positions_of_another_label_space() -> None:
    index = _index_of_two_classes()
    wider = Classes(("unused 1", "cat", "unused 2", "dog"), (1, 3, 4, 7))
    assert index.relabel(wider).labels.tolist() == [1, 3, 3]
    assert index.relabel(wider).coco_ground_truth()["annotations"] == index.coco_ground_truth()["annotations"]
    with pytest.raises(ValueError, match="classes that are not asked for: dog"):
        index.relabel(Classes(("cat", "bird"), (3, 7)))


def _index_of_two_classes() -> BoxIndex:
    return BoxIndex.of(
        Classes(("cat", "dog"), (3, 7)), Path("images"), image_ids=np.array([5]), sizes=np.array([[40, 60]], np.int32),
        names=["a.jpg"], image_of_box=np.zeros(3, np.int64),
        boxes=np.array([[1.0, 2, 10, 20], [5, 5, 9, 9], [0, 0, 4, 4]]),
        labels=np.array([0, 1, 1], np.int32), crowd=np.zeros(3, np.bool_), areas=np.array([200.0, 81, 16]),
        annotation_ids=np.array([1, 2, 3]))
