"""Methods by class and by name."""

from __future__ import annotations

from typing import Any

from mtlkernels.methods.avgnorm import AvgNorm
from mtlkernels.methods.base import GramMethod
from mtlkernels.methods.cagrad import CAGrad
from mtlkernels.methods.crmogm import CRMOGM
from mtlkernels.methods.fixed import FixedWeights, Mean, RandomWeights, Sum
from mtlkernels.methods.gradnorm import GradNorm
from mtlkernels.methods.gradvac import GradVac
from mtlkernels.methods.imgrad import IMGrad
from mtlkernels.methods.mgda import MGDA
from mtlkernels.methods.norm_scaling import DBMTL, NTKMTL, SLW, NGDiff
from mtlkernels.methods.pcgrad import PCGrad
from mtlkernels.methods.precondition import ClippedTasks, LogLosses, Normalized, Preferred
from mtlkernels.methods.projections import DualProj, UPGrad

__all__ = [
    "CRMOGM",
    "DBMTL",
    "METHODS",
    "MGDA",
    "NTKMTL",
    "SLW",
    "AvgNorm",
    "CAGrad",
    "ClippedTasks",
    "DualProj",
    "FixedWeights",
    "GradNorm",
    "GradVac",
    "GramMethod",
    "IMGrad",
    "LogLosses",
    "Mean",
    "NGDiff",
    "Normalized",
    "PCGrad",
    "Preferred",
    "RandomWeights",
    "Sum",
    "UPGrad",
    "get_method",
]

METHODS: dict[str, type[GramMethod]] = {
    cls.__name__.lower(): cls
    for cls in (
        Sum,
        Mean,
        PCGrad,
        CAGrad,
        AvgNorm,
        MGDA,
        UPGrad,
        DualProj,
        IMGrad,
        GradVac,
        NTKMTL,
        SLW,
        DBMTL,
        NGDiff,
        FixedWeights,
        RandomWeights,
        CRMOGM,
        GradNorm,
        Normalized,
        Preferred,
        ClippedTasks,
        LogLosses,
    )
}


def get_method(name: str, **options: Any) -> GramMethod:
    """The method of that name, set up with its own arguments: `get_method("cagrad", c=0.4)`.

    Upper and lower case, hyphens and underscores make no difference.

    Raises:
        ValueError: no method has that name.
        TypeError: the method does not take one of the options.
    """
    found = METHODS.get(name.lower().replace("-", "").replace("_", ""))
    if found is None:
        raise ValueError(
            f"no method is called {name!r}: choose one of {', '.join(sorted(METHODS))}"
        )
    return found(**options)
