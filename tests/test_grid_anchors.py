"""The anchors of feature pyramids, against torchvision's and by hand, and the cells of heads without anchors."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detseg.ops.anchors import Cells, GridAnchors

CPU = torch.device("cpu")
RETINANET = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))


def _torchvision(sizes: tuple[tuple[int, ...], ...], maps: list[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    generate = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    found: list[Tensor] = generate(
        ImageList(torch.zeros(1, 3, *size), [size]), [torch.zeros(1, 1, *shape) for shape in maps])
    return found[0]


@pytest.mark.parametrize(("sizes", "maps", "size"), [
    (((32, 64, 128, 256, 512),) * 3, [(7, 10), (7, 10), (4, 5)], (224, 320)),
    (((32, 64, 128, 256, 512),) * 3, [(25, 33), (25, 33), (13, 17)], (800, 1056)),  # 13 cells of 61 pixels
    (RETINANET, [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)], (192, 320)),
    (((33,), (7, 9)), [(3, 2), (2, 1)], (97, 65)),
])
def test_they_are_torchvisions(
    sizes: tuple[tuple[int, ...], ...], maps: list[tuple[int, int]], size: tuple[int, int]
) -> None:
    anchors = GridAnchors(sizes)
    found = anchors(maps, size, device=CPU)
    assert torch.equal(found, _torchvision(sizes, maps, size))
    cells = [rows * columns for rows, columns in maps]
    assert len(found) == sum(a * b for a, b in zip(anchors.num_per_cell, cells, strict=True))


def test_tensorflow_puts_them_on_the_middle_of_cells_and_rounds_nothing() -> None:
    anchors = GridAnchors(((5.0,),), ratios=(1.0, 4.0), rounded=False, centred=True)
    assert anchors.num_per_cell == (2,)
    found = anchors([(1, 2)], (8, 16), device=CPU)
    assert found.tolist() == [[1.5, 1.5, 6.5, 6.5], [2.75, -1.0, 5.25, 9.0],
                              [9.5, 1.5, 14.5, 6.5], [10.75, -1.0, 13.25, 9.0]]


@pytest.mark.parametrize("sizes", [(), ((),), ((32.0,), (0.0,))])
def test_sizes_that_make_no_anchors_are_refused(sizes: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"need positive sizes for each map, got {sizes}")):
        GridAnchors(sizes)


@pytest.mark.parametrize("ratios", [(), (1.0, -2.0)])
def test_ratios_that_make_no_anchors_are_refused(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"need positive ratios of height to width, got {ratios}")):
        GridAnchors(((32.0,),), ratios=ratios)


def test_another_number_of_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="anchors for 2 maps were asked for 1"):
        GridAnchors(((32.0,), (64.0,)))([(3, 3)], (96, 96), device=CPU)


def test_cells_of_maps_by_hand() -> None:
    """Of a map of 1 x 2 and one of 1 x 1, whatever the image's size."""
    found = Cells((8, 16))([(1, 2), (1, 1)], (5, 11), device=CPU)
    assert found.tolist() == [[0, 0, 8, 8], [8, 0, 16, 8], [0, 0, 16, 16]]
    with pytest.raises(ValueError, match="cells of 2 maps were asked for 1"):
        Cells((8, 16))([(1, 2)], (8, 16), device=CPU)
