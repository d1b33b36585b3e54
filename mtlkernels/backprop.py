"""Losses -> .grad: per-task gradients and their combination, or one weighted backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, Protocol, cast

import torch
from torch import Tensor, nn

from mtlkernels.aggregation import (
    Balanced,
    LossWeighting,
    RowWeighting,
    Weighting,
    add_direction,
    add_weighted_sum,
    balance,
    check_method,
    keeps_weights,
    weighs_losses,
)
from mtlkernels.arguments import (
    Losses,
    Options,
    check_params,
    named_losses,
    refuse_hidden_reach,
    refuse_reentrant_checkpoints,
    refuse_several_ranks,
    shared_positions,
    trainable,
)
from mtlkernels.collect import weighted_gradient
from mtlkernels.compiled import backwards_are_lost, untraced
from mtlkernels.layout import TaskGrads, check_lengths, group_gradients
from mtlkernels.report import Report, Status
from mtlkernels.rows import Rows, collect_rows
from mtlkernels.weighted import measured_weights, run_heads, write_weighted

AnyMethod = Weighting | RowWeighting | LossWeighting


class Engine(Protocol):
    """Who takes a step: this file for one process, `mtlkernels.distributed` for several."""

    def step(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        features: Tensor | Sequence[Tensor] | None = None,
        scaler: Scaler | Tensor | None = None,
        retain_graph: bool = False,
    ) -> Report: ...

    def collect_step(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        scaler: Scaler | Tensor | None = None,
        retain_graph: bool = False,
    ) -> Rows: ...

    def combine_rows(
        self,
        rows: Rows,
        method: Weighting | RowWeighting,
        options: Options,
    ) -> Report: ...


class Scaler(Protocol):
    """What is needed of a `torch.amp.GradScaler`."""

    def scale(self, outputs: Tensor) -> Tensor: ...


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
    collect: Literal["loop", "batched", "auto"] = "loop",
    rows_dtype: torch.dtype | None = None,
    max_norm: float | None = None,
    scaler: Scaler | Tensor | None = None,
    retain_graph: bool = False,
) -> Report:
    """Adds a method's update direction to the parameters' .grad, as `loss.backward()` adds its own.

    Shared parameters, those that at least two losses reach, get the method's direction. The others,
    the heads, get the plain sum of the gradients that reach them, which for one loss is its own. A
    parameter that no loss reaches keeps its .grad, None included. Like any use of
    `torch.autograd.grad`, the backwards run a parameter's own tensor hooks once a task and run no
    post-accumulate-grad hooks. The .grad of a dtype
    and device are views of one vector, but for those that one weighted backward makes (see below).

    Most of a step is the T backwards. `measure=`, `features=` and `apply="backward"` take one
    backward of the weighted sum through what is shared, and get the weights from less; heads cost
    no more than in one backward of the sum. Their report's Gram matrix is that of what was
    measured. The weighted backward is an ordinary one: it adds to the .grad of what is shared as
    `loss.backward()` does, without a copy, and runs post-accumulate-grad hooks there.

    A loss method makes one loss of the T, and one backward of it is all: every parameter, the heads
    too, gets sum_t w_t g_t with w_t = d scalar / d L_t, and the method's own parameters get their
    gradients.

    Args:
        losses: T scalar losses: a mapping from names, a sequence or a 1-D tensor.
        params: the parameters to write to, and no others; those that do not require grad are
            passed over.
        method: a Gram method, for example `PCGrad()`, a row method, for example `GradDrop()`, or a
            loss method, for example `SI()`.
        shared: the shared parameters, where they are not to be found out; frozen ones are passed
            over.
        weight_heads: multiply each head's gradients by the tasks' weights too, as
            `(weights * losses).sum().backward()` would; for methods that have weights, and not with
            parts, which have several.
        parts: lists of parameters, for example one a layer, that hold every shared parameter once.
            Each part gets weights of its own, from its own Gram matrix; the method is then a
            `PerPart(method, len(parts))`.
        measure: parameters, for example of the last shared layer, whose gradients alone the method
            weighs (as AvgNorm's and GradNorm's papers do). T backwards run to them and no further.
        features: the tensor, or tensors, between trunk and heads; the method weighs the losses'
            gradients there. T backwards run through the heads and no further.
        apply: "combine" keeps T rows and combines them; "backward" forms the same Gram matrix in
            one batched backward that keeps none, N numbers of memory in place of T N, and then
            takes one more backward.
        collect: "loop", a backward a loss; "batched", one backward of T gradients below the heads
            (`is_grads_batched`), which saves time where starting operations takes more than
            running them: many losses of a small model, a GPU; "auto" decides by the graph, and
            `report.collected` says how.
        rows_dtype: what the rows of float32 parameters are kept in, torch.bfloat16 or
            torch.float16; sums over them are float32 and .grad too.
        max_norm: the direction of the shared parameters is shortened to that length where it is
            longer. The length comes from the Gram matrix.
        scaler: a GradScaler, or its scale as a scalar tensor. The losses come unscaled, .grad goes
            out scaled, so that `scaler.unscale_`, clipping and `scaler.step` go on as ever. The
            method sees neither.
        retain_graph: keep the graph, for another backward through it.

    Returns:
        The report of this step: Gram matrix (None for a loss method), weights, losses and status,
        on the device; see `Report` for row methods.

    Raises:
        TypeError, ValueError: losses, params or shared are not what they have to be, or no
            parameter is shared; parts do not hold each shared parameter once; or an option is given
            that the method, or another option, has no use for. Nothing has been written then.
        RuntimeError: a compiled model gave away memory that a second backward needs, or the
            backward cannot be batched.
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
        max_norm=max_norm,
    )
    return step(losses, params, method, options, features, scaler, retain_graph)


