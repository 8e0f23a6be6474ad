"""Colours and movements drawn from a list: RandAugment, and the policies that AutoAugment found for detection and for
classification; and one augmentation drawn from several.

The first two stand around another augmentation and change original pixels before it; an operation's level runs from 0
to 10, as in both papers. Classification's comes after another one, and its levels run from 0 to 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeAlias, get_args

import cv2
import numpy as np

from detseg.data.augment import (
    Augment,
    BoxSample,
    ClassSample,
    Context,
    LabelSample,
    Matrix,
    PictureT,
    SampleT,
    brightened,
    contrast_stretched,
    contrasted,
    equalized,
    generator,
    pixels_of,
    posterized,
    saturated,
    solarized,
    visible_boxes,
    warped,
)
from detseg.resize import RGB
from detseg.structures import VOID, Pixels, Size

_MAX_LEVEL = 10


def moved(sample: PictureT, matrix: Matrix, fill: RGB) -> PictureT:
    """The sample under an affine map: pixels bilinear, labels nearest, boxes around their moved corners.

    What comes from outside has the colour `fill`, and is VOID. Boxes are cut, and dropped as `visible_boxes` says.
    """
    size = (sample.image.shape[0], sample.image.shape[1])
    image = warped(sample.image, matrix, size, fill=fill)
    if isinstance(sample, LabelSample):
        return LabelSample(image, warped(sample.labels, matrix, size, fill=VOID, nearest=True))
    if isinstance(sample, ClassSample):
        return ClassSample(image, sample.label)
    corners = sample.boxes[:, [[0, 1], [2, 1], [0, 3], [2, 3]]] @ matrix[:, :2].T + matrix[:, 2]
    boxes = np.hstack([corners.min(axis=1), corners.max(axis=1)])
    return visible_boxes(sample._replace(image=image, boxes=boxes))


def _translation(x: float, y: float) -> Matrix:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def _rotation(degrees: float, size: Size) -> Matrix:
    """Around the middle."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = size[1] / 2, size[0] / 2
    return np.array([[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]])


def sharpened(image: Pixels, factor: float) -> Pixels:
    """Between smoothed, 0, and the image, 1, or beyond it, as PIL's `ImageEnhance.Sharpness` does it; the outermost
    pixels stay. albumentations sharpens by other kernels."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel)[1:-1, 1:-1]
    sharp: Pixels = cv2.addWeighted(image, factor, smooth, 1 - factor, 0)
    return sharp


def inverted(image: Pixels) -> Pixels:
    """The negative."""
    negative: Pixels = 255 - image
    return negative


def solar_added(image: Pixels, addition: int) -> Pixels:
    """Values below 128 made brighter by so much."""
    table = np.arange(256)
    brighter: Pixels = cv2.LUT(image, np.where(table < 128, np.minimum(table + addition, 255), table).astype(np.uint8))
    return brighter


@dataclass(frozen=True)
class RandAugment(Generic[PictureT]):
    """RandAugment (Cubuk et al. 2020, arXiv 1909.13719, section 3) without shear and rotation, as the MobileNetV4
    paper trains detectors on COCO (Qin et al. 2024, arXiv 2404.10518): `number` operations, drawn uniformly and one
    after the other, all of one `magnitude`; of boxes and of label maps alike.

    The operations are the paper's others: identity, autocontrast, equalize, solarize, posterize, color, contrast,
    brightness, sharpness, and translation along x or y. A larger magnitude always changes more, as in torchvision:
    in the authors' code color, contrast, brightness and sharpness do nothing at 5 and most at 0 and 10, and solarize
    and posterize do most at 0. N and M are tuned for a network and its data.
    """

    then: Augment[PictureT]
    """What is done with the picture."""
    fill: RGB
    """The colour of what a translation uncovers: the model's, `Resize.fill`."""
    number: int = 2
    """N."""
    magnitude: float = 5.0
    """M, 0 to 10."""
    translate: float = 100 / 640
    """Of the side that is moved along, at magnitude 10: TensorFlow's 100 pixels (Model Garden's
    `RandAugment.build_for_detection`) of an image of COCO."""

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"number is how many operations follow each other, at least 0, got {self.number}")
        if not 0 <= self.magnitude <= _MAX_LEVEL:
            raise ValueError(f"magnitude is 0..{_MAX_LEVEL}, got {self.magnitude}")
        if not 0 <= self.translate <= 1:
            raise ValueError(f"translate is a share of the image's side, 0..1, got {self.translate}")

    def __call__(self, sample: PictureT, context: Context[PictureT]) -> PictureT:
        """See `Augment`."""
        rng = generator(context, "RandAugment")
        for operation in rng.integers(len(_RAND_AUGMENT), size=self.number).tolist():
            sample = self._changed(sample, _RAND_AUGMENT[operation], sign=int(rng.choice((-1, 1))))
        return self.then(sample, context._replace(item=None))

    def _changed(self, sample: PictureT, operation: str, *, sign: int) -> PictureT:
        strength = self.magnitude / _MAX_LEVEL
        if operation in ("translate x", "translate y"):
            axis = 1 if operation == "translate x" else 0
            by = round(sign * strength * self.translate * sample.image.shape[axis])
            return moved(sample, _translation(by, 0) if axis else _translation(0, by), self.fill)
        return sample._replace(image=_recoloured(sample.image, operation, strength=strength, sign=sign))


