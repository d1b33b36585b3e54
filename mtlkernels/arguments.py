"""What a person gives to `backward`: losses, parameters and options, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from mtlkernels.aggregation import keeps_weights, takes_rows, weighs_losses
from mtlkernels.graph import (
    entries_of_one_join,
    outputs_of_one_compiled_function,
    reentrant_checkpoint,
)

Losses = Mapping[str, Tensor] | Sequence[Tensor] | Tensor


_SAY_IT = (
    "say how the ranks share the model, MTLOptimizer(base, method, module=model) with what "
    "DistributedDataParallel, fully_shard or parallelize_module gave, or process_group= for "
    "replicas without one of them"
)


def named_losses(losses: Losses) -> tuple[tuple[str, ...], list[Tensor]]:
    """The tasks' names and their scalar losses, checked.

    Args:
        losses: a mapping from names, a sequence, or a 1-D tensor of T losses.

    Raises:
        TypeError: not tensors.
        ValueError: none, not scalar, without a graph, or one tensor given twice.
    """
    if losses is None or isinstance(losses, str | float | int):
        raise TypeError(f"losses is a {type(losses).__name__}: give a mapping, a list or a tensor")
    if isinstance(losses, Tensor):
        if losses.dim() != 1:
            raise ValueError(
                f"a tensor of losses must be 1-D with one entry a task, got shape "
                f"{tuple(losses.shape)}"
            )
        losses = losses.unbind()
    if isinstance(losses, Mapping):
        tasks, values = tuple(map(str, losses)), list(losses.values())
    else:
        values = list(losses)
        tasks = tuple(map(str, range(len(values))))
    if not tasks:
        raise ValueError("no losses: give at least one")
    seen: dict[int, str] = {}
    for task, loss in zip(tasks, values, strict=True):
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss {task!r} is a {type(loss).__name__}, not a tensor")
        if loss.numel() != 1:
            raise ValueError(
                f"loss {task!r} has shape {tuple(loss.shape)}: reduce it to a scalar, "
                "for example with .mean()"
            )
        if not loss.requires_grad:
            raise ValueError(
                f"loss {task!r} has no graph: it was computed under no_grad, detached, or from "
                "nothing that requires grad"
            )
        if id(loss) in seen:
            raise ValueError(
                f"losses {seen[id(loss)]!r} and {task!r} are the same tensor: give each task its "
                "own loss, or drop one"
            )
        seen[id(loss)] = task
    return tasks, values


def check_params(params: Sequence[Tensor], sharded: bool = False) -> list[Tensor]:
    """The parameters that require grad; raises where one is not a leaf or stands twice.

    sharded: whether DTensors may be among them.
    """
    kept: list[Tensor] = []
    seen: set[int] = set()
    for i, param in enumerate(params):
        if not isinstance(param, Tensor):
            raise TypeError(f"parameter {i} is a {type(param).__name__}, not a tensor")
        if not sharded and hasattr(param, "device_mesh"):
            raise NotImplementedError(f"parameter {i} is a DTensor: {_SAY_IT}")
        if id(param) in seen:
            raise ValueError(f"parameter {i} stands twice in the list: give each one once")
        seen.add(id(param))
        if not param.requires_grad:
            continue
        if not param.is_leaf:
            raise ValueError(
                f"parameter {i} is the result of an operation, so it has no .grad: "
                "give the model's own parameters"
            )
        kept.append(param)
    if not kept:
        raise ValueError("no parameter requires grad")
    return kept


def refuse_hidden_reach(losses: Sequence[Tensor]) -> None:
    """Raises where a gradient of zeros would make another task's head pass for shared."""
    if len(losses) < 2:
        return
    if outputs_of_one_compiled_function(losses):
        raise ValueError(
            "the losses come out of a torch.compile'd function, which reports a gradient, of "
            "zeros, for every parameter it knows: heads cannot be told from what is shared. Name "
            "the shared parameters with shared="
        )
    if entries_of_one_join(losses):
        raise ValueError(
            "the losses are entries of one tensor that torch.cat or torch.stack put together: each "
            "reaches, with zeros, what all of them reach, so heads cannot be told from what is "
            "shared. Give the losses as they were before, or name the shared parameters with "
            "shared="
        )


def trainable(
    members: Sequence[Tensor], params: Sequence[Tensor], option: str = "shared"
) -> list[Tensor]:
    """Those of an option's parameters that require grad; raises where one is not among params."""
    kept = [param for param in members if param.requires_grad]
    known = {id(param) for param in params}
    if any(id(param) not in known for param in kept):
        raise ValueError(
            f"{option}= names a parameter that is not among the parameters that require grad"
        )
    return kept


def refuse_reentrant_checkpoints(losses: Sequence[Tensor], reached: Sequence[int]) -> None:
    """Raises where parameters that no loss seems to reach may stand inside one.

    reached: P numbers, how many of the losses reach each parameter.
    """
    if 0 in reached and not torch.compiler.is_compiling() and reentrant_checkpoint(losses):
        raise ValueError(
            "a loss goes through torch.utils.checkpoint with use_reentrant=True, whose parameters "
            "per-task backwards do not reach: set use_reentrant=False"
        )


