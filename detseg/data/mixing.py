"""Augmentations that mix several images of the data set: mosaic, mixup, copy-paste.

Each stands around another augmentation and reads the other images by number through its `Context`, so that the result
stays a pure function of (seed, epoch, item). In the last `closing` of the run's epochs it does nothing, so that the
network ends on images as they are (Ge et al. 2021, YOLOX, arXiv 2107.08430, section 2.1).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from detseg.data.augment import (
    LEAST_VISIBLE,
    Augment,
    BoxSample,
    Context,
    LabelSample,
    Mask,
    Matrix,
    check_probability,
    check_scale,
    generator,
    pixels_of,
    put,
    random_offset,
    scaled,
    scaled_labels,
    visible_boxes,
    warped,
)
from detseg.resize import RGB, Resize
from detseg.structures import VOID, LabelPixels, Pixels, Size


@dataclass(frozen=True, kw_only=True)
class _Mixing(ABC):
    """How often images are mixed, and when no longer."""

    name: ClassVar[str]
    """For messages, and of its random numbers."""
    probability: float = 0.5
    """Of mixing an image with others."""
    closing: float = 0.0
    """The last share of the run's epochs, 0..1, in which nothing is mixed."""

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        if not 0 <= self.closing <= 1:
            raise ValueError(f"closing is the last share of the run's epochs, 0..1, in which the {self.name} does "
                             f"nothing, got {self.closing}; the last 15 of 300 epochs are closing=15 / 300")

    def mixing_rng(self, context: Context[Any]) -> np.random.Generator | None:
        """The random numbers of a sample that is to be mixed with others; None for one that is not.

        ValueError where there are no others.
        """
        if context.num_items < 2:
            raise ValueError(f"a {self.name} mixes images, and the training data have {context.num_items}; give at "
                             f"least 2, or leave the {self.name} out of the config's augment")
        rng = generator(context, self.name)
        mixed_epochs = context.num_epochs - round(self.closing * context.num_epochs)
        return rng if context.epoch < mixed_epochs and rng.random() < self.probability else None


class _Tile(NamedTuple):
    """Where one of a mosaic's pictures lies on its canvas."""

    size: Size
    """That the picture is brought to."""
    top: int
    left: int


def _quarters(centre: Size, sizes: Sequence[Size]) -> Iterator[_Tile]:
    """Four pictures of these sizes, each with one corner at the centre (y, x): top left, top right, bottom left, bottom
    right."""
    for k, (height, width) in enumerate(sizes):
        yield _Tile((height, width), centre[0] - (height if k < 2 else 0), centre[1] - (width if k % 2 == 0 else 0))


