"""Every op in plain torch: the specification of the kernels, and what serves where they do not.

Runs on any device and for any number of tasks. Meant to be read; the arithmetic is float64 wherever
the kernels promise more than float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGN = 16  # elements; every parameter's place in a flat direction starts at a multiple of it
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Flags of a task's status; report.Status names them for people.
NON_FINITE, ZERO_GRADIENT, STATIONARY, NO_CONVERGENCE = 1, 2, 4, 8


# ------------------------------------------------------------------------------------ lists


def check_list(grads: Sequence[Tensor], num_tasks: int) -> list[Tensor | None]:
    """Checks a task-major list of T * P gradients; returns one present gradient a parameter.

    A tensor of zero elements is an absent gradient. Where all are absent the entry is None.
    """
    if num_tasks < 1 or len(grads) == 0 or len(grads) % num_tasks:
        raise RuntimeError(
            f"expected a task-major list of num_tasks * P gradients, got {len(grads)} gradients "
            f"for {num_tasks} tasks"
        )
    if grads[0].dtype not in FLOAT_DTYPES:
        raise RuntimeError("gradients must be float32, float64, bfloat16 or float16")
    params = len(grads) // num_tasks
    models: list[Tensor | None] = [None] * params
    for i, grad in enumerate(grads):
        name = f"the gradient of task {i // params} for parameter {i % params}"
        if grad.dtype != grads[0].dtype:
            raise RuntimeError(
                f"{name} has another dtype than the first of the list: call once for each dtype"
            )
        if grad.device != grads[0].device:
            raise RuntimeError(f"{name} is not on {grads[0].device} as the first of the list is")
        if grad.numel() == 0:
            continue
        model = models[i % params]
        if model is None:
            models[i % params] = grad
        elif grad.shape != model.shape:
            raise RuntimeError(f"{name} has shape {tuple(grad.shape)}, not {tuple(model.shape)}")
    return models


def flat_offsets(numels: Sequence[int]) -> list[int]:
    """Where each of P blocks starts in the flat space, and the flat length last: P + 1 numbers."""
    offsets = [0]
    for n in numels:
        offsets.append(offsets[-1] + (n + ALIGN - 1) // ALIGN * ALIGN)
    return offsets


def list_offsets(grads: Sequence[Tensor], num_tasks: int) -> list[int]:
    """The flat offsets of a list of gradients."""
    return flat_offsets([0 if m is None else m.numel() for m in check_list(grads, num_tasks)])


def gram(grads: Sequence[Tensor], num_tasks: int) -> Tensor:
    """K_ij = <g_i, g_j>, (T, T) float64. Sums of 1024 products, added up in float64."""
    models = check_list(grads, num_tasks)
    K = grads[0].new_zeros((num_tasks, num_tasks), dtype=torch.float64)
    for p, model in enumerate(models):
        if model is None:
            continue
        present = [t for t in range(num_tasks) if grads[t * len(models) + p].numel()]
        rows = torch.stack([grads[t * len(models) + p].reshape(-1) for t in present])
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 1024))
        for piece in rows.split(1 << 18, dim=1):
            blocks = piece.to(torch.float64).reshape(len(present), -1, 1024).transpose(0, 1)
            at = torch.tensor(present, device=K.device)
            K[at[:, None], at] += torch.bmm(blocks, blocks.transpose(1, 2)).sum(dim=0)
    return K


def combine(grads: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_t w_t g_t as one flat vector, parameters at multiples of ALIGN, padding zero."""
    _check_weights(weights)
    length = list_offsets(grads, weights.numel())[-1]
    out = grads[0].new_zeros(length)
    combine_out(grads, weights, out, 0.0)
    return out


def combine_out(grads: Sequence[Tensor], weights: Tensor, out: Tensor, beta: float) -> None:
    """out <- beta * out + sum_t w_t g_t, accumulated in float32 (float64) and rounded once."""
    _check_weights(weights)
    num_tasks = weights.numel()
    models = check_list(grads, num_tasks)
    offsets = list_offsets(grads, num_tasks)
    if out.dtype != grads[0].dtype or out.device != grads[0].device:
        raise RuntimeError("out must have the gradients' dtype and device")
    if out.shape != (offsets[-1],) or not out.is_contiguous():
        raise RuntimeError(
            f"out must be a contiguous vector of {offsets[-1]} elements, as combine returns it"
        )
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    w = weights.to(wide)
    for p, model in enumerate(models):
        if model is None:
            continue
        n = model.numel()
        place = out[offsets[p] : offsets[p] + n]
        total = torch.zeros(n, dtype=wide, device=out.device) if beta == 0 else beta * place.to(wide)
        for t in range(num_tasks):
            grad = grads[t * len(models) + p]
            if grad.numel():
                total = total + w[t] * grad.reshape(-1).to(wide)
        place.copy_(total)
        out[offsets[p] + n : offsets[p + 1]] = 0


