"""How an image of any size becomes the network's, and the way back. It belongs to the model: training, evaluation,
prediction and export use the same one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detseg.structures import IMAGENET_MEAN, VOID, LabelPixels, Pixels, Size

_Number = TypeVar("_Number", np.float32, np.uint8)

RGB: TypeAlias = tuple[int, int, int]

MEAN_COLOUR: RGB = (round(255 * IMAGENET_MEAN[0]), round(255 * IMAGENET_MEAN[1]), round(255 * IMAGENET_MEAN[2]))
"""ImageNet's: next to nothing behind the normalisation of most networks."""


class Placement(NamedTuple):
    """Where an original image lies in the network's image: network = original * scale + offset, per axis.

    The only place that maps boxes and labels from the one to the other, both ways.
    """

    scale_y: float
    scale_x: float
    offset_y: float
    offset_x: float

    def boxes_to_network(self, boxes_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Boxes [M, 4] in original pixels to network pixels."""
        scale = np.array([self.scale_x, self.scale_y] * 2)
        offset = np.array([self.offset_x, self.offset_y] * 2)
        placed: NDArray[np.float64] = boxes_xyxy * scale + offset
        return placed

    def boxes_to_original(self, boxes_xyxy: Tensor, size: Size) -> Tensor:
        """Boxes [..., 4] in network pixels to those of an original image of `size`, cut to it."""
        offset = boxes_xyxy.new_tensor((self.offset_x, self.offset_y, self.offset_x, self.offset_y))
        scale = boxes_xyxy.new_tensor((self.scale_x, self.scale_y, self.scale_x, self.scale_y))
        limits = boxes_xyxy.new_tensor((size[1], size[0], size[1], size[0]))
        return torch.minimum(((boxes_xyxy - offset) / scale).clamp(min=0.0), limits)

    def labels_to_network(self, labels: LabelPixels, size: Size) -> LabelPixels:
        """An original label map in the network's image of `size`: the nearest label of each pixel, VOID around it."""
        rows = np.floor((np.arange(size[0]) + 0.5 - self.offset_y) / self.scale_y).astype(np.int64)
        columns = np.floor((np.arange(size[1]) + 0.5 - self.offset_x) / self.scale_x).astype(np.int64)
        inside_y = (rows >= 0) & (rows < labels.shape[0])
        inside_x = (columns >= 0) & (columns < labels.shape[1])
        placed = np.full(size, VOID, dtype=np.uint8)
        placed[np.ix_(inside_y, inside_x)] = labels[np.ix_(rows[inside_y], columns[inside_x])]
        return placed

    def labels_to_original(self, labels: LabelPixels, size: Size) -> LabelPixels:
        """A label map of the network's in an original image of `size`: each pixel has the label at its centre, which
        never lies in bars; outside a crop, the nearest one."""
        rows = ((np.arange(size[0]) + 0.5) * self.scale_y + self.offset_y).astype(np.int64)
        columns = ((np.arange(size[1]) + 0.5) * self.scale_x + self.offset_x).astype(np.int64)
        rows, columns = rows.clip(0, labels.shape[0] - 1), columns.clip(0, labels.shape[1] - 1)
        restored: LabelPixels = labels[rows[:, None], columns]
        return restored


class Resize(ABC):
    """How any image becomes one of the network's input size."""

    fixed: ClassVar[bool] = True
    """Whether every image comes to have `size`. Where not, `size` is what a typical one has, images are evaluated one
    by one, and a training batch is padded to its largest."""

    size: Size
    fill: RGB
    """The colour of whatever is no image: bars, margins of augmentations, the padding of a batch."""

    @abstractmethod
    def place(self, original: Size) -> Placement:
        """Where an image of this size comes to lie."""

    @abstractmethod
    def apply(self, image: Pixels) -> NDArray[np.float32]:
        """uint8 [H, W, 3] to float32 [height, width, 3], 0..255, bilinear and not rounded: for evaluation."""

    @abstractmethod
    def apply_rounded(self, image: Pixels) -> Pixels:
        """The same as uint8, for training: faster, and equal to the bit in every process whatever its threads."""


@dataclass(frozen=True)
class Stretch(Resize):
    """Both axes scaled on their own, so that the image fills `size` and its aspect ratio is lost."""

    size: Size
    fill: RGB = MEAN_COLOUR

    def __post_init__(self) -> None:
        _check(self)

    def place(self, original: Size) -> Placement:
        """Where an image of this size comes to lie: everywhere."""
        return Placement(self.size[0] / original[0], self.size[1] / original[1], 0.0, 0.0)

    def apply(self, image: Pixels) -> NDArray[np.float32]:
        """The image stretched: what `interpolate(mode="bilinear", align_corners=False)` gives, without antialias."""
        return _bilinear(image, self.size)

    def apply_rounded(self, image: Pixels) -> Pixels:
        """The image stretched by OpenCV."""
        return bilinear_rounded(image, self.size)


@dataclass(frozen=True)
class TensorFlowStretch(Resize):
    """`Stretch` by TensorFlow's first bilinear kernel (`tf.compat.v1.image.resize_bilinear`), which the weights of its
    object detection API were trained with.

    It takes pixels for points at whole numbers, source = target * scale, where all others take their middles; so what a
    network sees is shifted, by half an original pixel less half of its own. Boxes are taken there and back as by
    `Stretch`, as TensorFlow does, whose networks have learned the shift.
    """

    size: Size
    fill: RGB = MEAN_COLOUR

    def __post_init__(self) -> None:
        _check(self)

    def place(self, original: Size) -> Placement:
        """Where an image of this size comes to lie: everywhere."""
        return Placement(self.size[0] / original[0], self.size[1] / original[1], 0.0, 0.0)

    def apply(self, image: Pixels) -> NDArray[np.float32]:
        """The image stretched, in single precision as by TensorFlow's kernel."""
        top, bottom, down = _points(image.shape[0], self.size[0])
        left, right, across = _points(image.shape[1], self.size[1])
        across, down = across[:, None], down[:, None, None]
        upper, lower = _between(image[top], left, right, across), _between(image[bottom], left, right, across)
        stretched: NDArray[np.float32] = upper + (lower - upper) * down
        return stretched

    def apply_rounded(self, image: Pixels) -> Pixels:
        """The same, rounded."""
        rounded: Pixels = np.rint(self.apply(image)).astype(np.uint8)
        return rounded


@dataclass(frozen=True)
class Letterbox(Resize):
    """The whole image as large as fits, its aspect ratio kept, centred between bars of the colour `fill`.

    Sides are rounded to whole pixels, and an odd bar is one pixel wider below or to the right.
    """

    size: Size
    fill: RGB = MEAN_COLOUR

    def __post_init__(self) -> None:
        _check(self)

    def place(self, original: Size) -> Placement:
        """Where an image of this size comes to lie; the scales are those of the rounded sides."""
        height, width = self._inner(original)
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        return Placement(height / original[0], width / original[1], float(top), float(left))

    def apply(self, image: Pixels) -> NDArray[np.float32]:
        """The image between its bars, interpolated as in `Stretch`."""
        original = (image.shape[0], image.shape[1])
        boxed = np.full((*self.size, 3), self.fill, dtype=np.float32)
        boxed[self._window(original)] = _bilinear(image, self._inner(original))
        return boxed

    def apply_rounded(self, image: Pixels) -> Pixels:
        """The image between its bars, by OpenCV."""
        original = (image.shape[0], image.shape[1])
        boxed = np.full((*self.size, 3), self.fill, dtype=np.uint8)
        boxed[self._window(original)] = bilinear_rounded(image, self._inner(original))
        return boxed

    def _window(self, original: Size) -> tuple[slice, slice]:
        """Where the image lies between the bars."""
        height, width = self._inner(original)
        placement = self.place(original)
        top, left = int(placement.offset_y), int(placement.offset_x)
        return slice(top, top + height), slice(left, left + width)

    def _inner(self, original: Size) -> Size:
        """The size of the image between the bars."""
        scale = min(self.size[0] / original[0], self.size[1] / original[1])
        return max(1, round(original[0] * scale)), max(1, round(original[1] * scale))


@dataclass(frozen=True)
class KeepAspect(Resize):
    """The aspect ratio kept and nothing lost: the shorter side becomes `shorter`, unless the longer one would exceed
    `longer`.

    What torchvision's detectors do (GeneralizedRCNNTransform, without antialias; what it adds at the end is the
    `size_divisor` of `Predictor`); with `antialias` and no limit to the longer side, what its segmenters are published
    with. Images come out in different sizes.
    """

    fixed: ClassVar[bool] = False
    shorter: int
    longer: int
    antialias: bool = False
    fill: RGB = MEAN_COLOUR

    def __post_init__(self) -> None:
        if not 1 <= self.shorter <= self.longer:
            raise ValueError(f"need 1 <= shorter <= longer, got {self.shorter} and {self.longer}")
        _check(self)

    @property
    def size(self) -> Size:  # type: ignore[override]
        """What an image of 4:3 becomes, COCO's most frequent."""
        return self._resized((480, 640))

    def place(self, original: Size) -> Placement:
        """At the top left, with the scales of the rounded sides."""
        height, width = self._resized(original)
        return Placement(height / original[0], width / original[1], 0.0, 0.0)

    def apply(self, image: Pixels) -> NDArray[np.float32]:
        """The image resized, interpolated as in `Stretch`."""
        return _bilinear(image, self._resized((image.shape[0], image.shape[1])), antialias=self.antialias)

    def apply_rounded(self, image: Pixels) -> Pixels:
        """The same by OpenCV, never with antialias."""
        return bilinear_rounded(image, self._resized((image.shape[0], image.shape[1])))

    def _resized(self, original: Size) -> Size:
        """The size that an image comes to, rounded down."""
        wanted, given = min((self.shorter, min(original)), (self.longer, max(original)), key=lambda x: x[0] / x[1])
        # torchvision's segmenters come to the exact side that was asked for; its detectors, which multiply by a
        # rounded ratio, at times to one pixel less.
        sides = (side * wanted // given if self.antialias else int(side * (wanted / given)) for side in original)
        height, width = (max(1, side) for side in sides)
        return height, width


@dataclass(frozen=True)
class CentreCrop(Resize):
    """The middle of the image at `size`, its aspect ratio kept: how classifiers are evaluated.

    The largest window of the aspect ratio of `size` times `share` is seen. The default share is that of torchvision's
    presets, a crop of 224 from an image whose shorter side has been made 256 pixels long, with antialias.
    """

    size: Size
    share: float = 224 / 256
    """Of the sides of the largest window (timm's `crop_pct`)."""
    fill: RGB = MEAN_COLOUR

    def __post_init__(self) -> None:
        _check(self)
        if not 0 < self.share <= 1:
            raise ValueError(f"share is the crop's part of the resized image, above 0 and up to 1, got {self.share}")

    def place(self, original: Size) -> Placement:
        """Where an image of this size comes to lie; offsets are negative, for its margins are not seen."""
        height, width = self._resized(original)
        top, left = self._corner(original)
        return Placement(height / original[0], width / original[1], float(-top), float(-left))

    def apply(self, image: Pixels) -> NDArray[np.float32]:
        """The crop of the image resized with antialias."""
        original = (image.shape[0], image.shape[1])
        return self._cropped(_bilinear(image, self._resized(original), antialias=True), original)

    def apply_rounded(self, image: Pixels) -> Pixels:
        """The same by Pillow, whose bilinear filter has the same antialias."""
        original = (image.shape[0], image.shape[1])
        height, width = self._resized(original)
        return self._cropped(
            np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)), original)

    def _cropped(self, resized: NDArray[_Number], original: Size) -> NDArray[_Number]:
        top, left = self._corner(original)
        return np.ascontiguousarray(resized[top : top + self.size[0], left : left + self.size[1]])

    def _resized(self, original: Size) -> Size:
        """The size of the whole image, rounded as torchvision does: the side that decides to the nearest pixel, the
        other down."""
        wanted = [max(size, round(size / self.share)) for size in self.size]
        axis = 0 if wanted[0] * original[1] >= wanted[1] * original[0] else 1
        other = max(self.size[1 - axis], wanted[axis] * original[1 - axis] // original[axis])
        return (wanted[0], other) if axis == 0 else (other, wanted[1])

    def _corner(self, original: Size) -> tuple[int, int]:
        """Top and left of the crop in the resized image."""
        height, width = self._resized(original)
        return round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)


