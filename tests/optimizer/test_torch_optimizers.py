"""Every optimizer of torch with each of its flags: under `Sum` it takes the plain loop's steps."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from against_plain import HOW, outcome, same
from contract import Net
from torch import nn
from torch.optim import Optimizer

from mtlkernels import MTLOptimizer, Sum

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, Optimizer)
    and cls not in (Optimizer, torch.optim.SparseAdam)  # which takes sparse gradients only
}
FLAGS = (
    *("foreach", "fused", "maximize", "amsgrad", "nesterov", "centered", "capturable"),
    *("differentiable", "decoupled_weight_decay"),
)
MORE = {"nesterov": {"momentum": 0.9}}  # what a flag needs beside it
EAGER = ("capturable", "differentiable")  # torch steps these on a CPU in other ways only


def cases() -> list[tuple[str, str]]:
    """Each optimizer plain, and with each flag that it has."""
    flags = {name: inspect.signature(cls).parameters for name, cls in OPTIMIZERS.items()}
    return [
        (name, flag)
        for name, own in flags.items()
        for flag in ("", *FLAGS)
        if not flag or flag in own
    ]


def maker(name: str, flag: str) -> Any:
    options = {flag: True, **MORE.get(flag, {})} if flag else {}

    def make(model: nn.Module) -> Optimizer:
        params = list(model.parameters())
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]
        return OPTIMIZERS[name](params if name == "LBFGS" else groups, lr=0.01, **options)

    return make


def test_every_flag_of_torch_is_tried() -> None:
    found = {
        name
        for cls in OPTIMIZERS.values()
        for name, param in inspect.signature(cls).parameters.items()
        if isinstance(param.default, bool)
    }
    assert found <= {*FLAGS}


@pytest.mark.parametrize(("name", "flag"), [case for case in cases() if case[1] not in EAGER])
def test_steps_copies_and_reloads_are_those_of_the_plain_loop(name: str, flag: str) -> None:
    closure = "step" if name == "LBFGS" else ""
    for how in HOW:
        plain, ours = (outcome(maker(name, flag), wrap, how, closure) for wrap in (False, True))
        assert same(plain, ours), how
        if not how:
            assert not torch.equal(ours[0], Net(tasks=2).trunk.weight)


@pytest.mark.parametrize(("name", "flag"), [case for case in cases() if case[1] in EAGER])
def test_what_torch_does_not_step_eagerly_it_says_of_ours_too(name: str, flag: str) -> None:
    said = []
    for wrap in (False, True):
        with pytest.raises((AssertionError, RuntimeError)) as error:
            outcome(maker(name, flag), wrap)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_a_plain_sum_of_losses_is_the_same_up_to_rounding() -> None:
    models = [Net(), Net()]
    plain = torch.optim.AdamW(models[0].parameters(), lr=0.01)
    ours = MTLOptimizer(torch.optim.AdamW(models[1].parameters(), lr=0.01), Sum())
    for seed in range(5):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
        plain.zero_grad()
        sum(models[0](x)).backward()
        plain.step()
        ours.zero_grad()
        ours.backward(models[1](x))
        ours.step()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
