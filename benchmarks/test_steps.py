"""Whole steps from the batch to .grad."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from benchmarks.choices import CHOICES, SLOW_TO_COMPILE
from benchmarks.models import MODELS

WORKS = [
    pytest.param("narrow", 3, id="smoke-narrow-3"),
    pytest.param("deep", 3, id="deep-3"),
    pytest.param("recommender", 8, id="recommender-8"),
]


@pytest.mark.parametrize(("model", "tasks"), WORKS)
@pytest.mark.parametrize("name", [name for name in CHOICES if name not in SLOW_TO_COMPILE])
def test_step(benchmark: Any, name: str, model: str, tasks: int) -> None:
    if name.startswith("torchjd"):
        pytest.importorskip("torchjd")
    benchmark.group = f"step, {model}, T = {tasks}"
    torch.manual_seed(0)
    work = copy.deepcopy(MODELS[model](tasks))
    with torch.enable_grad():
        run = CHOICES[name](work, "pcgrad")

        def step() -> None:
            work.model.zero_grad(set_to_none=True)
            run()

        benchmark.pedantic(step, rounds=5, iterations=1, warmup_rounds=2)
