"""Methods by class and by name."""

from __future__ import annotations

from typing import Any

from mtlkernels.methods.gram.aligned_mtl import AlignedMTL
from mtlkernels.methods.gram.avgnorm import AvgNorm
from mtlkernels.methods.gram.base import GramMethod
from mtlkernels.methods.gram.baselines import FixedWeights, Mean, RandomWeights, Sum
from mtlkernels.methods.gram.blur import BLUR
from mtlkernels.methods.gram.cagrad import CAGrad
from mtlkernels.methods.gram.config import ConFIG
from mtlkernels.methods.gram.fairgrad import FairGrad
from mtlkernels.methods.gram.gradnorm import GradNorm
from mtlkernels.methods.gram.gradvac import GradVac
from mtlkernels.methods.gram.imgrad import IMGrad
from mtlkernels.methods.gram.imtlg import IMTLG
from mtlkernels.methods.gram.mgda import MGDA
from mtlkernels.methods.gram.nash_mtl import NashMTL
from mtlkernels.methods.gram.norm_scaling import NTKMTL, SLW, NGDiff
from mtlkernels.methods.gram.ntk_weights import NTKWeights
from mtlkernels.methods.gram.one_sided_pcgrad import OneSidedPCGrad
from mtlkernels.methods.gram.pcd import PCD
from mtlkernels.methods.gram.pcgrad import PCGrad
from mtlkernels.methods.gram.pivrg import PIVRG
from mtlkernels.methods.gram.sdmgrad import MoDo, SDMGrad
from mtlkernels.methods.gram.upgrad import DualProj, UPGrad
from mtlkernels.methods.loss.base import LossMethod
from mtlkernels.methods.loss.cosmos import COSMOS
from mtlkernels.methods.loss.dwa import DWA
from mtlkernels.methods.loss.famo import FAMO
from mtlkernels.methods.loss.gated import Gated
from mtlkernels.methods.loss.go4align import GO4Align
from mtlkernels.methods.loss.pbi import PBI
from mtlkernels.methods.loss.relobralo import ReLoBRaLo
from mtlkernels.methods.loss.resnorm import ResNorm
from mtlkernels.methods.loss.rlw import RLW
from mtlkernels.methods.loss.si import GLS, SI
from mtlkernels.methods.loss.slaw import SLAW
from mtlkernels.methods.loss.softadapt import SoftAdapt
from mtlkernels.methods.loss.stch import IGB, STCH
from mtlkernels.methods.loss.uw import IMTLL, UW, UWSO
from mtlkernels.methods.row.base import RowMethod, RowStep
from mtlkernels.methods.row.dbmtl import DBMTL
from mtlkernels.methods.row.excess_mtl import ExcessMTL
from mtlkernels.methods.row.graddrop import GradDrop
from mtlkernels.methods.row.lr_annealing import LRAnnealing
from mtlkernels.methods.row.moco import MoCo
from mtlkernels.methods.row.sago import SAGO
from mtlkernels.methods.row.tracked import Tracked
from mtlkernels.methods.row.trimmed_mean import TrimmedMean
from mtlkernels.methods.wrappers.crmogm import CRMOGM
from mtlkernels.methods.wrappers.per_part import PerPart
from mtlkernels.methods.wrappers.rescaled import ClippedTasks, LogLosses, Normalized, Preferred
from mtlkernels.methods.wrappers.reused import Reused

__all__ = [
    "BLUR",
    "COSMOS",
    "CRMOGM",
    "DBMTL",
    "DWA",
    "FAMO",
    "GLS",
    "IGB",
    "IMTLG",
    "IMTLL",
    "METHODS",
    "MGDA",
    "NTKMTL",
    "PBI",
    "PCD",
    "PIVRG",
    "RLW",
    "SAGO",
    "SI",
    "SLAW",
    "SLW",
    "STCH",
    "UW",
    "UWSO",
    "AlignedMTL",
    "AvgNorm",
    "CAGrad",
    "ClippedTasks",
    "ConFIG",
    "DualProj",
    "ExcessMTL",
    "FairGrad",
    "FixedWeights",
    "GO4Align",
    "Gated",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GramMethod",
    "IMGrad",
    "LRAnnealing",
    "LogLosses",
    "LossMethod",
    "Mean",
    "MoCo",
    "MoDo",
    "NGDiff",
    "NTKWeights",
    "NashMTL",
    "Normalized",
    "OneSidedPCGrad",
    "PCGrad",
    "PerPart",
    "Preferred",
    "RandomWeights",
    "ReLoBRaLo",
    "ResNorm",
    "Reused",
    "RowMethod",
    "RowStep",
    "SDMGrad",
    "SoftAdapt",
    "Sum",
    "Tracked",
    "TrimmedMean",
    "UPGrad",
    "find_method",
    "get_method",
]

_GRAM: tuple[type[GramMethod], ...] = (
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
    NGDiff,
    FixedWeights,
    RandomWeights,
    CRMOGM,
    GradNorm,
    Normalized,
    Preferred,
    ClippedTasks,
    LogLosses,
    AlignedMTL,
    ConFIG,
    FairGrad,
    IMTLG,
    NashMTL,
    PIVRG,
    SDMGrad,
    MoDo,
    OneSidedPCGrad,
    PCD,
    BLUR,
    NTKWeights,
    PerPart,
    Reused,
)
_LOSS: tuple[type[LossMethod], ...] = (
    *(SI, GLS, UW, UWSO, IMTLL, RLW, DWA, SLAW),
    *(STCH, IGB, FAMO, GO4Align),
    *(SoftAdapt, ReLoBRaLo, ResNorm, COSMOS, PBI, Gated),
)
_ROW: tuple[type[RowMethod], ...] = (
    GradDrop,
    TrimmedMean,
    Tracked,
    DBMTL,
    MoCo,
    ExcessMTL,
    SAGO,
    LRAnnealing,
)
METHODS: dict[str, type[GramMethod] | type[LossMethod] | type[RowMethod]] = {
    **{cls.__name__.lower(): cls for cls in _GRAM},
    **{cls.__name__.lower(): cls for cls in _LOSS},
    **{cls.__name__.lower(): cls for cls in _ROW},
}


def find_method(name: str) -> type[GramMethod] | type[LossMethod] | type[RowMethod]:
    """The class of that name; upper and lower case, hyphens and underscores make no difference.

    Raises:
        ValueError: no method has that name.
    """
    found = METHODS.get(name.lower().replace("-", "").replace("_", ""))
    if found is None:
        raise ValueError(
            f"no method is called {name!r}: choose one of {', '.join(sorted(METHODS))}"
        )
    return found


def get_method(name: str, **options: Any) -> GramMethod | LossMethod | RowMethod:
    """The method of that name, set up with its own arguments: `get_method("cagrad", c=0.4)`.

    Raises:
        ValueError: no method has that name (see `find_method`).
        TypeError: the method does not take one of the options, or needs one that is not given.
    """
    return find_method(name)(**options)
