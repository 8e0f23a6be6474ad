"""The memory of the tensors that a computation makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory(call: Callable[[], object]) -> int:
    """The most bytes that tensors made during a call hold at one moment of it.

    Counted at every operator from what it gives, so the same on every machine; the resident memory of a process also
    has what its allocator keeps, which depends on what ran before. What a kernel takes and gives back inside is not
    counted, nor what was there before.
    """
    living = _Living()
    with living:
        call()
    return living.peak


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage from the operator that gives it to its end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tree_leaves((args, kwargs))
        before = {leaf.untyped_storage()._cdata for leaf in given if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in before:
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.bytes:
            self.bytes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.bytes.pop(key)
