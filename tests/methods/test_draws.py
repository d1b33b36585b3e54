"""PCGrad that draws its own order: what is drawn, counted and refused."""

from __future__ import annotations

import pytest
import torch
from hard_grams import random_rows
from torch import Tensor

import mtlkernels
from mtlkernels import ops


def conflicting(T: int) -> Tensor:
    rows = random_rows(T, 3 * T, 0)
    return rows @ rows.T


@pytest.mark.filterwarnings("ignore:70 tasks are more than the 64")
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("T", [1, 2, 5, 70])
def test_an_op_draws_solves_and_counts(T: int, mean: bool) -> None:
    K, seed, step = conflicting(T), torch.tensor(3), torch.tensor(7)
    expected, _ = ops.pcgrad(K, ops.visiting_order(seed, step, T), mean)
    weights, status = ops.pcgrad_drawn(K, seed, step, mean)
    assert torch.equal(weights, expected)
    assert status.tolist() == T * [0]
    assert (seed.item(), step.item()) == (3, 8)


def test_the_module_counts_in_place() -> None:
    method = mtlkernels.PCGrad(seed=3)
    step = method.step
    drawn = {tuple(method(conflicting(5)).tolist()) for _ in range(6)}
    assert len(drawn) > 1
    assert method.step is step
    assert step == 6


def test_weights_that_were_drawn_refuse_a_backward_too() -> None:
    method = mtlkernels.PCGrad()
    weights = method(conflicting(3).requires_grad_())
    assert method.step == 1
    with pytest.raises(RuntimeError, match="not differentiable: detach"):
        weights.sum().backward()
