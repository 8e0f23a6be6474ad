"""What training does to images: the augmentations of detection (SSD's, scale jitter), of segmentation and of
classification, and erasing.

An augmentation turns a sample of original pixels into one of the network's. It may read other samples of the data set
by number and knows the epoch; everything random in it comes from the seed that its `Context` gives, so that the result
is a pure function of (seed, epoch, item).

Those that stand around another one are here and in `policies` (colours and movements) and `mixing` (several images):
`Mosaic(RandAugment(SSDAugment(resize), resize.fill), resize)`. Nothing outside this module imports albumentations.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from detseg.resize import RGB, Resize, bilinear_rounded
from detseg.structures import VOID, LabelPixels, Pixels, Size

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask a server for its newest version
import albumentations as A
from albumentations.augmentations.pixel import functional as pixel_operations

SMALLEST_SIDE = 0.1
"""Pixels of the network's image: a box that is narrower or lower after augmentation is dropped."""

LEAST_VISIBLE = 0.1
"""The share of an object, or of its box, below which too little of it is seen to learn from, and it is dropped (YOLOv5:
`area_thr` of `box_candidates`). Not of a crowd, which says what not to learn from."""


class BoxSample(NamedTuple):
    """An image and its boxes."""

    image: Pixels
    boxes: NDArray[np.float32]
    """[M, 4] xyxy in the image's pixels."""
    labels: NDArray[np.int64]
    """[M], 0..K-1."""
    crowd: NDArray[np.bool_]
    """[M]: a region ignored by the loss."""


Matrix: TypeAlias = NDArray[np.float64]
"""An affine map, [2, 3]: where a point (x, y, 1) goes, in pixels."""

Mask: TypeAlias = NDArray[np.bool_]
"""Which pixels of an image an object has, bool [H, W]."""


class LabelSample(NamedTuple):
    """An image and its label map, [H, W]."""

    image: Pixels
    labels: LabelPixels


class ClassSample(NamedTuple):
    """An image and its class, 0..K-1."""

    image: Pixels
    label: int


SampleT = TypeVar("SampleT")
PictureT = TypeVar("PictureT", BoxSample, LabelSample, ClassSample)
"""What stands around augmentations of any kind."""


class Context(NamedTuple, Generic[SampleT]):
    """What an augmentation knows beside the sample."""

    seed: int
    """Of everything random: another one for every (seed of the run, epoch, item)."""
    epoch: int
    num_items: int
    """Samples of the data set."""
    read: Callable[[int], SampleT]
    """Any of them by number, in original pixels and not augmented."""
    num_epochs: int = 1
    """Of the run."""
    item: int | None = None
    """Which sample of the data set this one is, just as it is read; None for one that was changed on the way."""
    masks: Callable[[int], list[Mask | None]] | None = None
    """Where the objects of any sample are, [H, W], in the order of its boxes; None for an object that has a box only.
    None where nobody has asked the data set for them, or where it has none."""


class Augment(Protocol[SampleT]):
    """What training does to a sample on its way to the network's size."""

    def __call__(self, sample: SampleT, context: Context[SampleT]) -> SampleT:
        """In original pixels; the same in the network's."""


def generator(context: Context[Any], name: str) -> np.random.Generator:
    """The random numbers of an augmentation that stands around another one: its own, so that what the inner one draws
    from the same seed is independent of them."""
    return np.random.default_rng((context.seed, *name.encode()))


def check_probability(name: str, value: float) -> None:
    """ValueError for what is none."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a probability in 0..1, got {value}")


def check_scale(scale: tuple[float, float]) -> None:
    """ValueError for what is no span of factors."""
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale is the smallest and the largest, both above 0, got {scale}")


def visible_boxes(sample: BoxSample, window: tuple[int, int, int, int] | None = None) -> BoxSample:
    """The sample with its boxes cut to a window of the image, xyxy; None is the whole image.

    Objects of which too little is left are dropped, see LEAST_VISIBLE; a crowd stays as long as any part of it is seen.
    """
    left, top, right, bottom = window or (0, 0, sample.image.shape[1], sample.image.shape[0])
    cut = sample.boxes.clip((left, top, left, top), (right, bottom, right, bottom))
    sides, before = cut[:, 2:] - cut[:, :2], sample.boxes[:, 2:] - sample.boxes[:, :2]
    enough = sides.prod(axis=1) >= LEAST_VISIBLE * before.prod(axis=1)
    kept = (sides >= SMALLEST_SIDE).all(axis=1) & (enough | sample.crowd)
    return BoxSample(sample.image, cut[kept].astype(np.float32), sample.labels[kept], sample.crowd[kept])


def scaled(image: Pixels, size: Size) -> Pixels:
    """The image at another size: bilinear, and by the area where it shrinks below its half, where bilinear would pass
    over pixels."""
    if image.shape[:2] == size:
        return image
    shrinks = 2 * size[0] < image.shape[0] and 2 * size[1] < image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: Pixels = cv2.resize(image, (size[1], size[0]), interpolation=how)
    return resized


def scaled_labels(labels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Labels, or a mask as 0 and 1, at another size: the nearest of each pixel.

    Not INTER_NEAREST, which takes the pixel above and to the left and so moves labels against the image.
    """
    nearest: NDArray[np.uint8] = cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    return nearest


