"""Images in folders of their classes: how they are found, read, augmented and resized, and what goes wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import AutoAugment as TorchvisionAutoAugment
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.autoaugment import _apply_op

from detseg.config import Index
from detseg.data.augment import ClassificationAugment, ClassSample, Context, RandomErasing
from detseg.data.check import check_place
from detseg.data.class_index import ClassIndex
from detseg.data.classification import ClassificationDataset
from detseg.data.imagenet import IMAGENET
from detseg.data.layouts import read_image_classes
from detseg.data.location import Location, read_splits, read_validation
from detseg.data.policies import _IMAGENET, AutoAugment, RandAugment, _recoloured, _rotation, inverted
from detseg.data.sample import CATEGORIES, generate_class_sample, generate_sample
from detseg.data.screening import screened
from detseg.interfaces import SampleKey
from detseg.resize import CentreCrop, Stretch
from detseg.structures import Classes, Pixels
from detseg.train import _read_data
from detseg.validation import relabelled

FILL = (9, 90, 200)


def write(folder: Path, *names: str, size: tuple[int, int] = (20, 30)) -> None:
    """Pictures of these names, each of one colour."""
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size[::-1], (k * 20 % 256, 50, 100)).save(folder / name)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Three cats and two dogs to train on, one of each to validate on."""
    write(tmp_path, *(f"train/cat/{k}.jpg" for k in range(3)), "train/dog/7.png", "train/dog/more/8.webp",
          "val/cat/0.JPEG", "val/dog/1.bmp")
    return tmp_path


def names_of(index: ClassIndex) -> list[str]:
    return [str(index.path(i).relative_to(index.folder)) for i in range(len(index))]


# ------------------------------------------------------------------------------------------ the index


