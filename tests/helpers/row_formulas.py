"""The row ops by other means: Philox on Python's integers, decisions on fractions, float64 sums."""

from __future__ import annotations

from fractions import Fraction

import torch
from inputs import accumulator, places, rows_of
from torch import Tensor

from mtlkernels import ops, reference

WORD = (1 << 32) - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as Salmon et al. (SC 2011) write it: rounds of two multiplications."""
    c, (k0, k1) = counter, key
    for _ in range(10):
        (h0, l0), (h1, l1) = divmod(0xD2511F53 * c[0], 1 << 32), divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [h1 ^ c[1] ^ k0, l1, h0 ^ c[3] ^ k1, l0]
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c


def halves(x: int) -> list[int]:
    """The low and the high 32 bits of a 64-bit number."""
    return [x & WORD, x >> 32 & WORD]


def threshold(place: int, seed: int, step: int) -> Fraction:
    """The draw of a flat place, in (-1, 1)."""
    word = philox([*halves(place // 4), *halves(step)], halves(seed))[place % 4]
    return Fraction(2 * (word >> 8) + 1, 1 << 24) - 1


def kept(values: list[float], tau: Fraction) -> list[bool]:
    """Which of a column's values GradDrop keeps, in exact arithmetic."""
    exact = [Fraction(x) for x in values]
    total, size = sum(exact), sum(map(abs, exact))
    plus, minus = total > tau * size, total < tau * size
    return [plus if x > 0 else minus for x in exact]


def expected_graddrop(
    grads: list[Tensor], num_tasks: int, seed: int, step: int, leak: Tensor
) -> Tensor:
    """The direction in float64, an element at a time."""
    matrices = rows_of(grads, num_tasks, torch.float64)
    starts, length = places(matrices)
    out = torch.zeros(length, dtype=torch.float64)
    for at, matrix in zip(starts, matrices, strict=True):
        for i, column in enumerate(matrix.T.tolist()):
            for x, keeps, share in zip(
                column, kept(column, threshold(at + i, seed, step)), leak.tolist(), strict=True
            ):
                out[at + i] += x if keeps else share * x
    return out


def flat_rows(grads: list[Tensor], num_tasks: int) -> Tensor:
    """(T, L) float64, the gradients in the layout of flat directions."""
    matrices = rows_of(grads, num_tasks, torch.float64)
    starts, length = places(matrices)
    flat = torch.zeros(num_tasks, length, dtype=torch.float64)
    for at, matrix in zip(starts, matrices, strict=True):
        flat[:, at : at + matrix.shape[1]] = matrix
    return flat


def expected_trimmed(grads: list[Tensor], num_tasks: int, trim: int) -> Tensor:
    """The trimmed mean in float64."""
    flat = flat_rows(grads, num_tasks).sort(dim=0).values
    return flat[trim : num_tasks - trim].mean(dim=0)


def fresh_state(grads: list[Tensor], num_tasks: int) -> Tensor:
    """Zeros for `track_gram` and `excess`."""
    length = flat_rows(grads, num_tasks).shape[1]
    return torch.zeros(num_tasks, length, dtype=accumulator(grads[0].dtype))


def check_rows(grads: list[Tensor], num_tasks: int) -> None:
    """Asserts that the four ops say what the plain torch ones and float64 say of one sample."""
    seed, step = torch.tensor(-(10**12) - 7), torch.tensor((3 << 40) + 5)
    for leak in (torch.zeros(num_tasks), torch.ones(num_tasks), torch.linspace(0, 0.9, num_tasks)):
        arguments = (grads, num_tasks, seed, step, leak.double())
        got, want = ops.graddrop(*arguments), reference.graddrop(*arguments)
        if leak.sum() in (0, num_tasks):  # factors are 0 or 1: no rounding that might be fused
            assert torch.equal(got, want)
        torch.testing.assert_close(got, want)
    trim = min(3, (num_tasks - 1) // 2)
    got, want = ops.trimmed_mean(grads, num_tasks, trim), expected_trimmed(grads, num_tasks, trim)
    torch.testing.assert_close(got, want.to(got.dtype))

    flat = flat_rows(grads, num_tasks)
    tolerance = 1e-12 if grads[0].dtype == torch.float64 else 2e-6
    scale, rate = torch.linspace(0.5, 2, num_tasks).double(), torch.tensor(0.3).double()
    state, wide = fresh_state(grads, num_tasks), torch.zeros_like(flat)
    for _ in range(2):
        K = ops.track_gram(grads, num_tasks, scale, rate, state)
        wide += rate * (scale[:, None] * flat - wide)
        torch.testing.assert_close(state.double(), wide, rtol=tolerance, atol=tolerance)
        inner, norms = wide @ wide.T, wide.norm(dim=1)
        assert ((K - inner).abs() <= tolerance * norms[:, None] * norms).all()

    state, wide = fresh_state(grads, num_tasks), torch.zeros_like(flat)
    for _ in range(2):
        e = ops.excess(grads, num_tasks, 1e-7, state)
        wide += flat.square()
        torch.testing.assert_close(state.double(), wide, rtol=tolerance, atol=tolerance)
        want = (flat.square() / (wide + 1e-7).sqrt()).sum(dim=1)
        torch.testing.assert_close(e, want, rtol=tolerance, atol=tolerance)
