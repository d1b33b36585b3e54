"""What the losses reach and the optimizer does not hold is said once, on the first backward."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import pytest
import torch
from contract import Net, batches
from torch import Tensor, nn
from torch._functorch import config
from torch.optim import SGD, AdamW

import mtlkernels
from mtlkernels import UW, MTLOptimizer, PCGrad, Sum

pytestmark = pytest.mark.usefixtures("one_thread")

X, Y = batches(2)
SAID = r"the losses reach {} parameters that are in none of the optimizer's groups \({} numbers"


def said(count: int, numbers: int) -> str:
    return SAID.format(count, numbers)


def parts(model: Net) -> tuple[list[Tensor], list[Tensor]]:
    return [model.trunk.weight], list(model.heads.parameters())


def test_one_of_two_optimizers_says_what_it_leaves_and_says_it_once() -> None:
    model = Net()
    trunk, heads = parts(model)
    muon = MTLOptimizer(torch.optim.Muon(trunk, lr=0.01), PCGrad())
    with pytest.warns(UserWarning, match=said(3, 42)) as caught:
        muon.backward(model(X))
    assert caught[0].filename == __file__
    assert all(head.grad is None for head in heads)
    muon.backward(model(Y))
    adamw = MTLOptimizer(AdamW(heads, lr=0.01), PCGrad(), shared=heads[:1])
    with pytest.warns(UserWarning, match=said(1, 35)):
        adamw.backward(model(X), accumulate=True)
    adamw.backward(model(Y), accumulate=True)
    copy.deepcopy((model, adamw))[1].combine()


def test_one_call_over_both_is_one_optimizer_s_direction() -> None:
    models = [Net(), Net()]
    trunk, heads = parts(models[0])
    muon, adamw = torch.optim.Muon(trunk, lr=0.01), AdamW(heads, lr=0.01)
    method, whole = PCGrad(seed=3), MTLOptimizer(SGD(models[1].parameters()), PCGrad(seed=3))
    for x in batches(3):
        for optimizer in (muon, adamw, whole):
            optimizer.zero_grad()
        mtlkernels.backward(models[0](x), [*trunk, *heads], method)
        whole.backward(models[1](x))
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or torch.equal(a.grad, b.grad)
        muon.step()
        adamw.step()
        models[1].load_state_dict(models[0].state_dict())
    assert not torch.equal(models[0].trunk.weight, Net().trunk.weight)
    assert not torch.equal(models[0].heads[2].weight, Net().heads[2].weight)


def test_a_missing_head_or_half_of_the_trunk_is_said() -> None:
    model = Net()
    trunk, heads = parts(model)
    optimizer = MTLOptimizer(SGD([*trunk, *heads[1:]], lr=0.1), Sum())
    with pytest.warns(UserWarning, match=said(1, 14) + ".*add_param_group them"):
        optimizer.backward(model(X))
    deep = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))
    optimizer = MTLOptimizer(SGD(deep[0].parameters(), lr=0.1), Sum())
    z = deep[1](deep[0](X))
    with pytest.warns(UserWarning, match=said(2, 30)):
        optimizer.backward({"a": z.sum(), "b": z.square().sum()})


class Discriminated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.judge = Net(), nn.Linear(2, 1)

    def losses(self, x: Tensor) -> Sequence[Tensor]:
        features = torch.tanh(self.generator.trunk(x))
        fake = self.judge(self.generator.heads[0](features)).mean()
        return [fake, self.generator.heads[1](features).square().mean()]


def test_a_discriminator_that_is_frozen_while_its_generator_trains_is_not_said() -> None:
    model = Discriminated()
    params = list(model.generator.parameters())
    with pytest.warns(UserWarning, match="as a discriminator does, all is well"):
        MTLOptimizer(SGD(params, lr=0.1), PCGrad()).backward(model.losses(X))
    assert model.judge.weight.grad is None
    model.judge.requires_grad_(False)
    MTLOptimizer(SGD(params, lr=0.1), PCGrad()).backward(model.losses(X))


def test_nothing_is_said_where_all_are_held_or_are_no_parameters() -> None:
    for frozen in (False, True):
        model = Net()
        model.heads[0].requires_grad_(not frozen)
        optimizer = MTLOptimizer(SGD(model.parameters(), lr=0.1), PCGrad())
        x = X.clone().requires_grad_()  # as for losses of derivatives
        first, second, third = model(x)
        slope = torch.autograd.grad(second, x, create_graph=True)[0].square().sum()
        optimizer.backward([first, slope, third])
    method = UW(3)
    model = Net()
    optimizer = MTLOptimizer(SGD([*model.parameters(), *method.parameters()], lr=0.1), method)
    optimizer.backward(model(X))


@pytest.mark.parametrize("losses", [None, 3.0, [], ["a"], torch.zeros(())])
def test_wrong_losses_are_still_told_as_they_were(losses: object) -> None:
    optimizer = MTLOptimizer(SGD(Net().parameters(), lr=0.1), PCGrad())
    with pytest.raises((TypeError, ValueError), match="loss"):
        optimizer.backward(losses)


def test_losses_that_come_one_by_one_are_not_used_up() -> None:
    model = Net()
    optimizer = MTLOptimizer(SGD(model.parameters(), lr=0.1), PCGrad())
    assert len(optimizer.backward(loss for loss in model(X)).losses) == 3


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # by an import in it
def test_a_compiled_model_s_parameters_are_seen() -> None:
    torch._dynamo.reset()
    with config.patch(donated_buffer=False):
        model = Net()
        compiled = torch.compile(model, backend="aot_eager")
        trunk, heads = parts(model)
        optimizer = MTLOptimizer(SGD(trunk, lr=0.1), Sum(), shared=trunk)
        with pytest.warns(UserWarning, match=said(3, 42)):
            optimizer.backward(compiled(X))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            held = MTLOptimizer(SGD([*trunk, *heads], lr=0.1), Sum(), shared=trunk)
            held.backward(compiled(X))
