"""Every loss method with its settings, losses for several steps, and how a step is evaluated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtlkernels import (
    COSMOS,
    DWA,
    FAMO,
    GLS,
    IGB,
    IMTLL,
    PBI,
    RLW,
    SI,
    SLAW,
    STCH,
    UW,
    UWSO,
    Gated,
    GO4Align,
    LossMethod,
    ReLoBRaLo,
    ResNorm,
    SoftAdapt,
)

# Each builds a method for T tasks.
MAKE: dict[str, Callable[[int], LossMethod]] = {
    "si": lambda T: SI(),
    "si-log1p": lambda T: SI(log1p=True),
    "gls": lambda T: GLS(),
    "uw": lambda T: UW(T),
    "uw-libmtl": lambda T: UW(T, init=-0.5),
    "uw-samsung": lambda T: UW(T, factor=1.0),
    "imtll": lambda T: IMTLL(T, init=0.25),
    "uwso": lambda T: UWSO(temperature=3.0),
    "rlw": lambda T: RLW(seed=5),
    "rlw-sum": lambda T: RLW("sum"),
    "dwa": lambda T: DWA(window=2),
    "dwa-mean": lambda T: DWA(1.0, window=1, reduction="mean"),
    "slaw": lambda T: SLAW(0.9),
    "stch": lambda T: STCH(warmup=3, average=2),
    "stch-0.3": lambda T: STCH(0.3),
    "stch-nadir": lambda T: STCH(0.5, nadir=[1.0 + t for t in range(T)]),
    "stch-linear": lambda T: STCH(0.5, form="linear", reference=0.25),
    "igb": lambda T: IGB(warmup=4),
    "famo": lambda T: FAMO(),
    "famo-least": lambda T: FAMO(lr=0.1, gamma=0.01, min_losses=[-1.0] * T),
    "softadapt": lambda T: SoftAdapt(),
    "relobralo": lambda T: ReLoBRaLo(0.8, 0.5, 0.7, seed=3),
    "resnorm": lambda T: ResNorm(T, 0.5),
    "cosmos": lambda T: COSMOS(0.3),
    "cosmos-preferred": lambda T: COSMOS(0.3, preference=[1.0 + t for t in range(T)]),
    "pbi": lambda T: PBI(),
    "pbi-preferred": lambda T: PBI(0.5, [1.0 + t for t in range(T)], reference=-0.5),
    "gated": lambda T: Gated(2, gated=0),
    "go4align": lambda T: GO4Align(eta=0.05),
    "go4align-1": lambda T: GO4Align(1),
}


# What every loss has to exceed; FAMO adds 1e-8 first.
FLOOR = {
    **dict.fromkeys(["si", "gls", "uwso", "stch", "stch-0.3", "stch-nadir", "igb"], 0.0),
    **dict.fromkeys(["softadapt", "relobralo", "resnorm", "go4align"], 0.0),
    "go4align-1": 0.0,
    "famo": -1e-8,
    "si-log1p": -1.0,
    "famo-least": -1.00001,
}


every_method = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


def batches(T: int, steps: int, seed: int = 0) -> Tensor:
    """(steps, T) losses that fall, at scales from 1e-2 to 1e2."""
    noise = torch.rand(steps, T, generator=torch.Generator().manual_seed(seed)).double()
    fall = 0.8 ** torch.arange(steps).double()[:, None]
    return (0.5 + noise) * fall * 10 ** torch.linspace(-2, 2, T).double()


def evaluate(method: LossMethod, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The scalar, and the weights: its derivatives in the losses."""
    leaf = losses.clone().requires_grad_()
    scalar = method(leaf)
    return scalar.detach(), torch.autograd.grad(scalar, leaf)[0]


def run(method: LossMethod, losses: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Several steps. The losses after each are the next ones, for the methods that look at them."""
    out = []
    for now, after in zip(losses, [*losses[1:], losses[-1] / 2], strict=True):
        out.append(evaluate(method, now))
        if isinstance(method, FAMO):
            method.update(after)
    return out