@dataclass(frozen=True)
class Rounded(Resize):
    """Another resize by OpenCV and rounded to whole numbers, in evaluation too: for what takes bytes."""

    rule: Resize

    @property
    def size(self) -> Size:  # type: ignore[override]
        """The rule's."""
        return self.rule.size

    @property
    def fill(self) -> RGB:  # type: ignore[override]
        """The rule's."""
        return self.rule.fill

    def place(self, original: Size) -> Placement:
        """As by the rule."""
        return self.rule.place(original)

    def apply(self, image: Pixels) -> NDArray[np.float32]:
        """The rounded image."""
        return self.rule.apply_rounded(image).astype(np.float32)

    def apply_rounded(self, image: Pixels) -> Pixels:
        """As by the rule."""
        return self.rule.apply_rounded(image)


@dataclass(frozen=True)
class AsItIs(Resize):
    """No resize: what makes its input itself is given the original image. size: what a typical one has."""

    fixed: ClassVar[bool] = False
    size: Size
    fill: RGB = MEAN_COLOUR

    def place(self, original: Size) -> Placement:
        """Everything stays where it is."""
        return Placement(1.0, 1.0, 0.0, 0.0)

    def apply(self, image: Pixels) -> NDArray[np.float32]:
        """The image."""
        return image.astype(np.float32)

    def apply_rounded(self, image: Pixels) -> Pixels:
        """The image."""
        return image


