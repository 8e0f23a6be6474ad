"""What a backbone promises (detseg/interfaces.py), checked on one of your own.

`CHECKS` holds the checks by name. Each takes a backbone that it may use up, gives what it measured, and raises `Broken`
with what is wrong. `check_backbone` runs them all.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import importlib.util
import inspect
import itertools
import math
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detseg.cost import count_parameters
from detseg.interfaces import Backbone, Features
from detseg.settings import FILE, Value, parameters, parse_value, unknown_name
from detseg.structures import Size

_SIZES: tuple[Size, ...] = ((96, 160), (128, 64), (97, 131), (65, 190))
"""Non-square, and odd ones among them."""

_SMALLEST_MOMENTUM = 1e-3
"""With it, 1000 steps replace 63 % of the initial statistics."""


class Broken(Exception):  # noqa: N818
    """A promise that is not kept; the text says which, with numbers."""


class Finding(NamedTuple):
    """What a check found: what it measured, or what is wrong."""

    check: str
    kept: bool
    text: str

    def __str__(self) -> str:
        return f"{self.check}: ok ({self.text})" if self.kept else f"{self.check}: FAILED: {self.text}"


def check_backbone(backbone: Backbone) -> Iterator[Finding]:
    """Every check, each on a copy of its own."""
    for name, check in CHECKS.items():
        try:
            yield Finding(name, True, check(copy.deepcopy(backbone)))
        except Broken as broken:
            yield Finding(name, False, str(broken))
        except Exception as error:
            # A backbone under test may raise anything; the first line says what.
            first_line = (str(error).strip().splitlines() or [""])[0]
            yield Finding(name, False, f"{type(error).__name__}: {first_line}")


def check_specs(backbone: Backbone) -> str:
    """Promised are a positive number of channels and a stride that is a power of two."""
    if not backbone.specs:
        raise Broken("specs is empty; a backbone has at least one tap")
    for name, (channels, stride) in backbone.specs.items():
        if channels < 1:
            raise Broken(f"{name} has {channels} channels")
        if stride < 1 or stride & (stride - 1):
            raise Broken(f"{name} has stride {stride}, which is no power of two")
    return ", ".join(f"{name}: {channels} at stride {stride}" for name, (channels, stride) in backbone.specs.items())


def check_shapes(backbone: Backbone) -> str:
    """The promised maps come out, with ceil(size / stride) cells, at every size."""
    backbone.eval()
    wrong = []
    for height, width in _SIZES:
        features = _forward(backbone, _images((height, width)))
        if list(features) != list(backbone.specs):
            raise Broken(f"forward gives {', '.join(features) or 'nothing'}, specs promise {', '.join(backbone.specs)}")
        for name, feature in features.items():
            channels, stride = backbone.specs[name]
            promised = [2, channels, math.ceil(height / stride), math.ceil(width / stride)]
            if list(feature.shape) != promised:
                wrong.append(f"{name} at {height} x {width} is {list(feature.shape)}, promised {promised}")
    if wrong:
        raise Broken("; ".join(wrong))
    return "at " + ", ".join(f"{height} x {width}" for height, width in _SIZES)


def check_gradients(backbone: Backbone) -> str:
    """Every parameter learns: nothing is built that no tap depends on, nothing is cut off."""
    backbone.train()
    torch.autograd.backward(_loss(backbone(_images())))
    learning = {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    without = [name for name, parameter in learning.items() if parameter.grad is None]
    if without:
        raise Broken(f"{len(without)} of {len(learning)} parameters get no gradient: {_some(without)}")
    wild = [name for name, parameter in learning.items()
            if parameter.grad is not None and not parameter.grad.isfinite().all()]
    if wild:
        raise Broken(f"{len(wild)} of {len(learning)} parameters get a gradient that is not finite: {_some(wild)}")
    frozen = len(list(backbone.parameters())) - len(learning)
    return f"reach {len(learning)} parameters" + (f", {frozen} are frozen" if frozen else "")


def check_dtypes(backbone: Backbone) -> str:
    """float32 and float64 come out as they go in; under autocast to bfloat16 it runs, in one of the two types."""
    backbone.eval()
    for dtype in (torch.float32, torch.float64):
        for name, feature in _forward(backbone.to(dtype), _images().to(dtype)).items():
            if feature.dtype != dtype:
                raise Broken(f"{name} is {feature.dtype} where images and parameters are {dtype}")
    backbone.float()
    with torch.autocast("cpu", torch.bfloat16):
        features = _forward(backbone, _images())
    for name, feature in features.items():
        if feature.dtype not in (torch.bfloat16, torch.float32) or not feature.isfinite().all():
            raise Broken(f"{name} is {feature.dtype}, {int((~feature.isfinite()).sum())} of {feature.numel()} numbers "
                         "not finite, under autocast to bfloat16")
    under_autocast = {str(feature.dtype).removeprefix("torch.") for feature in features.values()}
    return f"float32, float64; {' and '.join(sorted(under_autocast))} under autocast to bfloat16"


def check_modes(backbone: Backbone) -> str:
    """In evaluation an image gives the same each time, beside whatever other; only training moves statistics."""
    images = _images()
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.eval()
    together, again = _forward(backbone, images), _forward(backbone, images)
    alone = _forward(backbone, images[:1])
    for name in together:
        if not torch.equal(together[name], again[name]):
            raise Broken(f"{name} differs by {_distance(again[name], together[name])} between two runs in evaluation")
        if _distance(alone[name], together[name][:1]) > 1e-4:
            raise Broken(f"{name} of an image differs by {_distance(alone[name], together[name][:1])} when another "
                         "image is beside it in evaluation")
    moved = [name for name, value in backbone.state_dict().items() if not torch.equal(value, state[name])]
    if moved:
        raise Broken(f"{len(moved)} buffers change in evaluation: {_some(moved)}")
    _forward(backbone.train(), images)
    still = [path for path, norm in _batch_norms(backbone)
             if norm.training and norm.running_mean is not None
             and torch.equal(norm.running_mean, state[f"{path}.running_mean"])]
    if still:
        raise Broken(f"{len(still)} BatchNorm statistics do not move in training: {_some(still)}")
    moved = [name for name, value in backbone.state_dict().items() if not torch.equal(value, state[name])]
    return f"evaluation repeats itself; training moves {len(moved)} buffers"


def check_channels_last(backbone: Backbone) -> str:
    """Maps of channels-last images are channels-last: no layer on the way copies to another order."""
    backbone.eval().to(memory_format=torch.channels_last)
    features = _forward(backbone, _images().to(memory_format=torch.channels_last))
    lost = [name for name, feature in features.items()
            if not feature.is_contiguous(memory_format=torch.channels_last)]
    if lost:
        raise Broken(f"{', '.join(lost)}: the maps of channels-last images have strides "
                     f"{', '.join(str(features[name].stride()) for name in lost)}")
    return "kept"


def check_copy(backbone: Backbone) -> str:
    """A deep copy computes the same and shares no memory: averaged weights are one."""
    backbone.eval()
    copied = copy.deepcopy(backbone)
    if copied.specs != backbone.specs:
        raise Broken(f"the copy's specs are {copied.specs}")
    own, there = _storages(backbone), _storages(copied)
    shared = [name for name, place in own.items() if place in there.values()]
    if shared:
        raise Broken(f"{len(shared)} of {len(own)} tensors are shared with the copy: {_some(shared)}")
    before = _forward(backbone, _images())
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    _same(_forward(copied, _images()), before, what="a deep copy, once the original is zeroed,")
    return f"{len(own)} tensors of its own, same maps"


def check_export(backbone: Backbone) -> str:
    """torch.export takes it strictly, and the exported program computes the same."""
    program = _exported(backbone)
    _same(program.module()(_images()[:1]), _forward(backbone, _images()[:1]), what="the exported program")
    return f"strict, {sum(node.op == 'call_function' for node in program.graph.nodes)} operators, same maps"


def check_compile(backbone: Backbone) -> str:
    """torch.compile finds one graph in training, which computes the same."""
    # How often one piece of code is compiled is limited, and what was compiled for other backbones counts.
    torch.compiler.reset()
    maps = []
    for network in (backbone.train(), torch.compile(backbone, fullgraph=True, backend="eager")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            maps.append(network(_images()))
    _same(maps[1], maps[0], what="the compiled network")
    return "no graph breaks, same maps"


def check_batch_norms(backbone: Backbone) -> str:
    """BatchNorms have a momentum with which statistics follow, and it is the same in all."""
    norms = _batch_norms(backbone)
    for path, norm in norms:
        if norm.running_mean is None:
            raise Broken(f"{path} keeps no running statistics: in evaluation it would depend on the batch")
        if norm.momentum is None:
            raise Broken(f"{path} has momentum None, the mean of all batches since the first; give it a number")
        if not _SMALLEST_MOMENTUM <= norm.momentum < 1:
            raise Broken(f"{path} has momentum {norm.momentum}; after 1000 steps its statistics are "
                         f"{(1 - norm.momentum) ** 1000:.0%} those of the beginning. It lies between "
                         f"{_SMALLEST_MOMENTUM} and 1")
    kinds = Counter((norm.momentum, norm.eps) for _, norm in norms)
    told = ", ".join(f"{number} of momentum {momentum:g} and eps {eps:g}"
                     for (momentum, eps), number in kinds.most_common())
    if len(kinds) > 1:
        raise Broken(f"BatchNorms differ: {told}")
    return told or "there are none"


def check_quantises(backbone: Backbone) -> str:
    """Every operator has an 8-bit kernel, or is one of few that may stay in float.

    Judged by the operators' names alone: how good and how fast a quantised network is, only measuring tells.
    """
    program = _exported(backbone).run_decompositions({})
    foreign: dict[str, Counter[str]] = {}
    in_float: Counter[str] = Counter()
    for node in program.graph.nodes:
        operator = str(node.target).removesuffix(".default").split(".")
        name = ".".join(operator[:2])
        if node.op != "call_function" or name in _INTEGER:
            continue
        if name in _FLOAT_BETWEEN:
            in_float[name] += 1
            continue
        stack = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())
        foreign.setdefault(name, Counter())[stack[-1][0] or type(backbone).__name__] += 1
    if foreign:
        raise Broken("no 8-bit kernel for " + "; ".join(
            f"{name} ({sum(places.values())} x, in {_some(list(places))})" for name, places in foreign.items()))
    told = ", ".join(f"{name} {number} x" for name, number in in_float.items())
    return f"8-bit kernels for all but {told}" if told else "8-bit kernels for all operators"


_INTEGER = frozenset(f"aten.{name}" for name in (
    "conv2d", "convolution", "conv_transpose2d", "linear", "addmm", "_native_batch_norm_legit_no_training",
    "add", "mul", "cat", "relu", "hardtanh", "clamp", "max_pool2d", "max_pool2d_with_indices", "mean",
    "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "constant_pad_nd", "pad", "view", "_unsafe_view", "reshape",
    "flatten", "permute", "transpose", "squeeze", "unsqueeze", "slice", "clone", "alias", "expand",
)) | {"<built-in function getitem>"}
"""What runs in 8 bits or only moves numbers: what ExecuTorch's XNNPACKQuantizer annotates (OP_TO_ANNOTATOR and
_is_share_obs_or_fq_op in its backends/xnnpack/quantizer/xnnpack_quantizer_utils.py), what its partitioner takes as
STATIC_QUANT (backends/xnnpack/partition/config/generic_node_configs.py), and BatchNorm, which is folded."""

_FLOAT_BETWEEN = frozenset({"aten.hardswish", "aten.hardsigmoid", "aten.sigmoid", "aten.silu"})
"""Elementwise ones that XNNPACK computes in float between 8-bit neighbours: hardswish and sigmoid are FP32 alone in the
same file, the others come apart into these and listed ones. They cost speed, not the delegate."""

CHECKS: Mapping[str, Callable[[Backbone], str]] = MappingProxyType({
    "specs": check_specs,
    "shapes": check_shapes,
    "gradients": check_gradients,
    "dtypes": check_dtypes,
    "modes": check_modes,
    "channels last": check_channels_last,
    "copy": check_copy,
    "export": check_export,
    "compile": check_compile,
    "batch norms": check_batch_norms,
    "quantises": check_quantises,
})
"""Every check by name, quick ones first."""


def build_backbone(place: str, overrides: Sequence[str] = ()) -> Backbone:
    """The backbone that the function at "module:function" or "path/to/file.py:function" gives.

    overrides: texts "name=value" for its arguments, as in width=0.5. ValueError says what is wrong with one of them, or
    with the function; FileNotFoundError that there is no such file.
    """
    where, _, name = place.rpartition(":")
    if not where or not name:
        raise ValueError(f'a builder is named as "module:function" or "path/to/file.py:function", got {place!r}')
    # As python itself does for a script and for -m.
    sys.path.insert(0, str(Path(where).parent.resolve() if where.endswith(".py") else Path.cwd()))
    try:
        module = _run_file(Path(where)) if where.endswith(".py") else _import(where)
        functions = {known: value for known, value in vars(module).items() if callable(value)}
        if name not in functions:
            near = difflib.get_close_matches(name, functions, n=1)
            raise ValueError(f"{where} has no function {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        arguments = _arguments(functions[name], overrides, place=place)
        try:
            backbone = functions[name](**arguments)
        except Exception as error:
            raise ValueError(f"{place}: {_told(error)}") from error
    finally:
        del sys.path[0]
    if isinstance(backbone, Backbone):
        return backbone
    raise ValueError(f"{place} gives a {type(backbone).__name__}; a backbone derives from detseg.interfaces.Backbone, "
                     "or is cut from any nn.Module by detseg.backbones.taps.tapped")


def title(backbone: Backbone, place: str) -> str:
    """The backbone in a line."""
    return f"{place}: {type(backbone).__name__} with {count_parameters(backbone):,} parameters"


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"the module {name} cannot be imported: {_told(error)}") from error


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"detseg_backbone_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look a module up by its name
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        raise ValueError(f"{path}{f', line {lines[-1]}' if lines else ''}: {_told(error)}") from error
    return module


def _arguments(function: Callable[..., object], overrides: Sequence[str], *, place: str) -> dict[str, Value]:
    """The arguments that the texts mean."""
    signature = inspect.signature(function).parameters.values()
    needed = [known.name for known in signature if known.default is known.empty
              and known.kind not in (known.VAR_POSITIONAL, known.VAR_KEYWORD)]
    if needed:
        raise ValueError(f"{place} needs {', '.join(needed)}; give them defaults, or name a function without arguments "
                         "that calls it")
    defaults = {known.name: known.default for known in signature if known.default is not known.empty}
    entries = parameters(function, keywords=defaults, origin=FILE) if overrides else {}
    values = {}
    for text in overrides:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ValueError(f"--set takes name=value, got {text!r}")
        if name not in entries:
            raise unknown_name(name, entries)
        if not entries[name].kinds:
            raise ValueError(f"{name} is not a number; --set changes numbers, true/false and none only: name a "
                             f"function that calls {place} with it")
        values[name] = parse_value(name, value, kinds=entries[name].kinds)
    return values


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _images(size: Size = (96, 160)) -> Tensor:
    """Two images, the same every time."""
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def _forward(backbone: Backbone, images: Tensor) -> Features:
    with torch.no_grad():
        features: Features = backbone(images)
    return features


def _exported(backbone: Backbone) -> torch.export.ExportedProgram:
    return torch.export.export(backbone.eval(), (_images()[:1],), strict=True)


def _loss(features: Features) -> Tensor:
    return torch.stack([feature.float().square().mean() for feature in features.values()]).sum()


def _batch_norms(backbone: Backbone) -> list[tuple[str, _BatchNorm]]:
    return [(path, module) for path, module in backbone.named_modules() if isinstance(module, _BatchNorm)]


def _storages(module: nn.Module) -> dict[str, int]:
    return {name: value.untyped_storage().data_ptr() for name, value in module.state_dict().items()}


def _same(features: Features, expected: Features, *, what: str) -> None:
    """Broken unless equal up to the order of additions."""
    if list(features) != list(expected):
        raise Broken(f"{what} gives {', '.join(features)}, the backbone {', '.join(expected)}")
    for name, feature in expected.items():
        if not _distance(features[name], feature) <= 1e-4:
            raise Broken(f"{name} of {what} differs by {_distance(features[name], feature):.2g} of the largest number")


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, by the largest number."""
    one, other = one.detach(), other.detach()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


def _some(names: Sequence[str]) -> str:
    return ", ".join(itertools.islice(names, 3)) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
