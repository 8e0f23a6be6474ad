"""Any trunk as a backbone: timm's, torchvision's or your own `nn.Module`, cut at named modules.

    trunk = timm.create_model("mobilenetv3_large_100", pretrained=True)
    backbone = tapped(trunk, {"c4": "blocks.4", "c5": "blocks.6"})

torch.fx records how the trunk calls its modules, down to the tapped ones and no further: all others run whole, as they
are, so that they follow their mode and need not be recordable. torchvision's `create_feature_extractor` records the
inside of other libraries' BatchNorms and random layers too, as they behave in one mode; forward hooks, and timm's, run
or keep what lies behind the last tap, and break graphs.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detseg.interfaces import Backbone, Features, FeatureSpec
from detseg.structures import Size

_STRIDES = tuple(2**n for n in range(8))
"""What a feature's stride can be; a coarser map was pooled."""


class TappedTrunk(Backbone):
    """A trunk up to its last tap, under the trunk's own parameter names; `tapped` makes it."""

    def __init__(self, graph: fx.GraphModule, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.specs = dict(specs)
        # The graph's content moves here and its code with it: held as a submodule, it would lengthen every name.
        lasting = graph.state_dict().keys()
        for name, child in graph.named_children():
            self.add_module(name, child)
        for name, parameter in graph.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in graph.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name in lasting)
        self._run: Callable[[nn.Module, Tensor], Features] = type(graph).forward

    def forward(self, images: Tensor) -> Features:
        """Normalised images float [B, 3, H, W] to one map per tap."""
        return self._run(self, images)

    def fold(self) -> None:
        """Moves the BatchNorms into the convolutions before them, for inference: same outputs up to rounding.

        In evaluation mode. Which belong together is recorded down to the single layers; a trunk of which that cannot
        be recorded keeps its BatchNorms.
        """
        for conv_path, norm_path in _foldable(self):
            conv, norm = self.get_submodule(conv_path), self.get_submodule(norm_path)
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            rest = _behind_normalising(norm)
            if rest is not None:
                self.set_submodule(conv_path, fuse_conv_bn_eval(conv, norm))
                self.set_submodule(norm_path, rest)


def tapped(module: nn.Module, taps: Mapping[str, str], *, size: Size = (320, 320)) -> TappedTrunk:
    """A copy of the trunk `module` that gives what the modules named in `taps` give; nothing behind the last is kept.

    taps: from the name of a feature here ("c4", or any text) to the path of the module in the trunk ("blocks.4"), which
    must run once in a forward and give one tensor [B, C, H, W]. size: of the images that the network will see.
    Channels and strides are measured there and at a larger size, and the features compared with the trunk's, in
    training and in evaluation. `detseg check-backbone` tells what becomes of other sizes.

    ValueError where a module does not exist, where the way to it cannot be recorded, and where what it gives is no
    feature.
    """
    _check_paths(module, taps)
    larger = (size[0] + 64, size[1] + 32)
    views = [_View(module, one, training=training) for one, training in ((size, False), (larger, False), (size, True))]
    expected = [view.watch(module, taps) for view in views]
    specs = {name: _measure(name, path, [(view.size, found[name]) for view, found in zip(views, expected, strict=True)])
             for name, path in taps.items()}
    trunk = TappedTrunk(_cut(module, taps), specs)
    differing = _differences(trunk, views, expected)
    if differing:
        # A layer behind the tap may work in place: the tap is then copied before it.
        trunk = TappedTrunk(_cut(module, taps, copied=differing), specs)
        for name, mode in _differences(trunk, views, expected).items():
            raise ValueError(
                f"tap {name!r} cannot be cut: recorded in evaluation, {taps[name]!r} gives something else than in the "
                f"whole trunk in {mode}. Perhaps a module around it asks for its mode itself (F.dropout(..., "
                "training=self.training)): give it an nn.Dropout, or tap a module further out")
    return trunk.train(module.training)


def _check_paths(module: nn.Module, taps: Mapping[str, str]) -> None:
    if not taps:
        raise ValueError('at least one tap is needed, as in {"c4": "blocks.4", "c5": "blocks.6"}')
    known = [path for path, _ in module.named_modules() if path]
    for name, path in taps.items():
        if path not in known:
            near = ", ".join(difflib.get_close_matches(path, known, n=3, cutoff=0.0))
            raise ValueError(f"tap {name!r}: {type(module).__name__} has no module {path!r}; the nearest are {near}")


