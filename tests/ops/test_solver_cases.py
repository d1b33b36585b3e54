"""The cases that GPU tests run, on the CPU: complete, and native answers as the reference does."""

from __future__ import annotations

import pytest
import torch
from hard_grams import hard_gram
from solver_cases import ARGUMENTS, check_same, solve

from mtlkernels import ops, reference

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_solver_has_a_case() -> None:
    solvers = {name for name, schema in ops.SCHEMAS.items() if schema.startswith("(Tensor gram")}
    assert ARGUMENTS.keys() == solvers - {"task_status"}


@pytest.mark.parametrize("kind", ["random", "badly-scaled"])
@pytest.mark.parametrize("T", [1, 2, 5])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_reference_answers_alike(name: str, T: int, kind: str) -> None:
    K = hard_gram(kind, T, 3)
    arguments = ARGUMENTS[name](K)
    moved = tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in arguments)
    expected = getattr(reference, name)(K, *moved)
    inputs = tuple(x for x in moved if isinstance(x, torch.Tensor))
    check_same(K, solve(name, K, "cpu", arguments), (*expected, *inputs))
