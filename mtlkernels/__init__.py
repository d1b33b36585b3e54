"""Multi-task gradient methods at the speed of memory."""

from importlib.metadata import version as _version

from mtlkernels import ops
from mtlkernels.aggregation import aggregate
from mtlkernels.backends import backends, build_info
from mtlkernels.backprop import backward
from mtlkernels.methods import (
    DWA,
    FAMO,
    GLS,
    IGB,
    IMTLL,
    RLW,
    SI,
    SLAW,
    STCH,
    UW,
    UWSO,
    AvgNorm,
    CAGrad,
    GO4Align,
    GramMethod,
    LossMethod,
    Mean,
    PCGrad,
    Sum,
    get_method,
)
from mtlkernels.optimizer import MTLOptimizer
from mtlkernels.report import Report, Status

__version__ = _version("mtlkernels")

__all__ = [
    "DWA",
    "FAMO",
    "GLS",
    "IGB",
    "IMTLL",
    "RLW",
    "SI",
    "SLAW",
    "STCH",
    "UW",
    "UWSO",
    "AvgNorm",
    "CAGrad",
    "GO4Align",
    "GramMethod",
    "LossMethod",
    "MTLOptimizer",
    "Mean",
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
