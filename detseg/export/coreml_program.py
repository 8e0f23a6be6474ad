"""A Core ML program evaluated operation by operation in torch: what is converted can be compared without Core ML.

It proves the conversion, not Apple's kernels. Half precision is that of weights and casts; what is between is computed
in single precision. The operations are those of coremltools' model intermediate language, by its documentation; others
are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detseg.export.quiet import quiet

Values: TypeAlias = Mapping[str, Any]

_DTYPES = {"fp32": torch.float32, "int32": torch.int32, "int16": torch.int16,
           "int8": torch.int8, "uint8": torch.uint8, "uint16": torch.int32, "bool": torch.bool}


SPEC = Path("Data") / "com.apple.CoreML" / "model.mlmodel"
"""Where a package has its program."""


def read_spec(package: Path) -> Any:
    """The Model of a package; errors are protobuf's own."""
    with quiet():
        from coremltools.proto import Model_pb2
    spec = Model_pb2.Model()
    spec.ParseFromString((package / SPEC).read_bytes())
    return spec


def evaluator(package: Path) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """The saved program of a package as a function of its inputs by name. ValueError for unknown operations."""
    with quiet():
        from coremltools.converters.mil.frontend.milproto.load import load

        spec = read_spec(package)
        program = load(spec, specification_version=spec.specificationVersion,
                       file_weights_dir=str((package / SPEC).with_name("weights")))
    main = program.functions["main"]
    operations = [operation for operation in main.operations if operation.op_type != "const"]
    if unknown := {one.op_type for one in operations} - _OPERATIONS.keys():
        raise ValueError(f"no evaluation is known of {', '.join(sorted(unknown))}")

    @torch.inference_mode()
    def evaluate(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        known: dict[str, Any] = dict(inputs)

        def value(variable: Any) -> Any:
            if isinstance(variable, (list, tuple)):
                return [value(one) for one in variable]
            if variable.name not in known:
                known[variable.name] = variable.val
            return known[variable.name]

        for operation in operations:
            given = {name: value(variable) for name, variable in operation.inputs.items() if variable is not None}
            result = _OPERATIONS[operation.op_type](given | {"shape_out": operation.outputs[0].shape})
            results = result if isinstance(result, (list, tuple)) else [result]
            for variable, one in zip(operation.outputs, results, strict=True):
                known[variable.name] = one
        return {variable.name: _tensor(value(variable)) for variable in main.outputs}

    return evaluate


def _tensor(value: Any) -> Tensor:
    """Constants are numpy's."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.float16): np.float32}.get(array.dtype)
    return torch.from_numpy(array.copy() if wider is None else array.astype(wider))


def _cast(v: Values) -> Tensor:
    x, to = _tensor(v["x"]), str(v["dtype"])
    return x.half().float() if to == "fp16" else x.to(_DTYPES[to])


def _ints(value: Any) -> list[int]:
    return [int(one) for one in np.asarray(value).reshape(-1)]


def _pair(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Values], Tensor]:
    return lambda v: operation(_tensor(v["x"]), _tensor(v["y"]))


def _one(operation: Callable[[Tensor], Tensor]) -> Callable[[Values], Tensor]:
    return lambda v: operation(_tensor(v["x"]))


def _reduced(operation: Callable[..., Tensor]) -> Callable[[Values], Tensor]:
    return lambda v: operation(
        x := _tensor(v["x"]), dim=_ints(v["axes"]), keepdim=bool(v.get("keep_dims", False))).to(x.dtype)


def _padded(v: Values, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], *,
            fill: float) -> Tensor:
    """As `pad_type` says; of "same", what is odd goes behind."""
    kind = str(v["pad_type"])
    if kind == "custom":
        top, bottom, left, right = _ints(v["pad"])
    elif kind == "valid":
        return x
    else:
        sides = []
        for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
            sides += [total - total // 2, total // 2] if kind == "same_lower" else [total // 2, total - total // 2]
        top, bottom, left, right = sides
    return F.pad(x, (left, right, top, bottom), value=fill) if any((top, bottom, left, right)) else x


def _pad(v: Values) -> Tensor:
    """`pad` has a pair for each of the last axes, from the first of them on."""
    sides = _ints(v["pad"])
    if str(v.get("mode", "constant")) != "constant":
        raise ValueError(f"pad with the mode {v['mode']}")
    pairs = [sides[k : k + 2] for k in range(0, len(sides), 2)]
    return F.pad(_tensor(v["x"]), [side for pair in reversed(pairs) for side in pair],
                 value=float(v.get("constant_val", 0.0)))


def _conv(v: Values) -> Tensor:
    x, weight = _tensor(v["x"]), _tensor(v["weight"])
    strides, dilations = _ints(v.get("strides", (1, 1))), _ints(v.get("dilations", (1, 1)))
    x = _padded(v, x, weight.shape[2:], strides, dilations, fill=0.0)
    bias = None if v.get("bias") is None else _tensor(v["bias"])
    return F.conv2d(x, weight, bias, strides, 0, dilations, int(v.get("groups", 1)))


def _pool(v: Values, *, average: bool) -> Tensor:
    x, kernel = _tensor(v["x"]), _ints(v["kernel_sizes"])
    strides = _ints(v.get("strides", (1, 1)))
    if bool(v.get("ceil_mode", False)):
        raise ValueError("pooling with ceil_mode")
    if not average:
        return F.max_pool2d(_padded(v, x, kernel, strides, (1, 1), fill=-torch.inf), kernel, strides)
    pooled = F.avg_pool2d(_padded(v, x, kernel, strides, (1, 1), fill=0.0), kernel, strides)
    if bool(v.get("exclude_padding_from_average", False)):
        counted = F.avg_pool2d(_padded(v, torch.ones_like(x), kernel, strides, (1, 1), fill=0.0), kernel, strides)
        pooled = pooled / counted
    return pooled


def _sliced(v: Values) -> Tensor:
    x = _tensor(v["x"])
    rank = x.dim()
    begin, end = _ints(v["begin"]), _ints(v["end"])
    stride = _ints(v["stride"]) if v.get("stride") is not None else [1] * rank
    masks = [[bool(one) for one in np.asarray(v[name]).reshape(-1)] if v.get(name) is not None else [False] * rank
             for name in ("begin_mask", "end_mask", "squeeze_mask")]
    parts: list[Any] = []
    for axis, (first, last, step) in enumerate(zip(begin, end, stride, strict=True)):
        if masks[2][axis]:
            parts.append(first)
        else:
            parts.append(slice(None if masks[0][axis] else first, None if masks[1][axis] else last, step))
    return x[tuple(parts)]


def _topk(v: Values) -> list[Tensor]:
    found = _tensor(v["x"]).topk(int(v["k"]), dim=int(v.get("axis", -1)), largest=not bool(v.get("ascending", False)))
    indices = found.indices.to(torch.int32)
    return [found.values, indices] if v.get("return_indices") is None or bool(v["return_indices"]) else [found.values]


def _gathered(v: Values) -> Tensor:
    x, indices, axis = _tensor(v["x"]), _tensor(v["indices"]).long(), int(v["axis"])
    if int(v.get("batch_dims", 0)):
        raise ValueError("gather with batch_dims")
    axis %= x.dim()
    found = x.index_select(axis, indices.reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1:])


def _split(v: Values) -> list[Tensor]:
    x, axis = _tensor(v["x"]), int(v["axis"])
    if v.get("split_sizes") is not None:
        return list(torch.split(x, _ints(v["split_sizes"]), axis))
    return list(x.chunk(int(v["num_splits"]), axis))


def _norm(v: Values) -> Tensor:
    return F.batch_norm(_tensor(v["x"]), _tensor(v["mean"]), _tensor(v["variance"]),
                        None if v.get("gamma") is None else _tensor(v["gamma"]),
                        None if v.get("beta") is None else _tensor(v["beta"]), eps=float(v["epsilon"]))


def _layer_norm(v: Values) -> Tensor:
    x, axes = _tensor(v["x"]), _ints(v["axes"])
    mean = x.mean(axes, keepdim=True)
    scaled = (x - mean) / ((x - mean).square().mean(axes, keepdim=True) + float(v["epsilon"])).sqrt()
    gamma, beta = v.get("gamma"), v.get("beta")
    scaled = scaled if gamma is None else scaled * _tensor(gamma)
    return scaled if beta is None else scaled + _tensor(beta)


def _upsampled(v: Values, mode: str) -> Tensor:
    size = [int(side) for side in v["shape_out"][2:]]
    if mode == "nearest":
        return F.interpolate(_tensor(v["x"]), size, mode="nearest")
    return F.interpolate(_tensor(v["x"]), size, mode="bilinear", align_corners=bool(v.get("align_corners", True)))


def _matmul(v: Values) -> Tensor:
    x, y = _tensor(v["x"]), _tensor(v["y"])
    x = x.transpose(-1, -2) if bool(v.get("transpose_x", False)) else x
    y = y.transpose(-1, -2) if bool(v.get("transpose_y", False)) else y
    return x @ y


def _floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


_OPERATIONS: dict[str, Callable[[Values], Any]] = {
    "abs": _one(torch.abs), "add": _pair(torch.add), "avg_pool": lambda v: _pool(v, average=True), "batch_norm": _norm,
    "cast": _cast,
    "clip": lambda v: _tensor(v["x"]).clamp(float(v["alpha"]), float(v["beta"])),
    "concat": lambda v: torch.cat([_tensor(one) for one in v["values"]], int(v["axis"])),
    "conv": _conv, "exp": _one(torch.exp), "erf": _one(torch.erf),
    "expand_dims": lambda v: _tensor(v["x"]).reshape([int(side) for side in v["shape_out"]]),
    "fill": lambda v: torch.full([int(side) for side in v["shape_out"]], v["value"].item()),
    "fill_like": lambda v: torch.full_like(_tensor(v["ref_tensor"]), v["value"].item()),
    "floor": _one(torch.floor), "floor_div": _pair(_floor_div), "gather": _gathered,
    "gather_along_axis": lambda v: _tensor(v["x"]).gather(int(v["axis"]), _tensor(v["indices"]).long()),
    "gelu": lambda v: F.gelu(_tensor(v["x"]), approximate="none" if str(v["mode"]) == "EXACT" else "tanh"),
    "greater": _pair(torch.gt), "greater_equal": _pair(torch.ge), "equal": _pair(torch.eq), "less": _pair(torch.lt),
    "less_equal": _pair(torch.le), "layer_norm": _layer_norm, "pad": _pad,
    "linear": lambda v: F.linear(_tensor(v["x"]), _tensor(v["weight"]),
                                 None if v.get("bias") is None else _tensor(v["bias"])),
    "log": lambda v: (_tensor(v["x"]) + float(v.get("epsilon", 0.0))).log(),
    "logical_and": _pair(torch.logical_and), "logical_not": _one(torch.logical_not),
    "logical_or": _pair(torch.logical_or), "matmul": _matmul, "max_pool": lambda v: _pool(v, average=False),
    "maximum": _pair(torch.maximum), "minimum": _pair(torch.minimum), "mul": _pair(torch.mul),
    "pow": _pair(torch.pow), "real_div": _pair(torch.div), "reduce_max": _reduced(torch.amax),
    "reduce_mean": _reduced(torch.mean), "reduce_sum": _reduced(torch.sum), "relu": _one(F.relu),
    "relu6": _one(F.relu6), "reshape": lambda v: _tensor(v["x"]).reshape([int(side) for side in v["shape_out"]]),
    "rsqrt": lambda v: (_tensor(v["x"]) + float(v.get("epsilon", 0.0))).rsqrt(),
    "select": lambda v: torch.where(_tensor(v["cond"]).bool(), _tensor(v["a"]), _tensor(v["b"])),
    "sigmoid": _one(torch.sigmoid), "silu": _one(F.silu),
    "sigmoid_hard": lambda v: (_tensor(v["x"]) * float(v["alpha"]) + float(v["beta"])).clamp(0.0, 1.0),
    "slice_by_index": _sliced, "softmax": lambda v: _tensor(v["x"]).softmax(int(v["axis"])), "split": _split,
    "sqrt": _one(torch.sqrt), "square": _one(torch.square), "squeeze": lambda v: _tensor(v["x"]).reshape(
        [int(side) for side in v["shape_out"]]),
    "stack": lambda v: torch.stack([_tensor(one) for one in v["values"]], int(v["axis"])),
    "sub": _pair(torch.sub), "tanh": _one(torch.tanh), "tile": lambda v: _tensor(v["x"]).repeat(_ints(v["reps"])),
    "thresholded_relu": lambda v: F.threshold(_tensor(v["x"]), float(v["alpha"]), 0.0),
    "topk": _topk, "transpose": lambda v: _tensor(v["x"]).permute(_ints(v["perm"])),
    "upsample_bilinear": lambda v: _upsampled(v, "bilinear"),
    "upsample_nearest_neighbor": lambda v: _upsampled(v, "nearest"),
}
