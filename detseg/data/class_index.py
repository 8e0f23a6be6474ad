"""The classes of a split's images, read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detseg.data.faults import Fault
from detseg.data.images import read_image
from detseg.structures import Classes, Pixels

_NAMED = 5


def listed(names: Sequence[str]) -> str:
    """Names for a sentence, the first of them."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


@dataclass(frozen=True, eq=False)
class ClassIndex:
    """Images by position, each with its class; labels are positions in `classes`. `n` images.

    The names are NumPy's fixed-width texts: forked workers share them, which they could not do with Python's.
    """

    classes: Classes
    folder: Path
    """The names are relative to it."""
    image_ids: NDArray[np.int64]
    """[n], all different."""
    images: NDArray[np.str_]
    """[n] names of the image files."""
    labels: NDArray[np.int64]
    """[n], 0..K-1."""
    notes: tuple[str, ...] = ()
    """What a person should know about these images and that is no error."""
    faults: tuple[Fault, ...] = ()
    """What was left out because it is broken; training and evaluation refuse it unless they are told to skip it."""

    @classmethod
    def of(
        cls, classes: Classes, folder: Path, images: Sequence[str], labels: Sequence[int], *,
        notes: tuple[str, ...] = (), faults: tuple[Fault, ...] = (),
    ) -> ClassIndex:
        """From the names of images and their labels; the images are numbered from 1 in the order given."""
        return cls(classes, folder, np.arange(1, len(images) + 1), np.array(images, np.str_),
                   np.array(labels, np.int64), notes, faults)

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, i: int) -> Path:
        """The image file."""
        return self.folder / str(self.images[self.checked(i)])

    def image(self, i: int) -> Pixels:
        """The image, turned as viewers show it. Raises what `read_image` does."""
        return read_image(self.path(i))

    def relabel(self, classes: Classes, /) -> ClassIndex:
        """The same with labels that are positions in `classes`, matched by source id, and a note of those that are new;
        a ValueError where a class is not among them, or has another name there."""
        strange = [f"{source_id} {name}" for source_id, name in self.classes.used.items()
                   if classes.used.get(source_id) != name]
        if strange:
            raise ValueError(f"the images have classes that are not asked for: {', '.join(strange)}")
        position = {source_id: k for k, source_id in enumerate(classes.source_ids)}
        moved = np.array([position.get(source_id, -1) for source_id in self.classes.source_ids], np.int64)
        new = [name for source_id, name in classes.used.items() if source_id not in self.classes.used]
        notes = (f"{self.folder} has no image of {listed(new)}",) if new else ()
        return replace(self, classes=classes, labels=moved[self.labels], notes=(*self.notes, *notes))

    def common(self, classes: Classes, /) -> ClassIndex:
        """The images of the classes that `classes` has too, by name; labels are positions in it."""
        moved = np.full(len(self.classes), -1)
        for name in self.classes.common(classes):
            moved[self.classes.names.index(name)] = classes.names.index(name)
        chosen = self.select(np.flatnonzero(moved[self.labels] >= 0).tolist())
        return replace(chosen, classes=classes, labels=moved[chosen.labels])

    def repeats(self, share: float) -> NDArray[np.float64]:
        """[n]: how often each image should come so that rare classes are learned too: the root of `share` over its
        class's share of the images, at least 1 (repeat factor sampling, Gupta et al. 2019, arXiv 1908.03195, appendix
        B)."""
        shares = np.bincount(self.labels, minlength=len(self.classes)) / max(1, len(self))
        of_class = np.maximum(1.0, np.sqrt(share / np.maximum(shares, 1e-12)))
        of_image: NDArray[np.float64] = of_class[self.labels]
        return of_image

    def nothing_to_learn(self) -> str:
        """Why no classifier can learn from these images; empty where one can."""
        shown = np.unique(self.labels).tolist()
        return f"every image is {self.classes.names[shown[0]]}" if len(shown) == 1 else ""

    def select(self, image_positions: Sequence[int], /) -> ClassIndex:
        """Some of the images only, in the order given."""
        chosen = np.array([self.checked(i) for i in image_positions], np.int64)
        return replace(self, image_ids=self.image_ids[chosen], images=self.images[chosen], labels=self.labels[chosen])

    def checked(self, i: int) -> int:
        """`i`; an IndexError where there is no such image."""
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of a data set of {len(self)}; positions run from 0 to {len(self) - 1}")
        return i
