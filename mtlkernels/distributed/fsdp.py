"""FSDP2: T rows, or the direction itself, out of the .grad that fully_shard's backwards leave.

fully_shard reduces gradients inside each backward and puts them into the .grad of the parameters
that it has sharded, which are no leaves of the graph: `torch.autograd.grad` does not know them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mtlkernels.autograd.backward_errors import explained
from mtlkernels.autograd.backwards import Row, Starts, starts, without_hooks
from mtlkernels.autograd.overlap import needed_later
from mtlkernels.autograd.trial import Trial
from mtlkernels.distributed.grad_rows import rows_of_grad
from mtlkernels.distributed.local_parameters import Held


class FullyShard:
    """The modules of a model that fully_shard has wrapped; none is fine.

    Args:
        module: the model.
    """

    def __init__(self, module: nn.Module) -> None:
        self.modules = [m for m in module.modules() if isinstance(m, FSDPModule)]

    def __bool__(self) -> bool:
        return bool(self.modules)

    def rows(
        self,
        losses: Sequence[Tensor],
        held: Held,
        scale: Tensor | None,
        retain_graph: bool,
        trial: Trial | None = None,
    ) -> list[Row]:
        """T backwards: T lists of this rank's pieces of P gradients.

        trial: compares them with one more backward, of the summed loss.
        held: the sharded parameters. While the model is unsharded, `model.parameters()` are others.
        Until the last backward it stays so, which saves T - 1 all-gathers; after it, it must not,
        as the next forward would not see what the optimizer writes.
        """
        begun = starts(losses, scale)
        passes = [slice(t, t + 1) for t in range(len(losses))]
        later = needed_later(begun.edges)
        if trial is not None:
            passes.append(slice(len(losses)))
            later = [True] * len(losses) + [False]

        def backward(tasks: slice, needed: bool, last: bool) -> None:
            with self._resharding(last), explained():
                torch.autograd.backward(
                    cast(Any, begun.edges[tasks]),
                    begun.seeds[tasks],
                    retain_graph=retain_graph or needed,
                )

        pairs = zip(passes, later, strict=True)
        runs = [partial(backward, own, needed, own is passes[-1]) for own, needed in pairs]
        try:
            rows = rows_of_grad(held, runs)[0]
        finally:
            self.reshard()
        if trial is not None:
            trial.refer_to(rows.pop(), begun.edges)
            trial.add(*rows)
        return rows

    def cotangents(self, begun: Starts, features: Sequence[Tensor]) -> list[Row]:
        """T backwards to C features and no further; the graph stays."""
        rows: list[Row] = []
        try:
            with self._resharding(False), without_hooks(features):
                for edge, seed in zip(begun.edges, begun.seeds, strict=True):
                    found = torch.autograd.grad(
                        cast(Any, [edge]), features, [seed], retain_graph=True, allow_unused=True
                    )
                    rows.append(list(found))
        finally:
            self.reshard()
        return rows

    def backward(
        self,
        begun: Starts,
        weights: Tensor | None,
        retain_graph: bool,
        replaced: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        """One backward of the losses' weighted or plain sum, which adds to .grad.

        replaced: pairs of a feature and the gradient that goes on below it in place of its own.
        """
        seeds = begun.seeds
        if weights is not None:
            pairs = zip(seeds, weights.unbind(), strict=True)
            seeds = [seed * weight.to(seed) for seed, weight in pairs]
        handles = [feature.register_hook(lambda _, c=c: c) for feature, c in replaced]
        try:
            torch.autograd.backward(cast(Any, begun.edges), seeds, retain_graph=retain_graph)
        finally:
            for handle in handles:
                handle.remove()

    def reshard(self) -> None:
        """Frees whole parameters: from now on the sharded ones count."""
        for module in self.modules:
            module.reshard()

    @contextmanager
    def _resharding(self, wanted: bool) -> Iterator[None]:
        for module in self.modules:
            module.set_reshard_after_backward(wanted, recurse=False)
        try:
            yield
        finally:
            for module in self.modules:
                module.set_reshard_after_backward(True, recurse=False)
