"""How a step is taken, and what goes with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from mtlkernels.aggregation.families import (
    AnyMethod,
    check_method,
    keeps_weights,
    takes_rows,
    tell_parts,
    weighs_losses,
)
from mtlkernels.aggregation.weighting import takes_parts
from mtlkernels.engine.parameters import check_list, check_params, refuse_hidden_reach, trainable


@dataclass
class Options:
    """How a step is taken; see `mtlkernels.backward` for each. The defaults are its own."""

    shared: Sequence[Tensor] | None = None
    weight_heads: bool = False
    parts: Sequence[Sequence[Tensor]] | None = None
    measure: Sequence[Tensor] | None = None
    apply: Literal["combine", "backward"] = "combine"
    collect: Literal["loop", "batched", "ghost"] = "loop"
    rows_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("shared", "measure"):
            check_list(getattr(self, name), f"{name}=")
        # An iterator, model.parameters() for example, is walked more than once.
        self.shared = None if self.shared is None else list(self.shared)
        self.measure = None if self.measure is None else list(self.measure)
        self.parts = None if self.parts is None else [list(part) for part in self.parts]
        self._passed: tuple[object, bool] = None, False  # what `check` has let pass last

    def check(self, method: object, features: bool = False) -> None:
        """Raises ValueError where an option is wrong or the method has no use for it.

        features: whether the method is to weigh gradients of features.
        """
        known, with_features = self._passed
        if known is method and with_features == features:
            return
        self._check(method, features)
        if not torch.compiler.is_compiling():  # a graph would be traced again for it
            self._passed = method, features

    def _check(self, method: object, features: bool) -> None:
        if self.apply not in ("combine", "backward"):
            raise ValueError(f'apply={self.apply!r}: choose "combine" or "backward"')
        if self.collect not in ("loop", "batched", "ghost"):
            raise ValueError(f'collect={self.collect!r}: choose "loop", "batched" or "ghost"')
        if self.rows_dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"rows_dtype={self.rows_dtype}: choose torch.bfloat16 or torch.float16, or leave "
                "the rows in their parameters' own dtype"
            )
        given = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        given |= {"features"} if features else set()
        name = type(method).__name__
        if weighs_losses(method) and given:
            raise ValueError(
                f"{min(given)}= does not apply to {name}: a loss method weighs whole losses, and "
                "so every parameter that they reach, heads too, in one backward"
            )
        if takes_rows(method):
            self._check_rows(method.weighs, given, name)
        if keeps_weights(method) and "parts" in given:
            raise ValueError(
                f"parts= needs a Gram matrix in each step, and {name} reuses weights: leave one out"
            )
        if self.parts is not None:
            self._check_parts(method, features)
        self._check_together(features)
        if self.parts is not None:
            tell_parts(method, len(self.parts))

    def _check_rows(self, weighs: bool, given: set[str], name: str) -> None:
        if self.weight_heads and not weighs:
            raise ValueError(
                f"weight_heads= does not apply to {name}: it has no weights, so heads get their "
                "own losses' gradients"
            )
        refused = sorted(given & {"parts", "measure", "features", "apply", "rows_dtype"})
        refused += ["collect"] if self.collect == "ghost" else []
        if refused:
            raise ValueError(
                f"{refused[0]}= does not apply to {name}: it takes whole gradients as they are, "
                "not a Gram matrix"
            )

    def _check_parts(self, method: object, features: bool) -> None:
        if features or self.weighted:
            raise ValueError(
                "parts= needs the task gradients of each part: leave out measure=, features=, "
                'apply= and collect="ghost", which store none'
            )
        if takes_parts(method) and self.weight_heads:
            raise ValueError(
                f"weight_heads= needs one weight a task, and {type(method).__name__} has one a "
                "task and part: leave it out"
            )

    def _check_together(self, features: bool) -> None:
        where = "features=" if features else "measure=" if self.measure is not None else None
        if features and self.measure is not None:
            raise ValueError("features= and measure= both say what to measure on: choose one")
        if self.collect == "ghost" and self.apply != "combine":
            raise ValueError(
                'collect="ghost" already takes one weighted backward: leave out apply="backward", '
                "which finds K in another way"
            )
        if where and self.collect != "loop":
            raise ValueError(
                f"collect= is for rows over the trunk, and {where} takes none: leave one out"
            )
        if self.rows_dtype is not None and (features or self.weighted):
            raise ValueError(
                "rows_dtype= is for rows that are kept: measure=, features=, apply= and "
                'collect="ghost" keep none'
            )

    def of_plain_step(self) -> Options:
        """What is left of them in a step of one task: its gradient is all, in one backward."""
        return Options()

    @property
    def weighted(self) -> bool:
        """Whether the direction comes from one weighted backward."""
        return self.measure is not None or self.apply == "backward" or self.collect == "ghost"


def check_step(
    losses: Sequence[Tensor],
    params: Sequence[Tensor],
    method: AnyMethod,
    options: Options,
    features: bool,
    sharded: bool = False,
) -> list[Tensor]:
    """The parameters that require grad; raises where something does not fit.

    sharded: whether DTensors may be among them.
    """
    kept = check_params(params, sharded)
    check_method(method)
    options.check(method, features)
    if weighs_losses(method):
        return kept
    if options.measure is not None:
        trainable(options.measure, kept, "measure")
    if options.shared is None:
        if not torch.compiler.is_compiling():  # torch.compile has no autograd graph to look at
            refuse_hidden_reach(losses)
    else:
        trainable(options.shared, kept)
    return kept


def check_keeps_rows(method: AnyMethod, options: Options) -> None:
    """Raises ValueError where there would be no rows to accumulate."""
    if weighs_losses(method) or options.weighted or keeps_weights(method):
        who = 'measure=, apply= or collect="ghost"' if options.weighted else type(method).__name__
        raise ValueError(
            f"accumulate= adds up the task gradients of micro-batches, and {who} stores none: "
            "leave it out, so that each micro-batch is weighed on its own"
        )
    if options.rows_dtype is not None:
        raise ValueError(
            "accumulate= adds up task gradients, which 16 bits would round each time: leave out "
            "rows_dtype="
        )
