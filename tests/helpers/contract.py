"""What the tests of the optimizer contract train: a small model, batches, bases, and a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from gram_methods import GRAM_METHODS, tasks_for
from row_cases import STATEFUL
from torch import Tensor, nn

from mtlkernels import (
    FAMO,
    IMTLL,
    SAGO,
    UW,
    Gated,
    GradVac,
    LossMethod,
    Mean,
    MoCo,
    MTLOptimizer,
    PCGrad,
    PerPart,
    ResNorm,
    RowMethod,
    Tracked,
)
from mtlkernels.methods import METHODS, GramMethod

Base = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Method = GramMethod | LossMethod | RowMethod

BASES: dict[str, Base] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "sgd-fused": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, fused=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "adam-foreach": lambda params: torch.optim.Adam(params, lr=1e-2, foreach=True),
    "adam-fused": lambda params: torch.optim.Adam(params, lr=1e-2, fused=True),
}


class Net(nn.Module):
    """A trunk, one head a task and a part that nothing uses. All parameters are matrices."""

    def __init__(self, tasks: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Linear(5, 7, bias=False)
        self.heads = nn.ModuleList(nn.Linear(7, 2, bias=False) for _ in range(tasks))
        self.unused = nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = torch.tanh(self.trunk(x))
        return [(head(features) - t - 1).square().mean() for t, head in enumerate(self.heads)]


def batches(count: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 5, generator=generator) for _ in range(count)]


def pair(
    base: str | Base = "adamw", method: object = "pcgrad", tasks: int = 3, seed: int = 0
) -> tuple[Net, MTLOptimizer]:
    """A model and its wrapped optimizer, which also holds what the method learns."""
    model = Net(tasks, seed)
    make = BASES[base] if isinstance(base, str) else base
    learnt = method.parameters() if isinstance(method, nn.Module) else ()
    parts = [[model.trunk.weight]] if isinstance(method, PerPart) else None
    return model, MTLOptimizer(make([*model.parameters(), *learnt]), method, parts=parts)


def train(model: Net, optimizer: MTLOptimizer, xs: Iterable[Tensor]) -> None:
    for x in xs:
        optimizer.zero_grad()
        optimizer.backward(model(x))
        optimizer.step()
        if isinstance(optimizer.method, FAMO):
            optimizer.method.update(torch.stack(model(x)).detach())


def assert_same(a: nn.Module, b: nn.Module) -> None:
    """Bit-equal parameters."""
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y), name


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    saved, loaded = a.state_dict(), b.state_dict()
    assert saved.keys() == loaded.keys()
    for key, value in saved.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0, equal_nan=True)


# Every registered method and the Gram methods' variants, set up for the number of tasks beside it.
EVERY_METHOD: dict[str, tuple[int, Callable[[], Method]]] = {
    **{
        cls.__name__: (3, cls)
        for cls in METHODS.values()
        if cls not in (UW, IMTLL, ResNorm, Gated, SAGO, Tracked)
    },
    "UW": (3, lambda: UW(3)),
    "IMTLL": (3, lambda: IMTLL(3)),
    "ResNorm": (3, lambda: ResNorm(3)),
    "Gated": (3, lambda: Gated(2)),
    "SAGO": (2, SAGO),
    **{
        name: (tasks_for(name, 3), lambda name=name: GRAM_METHODS[name](tasks_for(name, 3)))
        for name in GRAM_METHODS
    },
    **{f"{name} on rows": (3, make) for name, make in STATEFUL.items()},
}

# One of each kind of state.
KINDS: dict[str, Callable[[], Method]] = {
    "PCGrad": lambda: PCGrad(seed=4),
    "GradVac": GradVac,  # a state that takes its size from the first losses
    "UW": lambda: UW(3),
    "MoCo": MoCo,  # rows as long as the gradients
    "Mean": Mean,
}