def step(
    losses: Losses,
    params: Sequence[Tensor],
    method: AnyMethod,
    options: Options,
    features: Tensor | Sequence[Tensor] | None = None,
    scaler: Scaler | Tensor | None = None,
    retain_graph: bool = False,
) -> Report:
    """`backward` with its options in one object."""
    if backwards_are_lost():
        return untraced(step, losses, params, method, options, features, scaler, retain_graph)
    if torch.compiler.is_compiling():
        _refuse_without_graph(losses, method, options, features is not None, scaler)
    refuse_several_ranks()
    tasks, values = named_losses(losses)
    given = [features] if isinstance(features, Tensor) else features
    params = check_step(values, params, method, options, given is not None)
    scale = scale_of(scaler, values[0].device)
    if weighs_losses(method):
        return _backward_once(tasks, values, params, method, scale, retain_graph)
    kept = method.kept_weights(tasks, scaler is not None) if keeps_weights(method) else None
    if kept is not None or given is not None or options.weighted:
        report = _backward_weighted(
            tasks, values, params, method, options, given, kept, scale, retain_graph
        )
    else:
        rows, collected = collect_rows(
            values, params, options.collect, options.rows_dtype, scale, retain_graph
        )
        refuse_reentrant_checkpoints(values, reach(rows))
        found = Rows(tasks, stack(values), params, rows, scale, collected)
        report = combine_rows(found, cast("Weighting | RowWeighting", method), options)
    if keeps_weights(method):
        method.count(tasks)
    return report


def _backward_weighted(
    tasks: tuple[str, ...],
    values: Sequence[Tensor],
    params: Sequence[Tensor],
    method: AnyMethod,
    options: Options,
    features: Sequence[Tensor] | None,
    kept: Tensor | None,
    scale: Tensor | None,
    retain_graph: bool,
) -> Report:
    """One weighted backward, with kept weights or with those of what is measured."""
    losses = stack(values)
    heads = run_heads(values, params, options, features, scale, retain_graph)
    if kept is not None:
        where = "with kept weights"
        found = Balanced(None, kept, torch.where(losses.isfinite(), 0, Status.NON_FINITE.value))
    else:
        named = "all rows" if options.measure is None else "given parameters"
        where = f"measured on {named if features is None else 'features'}"
        weigh, on_features = cast(Weighting, method), features is not None
        found = measured_weights(heads, params, weigh, losses, options, on_features, scale)
    assert found.weights is not None
    write_weighted(heads, params, found.weights, retain_graph)
    collected = f"one weighted backward, {where}"
    return Report(tasks, found.gram, found.weights, losses, found.status, collected)