def put(canvas: NDArray[np.uint8], picture: NDArray[np.uint8], *, top: int, left: int) -> tuple[int, int, int, int]:
    """Writes the part of a picture that lies on the canvas, and gives the window xyxy of the canvas that it fills.

    `top` and `left` may be negative, and the picture may reach out on any side.
    """
    height, width = canvas.shape[:2]
    first_y, first_x = min(max(top, 0), height), min(max(left, 0), width)
    last_y = max(first_y, min(top + picture.shape[0], height))
    last_x = max(first_x, min(left + picture.shape[1], width))
    canvas[first_y:last_y, first_x:last_x] = picture[first_y - top : last_y - top, first_x - left : last_x - left]
    return first_x, first_y, last_x, last_y


def warped(
    pixels: NDArray[np.uint8], matrix: Matrix, size: Size, *, fill: RGB | int | None, nearest: bool = False
) -> NDArray[np.uint8]:
    """A picture of `size` of pixels under an affine map, bilinear or the nearest, with `fill` where nothing comes to
    lie; None repeats the edge."""
    # OpenCV has the middle of the first pixel at 0, boxes have it at 0.5.
    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    picture: NDArray[np.uint8] = cv2.warpAffine(
        pixels, centred, (size[1], size[0]), flags=cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT, borderValue=fill or 0)
    return picture


def pixels_of(box: NDArray[np.float32]) -> tuple[slice, slice]:
    """The pixels that a box xyxy touches."""
    left, top = np.floor(box[:2]).astype(int).tolist()
    right, bottom = np.ceil(box[2:]).astype(int).tolist()
    return slice(top, bottom), slice(left, right)


def random_offset(rng: np.random.Generator, room: int) -> int:
    """Where a picture begins in a frame: anywhere inside where there is `room`; where it is larger by -`room` pixels,
    so that all of the frame is filled."""
    return int(rng.integers(room + 1)) if room >= 0 else -int(rng.integers(1 - room))