def _recoloured(image: Pixels, operation: str, *, strength: float, sign: int) -> Pixels:
    """The image after an operation on its colours, of which a larger strength, 0..1, changes more."""
    if operation == "solarize":
        return solarized(image, 256 * (1 - strength))
    if operation == "posterize":
        return posterized(image, 8 - round(4 * strength))
    if operation in _FACTORS:
        return _FACTORS[operation](image, 1 + sign * 0.9 * strength)
    return _PLAIN[operation](image)


_FACTORS: Mapping[str, Callable[[Pixels, float], Pixels]] = {
    "color": saturated, "contrast": contrasted, "brightness": brightened, "sharpness": sharpened}
"""By a factor, of which 1 changes nothing."""

_PLAIN: Mapping[str, Callable[[Pixels], Pixels]] = {
    "identity": np.copy, "autocontrast": contrast_stretched, "equalize": equalized, "invert": inverted}
"""Without a level."""

_RAND_AUGMENT = (
    "identity", "autocontrast", "equalize", *_FACTORS, "solarize", "posterize", "translate x", "translate y")
"""The 11 of the paper's 14 operations that neither shear nor rotate."""


@dataclass(frozen=True)
class OneOf(Generic[SampleT]):
    """One of several augmentations for each image and epoch, drawn anew each time: the same images as several data sets
    of differently augmented ones, mixed (Qin et al. 2024, MobileNetV4, arXiv 2404.10518, section 8)."""

    augments: tuple[Augment[SampleT], ...]
    shares: tuple[float, ...] | None = None
    """How often each is drawn, as parts of their sum; None draws all equally often."""

    def __post_init__(self) -> None:
        if not self.augments:
            raise ValueError("OneOf draws among augmentations, and got none")
        if self.shares is not None and (len(self.shares) != len(self.augments) or min(self.shares) < 0
                                        or sum(self.shares) <= 0):
            raise ValueError(f"shares has a number of at least 0 for each of the {len(self.augments)} augmentations, "
                             f"one of them above 0, got {self.shares}")

    def __call__(self, sample: SampleT, context: Context[SampleT]) -> SampleT:
        """See `Augment`."""
        shares = np.array(self.shares or [1.0] * len(self.augments))
        drawn = generator(context, "one of").choice(len(self.augments), p=shares / shares.sum())
        return self.augments[int(drawn)](sample, context)


class _Step(NamedTuple):
    """An operation of a policy, how often it is done, and at which level, 0 to 10."""

    operation: str
    """Of the whole picture; "each ..." of each object, within its box; "one ..." of one object."""
    probability: float
    level: int


PolicyName: TypeAlias = Literal["v0", "v1", "v2", "v3"]

