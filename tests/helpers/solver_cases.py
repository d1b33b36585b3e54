"""Every solver op with arguments for a given Gram matrix, and how two answers are compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtlkernels import Status, ops


def _order(K: Tensor) -> Tensor:
    return ops.visiting_order(torch.tensor(3), torch.tensor(1), len(K))


def _weights(K: Tensor) -> Tensor:
    return torch.linspace(0.5, 2, len(K), dtype=torch.float64)


# What follows K in a call of the op, on the CPU.
ARGUMENTS: dict[str, Callable[[Tensor], tuple[object, ...]]] = {
    "pcgrad": lambda K: (_order(K), False),
    "pcgrad_drawn": lambda K: (torch.tensor(3), torch.tensor(1), True),
    "cagrad": lambda K: (0.4, 1, False),
    "avgnorm": lambda K: (1, 2.0),
    "mgda": lambda K: (),
    "imgrad": lambda K: (0.8, 0, 1),
    "dualproj": lambda K: (_weights(K),),
    "upgrad": lambda K: (_weights(K),),
    "fairgrad": lambda K: (2.0, _weights(K), 1.0),
    "equiangular": lambda K: (0,),
    "aligned": lambda K: (_weights(K), 0, True),
    "gradvac": lambda K: (_order(K), torch.full_like(K, 0.1), 0.5, True),
    "gradnorm": lambda K: (_weights(K), *2 * [torch.ones(len(K)).double()], 1.5, 0.025),
    "simplex_descent": lambda K: (
        *(torch.full_like(K[0], 1 / len(K)), 3, 1.0, 0.5, 0.3, 0.1, True),
    ),
}
TWO_BATCHES = {"simplex_descent"}  # whose products may be negative and uneven


def solve(name: str, K: Tensor, device: str, arguments: tuple[object, ...]) -> tuple[Tensor, ...]:
    """The op's answer there, and what it did to its arguments; back on the CPU."""
    moved = [x.to(device, copy=True) if isinstance(x, Tensor) else x for x in arguments]
    answer = getattr(torch.ops.mtlkernels, name)(K.to(device, copy=True), *moved)
    return tuple(x.cpu() for x in (*answer, *moved) if isinstance(x, Tensor))


def check_same(K: Tensor, answer: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Asserts the same status, and weights with the same direction: what K does not see is free."""
    (weights, status, *others), (wanted, flags, *rest) = answer, expected
    assert status.tolist() == flags.tolist()
    gap = weights - wanted
    size = (wanted.abs() * K.diagonal().sqrt()).sum()
    assert (gap @ K @ gap).clamp_min(0).sqrt() <= 1e-8 * size
    for other, one in zip(others, rest, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-9, equal_nan=True)


INVALID = {(1, 1): -1.0, (0, 2): 0.5, (2, 0): 0.5}


def invalid_gram(entry: tuple[int, int]) -> tuple[Tensor, list[int]]:
    """The identity but for one entry, and the status it deserves."""
    K = torch.eye(3, dtype=torch.float64)
    K[entry] = INVALID[entry]
    return K, [int(Status.INVALID_GRAM) if i in entry else 0 for i in range(3)]
