"""The sample inputs of all tests of the ops, and what the ops must answer for them.

`expected_gram` and `expected_combine` are float64 and share no code with the library. A Gram matrix
may be GRAM_NOISE from the former, a direction at most twice as far from the latter as the plain
torch expression in the gradients' own dtype.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mtlkernels.reference import GRAM_NOISE

Sample = tuple[list[Tensor], int]
Make = Callable[..., Tensor]

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# One below, at and above: vectors of every instruction set, alignment, chunks of 512 and 1024
# elements, blocks of 4096; and a size of several blocks with a ragged end.
NUMELS = [
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65),
    *(511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 3 * 4096 + 5),
]
TASK_COUNTS = [2, 3, 4, 5, 7, 8, 9, 13, 17, 40]


def dense(num_tasks: int, *shapes: tuple[int, ...]) -> Callable[[Make], Sample]:
    """Contiguous gradients of these shapes."""
    return lambda make: ([make(*shape) for _ in range(num_tasks) for shape in shapes], num_tasks)


def absent(*present: str) -> Callable[[Make], Sample]:
    """One string a task: "x" where it has a gradient, "." where it has none."""
    numels = [5, 17, 600, 1]
    return lambda make: (
        [make(n if here == "x" else 0) for row in present for here, n in zip(row, numels)],  # noqa: B905
        len(present),
    )


def streamed(make: Make) -> Sample:
    """A direction so large that it is stored past the cache, from an address off every vector."""
    copies = (8 << 20) // (make(0).element_size() << 12)
    return [make(3), torch.cat([make(1 << 12).repeat(copies), make(37)])], 1


def awkward(layout: Callable[[Make], Tensor]) -> Callable[[Make], Sample]:
    """Gradients of one awkward layout between contiguous ones, and paired with a contiguous one."""

    def build(make: Make) -> Sample:
        rows = [[make(3), layout(make), make(5)] for _ in range(3)]
        rows[1][1] = rows[1][1].contiguous()
        return [grad for row in rows for grad in row], 3

    return build


def shared_storage(make: Make) -> Sample:
    """Two parameters whose gradients overlap in memory, and two tasks with the very same one."""
    first, second = make(60), make(60)
    rows = [[base[:40], base[20:]] for base in (first, second, first)]
    return [grad for row in rows for grad in row], 3


SAMPLES: dict[str, Callable[[Make], Sample]] = {
    "ordinary": dense(3, (5, 7), (11,), (2, 3, 4)),
    "one_task": dense(1, (5, 7), (600,)),
    **{f"tasks_{T}": dense(T, (67,), (3, 5), (1100,)) for T in TASK_COUNTS},
    **{f"numel_{n}": dense(3, (n,)) for n in NUMELS},
    "zero_size_first": dense(2, (0,), (5,), (7,)),
    "zero_size_middle": dense(2, (5,), (0, 3), (7,)),
    "zero_size_last": dense(2, (5,), (7,), (4, 0)),
    "zero_size_only": dense(2, (0,), (0, 2)),
    "one_element": dense(4, (), (1, 1)),
    "many_tensors": dense(2, *((1 + i % 19,) for i in range(700))),
    "many_tasks": dense(70, (40,), (700,)),
    "segments_of_several_blocks": dense(300, (11,), (8200,)),
    "several_segments": dense(3, (20000,), (3,), (30001,)),
    "streamed": streamed,
    "absent_in_one_task": absent("xxxx", "x.xx", "xxxx"),
    "absent_in_some_tasks": absent("x.x.", ".xx.", "xxxx"),
    "absent_but_one_task": absent("....", "xxxx", "...."),
    "absent_in_all_tasks": absent("x.x.", "x.x.", "x.x."),
    "no_task_twice": absent("x...", ".x..", "..x.", "...x"),
    "stride_zero": awkward(lambda make: make(1).expand(37)),
    "stride_zero_rows": awkward(lambda make: make(9).expand(5, 9)),
    "stride_zero_columns": awkward(lambda make: make(5, 1).expand(5, 9)),
    "transposed": awkward(lambda make: make(7, 5).t()),
    "channels_last": awkward(lambda make: make(2, 3, 4, 5).to(memory_format=torch.channels_last)),
    "misaligned": awkward(lambda make: make(1030)[1:]),
    "strided": awkward(lambda make: make(80)[::2]),
    "strided_columns": awkward(lambda make: make(9, 8)[:, ::2]),
    "one_column": awkward(lambda make: make(9, 8)[:, 3:4]),
    "strided_matrix": awkward(lambda make: make(10, 10)[2:8:2, 1::3]),
    "overlapping": awkward(lambda make: make(12).unfold(0, 4, 1)),
    "shared_storage": shared_storage,
}  # fmt: skip

# Samples that cover every feature once, for tests that are slow on each.
FEW = [
    *("ordinary", "one_task", "one_element", "zero_size_middle", "zero_size_only"),
    *("absent_in_some_tasks", "absent_in_all_tasks", "stride_zero", "transposed"),
    *("channels_last", "misaligned", "shared_storage"),
]


def sample(name: str, dtype: torch.dtype) -> Sample:
    """The gradients and the number of tasks of one sample, the same at every call."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return SAMPLES[name](lambda *shape: torch.randn(shape, generator=generator).to(dtype))


