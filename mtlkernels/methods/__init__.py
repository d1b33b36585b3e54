"""Methods by class and by name."""

from __future__ import annotations

from typing import Any

from mtlkernels.methods.aligned import AlignedMTL
from mtlkernels.methods.avgnorm import AvgNorm
from mtlkernels.methods.base import GramMethod
from mtlkernels.methods.cagrad import CAGrad
from mtlkernels.methods.config import ConFIG
from mtlkernels.methods.fairgrad import FairGrad
from mtlkernels.methods.fixed import Mean, Sum
from mtlkernels.methods.imtlg import IMTLG
from mtlkernels.methods.nashmtl import NashMTL
from mtlkernels.methods.pcgrad import PCGrad
from mtlkernels.methods.pivrg import PIVRG

__all__ = [
    "IMTLG",
    "METHODS",
    "PIVRG",
    "AlignedMTL",
    "AvgNorm",
    "CAGrad",
    "ConFIG",
    "FairGrad",
    "GramMethod",
    "Mean",
    "NashMTL",
    "PCGrad",
    "Sum",
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
        NashMTL,
        FairGrad,
        PIVRG,
        ConFIG,
        IMTLG,
        AlignedMTL,
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
