"""What a person gives to `backward`: losses, parameters and options, checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from mtlkernels.autograd.graph import (
    entries_of_one_join,
    outputs_of_one_compiled_function,
    reentrant_checkpoint,
)


class Fields(Protocol):
    """A dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Losses = Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor | Fields
Run = Callable[[], Tensor | None]
Runs = Mapping[str, Run] | Sequence[Run]

_SAY_IT = (
    "say how the ranks share the model, MTLOptimizer(base, method, module=model) with what "
    "DistributedDataParallel, fully_shard or parallelize_module gave, process_group= for "
    "replicas without one of them, or stages= for those of a pipeline"
)


def entries(losses: Any) -> Any:
    """Losses with names as a dict: of a mapping, a TensorDict, a dataclass or a NamedTuple.

    A TensorDict without batch dimensions has items, and yet iterates over nothing.
    """
    if isinstance(losses, Tensor | dict | list | type):
        return losses
    if isinstance(losses, tuple):
        return (
            dict(zip(losses._fields, losses, strict=True)) if hasattr(losses, "_fields") else losses
        )
    if dataclasses.is_dataclass(losses) and not isinstance(losses, Mapping):
        return {field.name: getattr(losses, field.name) for field in dataclasses.fields(losses)}
    if callable(getattr(losses, "items", None)):
        return dict(losses.items())
    return losses


class Given(NamedTuple):
    """The losses of a step, checked.

    Attributes:
        tasks: T names; of losses without names their numbers.
        named: whether they came with names.
        present: positions of the tasks that have a loss, not None, in this step.
        values: the scalar losses of those.
    """

    tasks: tuple[str, ...]
    named: bool
    present: tuple[int, ...]
    values: list[Tensor]

    @property
    def names(self) -> tuple[str, ...] | int:
        """The names, or where there are none how many tasks there are."""
        return self.tasks if self.named else len(self.tasks)


def given_losses(losses: Losses, with_graph: bool = True) -> Given:
    """The tasks and their scalar losses, checked.

    Args:
        losses: a mapping from names, a TensorDict, a dataclass or NamedTuple of them, a sequence,
            or a 1-D tensor of T losses; None for a task that has no data in this step.
        with_graph: whether each loss must have one.

    Raises:
        TypeError: not real tensors.
        ValueError: none, not scalar, without a graph, or one tensor given twice (which is not
            looked for inside torch.compile: torch 2.11 and 2.12 do not trace id()).
    """
    losses = entries(losses)
    if losses is None or isinstance(losses, str | float | int):
        raise TypeError(f"losses is a {type(losses).__name__}: give a mapping, a list or a tensor")
    if isinstance(losses, Tensor):
        if losses.dim() != 1:
            raise ValueError(
                f"a tensor of losses must be 1-D with one entry a task, got shape "
                f"{tuple(losses.shape)}"
            )
        losses = losses.unbind()
    values: list[Any]
    if isinstance(losses, Mapping):
        tasks, values = tuple(map(str, losses)), list(losses.values())
    else:
        values = list(cast(Sequence[Tensor], losses))
        tasks = tuple(map(str, range(len(values))))
    if not tasks:
        raise ValueError("no losses: give at least one")
    present = tuple(t for t, loss in enumerate(values) if loss is not None)
    if not present:
        raise ValueError(
            f"all {len(tasks)} losses are None: give at least one, or skip a batch that has no "
            "data for any task"
        )
    seen: dict[int, str] = {}
    for t in present:
        task, loss = tasks[t], values[t]
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss {task!r} is a {type(loss).__name__}, not a tensor")
        if loss.is_complex():
            raise TypeError(f"loss {task!r} is complex: give a real one, its .abs() for example")
        if loss.numel() != 1:
            raise ValueError(
                f"loss {task!r} has shape {tuple(loss.shape)}: reduce it to a scalar, "
                "for example with .mean()"
            )
        if with_graph and not loss.requires_grad:
            raise ValueError(
                f"loss {task!r} has no graph: it was computed under no_grad, detached, or from "
                "nothing that requires grad. For a task that has no data in this step, give None"
            )
        if torch.compiler.is_compiling():
            continue
        if loss.grad_fn is not None and loss.grad_fn.name() == "_BalancedSumBackward":
            raise ValueError(
                f"loss {task!r} depends on another balanced loss, whose gradients are written and "
                "not passed on: give the losses themselves"
            )
        if id(loss) in seen:
            raise ValueError(
                f"losses {seen[id(loss)]!r} and {task!r} are the same tensor: give each task its "
                "own loss, or drop one"
            )
        seen[id(loss)] = task
    return Given(tasks, isinstance(losses, Mapping), present, [values[t] for t in present])


