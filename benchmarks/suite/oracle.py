"""Is a provider's direction right? In float64, from the mathematics, before anything is timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from examples.demo.names import gram_method
from mtlkernels import reference

ORDERS = 12
# Rounding of sums in the gradients' own dtype, relative to the direction.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5}
TOLERANCE_16_BITS = 2e-2
# A direction may be this many times as far from the mean of the orders as one of them is.
FACTOR = 3.0
COLUMNS = 1 << 20


@dataclass(frozen=True)
class Oracle:
    """The right weights (T) in float64, and how far off a direction may be, relative to its norm.

    PCGrad's answer depends on the order in which tasks are visited, which every implementation
    draws for itself: right is what is no further from the mean over orders than orders are.
    """

    weights: Tensor
    tolerance: float

    def error(self, direction: list[Tensor], grads: list[Tensor]) -> float:
        """Distance from the right direction, relative to its norm; infinite for other shapes."""
        count = len(grads) // self.weights.numel()
        if [d.shape for d in direction] != [g.shape for g in grads[:count]]:
            return float("inf")
        apart = total = 0.0
        for p, have in enumerate(direction):
            column = [grad.to(torch.float64) for grad in grads[p::count]]
            want = sum(w * g for w, g in zip(self.weights.tolist(), column, strict=True))
            apart += float((have - want).square().sum())
            total += float(torch.as_tensor(want).square().sum())
        return (apart / total) ** 0.5


def wide_gram(grads: list[Tensor], num_tasks: int) -> Tensor:
    """The Gram matrix (T, T) with products and sums in float64, on the CPU."""
    count = len(grads) // num_tasks
    K = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    for p in range(count):
        for pieces in zip(*(g.reshape(-1).split(COLUMNS) for g in grads[p::count]), strict=True):
            rows = torch.stack(pieces).to(torch.float64)
            K += (rows @ rows.T).cpu()
    return K


def oracle(grads: list[Tensor], num_tasks: int, method: str) -> Oracle:
    """What a method's direction must be for these gradients."""
    K = wide_gram(grads, num_tasks)
    rounding = TOLERANCE.get(grads[0].dtype, TOLERANCE_16_BITS)
    if method != "pcgrad":
        return Oracle(gram_method(method)(K), 100 * rounding if rounding < 1e-3 else rounding)
    seed = torch.tensor(0)
    orders = [reference.visiting_order(seed, torch.tensor(s), num_tasks) for s in range(ORDERS)]
    drawn = torch.stack([reference.pcgrad(K, order, False)[0] for order in orders])
    weights = drawn.mean(dim=0)
    apart = drawn - weights
    spread = (apart @ K * apart).sum(dim=1).clamp(min=0).max().sqrt()
    length = (weights @ K @ weights).sqrt()
    return Oracle(weights, rounding + FACTOR * float(spread / length))