_V0 = (
    (_Step("translate x", 0.6, 4), _Step("equalize", 0.8, 10)),
    (_Step("each translate y", 0.2, 2), _Step("cutout", 0.8, 8)),
    (_Step("sharpness", 0.0, 8), _Step("shear x", 0.4, 0)),
    (_Step("shear y", 1.0, 2), _Step("each translate y", 0.6, 6)),
    (_Step("rotate", 0.6, 10), _Step("color", 1.0, 6)),
)
_POLICIES: Mapping[PolicyName, tuple[tuple[_Step, ...], ...]] = {
    "v0": _V0,
    "v1": (
        *_V0,
        (_Step("color", 0.0, 0), _Step("each shear x", 0.8, 4)),
        (_Step("each shear y", 0.8, 2), _Step("each flip", 0.0, 10)),
        (_Step("equalize", 0.6, 10), _Step("translate x", 0.2, 2)),
        (_Step("color", 1.0, 10), _Step("each translate y", 0.4, 6)),
        (_Step("rotate", 0.8, 10), _Step("contrast", 0.0, 10)),
        (_Step("cutout", 0.2, 2), _Step("brightness", 0.8, 10)),
        (_Step("color", 1.0, 6), _Step("equalize", 1.0, 2)),
        (_Step("each cutout", 0.4, 6), _Step("each translate y", 0.8, 2)),
        (_Step("color", 0.2, 8), _Step("rotate", 0.8, 10)),
        (_Step("sharpness", 0.4, 4), _Step("each translate y", 0.0, 4)),
        (_Step("sharpness", 1.0, 4), _Step("solarize add", 0.4, 4)),
        (_Step("rotate", 1.0, 8), _Step("sharpness", 0.2, 8)),
        (_Step("shear y", 0.6, 10), _Step("each equalize", 0.6, 8)),
        (_Step("shear x", 0.2, 6), _Step("each translate y", 0.2, 10)),
        (_Step("solarize add", 0.6, 8), _Step("brightness", 0.8, 10)),
    ),
    "v2": (
        (_Step("color", 0.0, 6), _Step("cutout", 0.6, 8), _Step("sharpness", 0.4, 8)),
        (_Step("rotate", 0.4, 8), _Step("sharpness", 0.4, 2), _Step("rotate", 0.8, 10)),
        (_Step("translate y", 1.0, 8), _Step("autocontrast", 0.8, 2)),
        (_Step("autocontrast", 0.4, 6), _Step("shear x", 0.8, 8), _Step("brightness", 0.0, 10)),
        (_Step("solarize add", 0.2, 6), _Step("contrast", 0.0, 10), _Step("autocontrast", 0.6, 0)),
        (_Step("cutout", 0.2, 0), _Step("solarize", 0.8, 8), _Step("color", 1.0, 4)),
        (_Step("translate y", 0.0, 4), _Step("equalize", 0.6, 8), _Step("solarize", 0.0, 10)),
        (_Step("translate y", 0.2, 2), _Step("shear y", 0.8, 8), _Step("rotate", 0.8, 8)),
        (_Step("cutout", 0.8, 8), _Step("brightness", 0.8, 8), _Step("cutout", 0.2, 2)),
        (_Step("color", 0.8, 4), _Step("translate y", 1.0, 6), _Step("rotate", 0.6, 6)),
        (_Step("rotate", 0.6, 10), _Step("one cutout", 1.0, 4), _Step("cutout", 0.2, 8)),
        (_Step("rotate", 0.0, 0), _Step("equalize", 0.6, 6), _Step("shear y", 0.6, 8)),
        (_Step("brightness", 0.8, 8), _Step("autocontrast", 0.4, 2), _Step("brightness", 0.2, 2)),
        (_Step("translate y", 0.4, 8), _Step("solarize", 0.4, 6), _Step("solarize add", 0.2, 10)),
        (_Step("contrast", 1.0, 10), _Step("solarize add", 0.2, 8), _Step("equalize", 0.2, 4)),
    ),
    "v3": (
        (_Step("posterize", 0.8, 2), _Step("translate x", 1.0, 8)),
        (_Step("one cutout", 0.2, 10), _Step("sharpness", 1.0, 8)),
        (_Step("rotate", 0.6, 8), _Step("rotate", 0.8, 10)),
        (_Step("equalize", 0.8, 10), _Step("autocontrast", 0.2, 10)),
        (_Step("solarize add", 0.2, 2), _Step("translate y", 0.2, 8)),
        (_Step("sharpness", 0.0, 2), _Step("color", 0.4, 8)),
        (_Step("equalize", 1.0, 8), _Step("translate y", 1.0, 8)),
        (_Step("posterize", 0.6, 2), _Step("rotate", 0.0, 10)),
        (_Step("autocontrast", 0.6, 0), _Step("rotate", 1.0, 6)),
        (_Step("equalize", 0.0, 4), _Step("cutout", 0.8, 10)),
        (_Step("brightness", 1.0, 2), _Step("translate y", 1.0, 6)),
        (_Step("contrast", 0.0, 2), _Step("shear y", 0.8, 0)),
        (_Step("autocontrast", 0.8, 10), _Step("contrast", 0.2, 10)),
        (_Step("rotate", 1.0, 10), _Step("cutout", 1.0, 10)),
        (_Step("solarize add", 0.8, 6), _Step("equalize", 0.8, 8)),
    ),
}
"""Sub-policies with their steps, as the authors published them (tensorflow/tpu, models/official/detection/utils/
autoaugment_utils.py)."""