@dataclass(frozen=True)
class SSDAugment:
    """SSD's augmentation (Liu et al. 2016, section 2.2 and 3.6), on albumentations.

    Colours, then zoom-out, then a crop, then `resize`, then a mirror image. The colours come first, as in the paper, so
    that zoom-out's margin and letterbox bars keep the values that they have in evaluation.

    The result depends on the arguments and `seed` alone, not on earlier calls, process or worker. An instance keeps
    no state between calls, but serves one thread at a time.
    """

    resize: Resize
    """How every picture becomes the network's; the one that evaluation uses."""
    photometric: float = 0.5
    """Probability of each of brightness, contrast, saturation and hue, which come in random order."""
    zoom_out: float = 0.5
    """Probability of putting the image on a larger canvas of the colour `resize.fill`."""
    zoom_out_ratio: float = 4.0
    """The canvas' sides are up to this many times the image's."""
    iou_crop: float = 1.0
    """Probability of choosing among `min_overlaps`; otherwise the whole picture stays."""
    min_overlaps: tuple[float | None, ...] = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
    """The crop's intersection over union with at least one box reaches the chosen value; None is the whole picture."""
    flip: float = 0.5
    """Probability of the mirror image."""
    _compose: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("photometric", "zoom_out", "iou_crop", "flip"):
            check_probability(name, getattr(self, name))
        if self.zoom_out_ratio < 1:
            raise ValueError(f"zoom_out_ratio is at least 1 (the image itself), got {self.zoom_out_ratio}")
        if not self.min_overlaps or any(o is not None and not 0 <= o < 1 for o in self.min_overlaps):
            raise ValueError(
                f"min_overlaps holds at least one number in 0..1 (below 1) or None, got {self.min_overlaps}; "
                "iou_crop=0 switches the crop off"
            )
        transforms = [
            A.RandomOrder(_colour_jitters(self.photometric), n=4, p=1.0),
            _ZoomOut(self.zoom_out_ratio, self.resize, p=self.zoom_out),
            _IoUCrop(self.min_overlaps, p=self.iou_crop),
            _Fit(self.resize),
            A.HorizontalFlip(p=self.flip),
        ]
        # Two columns that albumentations does not know tell each box's row and whether it is a crowd.
        boxes = A.BboxParams(
            "pascal_voc",
            min_width=SMALLEST_SIDE,
            min_height=SMALLEST_SIDE,
            clip=True,
            filter_invalid_bboxes=True,
            check_each_transform=False,
        )
        object.__setattr__(self, "_compose", A.Compose(transforms, bbox_params=boxes))

    def __call__(self, sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        """See `Augment`. Boxes are clipped to the image; those whose centre a crop loses, or that vanish, are dropped.

        A crowd region stays as long as any part of it is seen, because it says what not to learn from.
        """
        # One stream for all: albumentations' own set_random_seed gives each transform the same numbers, so that
        # every mirror image would be a bright one.
        self._compose.set_random_state(np.random.default_rng(context.seed), random.Random(context.seed))
        image, boxes, labels, crowd = sample
        rows = np.column_stack([boxes.reshape(-1, 4).astype(np.float64), np.arange(len(boxes)), crowd])
        out = self._compose(image=image, bboxes=rows)
        placed = out["bboxes"] if len(out["bboxes"]) else np.zeros((0, 6))  # albumentations empties to [0, 4]
        kept = placed[:, 4].astype(np.int64)
        return BoxSample(out["image"], placed[:, :4].astype(np.float32), labels[kept], crowd[kept])


def _colour_jitters(probability: float) -> list[Any]:
    """Brightness, contrast, saturation and hue apart, in the ranges of torchvision's RandomPhotometricDistort."""
    same = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": (0.0, 0.0)}
    ranges = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.05, 0.05)}
    return [A.ColorJitter(**(same | {name: span}), p=probability) for name, span in ranges.items()]


class _ZoomOut(A.DualTransform):  # type: ignore[misc]  # albumentations is not typed
    """Puts the image somewhere on a canvas of the model's padding colour.

    SSD makes a canvas of up to 16 times the image's pixels, only to shrink it in the next step. Here the image shrinks
    first, so that the canvas stays within twice the network's size, or within the image's own where that is larger.
    """

    def __init__(self, ratio: float, resize: Resize, *, p: float) -> None:
        super().__init__(p=p)
        self.ratio, self.size, self.fill = ratio, resize.size, resize.fill

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        ratio, y, x = self.random_generator.uniform((1.0, 0.0, 0.0), (self.ratio, 1.0, 1.0))
        shrink_y = min(1.0, max(1.0 / ratio, 2 * self.size[0] / (height * ratio)))
        shrink_x = min(1.0, max(1.0 / ratio, 2 * self.size[1] / (width * ratio)))
        inner_h, inner_w = max(1, round(height * shrink_y)), max(1, round(width * shrink_x))
        outer_h, outer_w = round(inner_h * ratio), round(inner_w * ratio)
        top, left = int(y * (outer_h - inner_h + 1)), int(x * (outer_w - inner_w + 1))
        return {"inner": (inner_h, inner_w), "outer": (outer_h, outer_w), "corner": (top, left)}

    def apply(self, img: Pixels, inner: Size, outer: Size, corner: tuple[int, int], **params: Any) -> Pixels:
        small = img if img.shape[:2] == inner else cv2.resize(img, (inner[1], inner[0]))
        below, right = outer[0] - inner[0] - corner[0], outer[1] - inner[1] - corner[1]
        border = (corner[0], below, corner[1], right)
        canvas: Pixels = cv2.copyMakeBorder(small, *border, cv2.BORDER_CONSTANT, value=self.fill)
        return canvas

    def apply_to_bboxes(
        self,
        bboxes: NDArray[np.float64],
        inner: Size,
        outer: Size,
        corner: tuple[int, int],
        **params: Any,
    ) -> NDArray[np.float64]:
        """Boxes [M, 6] in 0..1 of the image to 0..1 of the canvas."""
        placed = bboxes.copy()
        placed[:, [0, 2]] = (bboxes[:, [0, 2]] * inner[1] + corner[1]) / outer[1]
        placed[:, [1, 3]] = (bboxes[:, [1, 3]] * inner[0] + corner[0]) / outer[0]
        return placed


