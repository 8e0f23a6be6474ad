"""From a folder to samples of a segmenter, whatever the layout, and the check of a folder with label maps."""

from __future__ import annotations

import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_leaves

from detseg.data.augment import Augment, Context, LabelSample, SegmentationAugment
from detseg.data.label_index import LabelIndex
from detseg.data.layouts import Split, read_labels
from detseg.data.layouts.layout import Place
from detseg.data.loading import evaluation_batches, training_batches
from detseg.data.masks import class_file, read_masks, write_classes
from detseg.data.sample import LABELS, generate_sample
from detseg.data.segmentation import SegmentationDataset
from detseg.data.voc import VOC_21, voc_segmentation_list
from detseg.evaluate import evaluate
from detseg.interfaces import SampleKey
from detseg.metrics.mean_iou import MeanIoU
from detseg.resize import MEAN_COLOUR, KeepAspect, Letterbox, Placement, Resize, Stretch
from detseg.structures import VOID, Classes, LabelPixels, Size
from detseg.tasks.segmentation import Segmentation
from tests import tiny_segmenter
from tests.test_cityscapes import LABELS as STREET_LABELS
from tests.test_cityscapes import STREET, frame
from tests.test_coco_labels import box, write
from tests.test_masks import TWO, pair


def voc(folder: Path) -> None:
    """VOC's layout with one image in each split: background, aeroplane, tvmonitor and void."""
    for name, split in (("b", "train"), ("a", "val")):
        for part in ("JPEGImages", "SegmentationClass"):
            (folder / part).mkdir(exist_ok=True, parents=True)
        Image.fromarray(np.zeros((1, 4, 3), np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
        indices = Image.fromarray(np.array([[0, 1, 20, 255]], np.uint8))
        palette = np.zeros((256, 3), np.uint8)
        palette[:21], palette[255] = VOC_21.colours, (224, 224, 192)
        indices.putpalette(palette.tobytes())
        indices.save(folder / "SegmentationClass" / f"{name}.png")
        listing = voc_segmentation_list(folder, split)
        listing.parent.mkdir(exist_ok=True, parents=True)
        listing.write_text(f"{name}\n")


def cityscapes(folder: Path) -> None:
    for split in ("train", "val"):
        frame(folder, STREET, split=split)


def masks(folder: Path) -> None:
    for split in ("train", "val"):
        pair(folder, [[0, 9, 255]], split=split)
    write_classes(class_file(folder), TWO)


def coco(folder: Path) -> None:
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        for number in range(2):
            (folder / f"{split}2017").mkdir(exist_ok=True)
            Image.fromarray(np.zeros((6, 8), np.uint8)).save(folder / f"{split}2017" / f"{number}.jpg")
        small, large = ({"category_id": 3, "segmentation": box(0, 0, 8, 6), "area": area, "image_id": number}
                        for number, area in ((1, 1000), (2, 1001)))
        written = write(folder, small, large, images=2)
        written.rename(folder / "annotations" / f"instances_{split}2017.json")


# ---------------------------------------------------------------------------------------------- layouts


def test_cityscapes_is_recognised(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    np.testing.assert_array_equal(read_labels(tmp_path, "val").labels(0, (2, 4)), STREET_LABELS)


def test_voc_is_recognised(tmp_path: Path) -> None:
    voc(tmp_path)
    index = read_labels(tmp_path, "train")
    assert index.classes == VOC_21
    assert index.path(0) == tmp_path / "JPEGImages" / "b.jpg"
    np.testing.assert_array_equal(index.labels(0, (1, 4)), [[0, 1, 20, VOID]])


def test_masks_are_recognised(tmp_path: Path) -> None:
    masks(tmp_path)
    np.testing.assert_array_equal(read_labels(tmp_path, "train").labels(0, (1, 3)), [[0, 1, VOID]])


def test_coco_is_recognised_and_training_takes_what_torchvision_takes(tmp_path: Path) -> None:
    coco(tmp_path)
    assert read_labels(tmp_path, "train").image_ids.tolist() == [2]
    assert read_labels(tmp_path, "val").image_ids.tolist() == [1, 2]
    shutil.rmtree(tmp_path / "val2017")
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json is there, but the folder .*val2017 with its"):
        read_labels(tmp_path, "val")


def test_a_generated_sample_gives_its_own_label_maps(tmp_path: Path) -> None:
    folder = generate_sample(tmp_path / "sample", num_train=2, num_val=1)
    assert read_labels(folder, "train").classes == LABELS
    assert len(read_labels(folder, "train")) == 2


def test_a_folder_without_label_maps_says_what_was_looked_for_and_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        read_labels(tmp_path / "gone", "val")
    message = str(caught.value)
    assert message.startswith(f"no val label maps in {tmp_path / 'gone'} (no such folder). Looked for\n")
    for part in ("gtFine/train", "ImageSets/Segmentation/train.txt", "masks/train", "classes.txt",
                 "instances_train2017.json",
                 "https://www.cityscapes-dataset.com", "pascal/VOC", "cocodataset.org", "--data", "--sample"):
        assert part in message


@pytest.mark.parametrize(("layout", "files"), [(cityscapes, True), (voc, True), (masks, True), (coco, False)])
def test_every_index_survives_the_way_to_a_worker(tmp_path: Path, layout: Callable[[Path], None], files: bool) -> None:
    layout(tmp_path)
    assert read_labels.find(Place(tmp_path)).layout.label_maps == ("files" if files else "outlines")
    index = read_labels(tmp_path, "val")
    copy = pickle.loads(pickle.dumps(index))
    np.testing.assert_array_equal(copy.labels(0, copy.size(0)), index.labels(0, index.size(0)))


# ---------------------------------------------------------------------------------------------- samples


def checked(tmp_path: Path, resize: Resize) -> SegmentationDataset:
    """One image of 4 x 6 whose pixels are all different labels."""
    values = np.arange(24).reshape(4, 6)
    pair(tmp_path, values)
    pixels = np.repeat(values[..., None] * 10, 3, axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "train" / "a.png")
    (tmp_path / "images" / "train" / "a.jpg").unlink()
    classes = Classes(tuple(f"c{k}" for k in range(24)), tuple(range(24)))
    return SegmentationDataset(read_masks(tmp_path, "train", classes), resize)


def test_a_sample_for_evaluation_has_the_original_label_map_as_its_truth(tmp_path: Path) -> None:
    dataset = checked(tmp_path, Stretch((8, 12)))
    image, source, truth = dataset.evaluation(0)
    assert (image.dtype, image.shape) == (torch.float32, (3, 8, 12))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), dataset.resize.apply(dataset.original(0)))
    assert source == (1, (4, 6), Placement(2.0, 2.0, 0.0, 0.0))
    assert truth.dtype == torch.uint8
    np.testing.assert_array_equal(truth, np.arange(24).reshape(4, 6))


def test_training_without_augmentation_gives_the_label_of_the_nearest_pixel(tmp_path: Path) -> None:
    dataset = checked(tmp_path, Stretch((8, 12)))
    image, targets = dataset.training(SampleKey(0, 0))
    assert (image.dtype, image.shape) == (torch.uint8, (3, 8, 12))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), dataset.resize.apply_rounded(dataset.original(0)))
    assert targets.labels.dtype == torch.uint8
    np.testing.assert_array_equal(targets.labels, np.arange(24).reshape(4, 6).repeat(2, 0).repeat(2, 1))
    halved = checked(tmp_path, Stretch((4, 2))).training(SampleKey(0, 0)).targets.labels
    np.testing.assert_array_equal(halved, np.arange(24).reshape(4, 6)[:, [1, 4]])
    small = checked(tmp_path, KeepAspect(2, 9)).training(SampleKey(0, 0))
    assert small.image.shape == (3, 2, 3)
    np.testing.assert_array_equal(small.targets.labels, np.arange(24).reshape(4, 6)[1::2, 1::2])


