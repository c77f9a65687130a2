"""Bytes of all tensors that are alive, counted while operations run: what an allocator would have to give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Inside it every tensor that an operation returns is followed until its storage is freed or emptied."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        """there: what exists already and counts."""
        super().__init__()
        self.storages: dict[int, StorageWeakRef] = {}
        self.peak = 0
        for tensor in there:
            self._follow(tensor)

    def _follow(self, tensor: Tensor) -> None:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        reference = StorageWeakRef(local.untyped_storage())
        self.storages.setdefault(reference.cdata, reference)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        self.peak = max(self.peak, self.now())
        return result

    def now(self) -> int:
        """Bytes of what is alive."""
        total = 0
        for key in list(self.storages):
            storage = torch.UntypedStorage._new_with_weak_ptr(key)
            if storage is None:
                del self.storages[key]
            else:
                total += storage.nbytes()
        return total
