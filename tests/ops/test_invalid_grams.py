"""Numbers that are no inner products: an error on the CPU, a flag and NaN on a device."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from gram_methods import GRAM_METHODS, losses_of, tasks_for
from hard_grams import random_rows
from torch import Tensor

from mtlkernels import MoDo, SDMGrad, Status, ops, reference

pytestmark = pytest.mark.usefixtures("one_thread")

every_name = pytest.mark.parametrize("name", GRAM_METHODS)
CROSS = (SDMGrad, MoDo)  # take products of two batches, which may be negative and uneven


def negative(T: int) -> Tensor:
    K = torch.eye(T, dtype=torch.float64)
    K[1, 1] = -1
    return K


def uneven(T: int) -> Tensor:
    K = torch.eye(T, dtype=torch.float64)
    K[0, 1] = 0.5
    return K


WRONG = {
    negative: r"gram\[1, 1\] = -1 is negative, .* as ops.gram returns them",
    uneven: r"not symmetric, gram\[0, 1\] = 0.5 but gram\[1, 0\] = 0: .* as ops.gram returns them",
}
every_wrong = pytest.mark.parametrize(("wrong", "sentence"), WRONG.items())


@every_name
@pytest.mark.parametrize("wrong", WRONG)
def test_every_method_refuses_or_takes_two_batches(name: str, wrong) -> None:
    T = tasks_for(name, 3)
    method = GRAM_METHODS[name](T)
    if isinstance(method, CROSS):
        assert method(wrong(T), losses_of(T)).isfinite().all()
        return
    with pytest.raises(RuntimeError, match=r"is negative, which|gram is not symmetric"):
        method(wrong(T), losses_of(T))


@every_wrong
@pytest.mark.parametrize("T", [2, 7, 64, 65])
def test_the_sentence_names_the_entries(wrong, sentence: str, T: int) -> None:
    """Of native solvers, of the reference, and of the reference above the native size."""
    with pytest.raises(RuntimeError, match=sentence):
        reference.avgnorm(wrong(T), 0, 1.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="65 tasks are more")
        for op in (ops.task_status, ops.mgda):
            with pytest.raises(RuntimeError, match=sentence):
                op(wrong(T))


@every_name
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_rounding_is_no_asymmetry(name: str, scale: float) -> None:
    """As float32 leaves it where K is summed in another order above the diagonal than below."""
    T = tasks_for(name, 4)
    G = scale * random_rows(T, 9, seed=0) * 10 ** torch.linspace(-4, 4, T).double()[:, None]
    noise = 1e-7 * torch.ones(T, T, dtype=torch.float64).triu(1)
    G[0] = 0
    weights = GRAM_METHODS[name](T)(G @ G.T * (1 + noise), losses_of(T))
    assert weights.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_told_as_that(bad: float) -> None:
    K = torch.eye(4, dtype=torch.float64)
    K[2] = bad
    for status in (ops.task_status(K), reference.task_status(K)):
        assert status.tolist() == [0, 0, Status.NON_FINITE, 0]


# ------------------------------------------------------- what a device answers, which cannot raise


def flags_of(K: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """The reference's answer where it must not look at values."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        return reference.avgnorm(K, 1, 1.0)


def test_reference_and_native_answer_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both raise, or give the same flags.

    What native solvers flag where they cannot raise, tests/csrc/cuda_on_cpu/solvers.cpp shows.
    """
    values = [0.0, -1.0, 1e-7, 0.5, math.nan, math.inf, -math.inf]
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(300):
        G = random_rows(5, 9, int(torch.randint(1000, (), generator=generator)))
        K = G @ G.T
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            i, j, which = torch.randint(5, (3,), generator=generator).tolist()
            K[i, j] = values[which + int(torch.randint(3, (), generator=generator))]
        weights, flags = flags_of(K, monkeypatch)
        seen |= set(flags.tolist())
        try:
            reference.avgnorm(K, 1, 1.0)
        except RuntimeError:
            with pytest.raises(RuntimeError, match=r"is negative, which|gram is not symmetric"):
                ops.avgnorm(K, 1, 1.0)
            assert weights.isnan().all()
            continue
        native, status = ops.avgnorm(K, 1, 1.0)
        assert status.tolist() == flags.tolist()
        assert bool(native.isnan().all()) == bool(weights.isnan().all())
    assert seen == {0, Status.NON_FINITE, Status.ZERO_GRADIENT, Status.INVALID_GRAM}