def gradient_lists(dtype: torch.dtype) -> Iterator[tuple[str, list[Tensor], int]]:
    """All samples: (id, gradient list, number of tasks)."""
    for name in SAMPLES:
        yield name, *sample(name, dtype)


def sample_weights(num_tasks: int) -> Tensor:
    """Weights of both signs, one of them zero where there are three tasks or more."""
    weights = torch.randn(num_tasks, generator=torch.Generator().manual_seed(1)).double()
    weights[2:3] = 0
    return weights


# ---------------------------------------------------------------------------------- the answers


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums and states of that dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows_of(grads: list[Tensor], num_tasks: int, dtype: torch.dtype) -> list[Tensor]:
    """One (T, n) matrix a parameter, zeros where the gradient is absent; n = 0 where all are."""
    params = len(grads) // num_tasks
    matrices = []
    for p in range(params):
        column = grads[p::params]
        n = max(grad.numel() for grad in column)
        matrix = torch.zeros(num_tasks, n, dtype=dtype)
        for row, grad in zip(matrix, column, strict=True):
            if grad.numel():
                row.copy_(grad.reshape(-1))
        matrices.append(matrix)
    return matrices


def places(matrices: list[Tensor]) -> tuple[list[int], int]:
    """Where each parameter starts in the flat direction, and that direction's length."""
    starts, end = [], 0
    for matrix in matrices:
        starts.append(end)
        end += -(-matrix.shape[1] // 16) * 16
    return starts, end


def expected_gram(grads: list[Tensor], num_tasks: int) -> Tensor:
    """K in float64, from dot products of 64 elements at most: one long one is off by 1e-13."""
    K = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    for slab in torch.cat(rows_of(grads, num_tasks, torch.float64), dim=1).split(1 << 14, dim=1):
        runs = torch.nn.functional.pad(slab, (0, -slab.shape[1] % 64)).unflatten(1, (-1, 64))
        K += torch.einsum("irk,jrk->rij", runs, runs).sum(dim=0)
    return K


def expected_combine(
    grads: list[Tensor], weights: Tensor, old: Tensor | None = None, beta: float = 0.0
) -> tuple[Tensor, Tensor]:
    """beta old + sum_t w_t g_t in float64, and the same sum of absolute values: its scale."""
    matrices = rows_of(grads, len(weights), torch.float64)
    starts, length = places(matrices)
    out, scale = torch.zeros(2, length, dtype=torch.float64)
    for at, matrix in zip(starts, matrices, strict=True):
        place = slice(at, at + matrix.shape[1])
        terms = weights.double()[:, None] * matrix
        out[place], scale[place] = terms.sum(dim=0), terms.abs().sum(dim=0)
        if old is not None:
            out[place] += beta * old[place].double()
            scale[place] += (beta * old[place].double()).abs()
    return out, scale


def plain_combine(
    grads: list[Tensor],
    weights: Tensor,
    old: Tensor | None = None,
    beta: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What a person writes, in the gradients' dtype or the one given."""
    dtype = dtype or grads[0].dtype
    matrices = rows_of(grads, len(weights), dtype)
    starts, length = places(matrices)
    out = torch.zeros(length, dtype=dtype)
    for at, matrix in zip(starts, matrices, strict=True):
        place = slice(at, at + matrix.shape[1])
        if old is not None:
            out[place] = beta * old[place]
        for weight, row in zip(weights, matrix, strict=True):
            out[place] += weight * row
    return out


def _error(actual: Tensor, expected: Tensor, scale: Tensor) -> float:
    """The largest error in units of the scale; an error where the scale is zero is infinite."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs()
    assert error.isfinite().all()
    relative = torch.where(error == 0, 0.0, error / scale)
    return float(relative.max()) if relative.numel() else 0.0


def check_gram(K: Tensor, grads: list[Tensor], num_tasks: int) -> None:
    """Asserts that K is symmetric and accurate, its error measured against the gradients' norms."""
    expected = expected_gram(grads, num_tasks)
    norms = expected.diagonal().sqrt()
    scale = torch.outer(norms, norms)
    assert K.dtype == torch.float64
    assert torch.equal(K, K.T)
    assert _error(K, expected, scale) <= GRAM_NOISE


def check_combine(
    out: Tensor,
    grads: list[Tensor],
    weights: Tensor,
    old: Tensor | None = None,
    beta: float = 0.0,
    dtype: torch.dtype | None = None,
) -> None:
    """Asserts that a flat direction, of the gradients' dtype or the one given, is accurate and its
    padding zero."""
    expected, scale = expected_combine(grads, weights, old, beta)
    plain = _error(plain_combine(grads, weights, old, beta, dtype), expected, scale)
    assert out.dtype == (dtype or grads[0].dtype)
    # The result is rounded to its dtype once (half an eps) even where the plain expression happens
    # to be exact; below the normal range that rounding is absolute.
    # In float64 the expected sum is itself rounded, half an eps a term, as is the kernel's.
    info = torch.finfo(out.dtype)
    terms = len(weights) + 1 if out.dtype == torch.float64 else 1
    floor = terms * info.eps * scale.clamp_min(info.smallest_normal)
    assert _error(out, expected, scale * (2 * plain) + floor) <= 1
