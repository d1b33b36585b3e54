"""Every method's state goes to the device that its inputs are on; no registered one is left out."""

from __future__ import annotations

from collections.abc import Callable

import gram_methods
import pytest
import row_cases
import torch
from hard_grams import random_rows
from loss_methods import MAKE as LOSS_METHODS
from torch import Tensor, nn

import mtlkernels
from mtlkernels.methods import METHODS
from mtlkernels.methods.base import Method

pytestmark = pytest.mark.usefixtures("one_thread")

THERE = torch.device("meta")  # a second device that every machine has


def gram_step(method: Method, T: int, device: torch.device) -> Tensor:
    G, losses = random_rows(T, 9, seed=0), gram_methods.losses_of(T)
    with torch.no_grad():
        return method((G @ G.T).to(device), losses.to(device))


def row_step(method: Method, T: int, device: torch.device) -> Tensor:
    rows = [[None if g is None else g.to(device) for g in row] for row in row_cases.batch(T, 0)]
    direction, _ = mtlkernels.aggregate(rows, method, row_cases.losses_of(T).to(device))
    return direction[0]


def loss_step(method: Method, T: int, device: torch.device) -> Tensor:
    if list(method.parameters()):  # an optimizer holds them: they are moved as any module's
        method.to(device)
    return method(torch.linspace(0.5, 2, T, device=device))


CASES: dict[str, tuple[Method, int, Callable[[Method, int, torch.device], Tensor]]] = {
    **{
        name: (make(T), T, gram_step)
        for name, make in gram_methods.GRAM_METHODS.items()
        for T in [gram_methods.tasks_for(name, 4)]
    },
    **{f"{name} of rows": (make(), 3, row_step) for name, make in row_cases.STATEFUL.items()},
    **{name: (make(3), 3, loss_step) for name, make in LOSS_METHODS.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_state_goes_where_the_inputs_are(name: str) -> None:
    method, T, step = CASES[name]
    kept = len(method.state_dict())
    for _ in range(2):
        step(method, T, torch.device("cpu"))
    assert step(method, T, THERE).device == THERE
    state = nn.Module.state_dict(method)
    assert len(state) >= kept
    told = [method.status] if len(method.status) else []  # some leave it to the report
    assert {x.device for x in (*state.values(), *method.buffers(), *told)} <= {THERE}


def test_every_method_that_keeps_something_is_tested() -> None:
    tested = {type(method) for method, _, _ in CASES.values()}
    assert {cls for cls in METHODS.values() if cls.keeps != "nothing"} <= tested


@pytest.mark.parametrize("convert", ["half", "float", "bfloat16"])
def test_a_model_s_dtype_leaves_the_state_exact(convert: str) -> None:
    """A method registered in a model is converted with it, but float64 must not be rounded."""
    method = mtlkernels.GradVac()
    model = nn.ModuleDict({"layer": nn.Linear(2, 2), "method": method})
    gram_step(method, 3, torch.device("cpu"))
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    getattr(model, convert)()
    assert model["layer"].weight.dtype == getattr(torch, convert)
    for name, buffer in method.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])
    gram_step(method, 3, torch.device("cpu"))