def collect_step(
    losses: Losses,
    params: Sequence[Tensor],
    method: AnyMethod,
    options: Options,
    scaler: Scaler | Tensor | None = None,
    retain_graph: bool = False,
) -> Rows:
    """The gradients of one batch, to be added to others' and combined by `combine_rows`.

    Raises:
        ValueError: as `backward`; or the method or an option keeps no rows that could be added.
    """
    if backwards_are_lost():
        return untraced(collect_step, losses, params, method, options, scaler, retain_graph)
    if torch.compiler.is_compiling():
        _refuse_without_graph(losses, method, options, False, scaler)
    refuse_several_ranks()
    check_keeps_rows(method, options)
    tasks, values = named_losses(losses)
    params = check_step(values, params, method, options, False)
    scale = scale_of(scaler, values[0].device)
    rows, collected = collect_rows(
        values, params, options.collect, options.rows_dtype, scale, retain_graph
    )
    refuse_reentrant_checkpoints(values, reach(rows))
    return Rows(tasks, stack(values), params, rows, scale, collected)


def check_keeps_rows(method: AnyMethod, options: Options) -> None:
    """Raises ValueError where there would be no rows to accumulate."""
    if weighs_losses(method) or options.weighted or keeps_weights(method):
        who = "measure= or apply=" if options.weighted else type(method).__name__
        raise ValueError(
            f"accumulate=True adds up the tasks' gradients, and {who} keeps none: call backward "
            "for each micro-batch without it, which weighs each on its own"
        )
    if options.rows_dtype is not None:
        raise ValueError(
            "accumulate=True adds up rows, which 16 bits would round each time: leave out "
            "rows_dtype="
        )


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


def _refuse_without_graph(
    losses: Losses,
    method: AnyMethod,
    options: Options,
    features: bool,
    scaler: Scaler | Tensor | None,
) -> None:
    """torch.compile traces backwards, but has no autograd graph to look at."""
    if features or options.weighted or options.collect != "loop" or keeps_weights(method):
        refuse_tracing(
            "inside torch.compile only a backward a loss can be traced: leave out features=, "
            "measure=, apply=, collect= and every=, or compile the model alone"
        )
    if isinstance(losses, Tensor) and options.shared is None:
        refuse_tracing(
            "inside torch.compile heads cannot be told from what is shared where the losses are "
            "one tensor: give a list or a mapping, or name the shared parameters with shared="
        )
    if scaler is not None and not isinstance(scaler, Tensor):
        refuse_tracing(
            "torch.compile does not trace a GradScaler: take scale = scaler.scale(torch.ones(())) "
            "before the compiled function, and give it as scaler=scale"
        )


def refuse_tracing(sentence: str) -> NoReturn:
    """Raises while torch.compile traces, with a sentence that it shows."""
    torch._dynamo.graph_break(msg=sentence)  # whose error shows the sentence; a raise's would not
    raise NotImplementedError(sentence)


def scale_of(scaler: Scaler | Tensor | None, device: torch.device) -> Tensor | None:
    """A scaler's factor, on the device; it is not read."""
    if scaler is None:
        return None
    if not isinstance(scaler, Tensor):
        if not hasattr(scaler, "scale"):
            raise TypeError(
                f"scaler is a {type(scaler).__name__}: give a torch.amp.GradScaler, or its scale "
                "as a tensor of one number"
            )
        scaler = scaler.scale(torch.ones((), device=device))
    if scaler.numel() != 1:
        raise ValueError(f"the scale has shape {tuple(scaler.shape)}: it is one number")
    return scaler.reshape(())


def _backward_once(
    tasks: tuple[str, ...],
    values: Sequence[Tensor],
    params: Sequence[Tensor],
    method: LossWeighting,
    scale: Tensor | None,
    retain_graph: bool,
) -> Report:
    losses = stack(values)
    told = weigh_losses(method, losses)
    factor = 1.0 if scale is None else scale.to(told.weights)
    write_row(weighted_gradient(values, told.weights * factor, params, retain_graph), params)
    return told.finish(tasks, losses, method, scale)


@dataclass
class Told:
    """What a loss method says of T losses: weights, and the gradients of what it learns itself."""

    weights: Tensor
    own: list[nn.Parameter]
    own_grads: Sequence[Tensor]

    def finish(
        self, tasks: tuple[str, ...], losses: Tensor, method: LossWeighting, scale: Tensor | None
    ) -> Report:
        """Adds the method's own gradients to its parameters' .grad; the step's report."""
        for param, grad in zip(self.own, self.own_grads, strict=True):
            grad = grad if scale is None else grad * scale.to(grad)
            if param.grad is None:
                param.grad = grad
            else:
                param.grad.add_(grad)
        status = torch.where(losses.isfinite(), 0, Status.NON_FINITE.value)
        if isinstance(method.status, Tensor) and method.status.shape == status.shape:
            status = status | method.status
        collected = "one backward of the method's own loss"
        return Report(tasks, None, self.weights, losses, status, collected)


