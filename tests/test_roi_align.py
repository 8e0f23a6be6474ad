"""RoIAlign: by hand, against torchvision's pooler, and the two ways against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from detseg.ops.roi_align import _by_kernel, _by_matrix_products, _levels, roi_align

SIZE = (192, 320)
Way = Callable[..., Tensor]
WAYS = [_by_kernel, _by_matrix_products]


def _maps(strides: Sequence[int], *, images: int = 2) -> list[Tensor]:
    return [torch.randn(images, 5, SIZE[0] // stride, SIZE[1] // stride) for stride in strides]


def _regions(number: int, *, images: int = 2, outside: float = 0.0) -> Tensor:
    """Random ones from slivers to the whole image; `outside`, as a share of the image, is how far they may leave it."""
    whole = torch.tensor([SIZE[1], SIZE[0]]).float()
    corners = (torch.rand(images, number, 2, 2) * (1 + 2 * outside) - outside) * whole
    corners[:, ::2, 1] = corners[:, ::2, 0] + torch.rand(images, len(range(0, number, 2)), 2) ** 3 * whole
    return torch.cat((corners.amin(2), corners.amax(2)), -1)


def _torchvision(maps: Sequence[Tensor], regions: Tensor) -> Tensor:
    pool = MultiScaleRoIAlign([str(k) for k in range(len(maps))], 7, 2)
    found: Tensor = pool({str(k): x for k, x in enumerate(maps)}, list(regions), [SIZE] * len(regions))
    return found.view(*regions.shape[:2], -1, 7, 7)


@pytest.mark.parametrize("way", WAYS)
def test_by_hand(way: Way) -> None:
    """On a ramp, the mean of the samples is the value in the middle of the grid cell."""
    ramp = torch.arange(10.0).expand(1, 1, 6, 10) + 100 * torch.arange(6.0)[:, None]
    found = way([ramp], torch.tensor([[[8.0, 4.0, 24.0, 12.0]]]), strides=(4,), size=2)
    assert found.shape == (1, 1, 1, 2, 2)
    # In cells of the map x runs from 2 to 6 and y from 1 to 3; without alignment, cell centres lie on whole numbers.
    assert found.flatten().tolist() == [153.0, 155.0, 253.0, 255.0]


@pytest.mark.parametrize("way", WAYS)
def test_outside_the_map_by_hand(way: Way) -> None:
    """Up to one pixel outside a sample takes the border's value, beyond it 0."""
    flat = torch.full((1, 1, 4, 4), 8.0)
    left = torch.tensor([[[-4.0, 0.0, 0.0, 4.0]]])  # the samples of the first row lie at -3.5, -2.5, -1.5 and -0.5
    assert way([flat], left, strides=(1,), size=2).flatten().tolist() == [0.0, 4.0, 0.0, 4.0]
    below = torch.tensor([[[0.0, 2.0, 4.0, 6.0]]])  # 2.5, 3.5, 4.5, 5.5
    assert way([flat], below, strides=(1,), size=2).flatten().tolist() == [8.0, 8.0, 0.0, 0.0]
    # A region smaller than a cell of the map counts as a whole cell: its samples lie at 3.25 to 4.75.
    small = torch.tensor([[[1.0, 3.0, 1.5, 3.1]]])
    torch.testing.assert_close(way([flat], small, strides=(1,), size=1).flatten(), torch.tensor([8.0]))
    corner = torch.tensor([[[1.0, 3.5, 1.5, 3.6]]])
    torch.testing.assert_close(way([flat], corner, strides=(1,), size=1).flatten(), torch.tensor([4.0]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("strides", [(32,), (32, 32), (4, 8, 16, 32), (8, 16)])
@pytest.mark.parametrize("outside", [0.0, 0.4])
def test_equals_torchvision(way: Way, strides: tuple[int, ...], outside: float) -> None:
    maps, regions = _maps(strides), _regions(60, outside=outside)
    num_levels = len(set(strides))
    found = way(maps, regions, strides=strides[:num_levels], size=7)
    # Neighbouring float32 numbers around 80 cells are 8e-6 apart, and values differ by up to 8 from cell to cell.
    torch.testing.assert_close(found, _torchvision(maps, regions), rtol=0, atol=6e-5)
    for static in (False, True):
        torch.testing.assert_close(roi_align(maps, regions, strides=strides, static=static), found, rtol=0, atol=6e-5)


def test_regions_without_area_are_pooled_from_the_finest_map() -> None:
    regions = torch.tensor([[[5.0, 5.0, 5.0, 9.0], [0.0, 0.0, 224.0, 224.0], [0.0, 0.0, 111.9, 111.9],
                             [0.0, 0.0, 320.0, 192.0], [0.0, 0.0, 3000.0, 3000.0]]])
    assert _levels(regions, (4, 8, 16, 32)).tolist() == [[0, 2, 0, 2, 3]]
    for way in WAYS:
        assert bool(way(_maps((4, 8, 16, 32), images=1), regions, strides=(4, 8, 16, 32), size=7).isfinite().all())


def test_gradients_are_equal() -> None:
    gradients = []
    regions = _regions(20)
    maps = [x.requires_grad_() for x in _maps((8, 16))]
    for way in WAYS:
        found = way(maps, regions, strides=(8, 16), size=7)
        gradients.append(torch.autograd.grad(found.square().sum(), maps))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class Pooled(nn.Module):
    """RoIAlign as a module, which is what torch exports."""

    def __init__(self, *, static: bool) -> None:
        super().__init__()
        self.static = static

    def forward(self, fine: Tensor, coarse: Tensor, regions: Tensor) -> Tensor:
        return roi_align((fine, coarse), regions, strides=(16, 32), static=self.static)


def test_exported_strictly_it_gives_the_same_without_torchvisions_kernel() -> None:
    given = (*_maps((16, 32), images=1), _regions(9, images=1))
    exported = torch.export.export(Pooled(static=True), given, strict=True)
    assert "torchvision" not in str(exported.graph)
    other = (*_maps((16, 32), images=1), _regions(9, images=1, outside=0.2))
    for values in (given, other):
        torch.testing.assert_close(exported.module()(*values), Pooled(static=False)(*values), rtol=0, atol=2e-5)


def test_maps_that_are_no_pyramid_fail_an_assertion() -> None:
    with pytest.raises(AssertionError, match=r"\(8, 32\)"):
        roi_align(_maps((8, 32)), _regions(3), strides=(8, 32))