class _IoUCrop(A.DualTransform):  # type: ignore[misc]  # albumentations is not typed
    """SSD's crop, with the details of torchvision's RandomIoUCrop: sides of 0.3 to 1, aspect ratio 1/2 to 2, 40 trials.

    Each option is tried once, in random order, where torchvision may draw one again; if none fits, the picture stays.
    Two things are ours. Crowd regions neither decide a crop nor need their centre in it. And an image with no boxes
    is cropped like others, because otherwise the scale would tell which images are empty.
    """

    TRIALS = 40
    SCALE = (0.3, 1.0)
    ASPECT = (0.5, 2.0)

    def __init__(self, min_overlaps: tuple[float | None, ...], *, p: float) -> None:
        super().__init__(p=p)
        self.min_overlaps = min_overlaps

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        boxes = data["bboxes"]
        boxes = boxes[boxes[:, 5] == 0, :4] * (width, height, width, height) if len(boxes) else boxes
        for option in self.random_generator.permutation(len(self.min_overlaps)):
            min_overlap = self.min_overlaps[option]
            if min_overlap is None:
                break
            crops = self._candidates(height, width)
            fitting = crops[_reach(crops, boxes, min_overlap)] if len(boxes) else crops
            if len(fitting):
                return {"crop": tuple(int(c) for c in fitting[0])}
        return {"crop": (0, 0, width, height)}

    def _candidates(self, height: int, width: int) -> NDArray[np.int64]:
        """Up to TRIALS crops [T, 4] xyxy in whole pixels."""
        scales = self.random_generator.uniform(*self.SCALE, size=(self.TRIALS, 2))
        where = self.random_generator.uniform(size=(self.TRIALS, 2))
        frame = np.array([width, height])
        sides = np.maximum(1, (frame * scales).astype(np.int64))
        corners = ((frame - sides + 1) * where).astype(np.int64)
        aspects = sides[:, 0] / sides[:, 1]
        well_shaped = (aspects >= self.ASPECT[0]) & (aspects <= self.ASPECT[1])
        crops: NDArray[np.int64] = np.hstack([corners, corners + sides])[well_shaped]
        return crops

    def apply(self, img: Pixels, crop: tuple[int, int, int, int], **params: Any) -> Pixels:
        return img[crop[1] : crop[3], crop[0] : crop[2]]

    def apply_to_bboxes(
        self, bboxes: NDArray[np.float64], crop: tuple[int, int, int, int], **params: Any
    ) -> NDArray[np.float64]:
        """Boxes [M, 6] in 0..1 of the image to those that stay, in 0..1 of the crop."""
        height, width = params["shape"][:2]
        if crop == (0, 0, width, height) or not len(bboxes):
            return bboxes
        left, top, right, bottom = crop
        moved = bboxes.copy()
        moved[:, [0, 2]] = (bboxes[:, [0, 2]] * width - left) / (right - left)
        moved[:, [1, 3]] = (bboxes[:, [1, 3]] * height - top) / (bottom - top)
        centres = (moved[:, :2] + moved[:, 2:4]) / 2
        inside = ((centres > 0) & (centres < 1)).all(axis=1)
        moved[:, :4] = moved[:, :4].clip(0, 1)
        stays: NDArray[np.float64] = moved[inside | (moved[:, 5] == 1)]
        return stays


def _reach(crops: NDArray[np.int64], boxes: NDArray[np.float64], min_overlap: float) -> NDArray[np.bool_]:
    """[T]: whether a box has its centre in the crop [T, 4] and an intersection over union of min_overlap or more."""
    spans = crops[:, None, :]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres > spans[..., :2]) & (centres < spans[..., 2:])).all(axis=2)
    sides = np.minimum(boxes[:, 2:], spans[..., 2:]) - np.maximum(boxes[:, :2], spans[..., :2])
    common = sides.clip(0, None).prod(axis=2)
    both = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (spans[..., 2:] - spans[..., :2]).prod(axis=2) - common
    reached: NDArray[np.bool_] = (inside & (common >= min_overlap * both)).any(axis=1)
    return reached


