"""Every optimizer that other packages export: wrapped under `Sum` it takes the plain loop's steps.

`make test-frameworks` installs the packages. Each class is walked, set up by its smallest
arguments; those that need more are listed with the reason.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from against_plain import HOW, outcome, same, set_up
from contract import Net, batches
from frameworks import FRAMEWORKS
from torch import nn
from torch.optim import SGD, Optimizer

import mtlkernels
from mtlkernels import MTLOptimizer, Sum

pytestmark = [
    *FRAMEWORKS,
    pytest.mark.filterwarnings("ignore"),  # the packages' own
    pytest.mark.usefixtures("one_thread"),
]

PACKAGES = ("pytorch_optimizer", "schedulefree", "prodigyopt", "geoopt.optim", "torchao.optim")
FEWEST = dict(zip(PACKAGES, (130, 9, 1, 3, 7), strict=True))  # optimizers, to notice an empty walk

Make = Callable[[Any, nn.Module], Optimizer]


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


def with_lr(cls: Any, model: nn.Module) -> Optimizer:
    return cls(parameters(model), lr=0.01)


def of_model(cls: Any, model: nn.Module) -> Optimizer:
    return cls(model)


def around(cls: Any, model: nn.Module) -> Optimizer:
    return cls(SGD(parameters(model), lr=0.01))


def of_class(cls: Any, model: nn.Module) -> Optimizer:
    return cls(parameters(model), base_optimizer=SGD, lr=0.01)


def of_groups(cls: Any, model: nn.Module) -> Optimizer:
    return cls(
        [
            {"params": [model.trunk.weight], "use_muon": True},
            {"params": list(model.heads.parameters()), "use_muon": False},
        ]
    )


def gsam(cls: Any, model: nn.Module) -> Optimizer:
    from pytorch_optimizer.lr_scheduler import ProportionScheduler

    base = SGD(parameters(model), lr=0.01)
    rates = torch.optim.lr_scheduler.StepLR(base, 2)
    return cls(parameters(model), base, model, ProportionScheduler(rates, 0.1, 0.01, 2.0, 1.0))


SET_UP: dict[str, Make] = {
    "BSAM": lambda cls, model: cls(parameters(model), num_data=4),  # the size of the data set
    "GSAM": gsam,  # an optimizer, the model and a schedule of its radius
    "SAM": of_class,  # the class of the optimizer inside
    "FriendlySAM": of_class,
    "LookSAM": of_class,
    "WSAM": lambda cls, model: cls(model, parameters(model), SGD, lr=0.01),  # the model too
    "TRAC": around,  # an optimizer
    "Lookahead": around,
    "OrthoGrad": around,
    "ScheduleFreeWrapper": around,
    "PCGrad": around,
    "SafeFP16Optimizer": around,
    "AdaGO": of_groups,  # groups that say whether they are for Muon
    "AdaMuon": of_groups,
    "Muon": of_groups,
    "MuonClip": of_groups,
    "NorMuon": of_groups,
    "AdaLOMO": of_model,  # a model in place of parameters
    "AdamMini": of_model,
    "LOMO": of_model,
    "Ranger21": lambda cls, model: cls(parameters(model), num_iterations=10),  # its schedule
    "RiemannianSGD": with_lr,  # a rate without a default
    # a gradient for each parameter
    "RiemannianLineSearch": lambda cls, m: cls([m.trunk.weight, *m.heads.parameters()]),
}
CLOSURES = {  # which take a closure that runs the backwards
    *("BSAM", "FriendlySAM", "GSAM", "LookSAM", "SAM", "WSAM", "RiemannianLineSearch"),
    *("AdamWScheduleFreeClosure", "RAdamScheduleFreeClosure", "SGDScheduleFreeClosure"),
}
VALUES = {"AliG"}  # which take a closure that returns the loss of the gradients already there
STILL = {  # whose parameters have not moved after five steps
    "AdaShift": "keeps the last ten gradients first",
    "RAdam": "takes no step before its variance can be judged",
    "SaRA": "trains weights below a threshold only, and there is none",
    "TRAC": "starts at a scale of 1e-8",
}
REFUSED = {  # which MTLOptimizer refuses, and a part of the sentence
    "AdaHessian": "differentiates .grad",
    "SophiaH": "differentiates .grad",
    "LOMO": "no step",
    "AdaLOMO": "no step",
    "PCGrad": "'pc_backward' of its own",
    "SafeFP16Optimizer": "'backward' of its own",
}
NEEDS_MORE = {  # which cannot be set up or stepped here, wrapped or not
    "CPUOffloadOptimizer": "needs an accelerator",
    "DeMo": "needs einops and a process group",
    "DistributedMuon": "needs a process group",
    "SparseRiemannianAdam": "takes sparse gradients only",
    "SparseRiemannianSGD": "takes sparse gradients only",
}


def optimizers(package: str) -> dict[str, Any]:
    module = importlib.import_module(package)
    own = package.partition(".")[0]
    return {
        name: cls
        for name, cls in vars(module).items()
        if inspect.isclass(cls)
        and issubclass(cls, Optimizer)
        and cls.__module__.partition(".")[0] == own
    }


def made(name: str, cls: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda model: SET_UP.get(name, lambda cls, m: cls(parameters(m)))(cls, model)


def closure_of(name: str) -> str:
    return "twice" if name in CLOSURES else "value" if name in VALUES else ""


@pytest.mark.parametrize("how", HOW, ids=lambda how: how or "steps")
@pytest.mark.parametrize("package", PACKAGES)
def test_every_optimizer_takes_the_steps_of_the_plain_loop(package: str, how: str) -> None:
    wrong = {}
    found = optimizers(package)
    assert len(found) >= FEWEST[package]
    for name, cls in found.items():
        if name in NEEDS_MORE or name in REFUSED:
            continue
        try:
            plain, ours = (
                outcome(made(name, cls), wrap, how, closure_of(name), name == "GSAM")
                for wrap in (False, True)
            )
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}"
            continue
        if not same(plain, ours):
            wrong[name] = "other parameters than the plain loop" if not how else f"{plain}, {ours}"
        if not how and name not in STILL and torch.equal(ours[0], Net(tasks=2).trunk.weight):
            wrong[name] = "has not moved"
    assert not wrong


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_balanced_is_refused_with_a_sentence(name: str) -> None:
    cls = optimizers("pytorch_optimizer")[name]
    _, own = set_up(made(name, cls), False)
    kept = set(vars(own))
    with pytest.raises((ValueError, NotImplementedError)) as error:
        MTLOptimizer(own, Sum())
    assert REFUSED[name] in str(error.value)
    assert type(own) is cls
    assert set(vars(own)) == kept


@pytest.mark.parametrize("name", ["AdaHessian", "SophiaH"])
def test_second_order_optimizers_take_the_weights_of_a_balanced_backward(name: str) -> None:
    """As the refusal says: weights first, then one backward that keeps its own graph."""
    cls = optimizers("pytorch_optimizer")[name]
    model, own = set_up(made(name, cls), False)
    plain, alone = set_up(made(name, cls), False)
    torch.manual_seed(1)
    for x in batches(5):
        losses = model(x)
        report = mtlkernels.backward(losses, parameters(model), Sum(), retain_graph=True)
        own.zero_grad()
        (report.weights * torch.stack(losses)).sum().backward(create_graph=True)
        own.step()
    torch.manual_seed(1)
    for x in batches(5):
        alone.zero_grad()
        sum(plain(x)).backward(create_graph=True)
        alone.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_what_steps_an_optimizer_and_is_none_is_pointed_to_the_one_inside() -> None:
    import schedulefree

    model = Net(tasks=2)
    front = schedulefree.ScheduleFreeWrapper(SGD(model.parameters(), lr=0.01), momentum=0.9)
    with pytest.raises(TypeError, match="wrap the optimizer inside it"):
        MTLOptimizer(front, Sum())
    plain = Net(tasks=2)
    alone = schedulefree.ScheduleFreeWrapper(SGD(plain.parameters(), lr=0.01), momentum=0.9)
    inner = MTLOptimizer(SGD(model.parameters(), lr=0.01), Sum())
    front = schedulefree.ScheduleFreeWrapper(inner, momentum=0.9)
    front.train()
    alone.train()
    for x in batches(5):
        front.zero_grad()
        inner.backward(model(x))
        front.step()
        alone.zero_grad()
        for loss in plain(x):
            loss.backward(retain_graph=True)
        alone.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