def _check_weights(weights: Tensor) -> None:
    if weights.dim() != 1 or weights.numel() < 1:
        raise RuntimeError("weights must be a vector with one entry a task")
    if weights.dtype not in (torch.float64, torch.float32):
        raise RuntimeError("weights must be float64 or float32")


# ---------------------------------------------------------------------------------- solvers


def check_gram(gram: Tensor) -> None:
    """Raises unless gram is a square float64 matrix."""
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] < 1:
        raise RuntimeError("gram must be a square matrix")
    if gram.dtype != torch.float64:
        raise RuntimeError("gram must be float64, as ops.gram returns it")


def task_status(gram: Tensor) -> Tensor:
    """(T) int64: NON_FINITE or ZERO_GRADIENT where K says so of a task's gradient, else 0."""
    check_gram(gram)
    square = gram.diagonal()
    bad = ~(square.isfinite() & (square >= 0))
    bad = bad | (~gram.isfinite() & ~bad[None, :]).any(dim=1)
    return torch.where(bad, NON_FINITE, torch.where(square == 0, ZERO_GRADIENT, 0))


def _finish(weights: Tensor, status: Tensor) -> tuple[Tensor, Tensor]:
    """No weight for a task without gradient; all NaN where a gradient is not finite."""
    weights = torch.where((status & ZERO_GRADIENT) > 0, 0.0, weights)
    return torch.where(((status & NON_FINITE) > 0).any(), torch.nan, weights), status


