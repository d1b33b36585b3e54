"""Pipeline stages: each rank of a group holds parameters that no other one has.

So K is the sum over the stages of what their parameters say, and the direction needs no collective.
What a stage cannot have is a graph that reaches from a loss to its parameters: gradients come over
the network, of activations, and bringing them is the business of whoever moves activations
forward. So a task comes as a function that runs its backward through all stages, and this file
takes what that left in .grad. The price: T backwards of the pipeline, with T times its traffic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mtlkernels.aggregation.layout import group_gradients
from mtlkernels.aggregation.weighting import total_gram
from mtlkernels.autograd.scale import scale_of
from mtlkernels.autograd.task_gradients import Rows
from mtlkernels.distributed.checks import refuse_compiling
from mtlkernels.distributed.collectives import Group, Hosts, OfRanks
from mtlkernels.distributed.consensus import Agreement, View, fingerprint
from mtlkernels.distributed.grad_rows import rows_of_grad
from mtlkernels.distributed.local_parameters import Held
from mtlkernels.distributed.pieces import combine_pieces
from mtlkernels.distributed.setting import Setting
from mtlkernels.distributed.verdict import Totals
from mtlkernels.engine.base import CheckedStep, Engine, StepArguments
from mtlkernels.engine.gradient_step import columns, reach, sections_of
from mtlkernels.engine.options import Options, check_step
from mtlkernels.engine.parameters import Run, entries, no_shared, shared_among
from mtlkernels.engine.rules import refuse
from mtlkernels.report import Report, Status


class Stages(OfRanks, Engine):
    """Takes steps over the stages of a pipeline.

    Args:
        group: a rank for each stage; parameters that are DTensors may be sharded over others.
        setting: what a person may choose.
    """

    absent = Status.ABSENT

    def __init__(self, group: Group, setting: Setting) -> None:
        self.group, self.setting = group, setting
        self.hosts = Hosts()
        self.agreement = Agreement(self.hosts.of(group))

    def begin(self, given: StepArguments) -> CheckedStep:
        """The tasks and their functions; the rest is checked once they are in the method's order.

        The losses are T functions, see `named_runs`.
        """
        if given.features is not None:
            raise ValueError(
                "features= is for a graph from losses to features, and stages= takes runs: leave "
                "one out"
            )
        with self.agreement.announced():
            functions = entries(given.losses)
            tasks, runs = named_runs(functions)
        named, params = isinstance(functions, Mapping), list(given.params)
        return CheckedStep(tasks, named, list(runs), params, None, range(len(tasks)))

    def collect(self, now: CheckedStep, given: StepArguments) -> Rows:
        """What each of T runs adds to this stage's .grad."""
        refuse_compiling()
        if given.retain_graph:
            raise ValueError("retain_graph= is for losses: with stages= the runs keep their graphs")
        tasks, method, options = now.tasks, given.method, given.options
        with self.agreement.announced():
            kept = check_step([], given.params, method, options, False, sharded=True)
            held = Held(kept)
        # Before the first run: stages that run different tasks would wait for each other.
        self.agreement.settle(
            View(tasks, (), (), ()),
            lambda: _setup(cast(nn.Module, method), options, self.setting, held),
        )
        rows, found = rows_of_grad(held, now.values)
        told = [loss is not None for loss in found] + [not _is_loss(loss) for loss in found]
        counts = self.agreement.host.count(told)
        for task, count, wrong in zip(tasks, counts, counts[len(tasks) :], strict=False):
            if wrong:
                raise TypeError(
                    f"the function of task {task!r} must return the loss, a tensor of one element, "
                    "on the stage that computes it, and None on the others"
                )
            if count != 1:
                raise ValueError(
                    f"{count} stages returned the loss of task {task!r}: its function returns it "
                    "on the stage that computes it, and None on the others"
                )
        device = held.tensors[0].device
        values = torch.stack([_value(loss, device) for loss in found])
        collected = f"a run of {dist.get_world_size(self.group)} stages a task"
        return Rows(tasks, values, kept, rows, scale_of(given.scaler, device), collected)

    @torch.no_grad()
    def combine(self, now: CheckedStep, rows: Rows, given: StepArguments) -> Report:
        """From this stage's task gradients to weights and .grad."""
        method, options = given.method, given.options
        options.check(method)
        held, params, parts = Held(rows.params), rows.params, options.parts
        reached = reach(rows.grads)
        shared = shared_among(reached, len(rows.tasks), params, options.shared)
        balanced = [p for p, count in enumerate(reached) if count and p in shared]
        heads = [p for p, count in enumerate(reached) if count and p not in shared]
        asked = self.agreement.host.any(bool(balanced))
        if not asked and not self.agreement.host.any(bool(heads)):
            raise no_shared(options.shared)
        sections = [balanced] if parts is None else sections_of(parts, params, balanced)
        totals = Totals(
            [*held.groups, self.group],
            held.ranks,
            self.hosts,
            stages=dist.get_world_size(self.group),
        )
        doubt = _doubt(rows, held, heads)
        return combine_pieces(
            rows, held, sections, heads, method, options, totals, self.setting, doubt, asked
        )

    def weigh_losses(self, now: CheckedStep, given: StepArguments) -> NoReturn:
        """`refuse_for_stages` refuses a loss method."""
        raise AssertionError("a pipeline weighs gradients alone")

    def weigh_once(
        self, now: CheckedStep, given: StepArguments, weights: Tensor | None
    ) -> NoReturn:
        """`refuse_for_stages` refuses what takes one weighted backward pass."""
        raise AssertionError("a pipeline takes a backward pass for each task")


