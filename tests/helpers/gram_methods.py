"""Every registered Gram method, set up for a number of tasks, and what is different about which.

A new method is in all tests that walk these tables by being registered; what it does differently
from the rule needs a line here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtlkernels import (
    CRMOGM,
    MGDA,
    PCD,
    AlignedMTL,
    AvgNorm,
    CAGrad,
    ClippedTasks,
    FairGrad,
    FixedWeights,
    GradVac,
    GramMethod,
    IMGrad,
    LogLosses,
    NashMTL,
    Normalized,
    PCGrad,
    PerPart,
    Preferred,
    Reused,
    SDMGrad,
    UPGrad,
)
from mtlkernels.methods import METHODS

Make = Callable[[int], GramMethod]

# Those that need arguments. Their numbers are the same for all tasks: tests permute tasks.
ARGUMENTS: dict[str, Make] = {
    "FixedWeights": lambda T: FixedWeights([0.5] * T),
    "CRMOGM": lambda T: CRMOGM(MGDA()),
    "Normalized": lambda T: Normalized(MGDA()),
    "Preferred": lambda T: Preferred(CAGrad(), [2.0] * T),
    "ClippedTasks": lambda T: ClippedTasks(CAGrad(), 3.0),
    "LogLosses": lambda T: LogLosses(UPGrad()),
    "PerPart": lambda T: PerPart(CAGrad()),
    "Reused": lambda T: Reused(CAGrad(), 3),
}
VARIANTS: dict[str, Make] = {
    "PCGrad-mean": lambda T: PCGrad("mean"),
    "CAGrad-0.9-square": lambda T: CAGrad(0.9, rescale=1),
    "CAGrad-1.5-sum": lambda T: CAGrad(1.5, rescale=2, reduction="sum"),
    **{
        f"AvgNorm-{scale}": (lambda T, scale=scale: AvgNorm(scale))
        for scale in ("max", "mean", "rms", "median", "min", "harmonic", 2.5)
    },
    "CRMOGM-GradVac": lambda T: CRMOGM(GradVac(beta=0.5)),
    "GradVac-fast": lambda T: GradVac(beta=0.5),
    "Normalized-CAGrad": lambda T: Normalized(CAGrad()),
    "IMGrad-paper": lambda T: IMGrad(form="paper"),
    "IMGrad-square": lambda T: IMGrad(rescale=1),
    "AlignedMTL-mean": lambda T: AlignedMTL("rmse", reduction="mean"),
    "NashMTL-exact": lambda T: NashMTL(max_norm=None),
    "FairGrad-0.5": lambda T: FairGrad(0.5),
    "FairGrad-20": lambda T: FairGrad(20.0),
    "AvgNorm-ema": lambda T: AvgNorm("mean", ema=0.9),
    "PCD-half": lambda T: PCD(0.5, beta=0.0),
    "SDMGrad-slow": lambda T: SDMGrad(0.6, lr=0.1, momentum=0.0),
}


def _of(cls: type[GramMethod]) -> Make:
    return ARGUMENTS.get(cls.__name__, lambda T: cls())


GRAM_METHODS: dict[str, Make] = {
    **{cls.__name__: _of(cls) for cls in METHODS.values() if issubclass(cls, GramMethod)},
    **VARIANTS,
}

# These take a fixed number of tasks.
TWO_TASKS = {"NGDiff", "BLUR", "SAGO"}
# The first task has priority, so the tasks cannot change places and opposite gradients do not
# cancel.
PRIORITY = {"OneSidedPCGrad", "PCD", "PCD-half"}
# The weights do not depend on the gradients, so neither zeros nor infinities change them.
BLIND = {"Sum", "Mean", "FixedWeights", "RandomWeights"}
# They draw numbers by the tasks' places, and take no order that a test could permute along.
DRAWS = {"RandomWeights", "CRMOGM-GradVac"}
# Degree of the direction in the scale of all gradients, where it is not 1.
DEGREE: dict[str, float] = {
    **dict.fromkeys(("Normalized", "Normalized-CAGrad", "AvgNorm-2.5", "NGDiff"), 0),
    **dict.fromkeys(("NashMTL", "NashMTL-exact"), 0),
    **dict.fromkeys(("FairGrad", "PIVRG"), -1 / 3),
    "FairGrad-0.5": 1 / 3,
    "FairGrad-20": -19 / 21,
}
# And those that have none: a length, a step or a balance in the gradients' own units.
NO_DEGREE = {"ClippedTasks", "MoDo", "IMGrad-paper"}


def losses_of(T: int) -> Tensor:
    """The same for all tasks, for the same reason as the arguments."""
    return torch.full((T,), 2.0, dtype=torch.float64)


def weights_of(method: GramMethod, K: Tensor, order: Tensor | None = None) -> Tensor:
    """The method's weights; `order` where it visits tasks in one."""
    if order is not None and isinstance(method, PCGrad | GradVac):
        return method(K, order=order)
    return method(K, losses_of(len(K)))


def every_order(T: int) -> Tensor:
    """(T, T-1): the other tasks in ascending order."""
    return torch.tensor([[j for j in range(T) if j != i] for i in range(T)], dtype=torch.int64)


def tasks_for(name: str, T: int) -> int:
    return 2 if name.split("-")[0] in TWO_TASKS else T