def test_training_has_void_beside_the_image(tmp_path: Path) -> None:
    boxed = checked(tmp_path, Letterbox((6, 6))).training(SampleKey(0, 0)).targets.labels
    assert (boxed[[0, 5]] == VOID).all()
    np.testing.assert_array_equal(boxed[1:5], np.arange(24).reshape(4, 6))


def test_the_original_is_the_file(tmp_path: Path) -> None:
    dataset = checked(tmp_path, Stretch((8, 8)))
    np.testing.assert_array_equal(dataset.original(0)[..., 0], np.arange(24).reshape(4, 6) * 10)
    assert len(dataset) == 1
    assert dataset.classes == dataset.index.classes


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path: Path) -> None:
    pair(tmp_path, [[0, 9, 9]])
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "masks" / "train" / "a.png")
    message = r"a\.jpg is 1 x 3 \(height x width\), its label map .*a\.png is 2 x 3"
    for augment in (None, SegmentationAugment((4, 4), MEAN_COLOUR)):
        dataset = SegmentationDataset(read_masks(tmp_path, "train", TWO), Stretch((4, 4)), augment=augment)
        with pytest.raises(ValueError, match=message):
            dataset.training(SampleKey(0, 0))
    with pytest.raises(ValueError, match=message):
        dataset.evaluation(0)


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    pair(tmp_path, [[0]])
    with pytest.raises(ValueError, match="seed of the data must be at least 0, got -1"):
        SegmentationDataset(read_masks(tmp_path, "train", TWO), Stretch((4, 4)), seed=-1)


