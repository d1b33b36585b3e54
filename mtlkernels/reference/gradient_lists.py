"""The ops over gradient lists in plain torch: Gram matrix, weighted sum, and the row methods'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mtlkernels.reference.draws import thresholds

__all__ = [
    "ALIGN",
    "FLOAT_DTYPES",
    "GRAM_NOISE",
    "check_list",
    "check_out_type",
    "check_state",
    "check_tasks",
    "combine",
    "combine_out",
    "excess",
    "flat_offsets",
    "graddrop",
    "gram",
    "list_offsets",
    "track_gram",
    "trimmed_mean",
]

ALIGN = 16  # elements; every parameter's place in a flat direction starts at a multiple of it
# |K_ij - <g_i, g_j>| <= GRAM_NOISE |g_i| |g_j| on every backend: see csrc/common/gram_noise.h.
GRAM_NOISE = 2.0**-47
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PIECE = 1 << 20  # elements at once: the draws take ten int64 numbers each


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
    """K_ij = <g_i, g_j>, (T, T) float64: float64 products, to GRAM_NOISE |g_i| |g_j|."""
    models = check_list(grads, num_tasks)
    sums = GramSums(num_tasks, grads[0].device)
    for p, model in enumerate(models):
        if model is None:
            continue
        column = grads[p :: len(models)]
        present = [t for t, grad in enumerate(column) if grad.numel()]
        sums.add(torch.stack([column[t].reshape(-1) for t in present]), present)
    return sums.total()


class GramSums:
    """A Gram matrix that is added up parameter by parameter, with compensated sums."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self._sum = torch.zeros((num_tasks, num_tasks), dtype=torch.float64, device=device)
        self._rest = torch.zeros_like(self._sum)

    def add(self, rows: Tensor, tasks: Sequence[int]) -> None:
        """Adds the products of the rows (n, N), which are those of the tasks.

        By sums of 1024 products, not by a matrix product: a BLAS may order its sums by the
        alignment of its operands.
        """
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 1024))
        for piece in rows.split(1 << 18, dim=1):
            blocks = piece.to(torch.float64).reshape(len(tasks), -1, 1024)
            found = torch.zeros_like(self._sum)
            for i, task in enumerate(tasks):
                column = (blocks[i:] * blocks[i]).sum(dim=2).sum(dim=1)
                found[list(tasks[i:]), task] = column
            # Knuth's two-sum: what the addition rounds away, exactly
            total = self._sum + found
            part = total - self._sum
            self._rest += (self._sum - (total - part)) + (found - part)
            self._sum = total

    def total(self) -> Tensor:
        """K, (T, T). A sum that is infinite stays so: its rest is no number."""
        K = self._sum + torch.where(self._rest.isfinite(), self._rest, 0.0)
        return K.tril() + K.tril(-1).T


