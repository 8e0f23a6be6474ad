"""Devices and processes: one process and the best device, or what torchrun started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import torch

from detseg.memory import keep_freed_memory

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def launch(precision: str) -> Fabric:
    """Fabric on every GPU of the machine, else on the CPU; under torchrun as torchrun says."""
    # Imported only now: it takes seconds, which whoever evaluates in one process should not wait.
    from lightning.fabric import Fabric

    # Fabric's "auto" takes two processes that torchrun started on a CPU for two runs of one process each.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    keep_freed_memory()
    fabric = Fabric(accelerator="auto", devices=local or "auto", precision=cast(Any, precision),
                    num_nodes=int(os.environ["WORLD_SIZE"]) // local if local else 1)
    fabric.launch()
    return fabric


def evaluation_device() -> tuple[torch.device, bool]:
    """Where this process evaluates, and whether it is the one that talks; under torchrun each takes its share."""
    if "WORLD_SIZE" not in os.environ:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu"), True
    fabric = launch("32-true")
    return fabric.device, fabric.is_global_zero
