"""Multi-task gradient methods at the speed of memory."""

from importlib.metadata import version as _version

from mtlkernels import ops
from mtlkernels.aggregation import aggregate
from mtlkernels.backends import backends, build_info
from mtlkernels.backprop import backward
from mtlkernels.methods import (
    CRMOGM,
    DBMTL,
    MGDA,
    NTKMTL,
    SLW,
    AvgNorm,
    CAGrad,
    ClippedTasks,
    DualProj,
    FixedWeights,
    GradNorm,
    GradVac,
    GramMethod,
    IMGrad,
    LogLosses,
    Mean,
    NGDiff,
    Normalized,
    PCGrad,
    Preferred,
    RandomWeights,
    Sum,
    UPGrad,
    get_method,
)
from mtlkernels.optimizer import MTLOptimizer
from mtlkernels.report import Report, Status

__version__ = _version("mtlkernels")

__all__ = [
    "CRMOGM",
    "DBMTL",
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
    "MTLOptimizer",
    "Mean",
    "NGDiff",
    "Normalized",
    "PCGrad",
    "Preferred",
    "RandomWeights",
    "Report",
    "Status",
    "Sum",
    "UPGrad",
    "aggregate",
    "backends",
    "backward",
    "build_info",
    "get_method",
    "ops",
]
