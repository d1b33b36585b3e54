"""Multi-task gradient methods at the speed of memory."""

from importlib.metadata import version as _version

from mtlkernels import ops
from mtlkernels.aggregation import aggregate
from mtlkernels.backends import backends, build_info
from mtlkernels.backprop import backward
from mtlkernels.methods import (
    IMTLG,
    PIVRG,
    AlignedMTL,
    AvgNorm,
    CAGrad,
    ConFIG,
    FairGrad,
    GramMethod,
    Mean,
    NashMTL,
    PCGrad,
    Sum,
    get_method,
)
from mtlkernels.optimizer import MTLOptimizer
from mtlkernels.report import Report, Status

__version__ = _version("mtlkernels")

__all__ = [
    "IMTLG",
    "PIVRG",
    "AlignedMTL",
    "AvgNorm",
    "CAGrad",
    "ConFIG",
    "FairGrad",
    "GramMethod",
    "MTLOptimizer",
    "Mean",
    "NashMTL",
    "PCGrad",
    "Report",
    "Status",
    "Sum",
    "aggregate",
    "backends",
    "backward",
    "build_info",
    "get_method",
    "ops",
]