def test_folders_are_classes(pets: Path) -> None:
    (pets / "train" / ".hidden").mkdir()
    (pets / "train" / "__MACOSX").mkdir()
    (pets / "train" / "list.txt").touch()
    (pets / "train" / "cat" / "notes.txt").touch()
    splits = read_splits(read_image_classes, Location(pets))
    train, val = splits.train, splits.val
    assert train.classes.names == val.classes.names == ("cat", "dog")
    assert train.classes.source_ids == (0, 1)
    assert names_of(train) == ["cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "dog/7.png", "dog/more/8.webp"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert train.image_ids.tolist() == [1, 2, 3, 4, 5]
    assert names_of(val) == ["cat/0.JPEG", "dog/1.bmp"]
    assert not [*train.notes, *val.notes, *train.faults, *val.faults]
    assert splits.lines == (f"layout of {pets}: class folders, because it has train, val with folders of images",)
    known: Index = train
    assert len(known) == 5
    with pytest.raises(IndexError, match="image 5 of a data set of 5; positions run from 0 to 4"):
        train.path(5)


@pytest.mark.parametrize("renamed", ["valid", "validation", "test"])
def test_splits_have_the_usual_names(pets: Path, renamed: str) -> None:
    (pets / "val").rename(pets / renamed)
    splits = read_splits(read_image_classes, Location(pets))
    assert len(splits.val) == 2
    assert ("so the test split takes its place" in " ".join(splits.lines)) == (renamed == "test")


def test_without_splits_a_share_is_kept(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/{k}a{k}x.jpg" for name in ("cat", "dog") for k in range(10)))
    with pytest.raises(FileNotFoundError, match=r"nothing to validate on .* no splits.*--val-share"):
        read_splits(read_image_classes, Location(tmp_path))
    splits = read_splits(read_image_classes, Location(tmp_path, val_share=0.3))
    assert len(splits.train) + len(splits.val) == 20
    assert len(splits.val) >= 2
    assert not {*names_of(splits.train)} & {*names_of(splits.val)}
    assert splits.train.classes.names == ("cat", "dog")


def test_evaluation_elsewhere_has_the_networks_ids(pets: Path) -> None:
    """Of two of its three classes."""
    known = Classes(("bird", "cat", "dog"), (0, 1, 2))
    index, _ = read_validation(read_image_classes, Location(pets), classes=known)
    assert index.classes.source_ids == (1, 2)
    assert index.relabel(known).labels.tolist() == [1, 2]


def test_a_class_that_only_validation_data_elsewhere_have_is_noted(pets: Path) -> None:
    write(pets, "other/cat/1.jpg", "other/zebra/2.jpg")
    splits = read_splits(read_image_classes, Location(pets, val=pets / "other"))
    assert splits.train.classes.names == ("cat", "dog", "zebra")
    assert splits.train.notes == (f"{pets / 'train'} has no image of zebra",)
    assert splits.val.notes == (f"{pets / 'other'} has no image of dog",)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert splits.val.labels.tolist() == [0, 2]


def test_a_class_without_validation_images_is_noted(pets: Path) -> None:
    write(pets, "train/eel/1.jpg", "train/fox/2.jpg")
    (pets / "val" / "fox").mkdir()
    splits = read_splits(read_image_classes, Location(pets))
    assert splits.val.classes.names == ("cat", "dog", "eel", "fox")
    assert splits.val.notes == (f"{pets / 'val'} has no image of 2 of the 4 classes: eel, fox",)
    assert not splits.val.faults
    assert splits.val.labels.tolist() == [0, 1]


def test_what_is_broken_is_named(pets: Path) -> None:
    """And left out where it is to be skipped."""
    (pets / "train" / "empty").mkdir()
    write(pets, "val/zebra/3.jpg", "train/loose.jpg", "train/other.jpg")
    with pytest.raises(ValueError, match="3 places are broken") as raised:
        _read_data(of_pets(), Location(pets), None, skip_broken=False)
    assert str(raised.value).splitlines()[1:] == [
        f"  {pets / 'train'}: 2 images lie in no class's folder, loose.jpg is the first; move or remove them",
        f"  {pets / 'train' / 'empty'}: a class's folder without images; add some, or remove the folder",
        f"  {pets / 'val' / 'zebra'}: a class without a training image, which nothing can learn; add some to the "
        "training folder, or remove this one"]
    splits, classes = _read_data(of_pets(), Location(pets), None, skip_broken=True)
    assert classes.names == ("cat", "dog")
    assert (len(splits.train), len(splits.val)) == (5, 2)


def of_pets() -> Any:
    from detseg.config import load

    return load(Path("classify_v3_large"))


@pytest.mark.parametrize(("names", "error", "message"), [
    (["train/a.jpg", "val/cat/b.jpg"], ValueError,
     r"the images of .*train lie directly in it, and nothing says their classes: put those of each class into a folder "
     r"of its name, train/CLASS/NAME\.jpg\. For ImageNet's validation images the script extract_ILSVRC\.sh"),
    (["train/cat/a.jpg", "train/dog/b.jpg", "val/c.jpg"], ValueError, r"the images of .*val lie directly in it"),
    (["train/cat/a.jpg", "val/cat/c.jpg"], ValueError,
     r"train has the images of one class, cat; a classifier tells at least two apart"),
    (["only/a.jpg"], FileNotFoundError, r"no classes of images in .*\. Looked for\n  class folders: train/"),
    (["train/cat/a.jpg", "train/dog/a.jpg"], FileNotFoundError, r"nothing to validate on in .*--val-share"),
])
def test_layouts_that_are_none(
    names: Sequence[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    write(tmp_path, *names)
    with pytest.raises(error, match=message):
        read_splits(read_image_classes, Location(tmp_path))


def test_a_check_says_who_reads_them(pets: Path) -> None:
    (finding,) = check_place(Location(pets)).report.findings
    assert (finding.level, finding.kind) == ("problem", "nothing to read")
    assert finding.text.startswith("these are folders of classes, which classifiers are trained on; ")
    write(pets, "train/a.jpg", "other/train/a.jpg")
    (finding,) = check_place(Location(pets / "other")).report.findings
    assert "folders of classes" not in finding.text


def test_images_of_one_class_teach_nothing(pets: Path) -> None:
    index = read_image_classes(pets, "train")
    assert screened(index, whole=False).nothing_to_learn == ""
    assert screened(index.select([0, 2]), whole=False).nothing_to_learn == "every image is cat"


def test_images_that_cannot_be_read_are_named(pets: Path) -> None:
    content = (pets / "train/cat/1.jpg").read_bytes()
    (pets / "train/cat/1.jpg").write_bytes(content[:-40])
    (pets / "train/dog/7.png").write_bytes(b"")
    sound, why_nothing = screened(read_image_classes(pets, "train"), whole=False)
    assert not why_nothing
    assert names_of(sound) == ["cat/0.jpg", "cat/2.jpg", "dog/more/8.webp"]
    assert sound.labels.tolist() == [0, 0, 1]
    assert [fault.where for fault in sound.faults] == [str(pets / "train/cat/1.jpg"), str(pets / "train/dog/7.png")]
    assert "truncated" in sound.faults[0].reason
    nothing, why_nothing = screened(read_image_classes(pets, "train").select([1]), whole=True)
    assert (len(nothing), why_nothing) == (0, "no image is left")


def test_labels_are_positions_in_other_classes() -> None:
    index = ClassIndex.of(Classes(("cat", "dog", "eel"), (0, 1, 2)), Path(), ["a", "b", "c", "d"], [0, 1, 2, 1])
    more = Classes(("eel", "unused", "dog", "cat"), (2, 7, 1, 0))
    assert index.relabel(more).labels.tolist() == [3, 2, 0, 2]
    assert index.relabel(more).classes == more
    assert not index.relabel(more).notes
    many = Classes(("cat", "dog", "eel", *"abcdefg"), tuple(range(10)))
    assert index.relabel(many).notes == (". has no image of a, b, c, d, e and 2 more",)
    with pytest.raises(ValueError, match=r"the images have classes that are not asked for: 2 eel$"):
        index.relabel(Classes(("cat", "dog"), (0, 1)))
    common = index.common(Classes(("dog", "fox", "cat"), (5, 6, 7)))
    assert (common.images.tolist(), common.labels.tolist()) == (["a", "b", "d"], [2, 0, 0])
    assert index.select([3, 0]).image_ids.tolist() == [4, 1]
    found, lines = relabelled(index, Classes(("dog", "fox", "cat"), (5, 6, 7)), common=True, what="x.pt")
    assert len(found) == 3
    assert lines[0] == "note: evaluated on 2 classes that the network and the data both have: cat, dog"


def test_images_of_rare_classes_come_more_often() -> None:
    """Of 8 images 6, 1 and 1 are of a class; for a share of a half 1/8 comes sqrt(4) times."""
    index = ClassIndex.of(Classes(("a", "b", "c"), (0, 1, 2)), Path(), list("01234567"), [0] * 6 + [1, 2])
    assert index.repeats(0.5).tolist() == [1] * 6 + [2, 2]


def test_imagenets_classes() -> None:
    assert len(IMAGENET) == 1000
    assert (IMAGENET.names[0], IMAGENET.names[-1]) == ("n01440764", "n15075141")
    assert [*IMAGENET.names] == sorted(IMAGENET.names)


# ------------------------------------------------------------------------------------------ samples


def picture(size: tuple[int, int] = (45, 70), seed: int = 0) -> Pixels:
    pixels: Pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return pixels


def context(seed: int = 0, sample: ClassSample | None = None) -> Context[ClassSample]:
    known = sample or ClassSample(picture(), 3)
    return Context(seed, 0, 1, lambda _: known)


def everything(size: tuple[int, int]) -> RandomErasing[ClassSample]:
    return RandomErasing(AutoAugment(ClassificationAugment(size, photometric=0.5), FILL), probability=0.5)


def test_samples_follow_from_seed_epoch_and_item(pets: Path) -> None:
    def sample(seed: int, epoch: int, item: int) -> tuple[bytes, int]:
        index = read_image_classes(pets, "train")
        dataset = ClassificationDataset(index, CentreCrop((16, 24)), augment=everything((16, 24)), seed=seed)
        image, targets = dataset.training(SampleKey(epoch, item))
        assert (image.shape, image.dtype, targets.labels.dtype) == ((3, 16, 24), torch.uint8, torch.int64)
        return image.numpy().tobytes(), int(targets.labels)

    write(pets, "train/cat/0.jpg", size=(60, 40))
    Image.fromarray(picture((60, 40))).save(pets / "train/cat/0.jpg")
    assert sample(0, 0, 0) == sample(0, 0, 0)
    others = {sample(*key)[0] for key in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 2, 0))}
    assert len(others) == 4
    assert [sample(0, 0, item)[1] for item in range(5)] == [0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="the seed of the data must be at least 0, got -1"):
        sample(-1, 0, 0)


def test_evaluation_and_training_without_augmentation_see_the_middle(pets: Path) -> None:
    dataset = ClassificationDataset(read_image_classes(pets, "val"), CentreCrop((16, 12)))
    image, source, truth = dataset.evaluation(1)
    assert (image.shape, image.dtype, truth) == ((3, 16, 12), torch.float32, None)
    assert (source.image_id, source.size) == (2, (20, 30))
    trained, targets = dataset.training(SampleKey(0, 1))
    assert trained.shape == (3, 16, 12)
    assert int(targets.labels) == 1
    assert dataset.original(0).shape == (20, 30, 3)
    assert len(dataset) == 2


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (100, 80), (97, 300), (256, 256), (1000, 1001)])
def test_a_centre_crop_is_torchvisions(size: tuple[int, int]) -> None:
    image, crop = picture(size), CentreCrop((224, 224))
    preset = ImageClassification(crop_size=224, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    found, rounded = crop.apply(image), crop.apply_rounded(image)
    of_tensor = preset(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy() * 255
    of_pillow = preset(Image.fromarray(image)).permute(1, 2, 0).numpy() * 255
    assert np.abs(found - of_tensor).max() <= 0.5 + 1e-4, "it rounds"
    assert np.abs(rounded - of_pillow).max() < 1e-4
    assert np.abs(found - rounded).max() <= 1.5


@pytest.mark.parametrize("size", [(40, 40), (30, 50), (50, 30)])
@pytest.mark.parametrize("original", [(60, 90), (90, 60), (20, 31), (31, 300)])
def test_a_centre_crop_of_any_shape(size: tuple[int, int], original: tuple[int, int]) -> None:
    """Its middle is the image's, and it lies in the image by its share."""
    crop = CentreCrop(size, share=0.8)
    image = picture(original)
    assert crop.apply(image).shape == crop.apply_rounded(image).shape == (*size, 3)
    to = crop.place(original)
    corners = np.array([[0.0, 0.0, original[1], original[0]]])
    left, top, right, bottom = to.boxes_to_network(corners)[0].tolist()
    assert left <= 0 <= size[1] <= right
    assert top <= 0 <= size[0] <= bottom
    assert abs((left + right) - size[1]) <= 1
    assert abs((top + bottom) - size[0]) <= 1
    assert max(size[0] / (bottom - top), size[1] / (right - left)) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("made", "message"), [
    (lambda: CentreCrop((10, 10), share=0.0), "share is the crop's part of the resized image, .* up to 1, got 0"),
    (lambda: CentreCrop((0, 10)), r"the network's input size is \(height, width\) in pixels, .*, got \(0, "),
    (lambda: ClassificationAugment((0, 5)), r"size is \(height, width\) in pixels, each at least 1, got \(0, 5\)"),
    (lambda: ClassificationAugment((5, 5), area=(0.0, 1.0)), r"area is the smallest and the largest share, .*\(0.0, 1"),
    (lambda: ClassificationAugment((5, 5), aspect=(2.0, 1.0)), r"aspect is the smallest and the largest, .*\(2.0, 1.0"),
    (lambda: ClassificationAugment((5, 5), flip=1.5), "flip is a probability in 0..1, got 1.5"),
    (lambda: generate_class_sample(Path("x"), num_train=4), "a sample of 5 classes needs as many training images, got"),
    (lambda: generate_class_sample(Path("x"), num_val=0), "a sample needs at least 1 training and 1 validation image"),
])
def test_values_that_are_none(made: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made()


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_windows_have_the_areas_and_aspects_asked_for(size: tuple[int, int]) -> None:
    """Of an image whose colours tell where each pixel was."""
    rows, columns = np.indices((200, 240), dtype=np.uint8)
    sample = ClassSample(np.stack([rows, columns, rows], axis=2), 0)
    augment = ClassificationAugment(size, area=(0.1, 0.7), flip=0.0)
    areas, aspects = [], []
    for seed in range(300):
        image = augment(sample, context(seed, sample)).image
        assert image.shape == (*size, 3)
        high = (float(image[-1, 0, 0]) - float(image[0, 0, 0])) / (1 - 1 / size[0])
        wide = (float(image[0, -1, 1]) - float(image[0, 0, 1])) / (1 - 1 / size[1])
        areas.append(high * wide / (200 * 240))
        aspects.append(wide / high / (size[1] / size[0]))
    assert 0.09 < min(areas) < 0.15
    assert 0.55 < max(areas) < 0.72
    assert 0.7 < min(aspects) < 0.8
    assert 1.25 < max(aspects) < 1.42


def test_half_are_mirror_images_and_an_odd_shape_gives_its_middle() -> None:
    ramp = ClassSample(np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 90, 0).repeat(3, 2), 5)
    augment = ClassificationAugment((24, 24))
    turned = [int(out.image[0, 0, 0]) > int(out.image[0, -1, 0]) for out in (
        augment(ramp, context(seed, ramp)) for seed in range(200))]
    assert 75 < sum(turned) < 125
    narrow = ClassSample(np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 6, 0).repeat(3, 2), 5)
    whole = ClassificationAugment((6, 8), area=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0)
    image = whole(narrow, context(0, narrow)).image
    assert image[0, :, 0].tolist() == list(range(96, 104)), "the middle of 6 x 200 at 3:4"