_COCO_SIDE = 640
"""Pixels: the longer side of COCO's images, for which the authors' distances in pixels are."""


@dataclass(frozen=True)
class DetectionPolicy:
    """What AutoAugment found for detection on COCO (Zoph et al. 2019, arXiv 1906.11172, section 3): a
    sub-policy, drawn for each image, of two or three operations on colours, on the picture with its boxes, and on
    single objects within their boxes.

    v0 is the paper's, the best on COCO; v1 to v3 are what its authors published beside it. Numbers are those of their
    code, with these differences. Distances in pixels scale with the image. What a movement uncovers has the colour
    `fill` in place of grey. Movements interpolate. An object that has left the picture, or nearly, is dropped, where
    they keep a box of no area. Posterize leaves at least one bit: theirs, at level 2, none, a black image. Crowds are
    no objects: nothing is done within them, and they move with the picture.
    """

    then: Augment[BoxSample]
    """What is done with the picture."""
    fill: RGB
    """The model's, `Resize.fill`."""
    policy: PolicyName = "v0"

    def __post_init__(self) -> None:
        if self.policy not in get_args(PolicyName):
            raise ValueError(f"policy is one of {', '.join(get_args(PolicyName))}, got {self.policy!r}")

    def __call__(self, sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        """See `Augment`."""
        rng = generator(context, "DetectionPolicy")
        steps = _POLICIES[self.policy]
        for step in steps[int(rng.integers(len(steps)))]:
            sample = self._done(sample, step, rng)
        return self.then(sample, context._replace(item=None))

    def _done(self, sample: BoxSample, step: _Step, rng: np.random.Generator) -> BoxSample:
        kind, _, operation = step.operation.partition(" ")
        if kind == "each":
            return self._in_objects(sample, step._replace(operation=operation), rng)
        if rng.random() >= step.probability:
            return sample
        if kind == "one":
            return self._cut_from_one(sample, step.level, rng)
        return _operated(sample, step, rng, fill=self.fill, distances=_Distances(250, 100),
                         per_pixel=_per_pixel(sample))

    def _in_objects(self, sample: BoxSample, step: _Step, rng: np.random.Generator) -> BoxSample:
        """Each object by itself, with a third of the probability, so that neighbours are seldom changed together."""
        image = sample.image.copy()
        for row in rng.permutation(np.flatnonzero(~sample.crowd)).tolist():
            if rng.random() < step.probability / 3:
                part = pixels_of(sample.boxes[row])
                inside = BoxSample(np.ascontiguousarray(image[part]), sample.boxes[:0], sample.labels[:0],
                                   sample.crowd[:0])
                image[part] = _operated(inside, step, rng, fill=self.fill, distances=_Distances(120, 50),
                                        per_pixel=_per_pixel(sample)).image
        return sample._replace(image=image)

    def _cut_from_one(self, sample: BoxSample, level: int, rng: np.random.Generator) -> BoxSample:
        """A rectangle of up to three quarters of an object's sides, with its middle in the object."""
        objects = sample.boxes[~sample.crowd]
        if not len(objects):
            return sample
        left, top, right, bottom = objects[int(rng.integers(len(objects)))].tolist()
        share = 0.75 * level / _MAX_LEVEL / 2
        centre = float(rng.uniform(top, bottom)), float(rng.uniform(left, right))
        return sample._replace(image=_cut(sample.image, centre, (share * (bottom - top), share * (right - left)),
                                          self.fill))


class _ImageNetStep(NamedTuple):
    """An operation of AutoAugment's policy for ImageNet, how often it is done, and at which level, 0 to 9."""

    operation: str
    probability: float
    level: int = 0


_IMAGENET: tuple[tuple[_ImageNetStep, _ImageNetStep], ...] = (
    (_ImageNetStep("posterize", 0.4, 8), _ImageNetStep("rotate", 0.6, 9)),
    (_ImageNetStep("solarize", 0.6, 5), _ImageNetStep("autocontrast", 0.6)),
    (_ImageNetStep("equalize", 0.8), _ImageNetStep("equalize", 0.6)),
    (_ImageNetStep("posterize", 0.6, 7), _ImageNetStep("posterize", 0.6, 6)),
    (_ImageNetStep("equalize", 0.4), _ImageNetStep("solarize", 0.2, 4)),
    (_ImageNetStep("equalize", 0.4), _ImageNetStep("rotate", 0.8, 8)),
    (_ImageNetStep("solarize", 0.6, 3), _ImageNetStep("equalize", 0.6)),
    (_ImageNetStep("posterize", 0.8, 5), _ImageNetStep("equalize", 1.0)),
    (_ImageNetStep("rotate", 0.2, 3), _ImageNetStep("solarize", 0.6, 8)),
    (_ImageNetStep("equalize", 0.6), _ImageNetStep("posterize", 0.4, 6)),
    (_ImageNetStep("rotate", 0.8, 8), _ImageNetStep("color", 0.4, 0)),
    (_ImageNetStep("rotate", 0.4, 9), _ImageNetStep("equalize", 0.6)),
    (_ImageNetStep("equalize", 0.0), _ImageNetStep("equalize", 0.8)),
    (_ImageNetStep("invert", 0.6), _ImageNetStep("equalize", 1.0)),
    (_ImageNetStep("color", 0.6, 4), _ImageNetStep("contrast", 1.0, 8)),
    (_ImageNetStep("rotate", 0.8, 8), _ImageNetStep("color", 1.0, 2)),
    (_ImageNetStep("color", 0.8, 8), _ImageNetStep("solarize", 0.8, 7)),
    (_ImageNetStep("sharpness", 0.4, 7), _ImageNetStep("invert", 0.6)),
    (_ImageNetStep("shear x", 0.6, 5), _ImageNetStep("equalize", 1.0)),
    (_ImageNetStep("color", 0.4, 0), _ImageNetStep("equalize", 0.6)),
    (_ImageNetStep("equalize", 0.4), _ImageNetStep("solarize", 0.2, 4)),
    (_ImageNetStep("solarize", 0.6, 5), _ImageNetStep("autocontrast", 0.6)),
    (_ImageNetStep("invert", 0.6), _ImageNetStep("equalize", 1.0)),
    (_ImageNetStep("color", 0.6, 4), _ImageNetStep("contrast", 1.0, 8)),
    (_ImageNetStep("equalize", 0.8), _ImageNetStep("equalize", 0.6)),
)
"""The 25 of the paper's appendix, Table 9."""


@dataclass(frozen=True)
class AutoAugment:
    """What AutoAugment found for ImageNet (Cubuk et al. 2019, arXiv 1805.09501, appendix, Table 9): one of 25 pairs of
    operations, drawn for each image, on what another augmentation gives.

    Strengths are torchvision's: a larger level always changes more, and movements and factors go either way by chance.
    """

    after: Augment[ClassSample]
    """What is done before."""
    fill: RGB
    """The colour of what a movement uncovers: the model's, `Resize.fill`."""

    def __call__(self, sample: ClassSample, context: Context[ClassSample]) -> ClassSample:
        """See `Augment`."""
        sample = self.after(sample, context)
        rng = generator(context, "AutoAugment")
        for step in _IMAGENET[int(rng.integers(len(_IMAGENET)))]:
            done, sign = rng.random() < step.probability, int(rng.choice((-1, 1)))
            if done:
                sample = self._done(sample, step.operation, strength=step.level / 9, sign=sign)
        return sample

    def _done(self, sample: ClassSample, operation: str, *, strength: float, sign: int) -> ClassSample:
        if operation == "rotate":
            size = (sample.image.shape[0], sample.image.shape[1])
            return moved(sample, _rotation(sign * 30 * strength, size), self.fill)
        if operation == "shear x":
            return moved(sample, np.array([[1.0, sign * 0.3 * strength, 0.0], [0.0, 1.0, 0.0]]), self.fill)
        return sample._replace(image=_recoloured(sample.image, operation, strength=strength, sign=sign))


class _Distances(NamedTuple):
    """Pixels of an image of COCO, at the highest level."""

    translate: int
    cutout: int
    """Half the side of the square."""


def _per_pixel(sample: BoxSample) -> float:
    """Pixels of the image for one of COCO's."""
    return float(max(sample.image.shape[:2])) / _COCO_SIDE


def _operated(
    sample: BoxSample, step: _Step, rng: np.random.Generator, *, fill: RGB, distances: _Distances, per_pixel: float
) -> BoxSample:
    """The sample after an operation."""
    strength, sign = step.level / _MAX_LEVEL, int(rng.choice((-1, 1)))
    size = (sample.image.shape[0], sample.image.shape[1])
    distance = round(sign * strength * distances.translate * per_pixel)
    matrix: Matrix | None = None
    image = sample.image
    match step.operation:
        case "translate x":
            matrix = _translation(distance, 0)
        case "translate y":
            matrix = _translation(0, distance)
        case "shear x":
            matrix = np.array([[1.0, sign * 0.3 * strength, 0.0], [0.0, 1.0, 0.0]])
        case "shear y":
            matrix = np.array([[1.0, 0.0, 0.0], [sign * 0.3 * strength, 1.0, 0.0]])
        case "rotate":
            matrix = _rotation(sign * 30 * strength, size)
        case "flip":
            image = np.ascontiguousarray(image[:, ::-1])
        case "cutout":
            half = strength * distances.cutout * per_pixel
            centre = float(rng.uniform(0, size[0])), float(rng.uniform(0, size[1]))
            image = _cut(image, centre, (half, half), fill)
        case "solarize":
            image = solarized(image, 256 * strength)
        case "solarize add":
            image = solar_added(image, int(110 * strength))
        case "posterize":
            image = posterized(image, max(1, int(4 * strength)))
        case factor if factor in _FACTORS:
            image = _FACTORS[factor](image, 0.1 + 1.8 * strength)
        case plain:
            image = _PLAIN[plain](image)
    return sample._replace(image=image) if matrix is None else moved(sample, matrix, fill)


def _cut(image: Pixels, centre: tuple[float, float], half: tuple[float, float], fill: RGB) -> Pixels:
    """A copy with a rectangle of the colour `fill` around the centre (y, x), of these half sides."""
    (top, bottom), (left, right) = ((max(0, round(at - by)), max(0, round(at + by)))
                                    for at, by in zip(centre, half, strict=True))
    cut = image.copy()
    cut[top:bottom, left:right] = fill
    return cut