def shared_positions(
    reached: Sequence[int], tasks: int, params: Sequence[Tensor], shared: Sequence[Tensor] | None
) -> set[int]:
    """Positions of the parameters to balance: those named, or those that two losses reach.

    Args:
        reached: P numbers, how many of the losses reach each parameter, counted up to 2 at least.
        tasks: T; of one loss, all that it reaches is to be balanced.
        params: P parameters.
        shared: those that were named, if any.

    Raises:
        ValueError: there is none.
    """
    if shared is None:
        found = {p for p, count in enumerate(reached) if count >= min(2, tasks)}
        if not found:
            raise ValueError(
                "no parameter is shared: no two losses reach the same one, so there is nothing to "
                "balance. Use sum(losses).backward(), or name the parameters with shared="
            )
        return found
    place = {id(param): p for p, param in enumerate(params)}
    found = {place[id(param)] for param in trainable(shared, params)}
    if not any(reached[p] for p in found):
        raise ValueError("no loss reaches any of the parameters that shared= names")
    return found


def several_ranks() -> bool:
    """Whether torch.distributed runs more than one."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size() > 1


def refuse_several_ranks() -> None:
    """Per-task gradients pass DistributedDataParallel's hooks by: ranks would drift apart."""
    if several_ranks():
        raise NotImplementedError(
            f"{torch.distributed.get_world_size()} ranks, and per-task gradients pass their usual "
            f"reduction by, so the ranks would drift apart: {_SAY_IT}"
        )


@dataclass
class Options:
    """How a step is taken; see `mtlkernels.backward` for each. The defaults are its own."""

    shared: Sequence[Tensor] | None = None
    weight_heads: bool = False
    parts: Sequence[Sequence[Tensor]] | None = None
    measure: Sequence[Tensor] | None = None
    apply: Literal["combine", "backward"] = "combine"
    collect: Literal["loop", "batched", "auto"] = "loop"
    rows_dtype: torch.dtype | None = None
    max_norm: float | None = None

    def __post_init__(self) -> None:
        # An iterator, model.parameters() for example, is walked more than once.
        self.shared = None if self.shared is None else list(self.shared)
        self.measure = None if self.measure is None else list(self.measure)
        self.parts = None if self.parts is None else [list(part) for part in self.parts]

    def check(self, method: object, features: bool = False) -> None:
        """Raises ValueError where an option is wrong or the method has no use for it.

        features: whether the method is to weigh gradients of features.
        """
        if self.apply not in ("combine", "backward"):
            raise ValueError(f'apply={self.apply!r}: choose "combine" or "backward"')
        if self.collect not in ("loop", "batched", "auto"):
            raise ValueError(f'collect={self.collect!r}: choose "loop", "batched" or "auto"')
        if self.rows_dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"rows_dtype={self.rows_dtype}: choose torch.bfloat16 or torch.float16, or leave "
                "the rows in their parameters' own dtype"
            )
        if self.max_norm is not None and not 0 < self.max_norm < float("inf"):
            raise ValueError(f"max_norm={self.max_norm}: it must be finite and positive")
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
        if keeps_weights(method) and (refused := sorted(given & {"parts", "max_norm"})):
            raise ValueError(
                f"{refused[0]}= needs a Gram matrix in each step, and {name} reuses weights: leave "
                "one out"
            )
        self._check_together(features)

    def _check_rows(self, weighs: bool, given: set[str], name: str) -> None:
        if self.weight_heads and not weighs:
            raise ValueError(
                f"weight_heads= does not apply to {name}: it has no weights, so heads get their "
                "own losses' gradients"
            )
        refused = sorted(
            given & {"parts", "measure", "features", "apply", "rows_dtype", "max_norm"}
        )
        if refused:
            raise ValueError(
                f"{refused[0]}= does not apply to {name}: it takes whole gradients as they are, "
                "not a Gram matrix"
            )

    def _check_together(self, features: bool) -> None:
        where = "features=" if features else "measure=" if self.measure is not None else None
        if self.weight_heads and self.parts is not None:
            raise ValueError(
                "weight_heads= takes one weight a task, parts= makes one a task and part"
            )
        if features and self.measure is not None:
            raise ValueError("features= and measure= both say what to measure on: choose one")
        if self.parts is not None and (features or self.weighted):
            raise ValueError(
                "parts= makes weights for each part, which no one backward applies: leave out "
                "measure=, features= and apply="
            )
        if where and self.max_norm is not None:
            raise ValueError(
                f"max_norm= is for the length of the direction, which {where} does not know: use "
                "torch.nn.utils.clip_grad_norm_"
            )
        if where and self.collect != "loop":
            raise ValueError(
                f"collect= is for rows over the trunk, and {where} takes none: leave one out"
            )
        if self.rows_dtype is not None and (features or self.weighted):
            raise ValueError(
                "rows_dtype= is for rows that are kept: measure=, features= and apply= keep none"
            )

    @property
    def weighted(self) -> bool:
        """Whether the direction comes from one weighted backward."""
        return self.measure is not None or self.apply == "backward"
