"""More tasks than native solvers take: plain torch serves, inside a compiled graph too."""

from __future__ import annotations

import copy

import pytest
import torch
from gram_methods import GRAM_METHODS, TWO_TASKS, VARIANTS
from torch import Tensor

from mtlkernels.ops.registry import MAX_NATIVE_TASKS

T = MAX_NATIVE_TASKS + 1
# Some take two tasks, PerPart several Gram matrices, PIVRG a number for each task of its own.
NAMES = [name for name in GRAM_METHODS if name not in {"PerPart", *TWO_TASKS, *VARIANTS}]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def gram() -> Tensor:
    rows = torch.randn(T, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows += 0.3
    return rows @ rows.T


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_graph_of_a_method_takes_more_than_64_tasks(name: str, gram: Tensor) -> None:
    torch._dynamo.reset()
    method = GRAM_METHODS[name](T)
    twin = copy.deepcopy(method)
    losses = torch.linspace(0.5, 2.0, T, dtype=torch.float64)
    compiled = torch.compile(lambda: method(gram, losses), fullgraph=True, backend="eager")
    found = compiled()
    with pytest.warns(UserWarning, match="65 tasks are more than the 64"):
        expected = twin(gram, losses)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(method.status, twin.status)