def test_training_depends_on_seed_epoch_and_item_alone(tmp_path: Path) -> None:
    folder = generate_sample(tmp_path / "sample", num_train=2, num_val=1)

    def drawn(seed: int, epoch: int, item: int) -> bytes:
        augment = SegmentationAugment((64, 96), MEAN_COLOUR, rare_classes=0.5, most_of_one_class=0.75)
        dataset = SegmentationDataset(read_labels(folder, "train"), Stretch((64, 64)), augment=augment, seed=seed)
        image, targets = dataset.training(SampleKey(epoch, item))
        assert image.shape == (3, 64, 96)
        assert image.dtype == torch.uint8
        return image.numpy().tobytes() + targets.labels.numpy().tobytes()

    keys = [(seed, epoch, item) for seed in (0, 1) for epoch in (0, 1) for item in (0, 1)]
    first = [drawn(*key) for key in keys]
    assert len(set(first)) == len(keys)
    assert [drawn(*key) for key in reversed(keys)] == first[::-1]


def test_an_augmentation_may_read_other_samples_and_know_the_epoch(tmp_path: Path) -> None:
    for i in range(3):
        pair(tmp_path, np.full((2, 3 + i), 9 * (i % 2)), name=f"{i}")
    index = read_masks(tmp_path, "train", TWO)

    def beside(sample: LabelSample, context: Context[LabelSample]) -> LabelSample:
        """The sample, and behind it the one of the epoch's number."""
        assert context.num_items == 3
        other = context.read(context.epoch)
        return LabelSample(np.hstack([sample.image, other.image]), np.hstack([sample.labels, other.labels]))

    augment: Augment[LabelSample] = beside
    dataset = SegmentationDataset(index, Stretch((4, 4)), augment=augment)
    image, targets = dataset.training(SampleKey(epoch=1, item=2))
    np.testing.assert_array_equal(image.permute(1, 2, 0), np.hstack([dataset.original(2), dataset.original(1)]))
    assert targets.labels.tolist() == [[0] * 5 + [1] * 4] * 2


