"""How an op is defined and called: once here, for every backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlkernels import reference

MAX_NATIVE_TASKS = 64
FLOAT_DTYPES = reference.FLOAT_DTYPES
check_gram = reference.check_gram

LIBRARY = torch.library.Library("mtlkernels", "FRAGMENT")
SCHEMAS: dict[str, str] = {}


def define(name: str, schema: str) -> Any:
    """Defines an op that a function of the same name in `reference` specifies; returns it."""
    SCHEMAS[name] = schema
    LIBRARY.define(name + schema)
    return getattr(torch.ops.mtlkernels, name).default


def define_solver(name: str, arguments: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Defines an op from K and a method's numbers to weights (T) and status (T); returns a call.

    Native solvers hold their problem in on-chip memory; above their size torch serves, and says so.
    """
    op = define(name, f"(Tensor gram{arguments}) -> (Tensor, Tensor)")
    torch.library.register_fake(f"mtlkernels::{name}", _fake_solver, lib=LIBRARY)
    torch.library.register_autograd(f"mtlkernels::{name}", refuse_backward, lib=LIBRARY)
    plain = getattr(reference, name)

    def solve(gram: Tensor, *numbers: object) -> tuple[Tensor, Tensor]:
        if fits_native(gram.shape[0]):
            return call(op, gram, *numbers)
        return plain(gram, *numbers)

    return solve


def fits_native(num_tasks: int) -> bool:
    """Whether native solvers take that many tasks; warns where they do not."""
    if num_tasks <= MAX_NATIVE_TASKS:
        return True
    warnings.warn(
        f"{num_tasks} tasks are more than the {MAX_NATIVE_TASKS} that native solvers take: "
        "the plain torch solver serves, more slowly",
        stacklevel=4,
    )
    return False


def call(op: Callable[..., Any], *args: object) -> Any:
    """Calls a functional op, past the autograd kernel where no gradient is recorded.

    That kernel is Python; it costs more than a small model's whole Gram matrix.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _fake_solver(gram: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    check_gram(gram)
    return gram.new_empty(gram.shape[0]), gram.new_empty(gram.shape[0], dtype=torch.int64)


def refuse_backward(ctx: Any, *cotangents: Tensor) -> None:
    """The gradient of every solver: none, and it says so."""
    raise RuntimeError(
        "a method's weights are not differentiable: detach the Gram matrix before the method, or "
        "call it under torch.no_grad()"
    )
