"""The methods as weighting strategies in LibMTL's own Trainer."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from frameworks import FRAMEWORKS, give_torchvision
from gram_methods import TWO_TASKS
from torch import Tensor, nn

import mtlkernels
from mtlkernels import GramMethod, LossMethod
from mtlkernels.methods import METHODS

pytestmark = [*FRAMEWORKS, pytest.mark.usefixtures("one_thread")]
TASKS = ["near", "far", "apart"]
NEEDS = {"FixedWeights", "CRMOGM", "Normalized", "Preferred", "ClippedTasks", "LogLosses"}
NEEDS |= {"PerPart", "Reused", "Tracked", "Gated"}  # a method or numbers as an argument
NAMES = [cls.__name__ for cls in METHODS.values() if cls.__name__ not in NEEDS | TWO_TASKS]


class _Iterated:
    def __init__(self, batches: Any) -> None:
        self.next = iter(batches).__next__

    def __next__(self) -> Any:
        return self.next()


class Loader:
    """Batches, from iterators that have `next` as LibMTL calls it."""

    def __init__(self, count: int = 4) -> None:
        generator = torch.Generator().manual_seed(1)
        xs = [torch.randn(6, 5, generator=generator) for _ in range(count)]
        self.batches = [(x, {t: x[:, :1] * i - i for i, t in enumerate(TASKS)}) for x in xs]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return _Iterated(self.batches)


class Encoder(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))


@pytest.fixture
def libmtl() -> Iterator[Any]:
    give_torchvision()
    import LibMTL
    import LibMTL.architecture
    from LibMTL.loss import AbsLoss
    from LibMTL.metrics import AbsMetric

    class Square(AbsLoss):
        def compute_loss(self, pred: Tensor, gt: Tensor) -> Tensor:
            return (pred - gt).square().mean()

    class Error(AbsMetric):
        def update_fun(self, pred: Tensor, gt: Tensor) -> None:
            self.record.append((pred - gt).abs().mean().item())
            self.bs.append(len(pred))

        def score_fun(self) -> list[float]:
            return [sum(self.record) / len(self.record)]

    class Trainer(LibMTL.Trainer):
        """On a CPU, which LibMTL's constructor does not choose."""

        device = property(lambda self: torch.device("cpu"), lambda self, device: None)

    def trainer(weighting: Any, rep_grad: bool = False, **weight_args: Any) -> Any:
        torch.manual_seed(0)
        tasks = {
            t: {"metrics": ["MAE"], "metrics_fn": Error(), "loss_fn": Square(), "weight": [0]}
            for t in TASKS
        }
        return Trainer(
            task_dict=tasks,
            weighting=weighting,
            architecture=LibMTL.architecture.HPS,
            encoder_class=Encoder,
            decoders=nn.ModuleDict({t: nn.Linear(4, 1) for t in TASKS}),
            rep_grad=rep_grad,
            multi_input=False,
            optim_param={"optim": "sgd", "lr": 0.05},
            scheduler_param=None,
            weight_args=weight_args,
            arch_args={},
        )

    yield trainer
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]


def train(made: Any) -> dict[str, Tensor]:
    made.train(Loader(), Loader(), 1)
    return {name: value.clone() for name, value in made.model.state_dict().items()}


def moved(trainer: Any, method: Any, features: bool) -> dict[str, Tensor]:
    """What the same steps give outside of LibMTL."""
    made = trainer(_ours("Sum"), features)
    model, optimizer = made.model, made.optimizer
    for x, labels in Loader().batches:
        z = model.encoder(x)
        losses = {t: (model.decoders[t](z) - labels[t]).square().mean() for t in TASKS}
        optimizer.zero_grad()
        at = {"features": z} if features else {}
        shared = (
            {} if isinstance(method, LossMethod) else {"shared": list(model.encoder.parameters())}
        )
        params = list(model.parameters())
        mtlkernels.backward(losses, params, method, **shared, **at)
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def _ours(name: str) -> Any:
    from mtlkernels.integrations import libmtl as ours

    return getattr(ours, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains(name, libmtl) -> None:
    made = libmtl(_ours(name))
    before = copy.deepcopy(made.model.state_dict())
    after = train(made)
    assert _ours(name).__name__ == name
    for key, value in before.items():
        if key.startswith(("encoder", "decoders")):
            assert after[key].isfinite().all()
            assert not torch.equal(value, after[key]), f"{key} was not trained"
    assert made.model.report.tasks == tuple(TASKS)


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("name", ["PCGrad", "NashMTL", "Sum", "DWA"])
def test_the_same_steps_as_outside_of_libmtl(name, features, libmtl) -> None:
    if features and not issubclass(getattr(mtlkernels, name), GramMethod):
        with pytest.raises(ValueError, match="rep_grad=True is for methods that weigh gradients"):
            train(libmtl(_ours(name), True))
        return
    ours = train(libmtl(_ours(name), features))
    wanted = moved(libmtl, getattr(mtlkernels, name)(), features)
    for key, value in wanted.items():
        torch.testing.assert_close(ours[key], value)


def test_its_own_equal_weighting(libmtl) -> None:
    from LibMTL.weighting import EW

    theirs = train(libmtl(EW))
    ours = train(libmtl(_ours("Sum")))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value)


def test_settings_and_what_is_logged(libmtl) -> None:
    from mtlkernels.integrations.libmtl import weighting

    made = libmtl(weighting("cagrad", c=0.25))
    logged = made.train(Loader(), Loader(), 1, return_weight=True)
    assert made.model.method.c == 0.25
    assert logged.shape == (3, 1, 4)
    assert logged[:, 0, -1] == pytest.approx(made.model.report.weights.numpy())
    with pytest.raises(TypeError, match=r"weighting\("):
        train(libmtl(_ours("CAGrad"), calpha=0.5))
    with pytest.raises(AttributeError):
        _ours("Nothing")


def test_what_a_method_learns_is_in_libmtls_optimizer(libmtl) -> None:
    made = libmtl(_ours("UW"))
    before = [param.detach().clone() for param in made.model.method.parameters()]
    train(made)
    assert before
    for old, new in zip(before, made.model.method.parameters(), strict=True):
        assert not torch.equal(old, new)
