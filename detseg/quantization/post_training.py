"""A trained network in int8 without more training: ranges of calibration images, equalised channels, corrected biases.

What is changed is kept only where it brings the int8 network's raw outputs closer to those of the float network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from detseg.choices import Ranges
from detseg.model import Predictor
from detseg.quantization.equalization import equalize
from detseg.quantization.packages import quiet
from detseg.quantization.recorded import (
    WEIGHTED,
    Statistics,
    aten,
    attribute,
    bias_name,
    flat,
    float_only,
    is_within,
    layers,
    limits,
    no_range,
    points,
    record,
    remove,
    separate_biases,
    statistics,
    with_histograms,
)
from detseg.structures import Size

_PIXELS = 8 * 320 ** 2
"""Of the images that are computed at once."""
_LEVELS = 255


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network becomes int8.

    Args:
        keep_float: layers that stay in floating point; a name stands for all that it contains.
        per_channel: whether weights have a scale for each output channel.
        ranges: how activations get theirs.
        equalised: whether channels of pairs of layers are brought to one range; None: if that helps.
        corrected: whether biases make up for the mean error of each channel; None: if that helps.
    """

    keep_float: tuple[str, ...] = ()
    per_channel: bool = True
    ranges: Ranges = "minmax"
    equalised: bool | None = None
    corrected: bool | None = None

    @property
    def takes_trained_ranges(self) -> bool:
        """Whether nothing is asked for that goes against the ranges of quantisation-aware training."""
        return self.ranges == "minmax" and not self.equalised and not self.corrected


class Int8Network(NamedTuple):
    """A network with operators that quantise and dequantise."""

    module: fx.GraphModule
    """float [B, 3, H, W] in 0..255 to the raw outputs."""
    recipe: Recipe
    """As it was made."""
    snr: float
    """Signal to quantisation noise of the raw output that has the least, in dB, on calibration images."""


class _Calibrated:
    """A recorded network, and what its operators gave for images."""

    def __init__(self, module: fx.GraphModule, batches: Sequence[Tensor]) -> None:
        self.module, self._batches = module, batches

    @cached_property
    def _plain(self) -> dict[str, Statistics]:
        return statistics(self.module, self._batches)

    @cached_property
    def _detailed(self) -> dict[str, Statistics]:
        return with_histograms(self.module, self._batches, self._plain)

    def statistics(self, ranges: Ranges) -> dict[str, Statistics]:
        """What these ranges are found from; collected when it is first asked for."""
        return self._plain if ranges == "minmax" else self._detailed


