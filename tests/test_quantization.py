"""Networks in int8: what is quantised, with which ranges, and that nothing else changes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from detseg.quantization.equalization import equalize
from detseg.quantization.post_training import PostTraining, Recipe, activation_range, snr, sums_factor
from detseg.quantization.recorded import (
    Statistics,
    attribute,
    bias_name,
    layer_of,
    limits,
    record,
    statistics,
    weight_name,
)
from detseg.quantization.report import layer_report

from . import micro

pytestmark = pytest.mark.filterwarnings("ignore")
WEIGHTED = "aten.conv2d.default"


def images(number: int = 4) -> list[Tensor]:
    return list(torch.split(micro.inputs(micro.scenes(number, seed=3), micro.SIZE), 1))


@pytest.fixture(scope="module")
def lraspp() -> PostTraining:
    predictor, _ = micro.network("lraspp")
    return PostTraining(predictor, images())


def found(*values: float) -> Statistics:
    x = torch.tensor(values)
    return Statistics(x.min()[None], x.max()[None], x.mean()[None], torch.histc(x, 64, float(x.min()), float(x.max())))


def node_before(*activations: object) -> fx.Node:
    """The node that these activations take."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    for activation in activations:
        graph.call_function(activation, (x,))  # type: ignore[arg-type]
    return x


def test_the_signal_to_noise_ratio_of_a_tenth_is_twenty_decibels() -> None:
    x = torch.ones(8)
    assert snr(x, 0.9 * x) == pytest.approx(20.0, abs=1e-4)
    assert snr(x, x) == math.inf


def test_a_range_holds_zero_and_all_that_was_seen() -> None:
    plain = node_before(torch.ops.aten.relu.default)
    assert activation_range(plain, found(2.0, 5.0), "minmax") == (0.0, 5.0)
    assert activation_range(plain, found(-4.0, -1.0), "minmax") == (-4.0, 0.0)


def test_what_h_swish_makes_nothing_of_is_not_held() -> None:
    aten = torch.ops.aten
    assert activation_range(node_before(aten.hardswish_.default), found(-12.0, 9.0), "minmax") == (-3.0, 9.0)
    assert activation_range(node_before(aten.hardsigmoid.default), found(-12.0, 9.0), "minmax") == (-3.0, 3.0)
    assert limits(node_before(aten.hardswish.default, aten.relu.default)) == (-math.inf, math.inf), "another sees it"
    x = torch.linspace(-12, 9, 50)
    assert torch.equal(nn.functional.hardswish(x.clamp(min=-3)), nn.functional.hardswish(x))
    assert torch.equal(nn.functional.hardsigmoid(x.clamp(-3, 3)), nn.functional.hardsigmoid(x))


def test_the_range_of_least_error_leaves_an_outlier_out() -> None:
    values = [*torch.linspace(-1, 1, 5000).tolist(), 300.0]
    low, high = activation_range(node_before(), found(*values), "minmax")
    assert high == 300.0
    histogram = torch.zeros(2048)
    histogram[:14] = 1e7
    histogram[-1] = 1.0
    crowd = Statistics(torch.tensor([-1.0]), torch.tensor([300.0]), torch.zeros(1), histogram)
    low, high = activation_range(node_before(), crowd, "mse")
    assert low <= -0.9
    assert high < 150.0


def test_layers_are_called_as_the_network_calls_them(lraspp: PostTraining) -> None:
    assert lraspp.layers
    modules = dict(lraspp.predictor.named_modules())
    assert all(name in modules for name in lraspp.layers)
    with pytest.raises(ValueError, match=r"there is no layer head\.nothing; near are "):
        lraspp.quantized(Recipe(keep_float=("head.nothing",)))


def test_layers_that_are_kept_stay_as_they_are(lraspp: PostTraining) -> None:
    last = lraspp.layers[-1]
    plain = Recipe(equalised=False, corrected=False)
    whole = lraspp.quantized(plain).module
    kept = lraspp.quantized(Recipe(keep_float=(last,), equalised=False, corrected=False)).module

    def quantised(module: fx.GraphModule) -> set[str]:
        return {layer_of(node) for node in module.graph.nodes if str(node.target) == WEIGHTED
                and "dequantize" in str(node.args[1].target)}

    assert quantised(whole) == set(lraspp.layers)
    assert quantised(kept) == set(lraspp.layers) - {last}
    everything = lraspp.quantized(Recipe(keep_float=("backbone", "head"), equalised=False, corrected=False))
    assert quantised(everything.module) == set()
    assert everything.snr > 100


def test_it_is_close_to_the_network(lraspp: PostTraining) -> None:
    assert lraspp.quantized().snr > 20