def combine(grads: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_t w_t g_t as one flat vector, parameters at multiples of ALIGN, padding zero."""
    _check_weights(weights)
    length = list_offsets(grads, weights.numel())[-1]
    out = grads[0].new_zeros(length)
    combine_out(grads, weights, out, 0.0)
    return out


def combine_out(grads: Sequence[Tensor], weights: Tensor, out: Tensor, beta: float) -> None:
    """out <- beta * out + sum_t w_t g_t, accumulated in float64 and rounded once.

    In float32 a weight may be infinite or zero whose product with its gradient is neither.
    """
    _check_weights(weights)
    num_tasks = weights.numel()
    models = check_list(grads, num_tasks)
    offsets = list_offsets(grads, num_tasks)
    check_out_type(out, grads[0])
    if out.shape != (offsets[-1],) or not out.is_contiguous():
        raise RuntimeError(
            f"out must be a contiguous vector of {offsets[-1]} elements, as combine returns it"
        )
    for p, model in enumerate(models):
        if model is None:
            continue
        n = model.numel()
        place = out[offsets[p] : offsets[p] + n]
        total = torch.zeros_like(place, dtype=torch.float64) if beta == 0 else beta * place.double()
        for t in range(num_tasks):
            grad = grads[t * len(models) + p]
            if grad.numel():
                total = total + weights[t] * grad.reshape(-1).double()
        place.copy_(total)
        out[offsets[p] + n : offsets[p + 1]] = 0


def check_out_type(out: Tensor, grad: Tensor) -> None:
    """Raises RuntimeError where `combine_out` does not write that dtype, or on that device."""
    widened = out.dtype == torch.float32 and grad.dtype in (torch.bfloat16, torch.float16)
    if out.device != grad.device or not (widened or out.dtype == grad.dtype):
        raise RuntimeError(
            "out must have the gradients' device and dtype, or float32 for bfloat16 or float16 "
            "gradients"
        )


def _check_weights(weights: Tensor) -> None:
    if weights.dim() != 1 or weights.numel() < 1:
        raise RuntimeError("weights must be a vector with one entry a task")
    if weights.dtype not in (torch.float64, torch.float32):
        raise RuntimeError("weights must be float64 or float32")


def graddrop(
    grads: Sequence[Tensor], num_tasks: int, seed: Tensor, step: Tensor, leak: Tensor
) -> Tensor:
    """sum_t f_t g_t, f_t = 1 for the sign drawn for the element, else leak_t."""
    if any(x.numel() != 1 or x.dtype != torch.int64 for x in (seed, step)):
        raise RuntimeError("seed and step must be int64 scalars")
    check_tasks("leak", leak, num_tasks)
    seed, step = seed.reshape(()), step.reshape(())
    places, length = _places(grads, num_tasks)
    out = grads[0].new_zeros(length)
    wide = _accumulator(grads[0])
    for at, n, column in places:
        present = [t for t in range(num_tasks) if column[t].numel()]
        for begin in range(0, n, _PIECE):
            end = min(begin + _PIECE, n)
            rows = {t: column[t].reshape(-1)[begin:end] for t in present}
            draws = thresholds(at + begin, end - begin, seed, step)
            direction, size = _kept(rows, leak, draws, wide)
            if wide == torch.float32:  # what overflows there is computed again
                exact, _ = _kept(rows, leak, draws, torch.float64)
                fits = size.isfinite() & direction.isfinite()
                direction = torch.where(fits, direction, exact.to(wide))
            out[at + begin : at + end] = direction.to(out.dtype)
    return out


def _kept(
    rows: dict[int, Tensor], leak: Tensor, draws: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """GradDrop's direction and the sums of sizes, computed in that dtype."""
    total, size, direction = torch.zeros(3, len(draws), dtype=wide, device=draws.device)
    for x in rows.values():
        total, size = total + x.to(wide), size + x.to(wide).abs()
    threshold = draws.to(wide) * size
    plus = (total > threshold) | (total == size)
    minus = (total < threshold) | (total == -size)
    for t, x in rows.items():
        kept = torch.where(x > 0, plus, minus)
        direction = direction + torch.where(kept, 1.0, leak[t].to(wide)) * x.to(wide)
    return direction, size


def trimmed_mean(grads: Sequence[Tensor], num_tasks: int, trim: int) -> Tensor:
    """The mean of each column without its `trim` smallest and largest values; absent is zero."""
    if trim < 0 or 2 * trim >= num_tasks:
        raise RuntimeError(
            f"trim = {trim} leaves none of {num_tasks} values: it must be at least 0 and below "
            "half the number of tasks"
        )
    places, length = _places(grads, num_tasks)
    out = grads[0].new_zeros(length)
    wide = _accumulator(grads[0])
    for at, n, column in places:
        zero = torch.zeros(n, dtype=wide, device=out.device)
        rows = torch.stack([g.reshape(-1).to(wide) if g.numel() else zero for g in column])
        ordered = rows.sort(dim=0).values[trim : num_tasks - trim]
        kept = ordered.mean(dim=0)  # a sum may overflow whose mean does not
        kept = torch.where(kept.isfinite(), kept, ordered.double().mean(dim=0).to(wide))
        out[at : at + n] = torch.where(rows.isnan().any(dim=0), torch.nan, kept)
    return out


def track_gram(
    grads: Sequence[Tensor], num_tasks: int, scale: Tensor, rate: Tensor, state: Tensor
) -> Tensor:
    """state_t <- state_t + rate (scale_t g_t - state_t); K of the new rows.

    An element whose new value is not finite stays, and the task's row and column of K are NaN.
    """
    check_tasks("scale", scale, num_tasks)
    if rate.numel() != 1 or rate.dtype != torch.float64:
        raise RuntimeError("rate must be a float64 scalar")
    places, length = _places(grads, num_tasks)
    check_state(grads, num_tasks, length, state)
    factor, share = scale.to(state.dtype), rate.reshape(()).to(state.dtype)
    sums = GramSums(num_tasks, state.device)
    spoilt = torch.zeros(num_tasks, dtype=torch.bool, device=state.device)
    for at, n, column in places:
        rows = state[:, at : at + n]
        for t, grad in enumerate(column):
            x = factor[t] * (grad.reshape(-1).to(state.dtype) if grad.numel() else 0.0)
            moved = rows[t] + share * (x - rows[t])
            if state.dtype == torch.float32:  # what overflows there is computed again
                old = rows[t].double()
                x = scale[t] * (grad.reshape(-1).double() if grad.numel() else 0.0)
                exact = old + rate.reshape(()) * (x - old)
                moved = torch.where(moved.isfinite(), moved, exact.to(state.dtype))
            spoilt[t] |= ~moved.isfinite().all()
            rows[t] = torch.where(moved.isfinite(), moved, rows[t])
        sums.add(rows, range(num_tasks))
    return torch.where(spoilt[:, None] | spoilt, torch.nan, sums.total())


def excess(grads: Sequence[Tensor], num_tasks: int, eps: float, state: Tensor) -> Tensor:
    """state_t <- state_t + g_t^2, and e_t = sum g_t^2 / sqrt(state_t + eps), (T) float64.

    An element whose new value is not finite stays, and e_t is NaN.
    """
    places, length = _places(grads, num_tasks)
    check_state(grads, num_tasks, length, state)
    e = state.new_zeros(num_tasks, dtype=torch.float64)
    for at, n, column in places:
        for t, grad in enumerate(column):
            if grad.numel() == 0:
                continue
            row = state[t, at : at + n]
            square = grad.reshape(-1).to(state.dtype).square()
            grown = row + square
            terms = torch.where(square == 0, square, square / (grown + eps).sqrt())
            terms = torch.where(grown.isfinite(), terms, torch.nan)
            # as gram's sums: one long one would depend on the number of threads
            for piece in terms.to(torch.float64).split(1 << 18):
                blocks = torch.nn.functional.pad(piece, (0, -len(piece) % 1024))
                e[t] += blocks.reshape(-1, 1024).sum(dim=1).sum()
            row.copy_(torch.where(grown.isfinite(), grown, row))
    return e


def check_tasks(name: str, numbers: Tensor, num_tasks: int) -> None:
    """Raises RuntimeError unless there is one float64 number a task."""
    if numbers.shape != (num_tasks,) or numbers.dtype != torch.float64:
        raise RuntimeError(
            f"{name} must be a contiguous float64 vector of {num_tasks} numbers, one a task, on "
            "the gradients' device"
        )


def check_state(grads: Sequence[Tensor], num_tasks: int, length: int, state: Tensor) -> None:
    """Raises RuntimeError unless there is a row a task in the layout of `combine`."""
    wide = _accumulator(grads[0])
    if state.shape != (num_tasks, length) or state.dtype != wide or not state.is_contiguous():
        raise RuntimeError(
            f"state must be a contiguous matrix of {num_tasks} x {length} numbers, a row a task "
            "as combine lays it out, in float64 for float64 gradients and else in float32, on the "
            "gradients' device"
        )


def _accumulator(grad: Tensor) -> torch.dtype:
    return torch.float64 if grad.dtype == torch.float64 else torch.float32


def _places(
    grads: Sequence[Tensor], num_tasks: int
) -> tuple[Iterator[tuple[int, int, list[Tensor]]], int]:
    """Of each parameter its place, its size and its T gradients; and the flat length."""
    models = check_list(grads, num_tasks)
    numels = [0 if model is None else model.numel() for model in models]
    offsets = flat_offsets(numels)
    places = zip(offsets, numels, strict=False)
    columns = (list(grads[p :: len(models)]) for p in range(len(models)))
    found = ((at, n, column) for (at, n), column in zip(places, columns, strict=True) if n)
    return found, offsets[-1]