class _Fit(A.DualTransform):  # type: ignore[misc]  # albumentations is not typed
    """The picture as `resize` gives it, rounded to uint8."""

    def __init__(self, resize: Resize) -> None:
        super().__init__(p=1.0)
        self.resize = resize

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        return {"resized": self.resize.apply_rounded(data["image"])}

    def apply(self, img: Pixels, resized: Pixels, **params: Any) -> Pixels:
        return resized

    def apply_to_bboxes(self, bboxes: NDArray[np.float64], resized: Pixels, **params: Any) -> NDArray[np.float64]:
        """Boxes [M, 6] in 0..1 of the picture to 0..1 of the network's image."""
        height, width = params["shape"][:2]
        to = self.resize.place((height, width))
        placed = bboxes.copy()
        original = bboxes[:, :4] * (width, height, width, height)
        placed[:, :4] = to.boxes_to_network(original) / (resized.shape[1::-1] * 2)
        return placed


@dataclass(frozen=True)
class LargeScaleJitter:
    """Large-scale jitter for detectors (Ghiasi et al. 2021, arXiv 2012.07177, section 3): the image as `resize` gives
    it times a random number, then the frame cut out of it where it is larger, or the colour `resize.fill` around it
    where it is smaller; and a mirror image.

    With (0.8, 1.25) it is the paper's standard jitter. For a detector whose input has one size it is multi-scale
    training too: what other detectors get by larger and smaller batches, objects in many sizes, it gets in one frame.
    Segmenters have it in `SegmentationAugment`, with scale=(0.1, 2.0) and `shorter`.

    The image lies anywhere in the frame, where the authors' code puts a smaller one at the top left. The aspect ratio
    is the one that the network sees in evaluation: kept by a `Letterbox`, the frame's with `Stretch`.
    """

    resize: Resize
    """How the image would become the network's."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Its sides are multiplied by a number between these, drawn uniformly."""
    flip: float = 0.5
    """Probability of the mirror image."""
    photometric: float = 0.0
    """Probability of each of brightness, contrast, saturation and hue, as in `SSDAugment`; the paper has none."""
    _colours: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_scale(self.scale)
        for name in ("flip", "photometric"):
            check_probability(name, getattr(self, name))
        object.__setattr__(self, "_colours", A.Compose([
            A.RandomOrder(_colour_jitters(self.photometric), n=4, p=1.0)]))

    def __call__(self, sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        """See `Augment`."""
        rng = np.random.default_rng(context.seed)
        height, width = sample.image.shape[:2]
        place, factor = self.resize.place((height, width)), rng.uniform(*self.scale)
        whole = (height * place.scale_y, width * place.scale_x)
        frame = self.resize.size if self.resize.fixed else (max(1, round(whole[0])), max(1, round(whole[1])))
        inner = (max(1, round(whole[0] * factor)), max(1, round(whole[1] * factor)))
        top, left = (random_offset(rng, frame[axis] - inner[axis]) for axis in (0, 1))
        image: Pixels = np.full((*frame, 3), self.resize.fill, np.uint8)
        coloured = sample.image
        if self.photometric:
            coloured = _coloured(self._colours, coloured, rng, context.seed)
        put(image, scaled(coloured, inner), top=top, left=left)
        factors = np.array([inner[1] / width, inner[0] / height] * 2, np.float32)
        boxes = sample.boxes * factors + np.array([left, top, left, top], np.float32)
        jittered = visible_boxes(sample._replace(image=image, boxes=boxes))
        return mirrored(jittered) if rng.random() < self.flip else jittered


def _coloured(colours: Any, image: Pixels, rng: np.random.Generator, seed: int) -> Pixels:
    """The image as albumentations' `colours` change it."""
    colours.set_random_state(rng, random.Random(seed))
    coloured: Pixels = colours(image=image)["image"]
    return coloured


def mirrored(sample: BoxSample) -> BoxSample:
    """The mirror image, left and right exchanged."""
    width = sample.image.shape[1]
    boxes = np.column_stack([width - sample.boxes[:, 2], sample.boxes[:, 1], width - sample.boxes[:, 0],
                             sample.boxes[:, 3]]).astype(np.float32)
    return sample._replace(image=np.ascontiguousarray(sample.image[:, ::-1]), boxes=boxes)


@dataclass(frozen=True)
class RandomErasing(Generic[PictureT]):
    """Random erasing of what another augmentation gives (Zhong et al. 2020, arXiv 1708.04896): a rectangle of random
    pixels in the image, and one in each object, each with `probability` (the paper's I+ORE, its best for detection).

    Not on albumentations, whose `Erasing` is an error where no rectangle fits, as in a narrow box. Boxes stay, as in
    the paper: what hides a part of an object is what it learns to do without. Crowds count as no objects. In a label
    map the rectangle is VOID, because noise has no class.
    """

    after: Augment[PictureT]
    """What is done before."""
    probability: float = 0.5
    """Of a rectangle in the image, and of one in each object."""
    area: tuple[float, float] = (0.02, 0.2)
    """The rectangle's share of the image's area, or of an object's box."""
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Its width over its height."""
    objects: bool = True
    """Whether objects are erased one by one too; False is the paper's IRE."""

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is the smallest and the largest share, above 0 and up to 1, got {self.area}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect is the smallest and the largest, both above 0, got {self.aspect}")

    def __call__(self, sample: PictureT, context: Context[PictureT]) -> PictureT:
        """See `Augment`."""
        done = self.after(sample, context)
        rng = generator(context, "random erasing")
        image = done.image.copy()
        erased = self._erase(image, rng)
        if isinstance(done, LabelSample):
            labels = done.labels.copy()
            labels[erased] = VOID
            return LabelSample(image, labels)
        if isinstance(done, ClassSample):
            return ClassSample(image, done.label)
        for box in done.boxes[~done.crowd] if self.objects else ():
            self._erase(image[pixels_of(box)], rng)
        return done._replace(image=image)

    def _erase(self, image: Pixels, rng: np.random.Generator) -> tuple[slice, slice]:
        """Writes random pixels into a rectangle that lies in the image, and gives it; an empty one where none is drawn,
        or none fits in 100 trials."""
        height, width = image.shape[:2]
        for _ in range(100 if rng.random() < self.probability else 0):
            area, aspect = rng.uniform(*self.area) * height * width, rng.uniform(*self.aspect)
            high, wide = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
            if 0 < high < height and 0 < wide < width:
                top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
                erased = slice(top, top + high), slice(left, left + wide)
                image[erased] = rng.integers(0, 256, (high, wide, 3), dtype=np.uint8)
                return erased
        return slice(0), slice(0)


@dataclass(frozen=True)
class SegmentationAugment:
    """What segmenters are trained with (DeepLab's and torchvision's reference): a random scale, a crop of always the
    same size, colours, and a mirror image; on albumentations.

    Where the scaled image is smaller than the crop, it comes to lie anywhere in it, on the colour `fill` and VOID;
    the references put it at the top left. Colours change before the margin is added, so that it keeps its value.
    Labels are those of the nearest pixel.

    The result depends on the arguments and `seed` alone, as in `SSDAugment`; one thread at a time.
    """

    crop: Size
    """(height, width) of what comes out, in pixels."""
    fill: RGB
    """The colour of the margin: the model's, `Resize.fill`."""
    scale: tuple[float, float] = (0.5, 2.0)
    """The image's sides are multiplied by a number between these, drawn uniformly."""
    shorter: int | None = None
    """The scale is that of an image whose shorter side has this many pixels (torchvision: 520), whatever it really has;
    None takes the image as it is."""
    flip: float = 0.5
    """Probability of the mirror image."""
    photometric: float = 0.5
    """Probability of each of brightness, contrast, saturation and hue, which come in random order."""
    most_of_one_class: float = 1.0
    """A crop where one class has a larger share than this of what is known is drawn again, up to 10 times (0.75 in
    OpenMMLab, `cat_max_ratio`)."""
    rare_classes: float = 0.0
    """Probability of a crop that holds a pixel of a class drawn inversely to how many pixels the image has of it, so
    mostly of the rarest; otherwise crops are drawn uniformly."""
    _compose: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise ValueError(f"the crop is (height, width) in pixels, each at least 1, got {self.crop}")
        check_scale(self.scale)
        if self.shorter is not None and self.shorter < 1:
            raise ValueError(f"shorter is a side in pixels, at least 1, or None, got {self.shorter}")
        for name in ("flip", "photometric", "rare_classes"):
            check_probability(name, getattr(self, name))
        if not 0 < self.most_of_one_class <= 1:
            raise ValueError(f"most_of_one_class is a share above 0 and up to 1 (any crop), got "
                             f"{self.most_of_one_class}")
        transforms = [
            _ScaledCrop(self),
            A.RandomOrder(_colour_jitters(self.photometric), n=4, p=1.0),
            _Margin(self.crop, self.fill),
            A.HorizontalFlip(p=self.flip),
        ]
        object.__setattr__(self, "_compose", A.Compose(transforms))

    def __call__(self, sample: LabelSample, context: Context[LabelSample]) -> LabelSample:
        """Image and labels of any size; both of the size `crop`."""
        assert sample.image.shape[:2] == sample.labels.shape, (sample.image.shape, sample.labels.shape)
        self._compose.set_random_state(np.random.default_rng(context.seed), random.Random(context.seed))
        out = self._compose(image=sample.image, mask=sample.labels)
        return LabelSample(out["image"], out["mask"])


class _ScaledCrop(A.DualTransform):  # type: ignore[misc]
    """A random window of the image, resized to what a crop of the scaled image would be.

    Only what is seen is resized: a window of whole pixels, which moves a scale by less than half a pixel a side.
    """

    TRIES = 10

    def __init__(self, settings: SegmentationAugment) -> None:
        super().__init__(p=1.0)
        self.settings = settings

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        wanted, labels = self.settings, data["mask"]
        original = (labels.shape[0], labels.shape[1])
        whole = wanted.shorter / min(original) if wanted.shorter else 1.0
        scale = whole * self.random_generator.uniform(*wanted.scale)
        window = tuple(min(side, max(1, round(crop / scale))) for side, crop in zip(original, wanted.crop, strict=True))
        inner = tuple(crop if part < side else min(crop, max(1, round(side * scale)))
                      for side, part, crop in zip(original, window, wanted.crop, strict=True))
        for _ in range(self.TRIES):
            top, left = self._corner(labels, window)
            seen = slice(top, top + window[0]), slice(left, left + window[1])
            if wanted.most_of_one_class == 1 or _largest_share(labels[seen]) <= wanted.most_of_one_class:
                break
        return {"seen": seen, "inner": inner}

    def _corner(self, labels: LabelPixels, window: tuple[int, ...]) -> tuple[int, int]:
        """Top and left of a window in the image."""
        rng = self.random_generator
        room = [side - part for side, part in zip(labels.shape, window, strict=True)]
        pixel = _rare_pixel(rng, labels) if rng.random() < self.settings.rare_classes else None
        if pixel is None:
            return int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))
        top, left = (int(np.clip(at - rng.integers(part), 0, free))
                     for at, part, free in zip(pixel, window, room, strict=True))
        return top, left

    def apply(self, img: Pixels, seen: tuple[slice, slice], inner: Size, **params: Any) -> Pixels:
        part = img[seen]
        return np.ascontiguousarray(part) if part.shape[:2] == inner else bilinear_rounded(part, inner)

    def apply_to_mask(self, mask: LabelPixels, seen: tuple[slice, slice], inner: Size, **params: Any) -> LabelPixels:
        return scaled_labels(np.ascontiguousarray(mask[seen]), inner)


