"""GradDrop, trimmed mean, and states as long as the gradients, in plain torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mtlkernels.reference.gradient_lists import GramSums, check_list, flat_offsets

_LOW = (1 << 32) - 1
_PIECE = 1 << 20  # elements at once: the draws take ten int64 numbers each


def philox(group: Tensor, step: Tensor, seed: Tensor) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011) of the counters (group, step) under the key seed.

    Args:
        group: (n) int64. step, seed: int64 scalars.

    Returns:
        Four tensors (n) int64 of 32-bit words; words of group i are elements 4 i .. 4 i + 3.
    """

    def high(x: Tensor) -> Tensor:
        return (x >> 32) & _LOW

    c0, c1 = group & _LOW, high(group)
    c2, c3 = (step & _LOW).expand_as(c0), high(step).expand_as(c0)
    k0, k1 = seed & _LOW, high(seed)
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # modulo 2^64: int64 wraps, and its bits are right
        c0, c1, c2, c3 = high(b) ^ c1 ^ k0, b & _LOW, high(a) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return [c0, c1, c2, c3]


def thresholds(start: int, n: int, seed: Tensor, step: Tensor) -> Tensor:
    """(n) float64 draws in (-1, 1), odd multiples of 2^-24, for flat places start .. start + n.

    start is a multiple of 4.
    """
    groups = torch.arange(start // 4, start // 4 + -(-n // 4), device=seed.device)
    words = torch.stack(philox(groups, step, seed), dim=1).reshape(-1)[:n]
    return (2 * (words >> 8) + 1 - (1 << 24)).to(torch.float64) * 2.0**-24


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