def test_any_image_fills_a_batch_of_crops_whoever_reads_it(tmp_path: Path) -> None:
    pair(tmp_path, np.full((5, 3), 255), name="void")
    pair(tmp_path, np.full((90, 7), 9), name="narrow")
    pair(tmp_path, np.zeros((1, 1)), name="dot")
    dataset = SegmentationDataset(read_masks(tmp_path, "train", TWO), Stretch((32, 32)),
                                  augment=SegmentationAugment((32, 48), MEAN_COLOUR, rare_classes=0.5))
    here, there = (list(training_batches(dataset, Segmentation(), batch_size=3, seed=0, fill=MEAN_COLOUR, last_step=2,
                                         workers=workers)) for workers in (0, 2))
    for (images, targets), other in zip(here, there, strict=True):
        assert images.shape == (3, 3, 32, 48)
        assert targets.labels.shape == (3, 32, 48)
        assert torch.equal(images, other.images)
        assert torch.equal(targets.labels, other.targets.labels)


# ---------------------------------------------------------------------------------------------- who reads what


class Watched(LabelIndex):
    """An index that writes down which process reads which label map."""

    def __init__(self, index: LabelIndex, log: Path) -> None:
        self.inner, self.log = index, log
        self.classes, self.notes, self.image_ids = index.classes, index.notes, index.image_ids

    def path(self, i: int) -> Path:
        return self.inner.path(i)

    def origin(self, i: int) -> str:
        return self.inner.origin(i)

    def size(self, i: int) -> Size:
        return self.inner.size(i)

    def labels(self, i: int, size: Size) -> LabelPixels:
        with self.log.open("a") as file:
            file.write(f"{i} {os.getpid()}\n")
        return self.inner.labels(i, size)

    def relabel(self, classes: Classes, /) -> Self:
        raise NotImplementedError("it was relabelled before")

    def reads(self) -> list[tuple[int, int]]:
        """Position and process of each read so far, and forgets them."""
        lines = self.log.read_text().splitlines()
        self.log.unlink()
        return [(int(i), int(process)) for i, process in (line.split() for line in lines)]


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_segmenter.generate(tmp_path_factory.mktemp("data") / "shades")


def watched(shades: Path, split: Split, log: Path) -> tuple[SegmentationDataset, Watched]:
    index = Watched(read_labels(shades, split).relabel(tiny_segmenter.CLASSES), log)
    return SegmentationDataset(index, tiny_segmenter.untrained().resize), index


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_reads_every_label_map_once_and_not_in_the_main_process(
    shades: Path, tmp_path: Path, workers: int
) -> None:
    dataset, index = watched(shades, "val", tmp_path / "log")

    def numbers(workers: int) -> dict[str, float]:
        return evaluate(tiny_segmenter.untrained(), Segmentation(), dataset, metric=MeanIoU(index, per_class=True),
                        batch_size=2, workers=workers).numbers

    found, reads = numbers(workers), index.reads()
    assert sorted(i for i, _ in reads) == list(range(5))
    processes = Counter(process for _, process in reads)
    assert len(processes) == workers
    assert os.getpid() not in processes
    assert numbers(0) == pytest.approx(found, abs=0, nan_ok=True)
    assert index.reads() == [(i, os.getpid()) for i in range(5)]


def test_training_reads_label_maps_in_the_worker_and_carries_nothing_of_evaluation(
    shades: Path, tmp_path: Path
) -> None:
    dataset, index = watched(shades, "train", tmp_path / "log")
    batches = list(training_batches(dataset, Segmentation(), batch_size=4, seed=0, fill=dataset.resize.fill,
                                    last_step=3, workers=1))
    reads = index.reads()
    assert sorted(i for i, _ in reads) == list(range(12))
    assert os.getpid() not in {process for _, process in reads}
    for batch in batches:
        # Neither where the images come from nor a label map of their own size: two tensors of the network's size.
        leaves = tree_leaves(batch)
        assert [(leaf.dtype, leaf.shape[-2:]) for leaf in leaves] == [(torch.uint8, tiny_segmenter.NETWORK_SIZE)] * 2
    (first, *_) = evaluation_batches(dataset, batch_size=3, fill=dataset.resize.fill, workers=1)
    assert [truth.shape for truth in first.truths] == [index.size(i) for i in range(3)], "only evaluation has these"
