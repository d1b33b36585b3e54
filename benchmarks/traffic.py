"""Counts what collectives carry: their calls, and bytes that a rank sends in a ring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# torch.distributed's operators -> what this file calls them.
_KINDS = {
    "allreduce_": "all-reduce",
    "_reduce_scatter_base_": "reduce-scatter",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "broadcast_": "broadcast",
    "alltoall_": "all-to-all",
    "send": "send",
}


class Traffic(TorchDispatchMode):
    """All collectives while it is entered, of this library, DistributedDataParallel and FSDP2.

    Attributes:
        calls: kind -> how often, of those that carry more than a few numbers.
        small: the same of those up to 1 KiB: Gram matrices, losses, agreements.
        sent: bytes that a rank sends: (W-1)/W of the whole for a reduce-scatter or an all-gather,
            twice that for an all-reduce; all of it for a send.
    """

    SMALL = 1024

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.small: Counter[str] = Counter()
        self.sent = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            self._count(func._schema.name.split("::")[1], [*args, *(kwargs or {}).values()])
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: Sequence[Any]) -> None:
        kind = _KINDS.get(name)
        if kind is None:
            return
        whole = max(tensor.numel() * tensor.element_size() for tensor in _tensors(args))
        ranks = next(_ranks(arg) for arg in args if _ranks(arg))
        if name == "allgather_":  # into one tensor for each rank
            whole *= ranks
        (self.small if whole <= self.SMALL else self.calls)[kind] += 1
        share = 1 if kind == "send" else (ranks - 1) / ranks
        self.sent += (2 if kind == "all-reduce" else 1) * whole * share


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    found = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, list | tuple):
            found += _tensors(arg)
    return found


def _ranks(arg: Any) -> int:
    """The size of a process group; operators get it as a boxed object."""
    if isinstance(arg, torch.ScriptObject):
        try:
            return dist.ProcessGroup.unbox(arg).size()
        except RuntimeError:  # another object, a reduction for example
            return 0
    return 0