class PostTraining:
    """Makes int8 networks of a network.

    Args:
        predictor: trained; it is copied and folded.
        images: for calibration, float [1, 3, H, W] in 0..255 each, all of the size that the network will get.
        fold_weights: whether weights become integers here; else an operator behind the floats makes them.
        sums_in_16_bits: whether weights are made as small as needed for the sum of two products with u8 activations to
            fit into 16 bits, for processors and runtimes that add so.
        trained: ranges of quantisation-aware training, [low, high] by the activation's name, which are taken in place
            of the images'; then nothing is equalised or corrected, for the weights were trained to these.

    ValueError without images.
    """

    def __init__(
        self, predictor: Predictor, images: Sequence[Tensor], *, fold_weights: bool = True,
        sums_in_16_bits: bool = False, trained: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not images:
            raise ValueError("there are no images to calibrate with")
        self.fold_weights, self.sums_in_16_bits, self.trained = fold_weights, sums_in_16_bits, trained
        self.predictor = predictor.folded().to("cpu").to(memory_format=torch.contiguous_format)
        self.size: Size = (images[0].shape[2], images[0].shape[3])
        at_once = max(1, min(16, _PIXELS // (self.size[0] * self.size[1])))
        self.batches = [torch.cat(list(images[k : k + at_once])) for k in range(0, len(images), at_once)]
        self._float = _Calibrated(record(self.predictor, self.size), self.batches)

    @property
    def float_module(self) -> fx.GraphModule:
        """The network as it was recorded."""
        return self._float.module

    def statistics(self, ranges: Ranges = "minmax") -> dict[str, Statistics]:
        """What its operators gave for the calibration images, by the node's name."""
        return self._float.statistics(ranges)

    @property
    def layers(self) -> tuple[str, ...]:
        """Of the network, those with weights."""
        return layers(self.float_module.graph)

    @property
    def float_only(self) -> tuple[str, ...]:
        """Modules that stay in floating point whatever is asked for."""
        found = float_only(self.float_module.graph)
        stage = self.predictor.head.second_stage
        return found if stage is None else (*found, "head.second_stage")

    def check_layers(self, names: Sequence[str]) -> None:
        """ValueError for a name that is of no layer."""
        for name in names:
            if not any(is_within(layer, [name]) for layer in self.layers):
                import difflib

                near = difflib.get_close_matches(name, self.layers, n=3, cutoff=0.3)
                raise ValueError(f"there is no layer {name}; near are {', '.join(near or self.layers[:3])}")

    def quantized(self, recipe: Recipe = Recipe()) -> Int8Network:
        """An int8 network; what the recipe leaves open is tried, and decided by the signal to quantisation noise.
        ValueError where trained ranges are not those of this network."""
        self.check_layers(recipe.keep_float)
        if self.trained is not None:
            return self._made(replace(recipe, equalised=False, corrected=False))
        ways = (False, True) if recipe.equalised is None else (recipe.equalised,)
        if self._equalised is None:
            ways = (False,)
        found = [self._made(replace(recipe, equalised=equalised, corrected=bool(recipe.corrected)))
                 for equalised in ways]
        best = max(found, key=lambda one: one.snr)
        if recipe.corrected is None:
            corrected = self._made(replace(best.recipe, corrected=True))
            best = max(best, corrected, key=lambda one: one.snr)
        return best

    @cached_property
    def _equalised(self) -> _Calibrated | None:
        """None where there is nothing to equalise."""
        predictor = copy.deepcopy(self.predictor)
        if not equalize(predictor, self.float_module.graph, self.statistics()):
            return None
        return _Calibrated(record(predictor, self.size), self.batches)

    def _network(self, recipe: Recipe) -> _Calibrated:
        return (self._equalised if recipe.equalised else None) or self._float

    def _made(self, recipe: Recipe) -> Int8Network:
        module, _ = self.converted(recipe, fold_weights=self.fold_weights)
        if recipe.corrected:
            _correct_biases(module, self._network(recipe).statistics(recipe.ranges), self.batches)
        return Int8Network(module, recipe, self._snr(module))

    def converted(
        self, recipe: Recipe, *, fold_weights: bool = True
    ) -> tuple[fx.GraphModule, dict[str, tuple[float, float]]]:
        """The network with operators that quantise and dequantise, its biases uncorrected, and the ranges of
        activations by the node that gives them."""
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        from detseg.quantization.quantizer import Int8Quantizer, prepared

        network = self._network(recipe)
        nodes = {node.name: node for node in network.module.graph.nodes}
        quantizer = Int8Quantizer(keep_float=recipe.keep_float, per_channel=recipe.per_channel)
        with quiet(), torch.no_grad():
            observed = prepared(copy.deepcopy(network.module), quantizer)
            taken = dict[str, tuple[float, float]]()
            for node in observed.graph.nodes:
                if node.op != "call_module":
                    continue
                observer: Any = observed.get_submodule(str(node.target))
                source = node.args[0]
                if source.op == "get_attr":  # a weight
                    weight = attribute(observed, str(source.target))
                    observer(weight)
                    if self.sums_in_16_bits:
                        factor = sums_factor(weight, observer)
                        observer.min_val, observer.max_val = observer.min_val * factor, observer.max_val * factor
                    continue
                if self.trained is None:
                    found = network.statistics(recipe.ranges)[source.name]
                    low, high = activation_range(nodes[source.name], found, recipe.ranges)
                elif (name := self._names[source.name]) in self.trained:
                    low, high = self.trained[name].tolist()
                    low, high = min(low, 0.0), max(high, 0.0)
                else:
                    raise no_range(name)
                observer.min_val, observer.max_val = torch.tensor(low), torch.tensor(high)
                taken[source.name] = (low, high)
            module: fx.GraphModule = convert_pt2e(observed, fold_quantize=fold_weights)
            allow_exported_model_train_eval(module)
        remove(module, {aten.clone.default})  # see `record`
        separate_biases(module)
        return module, taken

    @cached_property
    def _names(self) -> dict[str, str]:
        """Of activations by the node that gives them, whatever stays in floating point."""
        from detseg.quantization.quantizer import Int8Quantizer, prepared

        observed = prepared(copy.deepcopy(self.float_module), Int8Quantizer())
        return {point.source: name for name, point in points(observed, self.predictor).items()}

    @torch.no_grad()
    def _snr(self, module: fx.GraphModule) -> float:
        batch = self.batches[len(self.batches) // 2]
        return min(snr(wanted, found) for wanted, found in zip(
            flat(self.float_module(batch)), flat(module(batch)), strict=True))


def sums_factor(weight: Tensor, observer: Any) -> Tensor:
    """[out], or a number for a weight with one scale: by what a scale is to be multiplied for no two products of
    neighbouring channels to add up to more than 16 bits hold. x86 without VNNI adds so (vpmaddubsw), and cuts off; not
    in depthwise convolutions."""
    scale, _ = observer.calculate_qparams()
    if weight.shape[1] == 1:
        return torch.ones_like(scale)
    whole = weight / scale.view(-1, *(1,) * (weight.dim() - 1))
    halves = torch.stack([whole.clamp(min=0), (-whole).clamp(min=0)])  # [2, out, in, ...]
    if weight.shape[1] % 2:  # then neighbours can be any two
        sums = halves.flatten(2).topk(2, dim=2).values.sum(2).amax(0)
    else:
        sums = (halves[:, :, 0::2] + halves[:, :, 1::2]).flatten(2).amax((0, 2))
    factor = (sums / _MOST_OF_PAIRS).clamp(min=1.0)
    return factor if scale.numel() > 1 else factor.max()


_MOST_OF_PAIRS = 2 ** 15 / 255 - 1
"""Of two weights of one sign: with activations of 255, and both rounded up."""


def activation_range(node: fx.Node, found: Statistics, ranges: Ranges) -> tuple[float, float]:
    """The smallest and largest number that int8 shall hold of what a node gives, 0 among them."""
    least, most = limits(node)
    low, high = found.range
    low, high = max(min(low, 0.0), least), min(max(high, 0.0), most)
    if ranges == "minmax" or high - low < 1e-9:
        return low, high
    assert found.histogram is not None, "ranges of least error are found from histograms"
    bins = len(found.histogram)
    first, last = found.range
    width = (last - first) / bins
    if width <= 0:
        return low, high
    centres = (first + width * (torch.arange(bins, dtype=torch.float64) + 0.5)).clamp(least, most)
    weights = found.histogram.double()
    best, chosen = math.inf, (low, high)
    for share in torch.linspace(0.3, 1.0, 36).tolist():
        # Each end is brought in alone and both together: an activation with outliers has them mostly on one side.
        for one_low, one_high in ((low * share, high), (low, high * share), (low * share, high * share)):
            step = (one_high - one_low) / _LEVELS
            if step <= 0:
                continue
            outside = (centres - centres.clamp(one_low, one_high)) ** 2
            inside = (centres >= one_low) & (centres <= one_high)
            error = float((weights * torch.where(inside, step ** 2 / 12, outside)).sum())
            if error < best:
                best, chosen = error, (one_low, one_high)
    return chosen


def snr(wanted: Tensor, found: Tensor) -> float:
    """The signal to noise ratio of what was found, in dB."""
    noise = float((wanted.double() - found.double()).square().sum())
    signal = float(wanted.double().square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(max(signal, 1e-30) / noise)


class _BiasCorrection(fx.Interpreter):
    """Runs an int8 network, and takes the mean error of each channel out of the biases as it comes to them."""

    def __init__(self, module: fx.GraphModule, found: Mapping[str, Statistics]) -> None:
        super().__init__(module)
        self.found = found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.target not in WEIGHTED or (name := bias_name(n)) is None or n.name not in self.found:
            return result
        dimensions = [0, 2, 3] if result.dim() == 4 else list(range(result.dim() - 1))
        error = self.found[n.name].mean - result.mean(dimensions)
        owner, _, last = name.rpartition(".")
        module: Any = self.module
        module = module.get_submodule(owner)
        getattr(module, last).add_(error)
        return result + error.view(1, -1, 1, 1) if result.dim() == 4 else result + error


@torch.no_grad()
def _correct_biases(module: fx.GraphModule, found: Mapping[str, Statistics], batches: Sequence[Tensor]) -> None:
    """Means of float come from all images; those of int8 from as many as memory allows at once."""
    _BiasCorrection(module, found).run(batches[0] if len(batches) == 1 else torch.cat(list(batches[:4])))
