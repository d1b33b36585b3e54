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
from mtlkernels.engine.rules import refuse


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
        refuse(self.words(method, features), method)
        if self.parts is not None:
            tell_parts(method, len(self.parts))

    def words(self, method: object, features: bool = False) -> set[str]:
        """What is asked for, in the words of the rules in `RULES`."""
        words = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        facts = {
            "features": features,
            "ghost": self.collect == "ghost",
            "loss method": weighs_losses(method),
            "row method": takes_rows(method),
            "no weights": takes_rows(method) and not method.weighs,
            "weights by part": self.parts is not None and takes_parts(method),
            "every": keeps_weights(method),
            "every of heads": keeps_weights(method) and hasattr(method, "heads"),
            "every, plain heads": keeps_weights(method) and not self.weight_heads,
        }
        return words | {word for word, holds in facts.items() if holds}

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
    refuse(options.words(method), method, "accumulate")
