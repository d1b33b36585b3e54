"""How an op is defined and called: once here, for every backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlkernels import reference

__all__ = ["FLOAT_DTYPES", "LIBRARY", "MAX_NATIVE_TASKS", "SCHEMAS", "check_gram"]

MAX_NATIVE_TASKS = 64
FLOAT_DTYPES = reference.FLOAT_DTYPES
check_gram = reference.check_gram

LIBRARY = torch.library.Library("mtlkernels", "FRAGMENT")
SCHEMAS: dict[str, str] = {}

# A CUDA graph cannot hold an op that reads a tensor back, as the plain solvers do.
_READS_BACK = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()


def define(name: str, schema: str) -> Any:
    """Defines an op that a function of the same name in `reference` specifies; returns it."""
    SCHEMAS[name] = schema
    LIBRARY.define(name + schema)
    return getattr(torch.ops.mtlkernels, name).default


def define_solver(name: str, arguments: str, next_of: Sequence[str] = ()) -> Callable[..., Any]:
    """Defines an op from K and a method's numbers to weights (T) and status (T); returns a call.

    Args:
        name: of the op.
        arguments: the schema's after K, each with a comma before it.
        next_of: arguments that come back after weights and status as the next step has them.
    """
    outputs = ", ".join(["Tensor"] * (2 + len(next_of)))
    solve = define_sized(name, f"(Tensor gram{arguments}) -> ({outputs})")
    names = [argument.split()[-1] for argument in arguments.split(",")[1:]]
    places = [names.index(each) for each in next_of]

    def shapes(gram: Tensor, *numbers: Any) -> tuple[Tensor, ...]:
        check_gram(gram)
        status = gram.new_empty(gram.shape[0], dtype=torch.int64)
        following = (torch.empty_like(numbers[place]) for place in places)
        return gram.new_empty(gram.shape[0]), status, *following

    fake(name)(shapes)
    refuse_gradients(name)
    return lambda gram, *numbers: solve(gram.shape[0], gram, *numbers)


def define_sized(name: str, schema: str) -> Callable[..., Any]:
    """Defines an op whose kernels take up to `MAX_NATIVE_TASKS` tasks; returns a call.

    Native solvers hold their problem in on-chip memory. Above their size the function in
    `reference` serves, with a warning. torch.compile cannot trace it, as it branches on numbers, so
    a compiled graph gets it as an op of its own, "plain_" + name.

    Returns:
        A function of the number of tasks and the op's arguments.
    """
    op = define(name, schema)
    LIBRARY.define(f"plain_{name}{schema}", tags=_READS_BACK)
    LIBRARY.impl(f"plain_{name}", getattr(reference, name), "CompositeExplicitAutograd")
    in_graph = getattr(torch.ops.mtlkernels, f"plain_{name}").default
    plain = getattr(reference, name)

    def solve(num_tasks: int, *args: object) -> Any:
        if num_tasks <= MAX_NATIVE_TASKS:
            return call(op, *args)
        if torch.compiler.is_compiling():
            return in_graph(*args)
        warnings.warn(
            f"{num_tasks} tasks are more than the {MAX_NATIVE_TASKS} that native solvers take: "
            "the plain torch solver serves, more slowly",
            stacklevel=4,
        )
        return plain(*args)

    return solve


def define_plain(name: str, schema: str) -> Any:
    """Defines an op that only the function of the same name in `reference` serves, on any device.

    It branches on numbers, so on a device it reads its inputs back; torch.compile keeps it whole.
    """
    LIBRARY.define(f"plain_{name}{schema}", tags=_READS_BACK)
    LIBRARY.impl(f"plain_{name}", getattr(reference, name), "CompositeExplicitAutograd")
    torch.library.register_autograd(f"mtlkernels::plain_{name}", refuse_backward, lib=LIBRARY)
    return getattr(torch.ops.mtlkernels, f"plain_{name}").default


def fake(name: str) -> Callable[[Callable[..., Any]], None]:
    """A decorator: what an op of `define_sized` returns while shapes alone are known."""

    def register(fn: Callable[..., Any]) -> None:
        for each in (name, f"plain_{name}"):
            torch.library.register_fake(f"mtlkernels::{each}", fn, lib=LIBRARY)

    return register


def refuse_gradients(name: str) -> None:
    """Makes a backward through an op of `define_sized` raise."""
    for each in (name, f"plain_{name}"):
        torch.library.register_autograd(f"mtlkernels::{each}", refuse_backward, lib=LIBRARY)


def call(op: Callable[..., Any], *args: object) -> Any:
    """Calls a functional op, past the autograd kernel where no gradient is recorded.

    That kernel is Python; it costs more than a small model's whole Gram matrix.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def refuse_backward(ctx: Any, *cotangents: Tensor) -> None:
    """The gradient of every solver: none, and it says so."""
    raise RuntimeError(
        "a method's weights are not differentiable: detach the Gram matrix before the method, or "
        "call it under torch.no_grad()"
    )