def named_losses(losses: Losses) -> tuple[tuple[str, ...], list[Tensor]]:
    """The tasks' names and their scalar losses, checked, where each task has one.

    Raises:
        TypeError, ValueError: as `given_losses`; or a loss is None.
    """
    given = given_losses(losses)
    if len(given.present) < len(given.tasks):
        absent = next(task for t, task in enumerate(given.tasks) if t not in given.present)
        raise TypeError(f"loss {absent!r} is None: give a loss for each task")
    return given.tasks, given.values


def check_list(params: object, name: str) -> None:
    """Raises TypeError for one parameter, or a module, where a list of parameters is expected."""
    if isinstance(params, Tensor | nn.Module):
        raise TypeError(
            f"{name} is a {type(params).__name__}: give a list of parameters, for example "
            "model.encoder.parameters()"
        )


def check_params(params: Sequence[Tensor], sharded: bool = False) -> list[Tensor]:
    """The parameters that require grad; raises where one is not a leaf or stands twice.

    sharded: whether DTensors may be among them.
    """
    check_list(params, "params")
    kept: list[Tensor] = []
    seen: set[int] = set()
    for i, param in enumerate(params):
        if not isinstance(param, Tensor):
            raise TypeError(f"parameter {i} is a {type(param).__name__}, not a tensor")
        if not sharded and type(param) is not nn.Parameter and hasattr(param, "device_mesh"):
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
            "the losses are, or are computed from, entries of one tensor that torch.cat, "
            "torch.stack or slice assignment put together: each reaches, with zeros, what all of "
            "them reach, so heads cannot be told from what is shared. Compute each loss from its "
            "own entry before they are put together, or name the shared parameters with shared="
        )


def trainable(
    members: Sequence[Tensor], params: Sequence[Tensor], option: str = "shared"
) -> list[Tensor]:
    """Those of an option's parameters that require grad; raises where one is not among params."""
    for member in members:
        if not isinstance(member, Tensor):
            raise TypeError(
                f"{option}= holds a {type(member).__name__}: give parameters, for example "
                "model.encoder.parameters()"
            )
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

    There may be none: where the trunk is frozen or detached, losses reach heads alone.

    Args:
        reached: P numbers, how many of the losses reach each parameter, counted up to 2 at least.
        tasks: T; of one loss, all that it reaches is to be balanced.
        params: P parameters.
        shared: those that were named, if any; frozen ones count as reached by none.

    Raises:
        ValueError: no loss reaches any parameter, or none of those named although they are
            trainable and losses share others.
    """
    found = shared_among(reached, tasks, params, shared)
    found = {p for p in found if reached[p]}
    named = shared is not None and any(member.requires_grad for member in shared)
    if not any(reached) or (not found and named and max(reached) > 1):
        raise no_shared(shared)
    return found


def shared_among(
    reached: Sequence[int], tasks: int, params: Sequence[Tensor], shared: Sequence[Tensor] | None
) -> set[int]:
    """`shared_positions` of parameters among which there may be none."""
    if shared is None:
        return {p for p, count in enumerate(reached) if count >= min(2, tasks)}
    place = {id(param): p for p, param in enumerate(params)}
    return {place[id(param)] for param in trainable(shared, params)}


def no_shared(shared: Sequence[Tensor] | None) -> ValueError:
    """What to raise where nothing is to be balanced, and no head is reached either."""
    if shared is None:
        return ValueError(
            "no loss reaches any of the parameters, so no parameter is shared: the losses were "
            "computed from others, or from copies"
        )
    return ValueError(
        "no loss reaches any of the parameters that shared= names: name those that the losses are "
        "computed from"
    )


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