def _rare_pixel(rng: np.random.Generator, labels: LabelPixels) -> tuple[int, int] | None:
    """Row and column of a pixel of a class drawn inversely to its number of pixels; None where all are void."""
    counts = np.bincount(labels.ravel(), minlength=VOID + 1)[:VOID]
    present = np.flatnonzero(counts)
    if not len(present):
        return None
    chances = 1.0 / counts[present]
    chosen = rng.choice(present, p=chances / chances.sum())
    places = np.flatnonzero(labels.ravel() == chosen)
    row, column = divmod(int(places[rng.integers(len(places))]), labels.shape[1])
    return row, column


def _largest_share(labels: LabelPixels) -> float:
    """What part of the known pixels one class has; 0 where none is known."""
    counts = np.bincount(labels.ravel(), minlength=VOID + 1)[:VOID]
    return float(counts.max() / max(1, counts.sum()))


class _Margin(A.DualTransform):  # type: ignore[misc]
    """Puts an image that is smaller than `size` somewhere on a canvas of the colour `fill`, and VOID."""

    def __init__(self, size: Size, fill: RGB) -> None:
        super().__init__(p=1.0)
        self.size, self.fill = size, fill

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        room = [wanted - side for wanted, side in zip(self.size, params["shape"][:2], strict=True)]
        top, left = (int(self.random_generator.integers(free + 1)) for free in room)
        return {"border": (top, room[0] - top, left, room[1] - left)}

    def apply(self, img: Pixels, border: tuple[int, int, int, int], **params: Any) -> Pixels:
        canvas: Pixels = cv2.copyMakeBorder(img, *border, cv2.BORDER_CONSTANT, value=self.fill)
        return canvas

    def apply_to_mask(self, mask: LabelPixels, border: tuple[int, int, int, int], **params: Any) -> LabelPixels:
        canvas: LabelPixels = cv2.copyMakeBorder(mask, *border, cv2.BORDER_CONSTANT, value=(VOID,))
        return canvas


