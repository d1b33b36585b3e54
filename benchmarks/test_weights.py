"""Each Gram method's weights from a Gram matrix in which many pairs conflict."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.solvers import SET_UP, gram
from mtlkernels.methods import METHODS, GramMethod

# The first two wrap others, the rest take two tasks alone.
LEFT_OUT = ("PerPart", "Reused", "BLUR", "NGDiff")
CLASSES = {
    method.__name__: method
    for method in METHODS.values()
    if issubclass(method, GramMethod) and method.__name__ not in LEFT_OUT
}


@pytest.mark.parametrize("tasks", [2, pytest.param(3, id="smoke-3"), 8, 40])
@pytest.mark.parametrize("name", CLASSES)
def test_weights(benchmark: Any, name: str, tasks: int) -> None:
    weigh = SET_UP.get(name, lambda _: CLASSES[name]())(tasks)
    benchmark.group = f"weights, T = {tasks}"
    K, losses = gram(tasks), torch.linspace(0.5, 2, tasks, dtype=torch.float64)
    benchmark.pedantic(weigh, args=(K, losses), rounds=5, iterations=10, warmup_rounds=1)
