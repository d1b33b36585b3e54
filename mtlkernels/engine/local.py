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
    the head parameters, get the plain sum of the gradients that reach them, which for one loss is
    its own gradient. A parameter that no loss reaches keeps its .grad, None included. If the trunk
    is frozen or detached, so that losses reach head parameters alone, the method is not called: K
    is 0, the weights are 1, and the report's `collected` says so. As with `torch.autograd.grad`, a
    parameter's tensor hooks run once per task and post-accumulate-grad hooks do not run. The .grad
    tensors of one dtype and device are views of one vector, except those that a weighted backward
    pass writes (see below).

    Most of a step's time is its T backward passes. `measure=`, `features=`, `apply="backward"` and
    `collect="ghost"` compute the weights from less and take one backward pass of the weighted sum
    through the shared parameters; the report's Gram matrix is then that of what was measured. This
    pass is an ordinary one: like `loss.backward()` it adds to .grad without a copy and runs
    post-accumulate-grad hooks.

    A loss method turns the T losses into one and takes one backward pass of it. Every parameter,
    head parameters included, gets sum_t w_t g_t with w_t = d scalar / d L_t, and the method's own
    parameters get their gradients.

    Args:
        losses: T scalar losses: a mapping from names, a TensorDict, a dataclass or NamedTuple, a
            sequence or a 1-D tensor. None for a task that has no data in this step and takes no
            part; with one task left the step is plain training. A method's state belongs to the
            names.
        params: the parameters whose .grad is written. Those that do not require grad are skipped.
        method: a Gram method, for example `PCGrad()`, a row method, for example `GradDrop()`, or a
            loss method, for example `SI()`.
        shared: the shared parameters, if they are not to be recognised from the graph. Frozen ones
            are skipped.
        weight_heads: multiply the gradients of head parameters by the tasks' weights too, as
            `(report.weights * losses).sum().backward()` would. For methods that have weights, and
            not with `PerPart`, which has several. The weights multiply the gradients of the losses
            as given: those of `LogLosses` and `Normalized` contain the factor 1 / L or 1 / ||g||,
            and those of `DBMTL`, whose task gradients are of log L, give a head w / L. `NashMTL`
            shortens the shared direction alone, as published. A loss method always weights heads.
        parts: lists of parameters, for example one per layer, that hold every shared parameter
            once. The report then has each part's Gram matrix. The step is the same as without
            parts, unless the method is a `PerPart`, which weighs each part on its own.
        measure: parameters, for example of the last shared layer, whose gradients alone the method
            sees (as in the papers of AvgNorm and GradNorm). The T backward passes end there.
        features: the tensor, or tensors, between trunk and heads; the method sees the losses'
            gradients there. The T backward passes run through the heads only.
        apply: "combine" stores T task gradients and combines them. "backward" computes the same
            Gram matrix in one batched backward pass that stores none, N numbers of memory instead
            of T N, and then takes one weighted backward pass.
        collect: "loop" takes one backward pass per loss. "batched" takes one batched pass below the
            heads (`is_grads_batched`), which saves time if launching operations takes longer than
            running them: many losses of a small model, or a GPU. "ghost" computes the same K
            without the task gradients of layers whose inputs are small compared with their weights
            (linear, embedding and 1 x 1 convolution layers, not under checkpointing or offloading)
            and takes one weighted backward pass; the report's `collected` says how many shared
            parameters went without. "ghost" is for Gram methods in one process.
            `python -m benchmarks --suites steps` compares the three.
        rows_dtype: the dtype in which the task gradients of float32 parameters are stored,
            torch.bfloat16 or torch.float16; sums over them and .grad are float32.
        scaler: a GradScaler, or its scale as a scalar tensor. Give the unscaled losses: the method
            sees unscaled gradients and .grad is scaled, so `scaler.unscale_`, clipping and
            `scaler.step` work as usual.
        retain_graph: keep the graph, for another backward pass through it.
        check: compare the sum of the task gradients with one backward pass of the summed loss
            before anything is written, as `MTLOptimizer` does in its first step.

    Returns:
        The report of this step: Gram matrix (None for a loss method), weights, losses and status,
        on the device; see `Report` for row methods.

    Raises:
        TypeError, ValueError: losses, params or shared are not what they have to be, or no
            parameter is reached; parts do not hold each shared parameter once; or an option does
            not go with the method or with another option. Nothing has been written then.
        RuntimeError: a compiled model freed memory that a second backward pass needs, the backward
            pass cannot be batched, or the task gradients do not add up to those of the summed loss.
        NotImplementedError: torch.distributed runs more than one rank, or a parameter is a DTensor:
            use `MTLOptimizer` with module= or process_group= for these.
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