NAMES: Mapping[str, str] = {"ShearX": "shear x", "AutoContrast": "autocontrast"}


def test_autoaugments_policy_is_torchvisions() -> None:
    theirs = tuple(
        tuple((NAMES.get(name, name.lower()), chance, level or 0) for name, chance, level in pair)
        for pair in TorchvisionAutoAugment().policies)
    assert theirs == _IMAGENET


@pytest.mark.parametrize("number", range(25))
def test_every_pair_of_autoaugment_changes_what_it_should(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detseg.data.policies._IMAGENET", (_IMAGENET[number],))
    augment = AutoAugment(lambda sample, _: sample, FILL)
    sample = ClassSample(picture() // 2 + 40, 3)
    before = sample.image.copy()
    found = [augment(sample, context(seed, sample)) for seed in range(12)]
    assert np.array_equal(sample.image, before)
    assert {(one.image.shape, one.image.dtype, one.label) for one in found} == {((45, 70, 3), np.dtype(np.uint8), 3)}
    assert any(not np.array_equal(one.image, before) for one in found)
    again = augment(sample, context(7, sample))
    assert np.array_equal(again.image, found[7].image)
    if _IMAGENET[number][-1].operation == "rotate":
        assert any((one.image == FILL).all(axis=2).any() for one in found), "what it uncovers"


@pytest.mark.parametrize("level", range(10))
def test_autoaugments_strengths_are_torchvisions(level: int) -> None:
    space = TorchvisionAutoAugment()._augmentation_space(10, (45, 70))
    image = picture()
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for name in ("Color", "Contrast", "Brightness", "Sharpness", "Posterize", "Solarize"):
        magnitude = float(space[name][0][level])
        wanted = _apply_op(tensor, name, magnitude, InterpolationMode.BILINEAR, None).permute(1, 2, 0).numpy()
        found = _recoloured(image, name.lower(), strength=level / 9, sign=1)
        different = np.abs(found.astype(int) - wanted.astype(int)) > 2
        # The threshold of solarize runs from 256 here and from 255 there: a grey level in 256 falls to another side.
        assert different.mean() < (0.02 if name == "Solarize" else 0.001), name
    size = (45, 70)
    assert np.allclose(_rotation(30 * level / 9, size)[0, 1], -math.sin(math.radians(float(space["Rotate"][0][level]))))


def test_the_negative() -> None:
    assert inverted(np.array([[[0, 100, 255]]], np.uint8)).tolist() == [[[255, 155, 0]]]


def test_what_stands_around_others_takes_classes_too() -> None:
    sample = ClassSample(picture((60, 80)), 2)
    erasing = RandomErasing[ClassSample](lambda one, _: one, probability=1.0, area=(0.1, 0.3))
    erased = erasing(sample, context(1, sample))
    changed = (erased.image != sample.image).any(axis=2)
    assert erased.label == 2
    assert 0.08 < changed.mean() < 0.31
    then = ClassificationAugment((16, 24))
    moved = [RandAugment[ClassSample](then, FILL, magnitude=9.0)(sample, context(seed, sample)) for seed in range(20)]
    assert {(one.image.shape, one.label) for one in moved} == {((16, 24, 3), 2)}


# ------------------------------------------------------------------------------------------ the generated sample


def test_the_generated_sample_is_complete_and_the_same_again(tmp_path: Path) -> None:
    folder = generate_class_sample(tmp_path / "sample", num_train=12, num_val=3)
    assert folder == tmp_path / "sample-classes"
    splits = read_splits(read_image_classes, Location(folder))
    assert splits.train.classes.names == tuple(sorted(name for _, name in CATEGORIES))
    assert np.bincount(splits.train.labels).tolist() == [3, 2, 3, 2, 2]
    assert len(splits.val) == 3
    sizes = {splits.train.image(i).shape for i in range(12)}
    assert len(sizes) > 8
    assert all(96 <= side <= 192 for shape in sizes for side in shape[:2])
    picture_before = (folder / "train" / "disc" / "000000.jpg").read_bytes()
    assert generate_class_sample(tmp_path / "sample", num_train=12, num_val=3) == folder
    assert generate_class_sample(tmp_path / "sample", num_train=6, num_val=3) == folder, "another one replaces it"
    assert len(read_image_classes(folder, "train")) == 6
    assert (folder / "train" / "disc" / "000000.jpg").read_bytes() == picture_before
    assert generate_sample(tmp_path / "sample", num_train=1, num_val=1) == tmp_path / "sample", "they do not meet"
    (folder / "sample.json").unlink()
    with pytest.raises(ValueError, match=re.escape(f"{folder} is not empty and holds no generated sample")):
        generate_class_sample(tmp_path / "sample", num_train=6, num_val=3)


def test_a_stretched_image_may_be_classified_too(pets: Path) -> None:
    image, source, _ = ClassificationDataset(read_image_classes(pets, "val"), Stretch((16, 24))).evaluation(0)
    assert image.shape == (3, 16, 24)
    assert source.placement.scale_y == 16 / 20
