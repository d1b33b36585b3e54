"""K from what layers read and from the gradients of what they returned, without task gradients.

Of a product with rows A (n, a) and gradients D_t (n, b) of task t, <G_s, G_t> = <A A^T D_s, D_t>;
see `autograd.layer_uses` for the other kinds. Uses of one parameter are stacked, so that their
cross terms are in K. One batched pass of T gradients runs through activations alone, and the sums
are float64: they square what cancels in a gradient, which float32 would not survive.

Source: the identity is that of ghost clipping in private training, arXiv 2009.03106 and 2210.00038.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from mtlkernels import ops
from mtlkernels.aggregation.layout import group_gradients
from mtlkernels.autograd.backwards import Above, Row, gradients_through, stacked_below
from mtlkernels.autograd.cut import Cut
from mtlkernels.autograd.layer_uses import Use, uses_of
from mtlkernels.autograd.trial import SelfCheckError

_CALLS = 1_000_000  # multiplications, or numbers written, in the time that a layer's calls take
_TOLERANCE = 0.05  # of (sum_t |g_t|)^2; bfloat16 gradients are this far off at most


@dataclass
class Ghost:
    """A layer whose parameters' gradients are not formed.

    Attributes:
        uses: the places at which the graph uses it, all of one kind.
        with_bias: whether its bias is shared as well.
    """

    uses: list[Use]
    with_bias: bool = False


@dataclass(frozen=True)
class Plan:
    """How each parameter's part of K is found; all by position.

    Attributes:
        ghosts: weights whose gradients are not formed, and their layers.
        streamed: parameters whose T gradients are formed one parameter at a time, and their use.
        direct: parameters whose gradients the batched pass forms.
    """

    ghosts: dict[int, Ghost]
    streamed: dict[int, Use]
    direct: list[int]


def gram_of_ghosts(
    cut: Cut, above: Above, params: Sequence[Tensor], balanced: set[int], device: torch.device
) -> tuple[Tensor, str]:
    """K over the balanced parameters, and in words how much of it came without task gradients.

    Args:
        cut: where the graph is cut; its graph is retained.
        above: what the T passes down to the cut gave.
        params: P parameters.
        balanced: positions of those that K is of.
        device: K's.

    Returns:
        K (T, T) float64.
    """
    tasks = len(above.rows)
    members = [p for p in cut.below if p in balanced]
    alone = {p for p in balanced if any(row[p] is not None for row in above.rows)}
    plan = plan_of(uses_of(cut.edges, params, members), params, alone, tasks)
    uses = [use for ghost in plan.ghosts.values() for use in ghost.uses]
    edges = {use.node: use.edge for use in (*uses, *plan.streamed.values())}
    wanted: list[Tensor | GradientEdge] = [*edges.values(), *(params[p] for p in plan.direct)]
    found = stacked_below(cut, above.cotangents, wanted, True)
    passed = dict(zip(edges, found, strict=False))
    gram = torch.zeros(tasks, tasks, dtype=torch.float64, device=device)

    def add_gradients(rows: Sequence[Row], of: Sequence[int]) -> None:
        nonlocal gram
        for group in group_gradients(rows, [params[p] for p in of]):
            gram = gram + ops.gram(group.grads, tasks).to(device)

    direct = dict(zip(plan.direct, found[len(edges) :], strict=True))
    formed = [*plan.direct, *sorted(alone - set(members))]
    add_gradients(_with_above(direct, above, formed), formed)
    for p, use in plan.streamed.items():
        grads = passed[use.node]
        if grads is not None and (own := gradients_through(use.edge, grads, params[p])) is not None:
            add_gradients([[grad] for grad in own.unbind()], [p])
    with torch.no_grad():
        for ghost in plan.ghosts.values():
            own = _gram(ghost, [passed[use.node] for use in ghost.uses])
            gram = gram if own is None else gram + own.to(device)
    gram = (gram + gram.T) / 2  # matrix products round the two halves apart
    without = sum(1 + ghost.with_bias for ghost in plan.ghosts.values())
    return gram, f"{without} of {len(members)} shared parameters without task gradients"


def _with_above(direct: dict[int, Tensor | None], above: Above, formed: Sequence[int]) -> list[Row]:
    """T rows of the gradients that were formed: those below the cut and those above it."""
    columns = {p: grads.unbind() for p, grads in direct.items() if grads is not None}
    rows: list[Row] = []
    for t, own in enumerate(above.rows):
        below = [columns[p][t] if p in columns else None for p in formed]
        rows.append([_sum(own[p], grad) for p, grad in zip(formed, below, strict=True)])
    return rows


def check_ghosts(gram: Tensor, summed: Row, above: Above, balanced: set[int]) -> None:
    """Compares sum_st K_st with the square of the summed loss's gradient; reads from the device.

    Args:
        gram: K (T, T).
        summed: P gradients of the summed loss below the cut.
        above: what the T passes gave above it.
        balanced: positions of the parameters that K is of.

    Raises:
        SelfCheckError: they differ by more than rounding.
    """
    square = torch.zeros_like(gram[0, 0])
    for p in balanced:
        parts = [grad for grad in (summed[p], *(row[p] for row in above.rows)) if grad is not None]
        if parts:
            total = sum(parts[1:], parts[0])
            square += torch.linalg.vector_norm(total, dtype=torch.float64).square().to(gram.device)
    most = gram.diagonal().clamp_min(0).sqrt().sum().square()
    have, want, bound = torch.stack([gram.sum(), square, most]).tolist()
    if abs(have - want) > _TOLERANCE * bound and math.isfinite(have - want):
        raise SelfCheckError(
            f'the Gram matrix that collect="ghost" found has the sum {have:.6g}, and the gradient '
            f"of the summed loss has the square {want:.6g}: something between a layer and its "
            "parameter changes gradients, a hook on the graph for example. Nothing was written: "
            "leave collect= out"
        )


def plan_of(
    uses: dict[int, list[Use]], params: Sequence[Tensor], alone: set[int], tasks: int
) -> Plan:
    """The cheaper way for each parameter, by its sizes.

    Args:
        uses: of each parameter that is reached below the cut.
        params: P parameters.
        alone: parameters that a task reaches above the cut as well.
        tasks: T.
    """
    plan = Plan({}, {}, [])
    biases: dict[int, list[Use]] = {}
    for p, own in uses.items():
        kinds = {(use.kind, use.swapped) for use in own}
        kind = next(iter(kinds))[0] if len(kinds) == 1 else "other"
        # A hook on a parameter changes its gradients, which therefore have to be formed.
        if p in alone or not own or params[p]._backward_hooks:
            plan.direct.append(p)
        elif kind == "bias":
            biases[p] = own
        elif kind in ("product", "table") and _pays(own, params[p], tasks):
            plan.ghosts[p] = Ghost(own)
        elif (
            len(own) == 1
            and _can_stream(own[0])
            and tasks * (params[p].numel() - own[0].numel) > _CALLS
        ):
            plan.streamed[p] = own[0]
        else:
            plan.direct.append(p)
    layers = {
        frozenset(use.node for use in ghost.uses): ghost
        for ghost in plan.ghosts.values()
        if all(use.adds_bias for use in ghost.uses)
    }
    for p, own in biases.items():
        layer = layers.get(frozenset(use.node for use in own))
        if layer is None:
            plan.direct.append(p)
        else:
            layer.with_bias = True
    return plan


def _pays(uses: Sequence[Use], param: Tensor, tasks: int) -> bool:
    """Whether K without gradients takes much fewer multiplications; in float64 they count twice."""
    sizes = [use.size for use in uses]
    n = sum(size[0] for size in sizes)
    if uses[0].kind == "table":
        return (tasks + tasks * tasks) * (param.numel() - 2 * n * sizes[0][2]) > _CALLS
    _, a, b = sizes[0]
    explicit = tasks * n * a * b + tasks * tasks * a * b
    ghost = 2 * (n * n * a + tasks * n * n * b + tasks * tasks * n * b)
    return explicit - ghost > _CALLS


def _can_stream(use: Use) -> bool:
    """Whether the gradient can be had from that of the only output of the only use."""
    metas = use.node._input_metadata
    own = isinstance(use.node, BackwardCFunction) or "CppNode" in use.node.name()
    return len(metas) == 1 and not metas[0].is_nested_tensor and not own


def _gram(ghost: Ghost, grads: Sequence[Tensor | None]) -> Tensor | None:
    """K of a layer, from T stacked gradients of what each of its uses returned."""
    met = [(use, own) for use, own in zip(ghost.uses, grads, strict=True) if own is not None]
    if not met:
        return None
    parts = [use.rows(own).to(torch.float64) for use, own in met]
    read = [use.read() for use, _ in met]
    if ghost.uses[0].kind == "table":
        for i, (use, _) in enumerate(met):
            if (skipped := use.skipped) is not None:
                parts[i] = parts[i] * (read[i] != skipped).unsqueeze(-1)
        sums = _sums_by_index(torch.cat(read), torch.cat(parts, dim=1)).flatten(1)
        return sums @ sums.T
    A, D = torch.cat(read).to(torch.float64), torch.cat(parts, dim=1)
    M = A @ A.T
    if ghost.with_bias:  # as if each row of A had a 1 at its end
        M += 1
    return torch.matmul(M, D).flatten(1) @ D.flatten(1).T


def _sums_by_index(indices: Tensor, D: Tensor) -> Tensor:
    """(T, n, b): the sums of rows of D (T, n, b) of one index, in any order; the rest is zeros.

    As many sums as rows, so that nothing has to be read from the device.
    """
    ordered, order = indices.sort()
    ahead = (ordered[1:] != ordered[:-1]).cumsum(0)
    place = torch.cat([ahead.new_zeros(min(len(ordered), 1)), ahead])
    return torch.zeros_like(D).index_add_(1, place, D[:, order])


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