@dataclass(frozen=True)
class ClassificationAugment:
    """What classifiers are trained with (Szegedy et al. 2015, arXiv 1409.4842, section 6; torchvision's
    RandomResizedCrop): a window of random area and aspect ratio, resized, and a mirror image.

    Where ten windows do not fit, it is the largest in the middle of an aspect ratio within `aspect`.
    """

    size: Size
    """(height, width) of what comes out, in pixels."""
    area: tuple[float, float] = (0.08, 1.0)
    """The window's share of the image's area."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Its width over its height, for a square `size`; otherwise times that of `size`. Its logarithm is drawn
    uniformly."""
    flip: float = 0.5
    """Probability of the mirror image."""
    photometric: float = 0.0
    """Probability of each of brightness, contrast, saturation and hue, as in `SSDAugment`."""
    _colours: Any = field(init=False, repr=False, compare=False)

    TRIES: ClassVar[int] = 10

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"size is (height, width) in pixels, each at least 1, got {self.size}")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is the smallest and the largest share, above 0 and up to 1, got {self.area}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect is the smallest and the largest, both above 0, got {self.aspect}")
        for name in ("flip", "photometric"):
            check_probability(name, getattr(self, name))
        object.__setattr__(self, "_colours", A.Compose([
            A.RandomOrder(_colour_jitters(self.photometric), n=4, p=1.0)]))

    def __call__(self, sample: ClassSample, context: Context[ClassSample]) -> ClassSample:
        """See `Augment`."""
        rng = np.random.default_rng(context.seed)
        image = scaled(np.ascontiguousarray(sample.image[self._window(sample.image.shape, rng)]), self.size)
        if self.photometric:
            image = _coloured(self._colours, image, rng, context.seed)
        if rng.random() < self.flip:
            image = np.ascontiguousarray(image[:, ::-1])
        return ClassSample(image, sample.label)

    def _window(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        height, width = shape[:2]
        least, most = (aspect * self.size[1] / self.size[0] for aspect in self.aspect)
        for _ in range(self.TRIES):
            area, aspect = rng.uniform(*self.area) * height * width, math.exp(rng.uniform(*np.log((least, most))))
            high, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < high <= height and 0 < wide <= width:
                top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
                return slice(top, top + high), slice(left, left + wide)
        aspect = min(max(width / height, least), most)
        high, wide = max(1, min(height, round(width / aspect))), max(1, min(width, round(height * aspect)))
        top, left = (height - high) // 2, (width - wide) // 2
        return slice(top, top + high), slice(left, left + wide)


def equalized(image: Pixels) -> Pixels:
    """Each channel with an even histogram, as PIL's `ImageOps.equalize` does it."""
    even: Pixels = pixel_operations.equalize(image.copy(), mode="pil")
    return even


def contrast_stretched(image: Pixels) -> Pixels:
    """Each channel from 0 to 255, as PIL's `ImageOps.autocontrast` does it."""
    stretched: Pixels = pixel_operations.auto_contrast(image, 0, None, "pil")
    return stretched


def posterized(image: Pixels, bits: int) -> Pixels:
    """The highest bits of each value alone; 1 to 8."""
    reduced: Pixels = image if bits == 8 else pixel_operations.posterize(image, bits)  # it takes 1 to 7
    return reduced


def solarized(image: Pixels, threshold: float) -> Pixels:
    """Values of at least the threshold, 0..256, turned to their negative."""
    solar: Pixels = pixel_operations.solarize(image, (threshold - 0.5) / 255)  # it multiplies by 255 again
    return solar


def brightened(image: Pixels, factor: float) -> Pixels:
    """Between black, 0, and the image, 1, or beyond it."""
    bright: Pixels = pixel_operations.adjust_brightness_torchvision(image, factor)
    return bright


def contrasted(image: Pixels, factor: float) -> Pixels:
    """Between its mean grey, 0, and the image, 1, or beyond it."""
    contrast: Pixels = pixel_operations.adjust_contrast_torchvision(image, factor)
    return contrast


def saturated(image: Pixels, factor: float) -> Pixels:
    """Between grey, 0, and the image, 1, or beyond it."""
    saturation: Pixels = pixel_operations.adjust_saturation_torchvision(image, factor)
    return saturation
