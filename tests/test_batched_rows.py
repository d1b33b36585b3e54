"""When collect="auto" batches, and that torch runs once what the rule says it runs once."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import mtlkernels
from mtlkernels import rows

TASKS = 3


def leaf(*shape: int) -> Tensor:
    return torch.rand(*shape, requires_grad=True)


# Kinds of nodes -> a function whose graph has them.
CASES: dict[str, Callable[[], Tensor]] = {
    "Abs AccumulateGrad": lambda: leaf(3).abs(),
    "Add": lambda: leaf(3, 4) + leaf(4),
    "Addcmul": lambda: torch.addcmul(leaf(3), leaf(3), leaf(3)),
    "Addmm T": lambda: functional.linear(leaf(3, 4), leaf(5, 4), leaf(5)),
    "Alias": lambda: torch.ops.aten.alias(leaf(3)),
    "Amax": lambda: leaf(3, 4).amax(1),
    "Atan": lambda: leaf(3).atan(),
    "Baddbmm": lambda: torch.baddbmm(leaf(2, 3, 5), leaf(2, 3, 4), leaf(2, 4, 5)),
    "Bmm": lambda: torch.bmm(leaf(2, 3, 4), leaf(2, 4, 5)),
    "Cat": lambda: torch.cat([leaf(3, 2), leaf(3, 4)], 1),
    "Clone": lambda: leaf(3, 4).t().contiguous(),
    "Cos Sin": lambda: leaf(3).cos() + leaf(3).sin(),
    "Diagonal": lambda: leaf(3, 3).diagonal(),
    "Div": lambda: leaf(3, 4) / leaf(4),
    "Dot": lambda: torch.dot(leaf(3), leaf(3)),
    "Erf": lambda: leaf(3).erf(),
    "Exp Expm1": lambda: leaf(3).exp() + leaf(3).expm1(),
    "Expand": lambda: leaf(1, 4).expand(3, 4),
    "Lerp": lambda: torch.lerp(leaf(3), leaf(3), 0.5),
    "LinalgVectorNorm": lambda: leaf(3, 4).norm(dim=1),
    "Log Log1P": lambda: leaf(3).log() + leaf(3).log1p(),
    "Logsumexp": lambda: leaf(3, 4).logsumexp(1),
    "Mean": lambda: leaf(3, 4).mean() + leaf(3, 4).mean((0, 1)),
    "Mm UnsafeView View": lambda: functional.linear(leaf(2, 3, 4), leaf(5, 4)),
    "Mul Neg Sub": lambda: leaf(3, 4) * leaf(4) - (-leaf(4)),
    "Permute": lambda: leaf(2, 3, 4).permute(2, 0, 1),
    "Pow": lambda: leaf(3) ** 3,
    "Prod": lambda: leaf(3, 4).prod(1),
    "Reciprocal": lambda: leaf(3).reciprocal(),
    "Relu Threshold": lambda: functional.threshold(leaf(3).relu(), 0.1, 0.0),
    "Repeat": lambda: leaf(3).repeat(2),
    "Rsqrt Sqrt": lambda: leaf(3).rsqrt() + leaf(3).sqrt(),
    "Select Slice": lambda: leaf(3, 4)[1] + leaf(3, 4)[0:1, 0:4],
    "Sigmoid": lambda: leaf(3).sigmoid(),
    "Split": lambda: torch.mul(*leaf(4, 6).split(3, 1)),
    "SplitWithSizes": lambda: torch.mul(*leaf(4, 6).split([3, 3], 1)),
    "Squeeze Unsqueeze": lambda: leaf(3, 1).squeeze(1)[:, None],
    "Stack Unbind": lambda: torch.stack(leaf(3, 4).unbind()),
    "Sum": lambda: leaf(3, 4).sum() + leaf(3, 4).sum((0, 1)),
    "ToCopy": lambda: leaf(3).double(),
    "Transpose": lambda: leaf(2, 3, 4).transpose(1, 2),
    "Var": lambda: leaf(3, 4).var(1),
}


def graph_of(y: Tensor) -> tuple[set[str], list[Tensor]]:
    """The kinds of nodes behind a tensor, and its leaves."""
    kinds, leaves = set(), []
    todo, seen = [y.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            kinds.add(re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2]))
            leaves += [node.variable] if hasattr(node, "variable") else []
            todo += [source for source, _ in node.next_functions]
    return kinds, leaves


@pytest.fixture
def told_of_loops() -> Iterator[None]:
    """torch warns of every operation that it runs once for each of a batch of gradients."""
    before = torch._C._debug_only_are_vmap_fallback_warnings_enabled()
    torch._C._debug_only_display_vmap_fallback_warnings(True)
    yield
    torch._C._debug_only_display_vmap_fallback_warnings(before)


def loops(y: Tensor, leaves: list[Tensor]) -> list[str]:
    """What torch says that it runs once for each of three gradients."""
    seeds = torch.rand(TASKS, *y.shape, dtype=y.dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.autograd.grad(y, leaves, seeds, is_grads_batched=True)
    return [str(warning.message) for warning in caught]


@pytest.mark.usefixtures("told_of_loops")
@pytest.mark.parametrize("names", CASES)
def test_torch_runs_these_once(names: str) -> None:
    y = CASES[names]()
    kinds, leaves = graph_of(y)
    assert set(names.split()) <= kinds <= rows._BATCHED
    assert loops(y, leaves) == []


def test_each_kind_has_a_case() -> None:
    assert {kind for names in CASES for kind in names.split()} == rows._BATCHED


@pytest.mark.usefixtures("told_of_loops")
def test_torch_tells_of_a_loop() -> None:
    y = functional.conv1d(leaf(2, 3, 8), leaf(4, 3, 3))
    kinds, leaves = graph_of(y)
    assert "Convolution" not in rows._BATCHED
    assert "Convolution" in kinds
    assert any("batching rule" in warning for warning in loops(y, leaves))


def collected(trunk: nn.Module, inputs: Tensor, tasks: int) -> str:
    z = trunk(inputs)
    losses = [(z * (t + 1)).sum() for t in range(tasks)]
    return mtlkernels.backward(
        losses, list(trunk.parameters()), mtlkernels.Mean(), collect="auto"
    ).collected


def test_auto_batches_many_small_gradients() -> None:
    many = rows._CPU_TASKS
    told = collected(nn.Linear(4, 4), torch.rand(2, 4), many)
    assert told == "one batched backward below the heads: all of it can be batched"


def test_auto_loops_where_a_batch_is_not_faster() -> None:
    many, numbers = rows._CPU_TASKS, rows._CPU_NUMBERS
    few = collected(nn.Linear(4, 4), torch.rand(2, 4), many - 1)
    assert few == "a backward a loss: on a CPU a batched one takes 16 tasks to be faster"
    large = collected(nn.Linear(4, 4), torch.rand(numbers // 4 // many + 1, 4), many)
    assert large.startswith("a backward a loss: on a CPU one on 65,600 numbers, more than 65,536")
    looped = collected(nn.Sequential(nn.Linear(4, 4), nn.GELU()), torch.rand(2, 4), many)
    assert looped == "a backward a loss: torch does not batch Gelu"
