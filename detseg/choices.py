"""Named choices that the command line offers, apart from the code that makes them true, which imports torch."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Engine: TypeAlias = Literal["torch", "onnxruntime"]
"""What runs a network's layers: see `detseg.engine`."""
ENGINES: tuple[Engine, ...] = get_args(Engine)

Contract: TypeAlias = Literal["raw", "decoded", "final"]
"""Where an exported file ends: see `detseg.export.contract`."""
CONTRACTS: tuple[Contract, ...] = get_args(Contract)

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
"""What a network's numbers are kept in, where its memory is counted: see `detseg.cost`."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Execution: TypeAlias = Literal["whole", "split"]
"""How inverted bottlenecks are computed: see `detseg.split_execution`."""
EXECUTIONS: tuple[Execution, ...] = get_args(Execution)
PARTS = 4
"""Of a bottleneck that is split, unless another number is asked for."""

Ranges: TypeAlias = Literal["minmax", "mse"]
"""Of int8's activations: all that was seen, or what makes the mean squared error smallest."""
RANGES: tuple[Ranges, ...] = get_args(Ranges)
CALIBRATION_IMAGES = 128
"""From which they are taken, unless another number is asked for."""

METRICS = ("coco", "voc", "top300", "aspect", "crowding", "miou", "averages", "boundary", "edges")
"""Of boxes and of label maps: see `detseg.metrics.together.offered`."""

SHELLS = ("bash", "zsh", "fish")
"""Those that `detseg --print-completion` knows."""