class _View:
    """How a trunk is looked at: random images of one size, in one mode."""

    def __init__(self, module: nn.Module, size: Size, *, training: bool) -> None:
        self.size, self.training = size, training
        noise = torch.randn(2 if training else 1, 3, *size, generator=torch.Generator().manual_seed(0), device="cpu")
        like = next(module.parameters(), None)
        self.images = noise if like is None else noise.to(like)

    def watch(self, module: nn.Module, taps: Mapping[str, str]) -> dict[str, Any]:
        """What the tapped modules give in a forward of the whole trunk, as it is when they give it. A copy is run."""
        copied = copy.deepcopy(module)
        found: dict[str, Any] = {}
        runs: Counter[str] = Counter()
        for path in set(taps.values()):
            def note(_module: nn.Module, _inputs: Any, output: Any, path: str = path) -> None:
                runs[path] += 1
                found[path] = output.clone() if isinstance(output, Tensor) else output

            copied.get_submodule(path).register_forward_hook(note)
        try:
            self.forward(copied)
        except Exception as error:
            # What fails behind the last tap (a classifier for one size) is not kept.
            if len(found) < len(set(taps.values())):
                raise ValueError(
                    f"{type(module).__name__} does not run on images {list(self.images.shape)}; it must take this size "
                    f"and others:\n{type(error).__name__}: {error}") from error
        for name, path in taps.items():
            if runs[path] != 1:
                raise ValueError(f"tap {name!r}: the module {path!r} runs {runs[path]} times in a forward, it must run "
                                 "once; tap the block around it")
        return {name: found[path] for name, path in taps.items()}

    def forward(self, module: nn.Module) -> Any:
        """With the same random numbers every time, and without taking any from whoever calls."""
        device = self.images.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(0)
            return module.train(self.training)(self.images)