def _centre(rng: np.random.Generator, frame: Size) -> Size:
    """Where the pictures of a canvas of twice the frame's sides meet: in its middle half, as in YOLOX."""
    y, x = (int(rng.integers(side // 2, side + side // 2 + 1)) for side in frame)
    return y, x


@dataclass(frozen=True)
class Mosaic(_Mixing):
    """Four images around a random point (Bochkovskiy et al. 2020, YOLOv4, arXiv 2004.10934, section 3.3).

    The canvas has twice the sides of the network's image. Each image comes as large as the network would see it, and
    is cut where it leaves the canvas; what stays free has the colour `resize.fill`. The whole is an original picture to
    `then`, which chooses how much of it is seen: an SSD crop or a scale jitter, where YOLOX turns, scales and cuts.
    """

    name: ClassVar[str] = "mosaic"
    then: Augment[BoxSample]
    """What is done with the picture."""
    resize: Resize
    """The model's."""

    def __call__(self, sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        """See `Augment`. Boxes are cut to what is seen of their image; an object of which less than LEAST_VISIBLE is
        left is dropped, a crowd stays as long as any part of it is seen."""
        rng = self.mixing_rng(context)
        if rng is None:
            return self.then(sample, context)
        samples = [sample, *(context.read(int(item)) for item in rng.integers(context.num_items, size=3))]
        height, width = self.resize.size
        canvas: Pixels = np.full((2 * height, 2 * width, 3), self.resize.fill, np.uint8)
        tiles = _quarters(_centre(rng, (height, width)), [self._size(one.image) for one in samples])
        parts = [self._laid(one, tile, canvas) for one, tile in zip(samples, tiles, strict=True)]
        return self.then(_united(canvas, parts), context._replace(item=None))

    def _size(self, image: Pixels) -> Size:
        """Of the image without bars, as the network would see it."""
        place = self.resize.place((image.shape[0], image.shape[1]))
        return max(1, round(image.shape[0] * place.scale_y)), max(1, round(image.shape[1] * place.scale_x))

    @staticmethod
    def _laid(sample: BoxSample, tile: _Tile, canvas: Pixels) -> BoxSample:
        """The sample in pixels of the canvas, on which its picture is now."""
        (height, width), top, left = tile
        window = put(canvas, scaled(sample.image, tile.size), top=top, left=left)
        factors = np.array([width / sample.image.shape[1], height / sample.image.shape[0]] * 2)
        return visible_boxes(sample._replace(boxes=sample.boxes * factors + [left, top, left, top]), window)


@dataclass(frozen=True)
class LabelMosaic(_Mixing):
    """`Mosaic` for label maps: what stays free is VOID.

    Segmenters are trained on crops of scaled images, not on whole ones; so each of the four is scaled to lie in `size`
    as a whole, and `then` cuts its crop out of the canvas of twice that size.
    """

    name: ClassVar[str] = "mosaic"
    then: Augment[LabelSample]
    """What is done with the picture."""
    size: Size
    """Into which each image is fitted, its aspect ratio kept, in pixels: about that of the data's images."""
    fill: RGB
    """The colour of what stays free: the model's, `Resize.fill`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.size) < 1:
            raise ValueError(f"size is (height, width) in pixels, each at least 1, got {self.size}")

    def __call__(self, sample: LabelSample, context: Context[LabelSample]) -> LabelSample:
        """See `Augment`. Labels are those of the nearest pixel."""
        rng = self.mixing_rng(context)
        if rng is None:
            return self.then(sample, context)
        samples = [sample, *(context.read(int(item)) for item in rng.integers(context.num_items, size=3))]
        height, width = 2 * self.size[0], 2 * self.size[1]
        image: Pixels = np.full((height, width, 3), self.fill, np.uint8)
        labels: LabelPixels = np.full((height, width), VOID, np.uint8)
        tiles = _quarters(_centre(rng, self.size), [_fitted(one.labels.shape, self.size) for one in samples])
        for one, (size, top, left) in zip(samples, tiles, strict=True):
            put(image, scaled(one.image, size), top=top, left=left)
            put(labels, scaled_labels(one.labels, size), top=top, left=left)
        return self.then(LabelSample(image, labels), context._replace(item=None))


@dataclass(frozen=True)
class MixUp(_Mixing):
    """Two images over each other, with the objects of both (Zhang et al. 2019, arXiv 1902.04103, section 3.1), after
    both were augmented, each by its own random numbers.

    Boxes have no weights, so that an image which hardly shines through would teach what cannot be seen: the shares
    are near a half, as in YOLOv5, where Zhang et al. draw from Beta(1.5, 1.5) and weigh the loss.
    """

    name: ClassVar[str] = "mixup"
    after: Augment[BoxSample]
    """What is done before, with both."""
    fill: RGB
    """The colour around the smaller of two images that come out in different sizes: the model's, `Resize.fill`."""
    alpha: float = 32.0
    """The first image's share is drawn from Beta(alpha, alpha); 32 gives 0.38 to 0.62 in 19 of 20 cases."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ValueError(f"alpha is above 0 (the larger, the nearer to halves), got {self.alpha}")

    def __call__(self, sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        """See `Augment`. All boxes stay, and crowds are crowds in both."""
        first, rng = self.after(sample, context), self.mixing_rng(context)
        if rng is None:
            return first
        item, seed = int(rng.integers(context.num_items)), int(rng.integers(2**32))
        second = self.after(context.read(item), context._replace(seed=seed, item=item))
        share = float(rng.beta(self.alpha, self.alpha))
        frame = (max(first.image.shape[0], second.image.shape[0]), max(first.image.shape[1], second.image.shape[1]))
        pictures = [_framed(one.image, frame, self.fill) for one in (first, second)]
        mixed: Pixels = cv2.addWeighted(pictures[0], share, pictures[1], 1 - share, 0)
        return _united(mixed, [first, second])


@dataclass(frozen=True)
class CopyPaste(_Mixing):
    """Objects of another image, cut out by their masks and pasted on this one (Ghiasi et al. 2021, arXiv 2012.07177,
    section 3): a random half of them, scaled and mirrored together with their image.

    Needs instance masks: `Data(dataset=partial(DetectionDataset, masks=True), ...)`. Edges are not smoothed, which made
    no difference in the paper. It pastes on images as they are read; where the picture was changed before (a `Mosaic`
    around this one), its own objects are taken to fill their boxes.
    """

    name: ClassVar[str] = "copy-paste"
    then: Augment[BoxSample]
    """What is done with the picture; the paper's is `LargeScaleJitter`."""
    scale: tuple[float, float] = (0.1, 2.0)
    """The other image, fitted into this one, is multiplied by a number between these, drawn uniformly."""
    share: float = 0.5
    """Probability of each object to be pasted."""
    flip: float = 0.5
    """Probability of the other's mirror image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale(self.scale)
        for name in ("share", "flip"):
            check_probability(name, getattr(self, name))

    def __call__(self, sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        """See `Augment`. A box of which a part is hidden shrinks to what is visible of its object, and goes where less
        than LEAST_VISIBLE is. Crowds are not pasted; one that is pasted on stays."""
        if context.masks is None:
            raise ValueError("copy-paste needs the objects' masks: give the config's data "
                             "dataset=partial(DetectionDataset, masks=True), and take data with outlines (COCO's "
                             "segmentation, polygons of YOLO or labelme)")
        rng = self.mixing_rng(context)
        if rng is None:
            return self.then(sample, context)
        item = int(rng.integers(context.num_items))
        pasted = self._cut_out(rng, context.read(item), context.masks(item), (sample.image.shape[0],
                                                                              sample.image.shape[1]))
        if pasted is None:
            return self.then(sample, context)
        hiding, objects = pasted
        own: Sequence[Mask | None] = [None] * len(sample.boxes)
        if context.item is not None:
            own = context.masks(context.item)
        image: Pixels = np.where(hiding[..., None], objects.image, sample.image)
        below = _uncovered(sample, own, hiding)
        return self.then(_united(image, [below, objects]), context._replace(item=None))

    def _cut_out(
        self, rng: np.random.Generator, other: BoxSample, masks: Sequence[Mask | None], frame: Size
    ) -> tuple[Mask, BoxSample] | None:
        """Where the objects to be pasted are in the frame, and they, on a picture of it; None where there are none."""
        size = _fitted(other.image.shape, frame)
        factor = rng.uniform(*self.scale)
        size = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
        top, left = (random_offset(rng, frame[axis] - size[axis]) for axis in (0, 1))
        turned = bool(rng.random() < self.flip)
        matrix = _onto((other.image.shape[0], other.image.shape[1]), size, top, left, turned=turned)
        chosen = rng.random(len(masks)) < self.share
        hiding, rows, boxes = np.zeros(frame, np.bool_), [], []
        for row in np.flatnonzero(chosen & ~other.crowd).tolist():
            mask = masks[row]
            if mask is None:
                continue
            seen = warped(mask.astype(np.uint8), matrix, frame, fill=0, nearest=True) > 0
            if seen.any() and seen.sum() >= LEAST_VISIBLE * mask.sum() * abs(np.linalg.det(matrix[:, :2])):
                rows.append(row)
                boxes.append(_extent(seen))
                hiding |= seen
        if not rows:
            return None
        # What shrinks much is made small first, because the map alone would pass over pixels.
        small = (min(size[0], other.image.shape[0]), min(size[1], other.image.shape[1]))
        image = warped(scaled(other.image, small), _onto(small, size, top, left, turned=turned), frame,
                       fill=None)
        return hiding, BoxSample(image, np.array(boxes, np.float32), other.labels[rows], other.crowd[rows])


def _onto(original: Size, size: Size, top: int, left: int, *, turned: bool) -> Matrix:
    """The map that brings an image to another size, turned to its mirror image or not, at a place in a frame."""
    y, x = size[0] / original[0], size[1] / original[1]
    return np.array([[-x, 0.0, left + size[1]] if turned else [x, 0.0, left], [0.0, y, top]])


def _uncovered(sample: BoxSample, masks: Sequence[Mask | None], hiding: Mask) -> BoxSample:
    """The sample's objects where others hide parts of them."""
    boxes, kept = sample.boxes.copy(), np.ones(len(sample.boxes), np.bool_)
    for row in np.flatnonzero(~sample.crowd).tolist():
        mask = masks[row]
        if mask is None or not mask.any():
            mask = np.zeros(hiding.shape, np.bool_)
            mask[pixels_of(sample.boxes[row])] = True
        visible = mask & ~hiding
        hidden = int(mask.sum()) - int(visible.sum())
        if hidden and visible.sum() < LEAST_VISIBLE * mask.sum():
            kept[row] = False
        elif hidden:
            # Only the sides that moved: a box is often drawn a little wider than the outline.
            before, now = _extent(mask), _extent(visible)
            boxes[row] = np.where(before == now, boxes[row], now)
    return BoxSample(sample.image, boxes[kept], sample.labels[kept], sample.crowd[kept])


def _extent(mask: Mask) -> NDArray[np.float32]:
    """The box xyxy around a mask's pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _fitted(shape: tuple[int, ...], frame: Size) -> Size:
    """The size of an image that was scaled to lie in a frame, as large as it can, its aspect ratio kept."""
    factor = min(frame[0] / shape[0], frame[1] / shape[1])
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _framed(image: Pixels, frame: Size, fill: RGB) -> Pixels:
    """The image at the top left of a frame that is no smaller."""
    below, right = frame[0] - image.shape[0], frame[1] - image.shape[1]
    framed: Pixels = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=fill)
    return framed


def _united(image: Pixels, parts: Sequence[BoxSample]) -> BoxSample:
    """The image with the objects of all parts."""
    return BoxSample(image, np.concatenate([part.boxes for part in parts]).astype(np.float32),
                     np.concatenate([part.labels for part in parts]), np.concatenate([part.crowd for part in parts]))
