"""A step in one process: by task gradients, by one weighted backward, or by a loss method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mtlkernels.aggregation.families import AnyMethod
from mtlkernels.autograd.backwards import stack
from mtlkernels.autograd.scale import Scaler, scale_of
from mtlkernels.autograd.self_check import SelfCheck
from mtlkernels.autograd.task_gradients import Rows, collect_rows
from mtlkernels.engine import gradient_step
from mtlkernels.engine.base import CheckedStep, Engine, StepArguments
from mtlkernels.engine.compile import backwards_are_lost, refuse_without_graph, untraced
from mtlkernels.engine.loss_step import backward_once
from mtlkernels.engine.options import Options, check_step
from mtlkernels.engine.parameters import (
    Losses,
    check_list,
    given_losses,
    refuse_reentrant_checkpoints,
    refuse_several_ranks,
)
from mtlkernels.engine.weighted_step import backward_weighted
from mtlkernels.report import Report, Status


class LocalEngine(Engine):
    """Takes steps in one process, compiled ones too."""

    absent = Status.ABSENT

    def step(self, given: StepArguments) -> Report:
        """`mtlkernels.backward`."""
        if backwards_are_lost():
            return untraced(self.step, given)
        return super().step(_without_graph(given))

    def collect_step(self, given: StepArguments) -> Rows:
        """The task gradients of one batch; see `Engine.collect_step`."""
        if backwards_are_lost():
            return untraced(self.collect_step, given)
        return super().collect_step(_without_graph(given))

    def begin(self, given: StepArguments) -> CheckedStep:
        """The arguments, checked."""
        refuse_several_ranks()
        losses = given_losses(given.losses)
        check_list(given.params, "params")
        features = given.features is not None
        params = check_step(losses.values, given.params, given.method, given.options, features)
        values: list[Any] = [None] * len(losses.tasks)
        for t, value in zip(losses.present, losses.values, strict=True):
            values[t] = value
        scale = scale_of(given.scaler, losses.values[0].device)
        return CheckedStep(losses.tasks, losses.named, values, params, scale, losses.present)

    def collect(self, now: CheckedStep, given: StepArguments) -> Rows:
        """T backward passes over all parameters."""
        tasks, values, params, scale = now.tasks, now.values, now.params, now.scale
        options, check = given.options, given.check
        trial = None if check is None else check.trial(tasks, params)
        rows, collected = collect_rows(
            *(values, params, options.collect, options.rows_dtype, scale, given.retain_graph), trial
        )
        counts = gradient_step.reach(rows)
        refuse_reentrant_checkpoints(values, counts)
        if check is not None:
            check.saw_rows(tasks, params, rows, counts, trial)
        places = [p for p, param in enumerate(given.params) if param.requires_grad]
        return Rows(tasks, stack(values), params, rows, scale, collected, places=places)

    def combine(self, now: CheckedStep, rows: Rows, given: StepArguments) -> Report:
        """From task gradients to .grad; warns of parameters that look like one task's own."""
        check = given.check
        if check is not None and given.options.shared is None:
            for row in rows.grads:
                check.heads.note(row)
            check.look_for_heads(rows.tasks, rows.params)
        return gradient_step.combine_rows(rows, given.method, given.options)

    def weigh_losses(self, now: CheckedStep, given: StepArguments) -> Report:
        """One backward pass of a loss method's loss."""
        return backward_once(
            now.tasks, now.values, now.params, given.method, now.scale, given.retain_graph
        )

    def weigh_once(self, now: CheckedStep, given: StepArguments, weights: Tensor | None) -> Report:
        """One weighted backward pass, with weights from less than all task gradients."""
        return backward_weighted(
            *(now.tasks, now.values, now.params, given.method, given.options),
            *(given.feature_list, weights, now.scale, given.retain_graph),
            check=given.check,
        )


LOCAL = LocalEngine()


def _without_graph(given: StepArguments) -> StepArguments:
    """The arguments; where torch.compile traces, without the checks that look at a graph."""
    if not torch.compiler.is_compiling():
        return given
    features = given.features is not None
    refuse_without_graph(given.losses, given.method, given.options, features, given.scaler)
    return StepArguments(*given[:-1], check=None)