def test_the_network_given_is_left_as_it_was() -> None:
    predictor, _ = micro.network("lraspp")
    before = {name: tensor.clone() for name, tensor in predictor.state_dict().items()}
    PostTraining(predictor, images()).quantized(Recipe(equalised=True, corrected=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in predictor.state_dict().items())


def test_without_images_nothing_is_calibrated() -> None:
    predictor, _ = micro.network("lraspp")
    with pytest.raises(ValueError, match="there are no images to calibrate with"):
        PostTraining(predictor, [])


class Chain(nn.Module):
    """Convolutions whose channels can be spread without changing what they compute."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.resize = None
        self.expand, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project, self.first, self.second = nn.Conv2d(8, 4, 1), activation, copy.deepcopy(activation)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.project(self.second(self.depthwise(self.first(self.expand(images / 255)))))
        return x

    def spread(self) -> None:
        """Channels of the first layer get factors that the second takes back."""
        factors = torch.logspace(-1.5, 1.5, 8)
        with torch.no_grad():
            self.expand.weight.mul_(factors.view(8, 1, 1, 1))
            self.expand.bias.mul_(factors)  # type: ignore[union-attr]
            self.depthwise.weight.div_(factors.view(8, 1, 1, 1))


@torch.no_grad()
def equalised(network: Chain, x: Tensor) -> tuple[int, float, float]:
    """How many pairs were scaled, and by how much the channels of the first layer's output differ before and then."""
    spread = ratio(network, x)
    module = record(network, (8, 12))  # type: ignore[arg-type]
    seen = statistics(module, [x])
    before = network(x)
    number = equalize(network, module.graph, seen)
    assert torch.allclose(network(x), before, atol=1e-5)
    return number, spread, ratio(network, x)


def ratio(network: Chain, x: Tensor) -> float:
    highs = network.first(network.expand(x / 255)).amax((0, 2, 3))
    return float(highs.max() / highs[highs > 1e-6].min())


def test_equalisation_undoes_a_spread_behind_relu() -> None:
    x = torch.rand(2, 3, 8, 12) * 255
    network = Chain(nn.ReLU())
    network.spread()
    number, before, after = equalised(network, x)
    assert number == 2
    assert before > 64
    assert after == pytest.approx(before / 32, rel=1e-3), "no channel gets a factor of more than 32"


def test_equalisation_does_not_bring_a_channel_over_relu6_s_limit() -> None:
    x = torch.rand(2, 3, 8, 12) * 255
    network = Chain(nn.ReLU6())
    number, *_ = equalised(network, x)
    assert number > 0
    assert float(network.expand(x / 255).max()) < 6


def test_equalisation_leaves_h_swish_alone() -> None:
    assert equalised(Chain(nn.Hardswish()), torch.rand(2, 3, 8, 12) * 255)[0] == 0


def test_per_tensor_weights_are_a_disaster_where_channels_are_spread() -> None:
    """The same function; only the scales of its weights suffer."""
    predictor, _ = micro.network("ssdlite")
    folded = predictor.folded()
    plain = Recipe(per_channel=False, equalised=False, corrected=False)
    before = PostTraining(folded, images()).quantized(plain).snr
    conv = next(module for module in folded.head.modules() if isinstance(module, nn.Conv2d) and module.groups > 1)
    behind = _pointwise_behind(folded.head, conv)
    factors = torch.logspace(-2, 0, conv.out_channels)
    with torch.no_grad():
        conv.weight.mul_(factors.view(-1, 1, 1, 1))
        conv.bias.mul_(factors)  # type: ignore[union-attr]
        behind.weight.div_(factors.view(1, -1, 1, 1))
    spread = PostTraining(folded, images())
    assert spread.quantized(plain).snr < before - 6
    assert spread.quantized(Recipe(equalised=False, corrected=False)).snr > spread.quantized(plain).snr + 3
    worst = layer_report(spread, plain).worst[0]
    assert worst.cause.startswith("wide depthwise spread: the weights of one channel are ")
    assert worst.remedy == "a scale for each channel, Recipe(per_channel=True)"
    held = layer_report(spread, replace(plain, per_channel=True))
    assert not any("the weights of one channel" in layer.cause for layer in held.worst)


def _pointwise_behind(head: nn.Module, conv: nn.Conv2d) -> nn.Conv2d:
    convolutions = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    behind = convolutions[convolutions.index(conv) + 1]
    assert behind.groups == 1
    return behind


def test_the_layer_report_finds_the_layer_that_was_spoilt() -> None:
    predictor, _ = micro.network("lraspp")
    folded = predictor.folded()
    network = PostTraining(folded, images())
    plain = Recipe(equalised=False, corrected=False)
    report = layer_report(network, plain)
    assert {layer.name for layer in report.layers} == set(network.layers)
    assert report.order[0] == report.worst[0].name
    assert all(layer.cause and layer.remedy for layer in report.worst)
    assert all(layer.alone >= layer.accumulated - 40 for layer in report.layers)
    kept = layer_report(network, Recipe(keep_float=(report.order[0],), equalised=False, corrected=False))
    assert report.order[0] not in kept.order
    assert len(report.notes()) == min(5, len(report.layers))
    assert report.table(number=3).row_count == min(3, len(report.layers))


def test_what_quantises_a_layer_costs_less_than_all() -> None:
    predictor, _ = micro.network("ssdlite")
    network = PostTraining(predictor, images())
    plain = Recipe(equalised=False, corrected=False)
    report = layer_report(network, plain)
    whole = network.quantized(plain).snr
    assert min(layer.alone for layer in report.layers) > whole - 3
    heads = [layer for layer in report.layers if layer.name.startswith("head.")]
    assert heads
    assert all(layer.int8_low <= 0 <= layer.int8_high for layer in report.layers)


def test_boxes_and_scores_have_scales_of_their_own() -> None:
    """No quantised operator lies between the maps and where they are put together."""
    predictor, _ = micro.network("ssdlite")
    module = PostTraining(predictor, images()).quantized(Recipe(equalised=False, corrected=False)).module
    shared = [node for node in module.graph.nodes if str(node.target) in ("aten.cat.default", "aten.stack.default")]
    for node in shared:
        assert not any("quantize_per_tensor" in str(user.target) and "de" not in str(user.target)
                       for user in node.users), node


def test_a_convolution_that_maps_share_has_a_bias_for_each() -> None:
    """As integers they have other scales, and what is to be corrected is another error on each map."""
    predictor, _ = micro.network("panlite")
    network = PostTraining(predictor, images())
    shared = biases(network.float_module)
    module = network.quantized(Recipe(equalised=False, corrected=True)).module
    own = biases(module)
    assert len(set(shared.values())) < len(shared) == len(set(own.values()))
    means, found = network.statistics(), statistics(module, network.batches)
    classifiers = [node for node, name in own.items() if "head.classify" in name]
    assert len(classifiers) == len(predictor.backbone.specs)
    for node in classifiers:
        torch.testing.assert_close(found[node].mean, means[node].mean, atol=1e-4, rtol=1e-3)


def biases(module: fx.GraphModule) -> dict[str, str]:
    """The name of the bias of each convolution that has one."""
    return {node.name: name for node in module.graph.nodes
            if str(node.target) == WEIGHTED and (name := bias_name(node)) is not None}


def test_zeros_that_make_a_map_larger_are_not_quantised() -> None:
    predictor, _ = micro.network("deeplabv3")
    module = PostTraining(predictor, images()).quantized(Recipe(equalised=False, corrected=False)).module
    zeros = [node for node in module.graph.nodes if str(node.target) == "aten.zeros_like.default"]
    assert zeros
    assert not any("quantize" in str(user.target) for node in zeros for user in node.users)


def test_a_weight_is_found_by_its_name(lraspp: PostTraining) -> None:
    node = next(node for node in lraspp.float_module.graph.nodes if str(node.target) == WEIGHTED)
    assert attribute(lraspp.float_module, weight_name(node)).dim() == 4


@pytest.mark.parametrize("channels", [4, 5])
@pytest.mark.parametrize("sign", [1, -1])
def test_by_what_scales_grow_for_sums(channels: int, sign: int) -> None:
    """Neighbours are 127 and 100 of 127 in the first output, of other signs in the second; of an odd number any two."""
    from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver

    weight = torch.zeros(2, channels, 1, 1)
    weight[0, 2:4, 0, 0] = torch.tensor([127.0, 100.0])
    weight[1, 2:4, 0, 0] = torch.tensor([127.0, -100.0])
    observer = PerChannelMinMaxObserver(dtype=torch.int8, quant_min=-127, quant_max=127,
                                        qscheme=torch.per_channel_symmetric)
    observer(sign * weight)
    factor = sums_factor(sign * weight, observer)
    assert factor[0] == pytest.approx(227 / (2 ** 15 / 255 - 1))
    assert factor[1] == (1 if channels == 4 else pytest.approx(1.0))


def test_weights_whose_products_add_up_in_sixteen_bits() -> None:
    predictor, _ = micro.network("ssdlite")
    with torch.no_grad():
        for module in predictor.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.abs_()
    for narrow in (False, True):
        made = PostTraining(predictor, images(2), sums_in_16_bits=narrow).quantized(
            Recipe(equalised=False, corrected=False))
        whole = {name: tensor for name, tensor in made.module.named_buffers() if tensor.dtype == torch.int8}
        dense = [tensor for tensor in whole.values() if tensor.dim() == 4 and tensor.shape[1] > 1]
        depthwise = [tensor for tensor in whole.values() if tensor.dim() == 4 and tensor.shape[1] == 1]
        assert dense
        assert all(int(tensor.abs().max()) == 127 for tensor in depthwise)
        most = max(255 * int((tensor[:, 0::2].int()[:, : tensor.shape[1] // 2] + tensor[:, 1::2].int()).max())
                   for tensor in dense)
        assert (most < 2 ** 15) == narrow