def weigh_losses(method: LossWeighting, losses: Tensor) -> Told:
    """The gradient of a loss method's scalar in its losses, (T) float64, and in what it learns."""
    leaf = losses.double().detach().requires_grad_()
    own = [param for param in method.parameters() if param.requires_grad]
    with torch.enable_grad():
        scalar = method(leaf)
    if not isinstance(scalar, Tensor) or scalar.numel() != 1 or not scalar.requires_grad:
        raise ValueError(
            f"{type(method).__name__} must return a scalar tensor that is differentiable in the "
            "losses"
        )
    weights, *own_grads = torch.autograd.grad(
        scalar, [leaf, *own], allow_unused=True, materialize_grads=True
    )
    return Told(weights, own, own_grads)


@torch.no_grad()
def write_row(row: Sequence[Tensor | None], params: Sequence[Tensor]) -> None:
    """Adds P gradients, or None, to the parameters' .grad."""
    groups = group_gradients([row], params)
    if not groups:
        raise ValueError("no loss reaches any of the parameters")
    one = torch.ones(1, dtype=torch.float64, device=groups[0].device)
    add_weighted_sum(groups, one, params)


def stack(values: Sequence[Tensor]) -> Tensor:
    """(T) the losses' values, on the first one's device."""
    return torch.stack([loss.detach().reshape(()).to(values[0].device) for loss in values])


@torch.no_grad()
def combine_rows(rows: Rows, method: Weighting | RowWeighting, options: Options) -> Report:
    """The part of `backward` after the backwards: T lists of P gradients in, .grad out."""
    options.check(method)
    grads, params, parts = rows.grads, rows.params, options.parts
    check_lengths(grads, params)
    balanced, heads = split(grads, params, options.shared)
    sections = [balanced] if parts is None else sections_of(parts, params, balanced)
    groups = [group_gradients(columns(grads, part), [params[p] for p in part]) for part in sections]
    head_groups = group_gradients(columns(grads, heads), [params[p] for p in heads])

    found = balance(
        groups, len(grads), method, rows.losses, parts is not None, rows.scale, options.max_norm
    )
    add_direction(groups, found, [[params[p] for p in part] for part in sections])
    head_weights = found.weights
    if head_weights is None or not options.weight_heads:
        head_weights = torch.ones_like(found.status, dtype=torch.float64)
    add_weighted_sum(head_groups, head_weights, [params[p] for p in heads])
    return Report(rows.tasks, found.gram, found.weights, rows.losses, found.status, rows.collected)


def reach(task_grads: TaskGrads) -> list[int]:
    """P numbers, how many of the tasks have a gradient for the parameter."""
    return [sum(grad is not None for grad in column) for column in zip(*task_grads, strict=True)]


def split(
    task_grads: TaskGrads, params: Sequence[Tensor], shared: Sequence[Tensor] | None
) -> tuple[list[int], list[int]]:
    """Positions of the parameters to balance and of the other ones that some loss reaches."""
    reached = reach(task_grads)
    chosen = shared_positions(reached, len(task_grads), params, shared)
    balanced = [p for p, count in enumerate(reached) if count and p in chosen]
    return balanced, [p for p, count in enumerate(reached) if count and p not in chosen]


def sections_of(
    parts: Sequence[Sequence[Tensor]], params: Sequence[Tensor], balanced: Sequence[int]
) -> list[list[int]]:
    """Positions of the parameters to balance, part by part; parts may name others as well."""
    place = {id(params[p]): p for p in balanced}
    sections = [[place[id(param)] for param in part if id(param) in place] for part in parts]
    if sorted(p for part in sections for p in part) != sorted(balanced):
        raise ValueError(
            f"parts= must hold each of the {len(balanced)} shared parameters once: "
            f"{sum(map(len, sections))} of its entries are shared parameters"
        )
    return sections


def columns(task_grads: TaskGrads, params: Sequence[int]) -> list[list[Tensor | None]]:
    """T rows of the gradients at some positions."""
    return [[row[p] for p in params] for row in task_grads]