def _check(resize: Resize) -> None:
    if min(resize.size) < 1:
        raise ValueError(f"the network's input size is (height, width) in pixels, each at least 1, got {resize.size}")
    if len(resize.fill) != 3 or not 0 <= min(resize.fill) <= max(resize.fill) <= 255:
        raise ValueError(f"fill is a colour (red, green, blue), each 0..255, got {resize.fill}")


def _bilinear(image: Pixels, size: Size, *, antialias: bool = False) -> NDArray[np.float32]:
    """float32 [height, width, 3], by torch's kernel.

    OpenCV's is closer to the interpolation in double precision and takes a sixth of the time (0.15 ms for 0.9), but
    published networks were measured with torch's, and a difference of 0.006 grey levels moves boxes visibly.
    """
    channels_first = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = F.interpolate(channels_first, size, mode="bilinear", align_corners=False, antialias=antialias)
    pixels: NDArray[np.float32] = resized[0].permute(1, 2, 0).numpy()
    return pixels


def bilinear_rounded(image: Pixels, size: Size) -> Pixels:
    """uint8 [height, width, 3], by OpenCV: torch's kernel gives other last digits with other numbers of threads."""
    resized = cv2.resize(image.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    rounded: Pixels = np.rint(resized).astype(np.uint8)
    return rounded


def _points(given: int, wanted: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Of `TensorFlowStretch`, along an axis: between which two pixels of `given` each of `wanted` lies, and the second
    one's share."""
    at = np.arange(wanted, dtype=np.float32) * (np.float32(given) / np.float32(wanted))
    first = np.minimum(np.floor(at).astype(np.intp), given - 1)
    return first, np.minimum(first + 1, given - 1), (at - first).astype(np.float32)


def _between(
    rows: Pixels, left: NDArray[np.intp], right: NDArray[np.intp], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Rows of pixels [height, W, 3] interpolated along them, [height, width, 3]."""
    first = rows[:, left].astype(np.float32)
    between: NDArray[np.float32] = first + (rows[:, right] - first) * share
    return between