def backward(
    losses: Losses,
    params: Sequence[Tensor],
    method: AnyMethod,
    *,
    shared: Sequence[Tensor] | None = None,
    weight_heads: bool = False,
    parts: Sequence[Sequence[Tensor]] | None = None,
    measure: Sequence[Tensor] | None = None,
    features: Tensor | Sequence[Tensor] | None = None,
    apply: Literal["combine", "backward"] = "combine",
    collect: Literal["loop", "batched", "ghost"] = "loop",
    rows_dtype: torch.dtype | None = None,
    scaler: Scaler | Tensor | None = None,
    retain_graph: bool = False,
    check: bool = False,
) -> Report:
    """Adds a method's update direction to the parameters' .grad, as `loss.backward()` adds its own.

    Shared parameters, those that at least two losses reach, get the method's direction. The others,
    the heads, get the plain sum of the gradients that reach them, which for one loss is its own. A
    parameter that no loss reaches keeps its .grad, None included. Where the trunk is frozen or
    detached and losses reach heads alone, the method is not asked: K is 0, the weights are 1, and
    the report's `collected` says so. Like any use of
    `torch.autograd.grad`, the backwards run a parameter's own tensor hooks once a task and run no
    post-accumulate-grad hooks. The .grad of a dtype and device are views of one vector, but for
    those that one weighted backward makes (see below).

    Most of a step is the T backwards. `measure=`, `features=` and `apply="backward"` take one
    backward of the weighted sum through what is shared, and get the weights from less; heads cost
    no more than in one backward of the sum. Their report's Gram matrix is that of what was
    measured. The weighted backward is an ordinary one: it adds to the .grad of what is shared as
    `loss.backward()` does, without a copy, and runs post-accumulate-grad hooks there.

    A loss method makes one loss of the T, and one backward of it is all: every parameter, the heads
    too, gets sum_t w_t g_t with w_t = d scalar / d L_t, and the method's own parameters get their
    gradients.

    Args:
        losses: T scalar losses: a mapping from names, a TensorDict, a dataclass or NamedTuple, a
            sequence or a 1-D tensor. None for a task that has no data in this step, which then
            takes no part; with one task left the step is plain training. A method's state follows
            the names.
        params: the parameters to write to, and no others; those that do not require grad are
            passed over.
        method: a Gram method, for example `PCGrad()`, a row method, for example `GradDrop()`, or a
            loss method, for example `SI()`.
        shared: the shared parameters, where they are not to be found out; frozen ones are passed
            over.
        weight_heads: multiply each head's gradients by the tasks' weights too, as `(report.weights
            * losses).sum().backward()` would; for methods that have weights, and not with
            `PerPart`, which has several. The weights belong to the gradients of the losses as they
            were given: those of `LogLosses` and `Normalized` hold the factor 1 / L or 1 / ||g||. A
            row method's weights belong to its rows, so a head gets w / L of `DBMTL`, whose rows are
            gradients of log L. `NashMTL` shortens the shared direction alone, as published. A loss
            method weighs heads always.
        parts: lists of parameters, for example one a layer, that hold every shared parameter once.
            The report then has each part's Gram matrix; the step is the one without parts, unless
            the method is a `PerPart`, which weighs each part on its own.
        measure: parameters, for example of the last shared layer, whose gradients alone the method
            weighs (as AvgNorm's and GradNorm's papers do). T backwards run to them and no further.
        features: the tensor, or tensors, between trunk and heads; the method weighs the losses'
            gradients there. T backwards run through the heads and no further.
        apply: "combine" keeps T rows and combines them; "backward" forms the same Gram matrix in
            one batched backward that keeps none, N numbers of memory in place of T N, and then
            takes one more backward.
        collect: "loop", a backward a loss; "batched", one backward of T gradients below the heads
            (`is_grads_batched`), which saves time where starting operations takes more than
            running them: many losses of a small model, a GPU; `python -m benchmarks
            --suites steps` compares the two. "ghost", the same K without the task gradients of
            layers whose inputs are small beside their weights (linear, embedding and 1 x 1
            convolution layers, not under checkpointing or offloading), and one weighted backward:
            for wide layers and small batches about half of the T backwards' time, and no memory
            for task gradients there. What it does not know, and what would not gain, keeps its
            task gradients; the report's `collected` counts the others. Gram methods only, and not
            over several ranks.
        rows_dtype: what the rows of float32 parameters are kept in, torch.bfloat16 or
            torch.float16; sums over them are float32 and .grad too.
        scaler: a GradScaler, or its scale as a scalar tensor. The losses come unscaled, .grad goes
            out scaled, so that `scaler.unscale_`, clipping and `scaler.step` go on as ever. The
            method sees neither.
        retain_graph: keep the graph, for another backward through it.
        check: compare the sum of the task gradients with one backward of the summed loss before
            anything is written, see `MTLOptimizer`, which does so in its first step.

    Returns:
        The report of this step: Gram matrix (None for a loss method), weights, losses and status,
        on the device; see `Report` for row methods.

    Raises:
        TypeError, ValueError: losses, params or shared are not what they have to be, or no
            parameter is reached; parts do not hold each shared parameter once; or an option is
            given that the method, or another option, has no use for. Nothing has been written then.
        RuntimeError: a compiled model gave away memory that a second backward needs, the backward
            cannot be batched, or the task gradients do not add up to those of the summed loss.
        NotImplementedError: torch.distributed runs more than one rank, or a parameter is a DTensor:
            `MTLOptimizer` with module= or process_group= takes these.
    """
    options = Options(
        shared=shared,
        weight_heads=weight_heads,
        parts=parts,
        measure=measure,
        apply=apply,
        collect=collect,
        rows_dtype=rows_dtype,
    )
    check_list(params, "params")
    checks = SelfCheck() if check else None
    return LOCAL.step(
        StepArguments(losses, list(params), method, options, features, scaler, retain_graph, checks)
    )