def named_runs(given: Any) -> tuple[tuple[str, ...], list[Run]]:
    """The tasks' names and functions.

    Args:
        given: a mapping from names, or a sequence. Calling one runs its task's backward through all
            stages, so that this stage's gradients are added to .grad, and returns the task's loss
            on the stage that has computed it, None on the others.

    Raises:
        TypeError: not functions.
        ValueError: there is none.
    """
    named = isinstance(given, Mapping)
    if not (named or isinstance(given, Sequence)) or isinstance(given, str):
        given = [given]
    tasks = tuple(map(str, given)) if named else tuple(map(str, range(len(given))))
    runs = list(given.values()) if named else list(given)
    if not runs:
        raise ValueError("no tasks: give a function for at least one")
    for task, run in zip(tasks, runs, strict=True):
        if isinstance(run, Tensor) or not callable(run):
            raise TypeError(
                f"task {task!r} is a {type(run).__name__}: with stages= give a function for each "
                "task that runs its backward through all stages, and returns its loss on the "
                "stage that has it, None on the others"
            )
    return tasks, runs


def refuse_for_stages(
    stages: object,
    module: nn.Module | None,
    other: Group | None,
    method: object,
    options: Options,
) -> None:
    """Raises where something needs more than each task's gradients of a stage's parameters."""
    if not isinstance(stages, dist.ProcessGroup):
        raise TypeError(
            f"stages= is a {type(stages).__name__}: give the process group of the stages, of a "
            "DeviceMesh mesh.get_group()"
        )
    if module is not None or other is not None:
        raise NotImplementedError(
            "stages= goes alone: for replicas of a pipeline fully_shard each stage over a mesh "
            "dimension of its own, which its parameters then tell; leave out module= and "
            "process_group="
        )
    refuse(options.words(method), method, "stages")


def _setup(method: nn.Module, options: Options, setting: Setting, held: Held) -> str:
    """What has to be the same on all stages; which parameters are named is each one's own."""
    parts = None if options.parts is None else len(options.parts)
    alike = replace(options, shared=None, parts=None)
    mesh = f"{parts} parts, a mesh of {held.ranks} ranks a stage"
    return f"{fingerprint(method, alike, setting, [])}, {mesh}"


def _doubt(rows: Rows, held: Held, heads: Sequence[int]) -> Tensor:
    """(T) 0, or NaN where a task's gradient for the heads of this stage is not finite.

    A GradScaler looks at its own stage's .grad, and all have to skip.
    """
    T, own = len(rows.tasks), [held.tensors[p] for p in heads]
    groups = group_gradients(columns(rows.grads, heads), own)
    if not groups:
        return torch.zeros(T, dtype=torch.float64, device=rows.losses.device)
    return 0 * total_gram(groups, T).diagonal()


def _is_loss(answer: object) -> bool:
    return answer is None or (isinstance(answer, Tensor) and answer.numel() == 1)


def _value(loss: Tensor | None, device: torch.device) -> Tensor:
    """A loss in float64, which all stages have alike, whatever theirs computes in; 0 for None."""
    if loss is None:
        return torch.zeros((), dtype=torch.float64, device=device)
    if isinstance(loss, DTensor):
        loss = loss.full_tensor()
    return loss.detach().to(device, torch.float64).reshape(())