def _differences(trunk: TappedTrunk, views: Sequence[_View], expected: Sequence[Features]) -> dict[str, str]:
    """The taps at which the trunk gives something else, and in which mode."""
    wrong = {}
    for view, wanted in zip(views, expected, strict=True):
        features = view.forward(copy.deepcopy(trunk))
        for name, feature in wanted.items():
            if not _close(features[name], feature):
                wrong[name] = "training" if view.training else "evaluation"
    return wrong


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to the order of additions; without numbers (on the device "meta") taken for equal."""
    if one.is_meta:
        return one.shape == other.shape
    return torch.allclose(one, other, rtol=0, atol=1e-4 * float(other.abs().max()), equal_nan=True)


def _measure(name: str, path: str, found: Sequence[tuple[Size, Any]]) -> FeatureSpec:
    """The spec that is true of what was found at each size."""
    where = f"tap {name!r} (module {path!r})"
    for _, feature in found:
        if not isinstance(feature, Tensor) or feature.dim() != 4:
            what = f"a tensor {list(feature.shape)}" if isinstance(feature, Tensor) else f"a {type(feature).__name__}"
            raise ValueError(f"{where} gives {what}; a feature is one tensor [B, C, H, W]: tap a module around or "
                             "inside it that gives one")
    shapes = {size: tuple(feature.shape[1:]) for size, feature in found}
    told = " and ".join(f"{list(shape)} for {size[0]} x {size[1]} pixels" for size, shape in shapes.items())
    channels = {shape[0] for shape in shapes.values()}
    if len(channels) > 1:
        raise ValueError(f"{where} gives [C, H, W] = {told}; the number of channels must not depend on the size, and "
                         "channels come first")
    for stride in _STRIDES:
        if all(shape[1:] == (-(-size[0] // stride), -(-size[1] // stride)) for size, shape in shapes.items()):
            return FeatureSpec(channels.pop(), stride)
    raise ValueError(f"{where} gives [C, H, W] = {told}; a feature has ceil(size / stride) cells, with a stride of "
                     f"{', '.join(map(str, _STRIDES[:-1]))} or {_STRIDES[-1]}")


def _cut(module: nn.Module, taps: Mapping[str, str], *, copied: Collection[str] = ()) -> fx.GraphModule:
    """A copy of the trunk up to its last tap."""
    trunk = copy.deepcopy(module).eval()
    recorder = _Recorder({name: trunk.get_submodule(path) for name, path in taps.items()}, copied)
    try:
        graph = recorder.trace(trunk)
    except Exception as error:
        inside = recorder.inside
        raise ValueError(
            f"the forward of {type(trunk.get_submodule(inside)).__name__}{f' ({inside!r})' if inside else ''} cannot "
            f"be recorded: {error}\nWhat lies on the way to a tap must not branch on values or sizes: tap a module "
            "further out, which then runs whole, or put what branches into a module of its own") from error
    whole = fx.GraphModule(trunk, graph)
    whole.graph.eliminate_dead_code()
    used = fx.GraphModule(whole, whole.graph)
    # Constants that were recorded become buffers; a state dict holds what the trunk's holds.
    for path in used.state_dict().keys() - trunk.state_dict().keys():
        owner, _, field = path.rpartition(".")
        used.get_submodule(owner).register_buffer(field, used.get_buffer(path), persistent=False)
    return used


class _AllFound(Exception):  # noqa: N818
    """Ends a recording."""


class _Recorder(fx.Tracer):
    """Records a forward until the tapped modules have run; only modules that have one inside are entered."""

    proxy_buffer_attributes = True

    def __init__(self, tapped_modules: Mapping[str, nn.Module], copied: Collection[str]) -> None:
        super().__init__()
        self.tapped_modules, self.copied = tapped_modules, copied
        self.found: dict[str, fx.Proxy] = {}
        self.inside = ""
        """The module that is being entered, where a recording fails."""

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> Any:
        """The images alone; what else a forward takes keeps its default."""
        images = self.create_proxy("placeholder", "images", (), {})
        return lambda *arguments: self._until_found(root_fn, *arguments), [self.root, images]

    def _until_found(self, forward: Callable[..., Any], *arguments: Any) -> dict[str, fx.Proxy]:
        with contextlib.suppress(_AllFound):
            forward(*arguments)
        return {name: self.found[name] for name in self.tapped_modules}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether no tap lies inside."""
        inner = set(m.modules()) - {m}
        return inner.isdisjoint(self.tapped_modules.values())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Also notes the outputs that are tapped."""
        outside = self.inside
        if not self.is_leaf_module(m, ""):
            self.inside = self.path_of_module(m)
        output = super().call_module(m, forward, args, kwargs)
        self.inside = outside
        for name, wanted in self.tapped_modules.items():
            if wanted is m:
                self.found[name] = output.clone() if name in self.copied else output
        if len(self.found) == len(self.tapped_modules):
            raise _AllFound
        return output


class _LayerRecorder(fx.Tracer):
    """Records a forward down to the single layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it has parameters of its own, or nothing inside."""
        return next(m.parameters(recurse=False), None) is not None or next(m.children(), None) is None


def _foldable(module: nn.Module) -> list[tuple[str, str]]:
    """The paths of every convolution that feeds one BatchNorm and nothing else, and of that BatchNorm."""
    try:
        graph = _LayerRecorder().trace(module)
    except Exception:
        return []
    called = [node for node in graph.nodes if node.op == "call_module"]
    calls = Counter(node.target for node in called)
    pairs = []
    for node in called:
        norm, before = module.get_submodule(node.target), node.all_input_nodes
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or len(before) != 1:
            continue
        conv = before[0]
        if (conv.op == "call_module" and isinstance(module.get_submodule(conv.target), nn.Conv2d)
                and len(conv.users) == 1 and calls[conv.target] == calls[node.target] == 1):
            pairs.append((conv.target, node.target))
    return pairs


def _behind_normalising(norm: nn.BatchNorm2d) -> nn.Module | None:
    """What a BatchNorm does behind normalising: nothing, or its children in turn (timm's have an activation). None for
    one that does something else."""
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    rest = nn.Sequential(*norm.children())
    assert norm.running_mean is not None
    x = torch.randn(1, norm.num_features, 5, 7, generator=torch.Generator().manual_seed(0)).to(norm.running_mean)
    plain = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return rest if torch.equal(rest(plain), norm(x)) else None