def _splitmix64(x: Tensor) -> Tensor:
    def shift(y: Tensor, bits: int) -> Tensor:  # logical: int64 would carry the sign along
        return (y >> bits) & ((1 << (64 - bits)) - 1)

    x = x - 0x61C8864680B583EB
    x = (x ^ shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ shift(x, 31)


def visiting_order(state: Tensor, num_tasks: int) -> Tensor:
    """(T, T-1) int64: row i is a random permutation of the other tasks, drawn from (seed, step)."""
    if state.shape != (2,) or state.dtype != torch.int64:
        raise RuntimeError("state must be an int64 vector (seed, step)")
    T = num_tasks
    index = torch.arange(T, device=state.device)[:, None]
    place = torch.arange(T - 1, device=state.device)[None, :]
    order = torch.where(place < index, place, place + 1).contiguous()
    stream = _splitmix64(_splitmix64(state[0]) + state[1])
    draws = (_splitmix64(stream + index * T + place) >> 1) & ((1 << 63) - 1)
    for p in range(T - 2, 0, -1):
        other = draws[:, p : p + 1] % (p + 1)
        kept, moved = order[:, p : p + 1].clone(), order.gather(1, other)
        order[:, p : p + 1] = moved
        order.scatter_(1, other, kept)
    return order


def pcgrad(gram: Tensor, order: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    """PCGrad's weights: all rows of C walk their own order at once (see csrc/solvers/pcgrad.h)."""
    status = task_status(gram)
    T = gram.shape[0]
    if order.shape != (T, T - 1) or order.dtype != torch.int64:
        raise RuntimeError(
            "order must be a contiguous int64 matrix (T, T - 1) on gram's device"
        )
    if order.device.type == "cpu" and not ((order >= 0) & (order < T)).all():
        raise RuntimeError(f"order names a task outside 0 .. {T - 1}")
    takes_part = status == 0
    C = torch.eye(T, dtype=gram.dtype, device=gram.device)
    square = gram.diagonal()
    for visit in range(T - 1):
        j = order[:, visit]
        dot = (C * gram[:, j].T).sum(dim=1)
        step = torch.where((dot < 0) & (square[j] > 0), dot / square[j], 0.0)
        C.scatter_add_(1, j[:, None], -step[:, None])
    weights = (C * takes_part[:, None]).sum(dim=0)
    if mean:
        weights = weights / takes_part.sum()
    return _finish(weights, status)


def avgnorm(gram: Tensor, scale: int, constant: float) -> tuple[Tensor, Tensor]:
    """AvgNorm's weights S / ||g_i||; scale picks S (see csrc/solvers/avgnorm.h)."""
    status = task_status(gram)
    takes_part = status == 0
    norm = gram.diagonal().clamp_min(0).sqrt()
    count = takes_part.sum()
    absent = torch.full_like(norm, torch.inf)
    ordered = torch.where(takes_part, norm, absent).sort().values
    last = (count - 1).clamp_min(0)
    length = {
        0: lambda: gram.sum().clamp_min(0).sqrt(),
        1: lambda: norm.max(),
        2: lambda: norm.sum() / count,
        3: lambda: (gram.diagonal().sum() / count).sqrt(),
        4: lambda: 0.5 * (ordered[last // 2] + ordered[(last + 1) // 2]),
        5: lambda: ordered[0],
        6: lambda: torch.full_like(norm[0], constant),
    }[scale]()
    return _finish(length / norm, status)


def cagrad(gram: Tensor, c: float, rescale: int, sum: bool) -> tuple[Tensor, Tensor]:  # noqa: A002
    """CAGrad's weights by a primal-dual interior point method on the dual problem

        min over the simplex of  b^T w + k sqrt(w^T K w),   b = K 1 / T,   k = c ||g0||,

    independent of the native active set. A ridge of 1e-15 of each squared norm keeps the root
    smooth where zero lies in the hull of the gradients; k Gw / ||Gw|| is then the smallest vector
    that takes every conflict out of g0.
    """
    status = task_status(gram)
    takes_part = status == 0
    on = takes_part.to(gram.dtype)
    count = on.sum().clamp_min(1)
    square = gram.diagonal()
    largest = torch.where(takes_part, square, 0.0).max()
    pairs = takes_part[:, None] & takes_part
    A = torch.where(pairs, gram / largest, 0.0)
    b = A.sum(dim=1) / count
    k = c * (b.sum() / count).clamp_min(0).sqrt()
    ridged = A + torch.diag(1e-15 * A.diagonal())

    w, converged = _simplex_interior_point(ridged, b, k, on / count, takes_part)
    size = (w * A.diagonal()).sum()
    length = (w @ ridged @ w).sqrt()
    useful = k > 0
    share = torch.where(useful, k / length, 0.0)
    stationary = useful & (w @ A @ w <= 1e-14 * size)
    divisor = {0: 1.0, 1: 1 + c * c, 2: 1 + c}[rescale]
    weights = (1 / count + share * w) * ((count if sum else 1.0) / divisor)
    bad = (status & NON_FINITE).any()
    status = status | torch.where(stationary & ~bad, STATIONARY, 0)
    status = status | torch.where(useful & ~converged & ~bad, NO_CONVERGENCE, 0)
    return _finish(weights, status)


def _simplex_interior_point(
    A: Tensor, b: Tensor, k: Tensor, w: Tensor, takes_part: Tensor
) -> tuple[Tensor, Tensor]:
    """min b^T w + k sqrt(w^T A w) over the simplex; the scaled Newton system of w_i z_i = target."""
    on = takes_part.to(A.dtype)
    count = on.sum().clamp_min(1)
    identity = torch.eye(len(b), dtype=A.dtype, device=A.device)
    scale = b.abs().max() + k
    z, nu = scale * on, b.min() - scale
    gap = scale
    for _ in range(100):
        Aw = A @ w
        root = (w @ Aw).sqrt()
        slope = b + k * Aw / root
        curvature = k * (A / root - torch.outer(Aw, Aw) / root**3)
        gap = (w @ z) / count
        target = 0.1 * gap
        dual = on * (slope - z - nu)
        wz = torch.where(takes_part, w * z, 1.0)
        system = w[:, None] * curvature * w + identity * wz
        known = torch.stack([torch.where(takes_part, target - w * z, 0.0) - w * dual, w], dim=1)
        first, second = torch.linalg.solve_ex(system, known)[0].unbind(dim=1)
        dnu = (1 - w.sum() - w @ first) / (w @ second)
        dw = w * (first + dnu * second)
        dz = torch.where(takes_part, (target - w * z - z * dw) / w, 0.0)
        limit = torch.minimum(_step_to_boundary(w, dw), _step_to_boundary(z, dz))
        step = torch.where(gap > 1e-18 * scale, limit, 0.0).nan_to_num(0.0)
        w, z, nu = w + step * dw, z + step * dz, nu + step * dnu
    w = w / w.sum()
    return w, gap <= 1e-12 * scale


def _step_to_boundary(x: Tensor, dx: Tensor) -> Tensor:
    """The share of dx that keeps x positive, at most one."""
    ratio = torch.where(dx < 0, -x / dx, torch.inf)
    return (0.995 * ratio.min()).clamp(max=1.0)
