"""Every op in plain torch: the specification of the kernels, and what serves where they do not.

Runs on any device and for any number of tasks. Meant to be read; the arithmetic is float64 wherever
the kernels promise more than float32.
"""

from mtlkernels.reference.cagrad import cagrad
from mtlkernels.reference.convex import dualproj, imgrad, mgda, upgrad
from mtlkernels.reference.fair import fairgrad
from mtlkernels.reference.gradient_lists import (
    FLOAT_DTYPES,
    GRAM_NOISE,
    check_list,
    check_out_type,
    combine,
    combine_out,
    flat_offsets,
    gram,
    list_offsets,
)
from mtlkernels.reference.rows import (
    check_state,
    check_tasks,
    excess,
    graddrop,
    track_gram,
    trimmed_mean,
)
from mtlkernels.reference.spectral import aligned, equiangular
from mtlkernels.reference.stateful import (
    gradnorm,
    gradvac,
    normal_numbers,
    onto_simplex,
    simplex_descent,
)
from mtlkernels.reference.weights import (
    INVALID_GRAM,
    INVALID_LOSS,
    NO_CONVERGENCE,
    NO_SOLUTION,
    NON_FINITE,
    STATIONARY,
    ZERO_GRADIENT,
    avgnorm,
    check_gram,
    pcgrad,
    pcgrad_drawn,
    task_status,
    visiting_order,
)

__all__ = [
    "FLOAT_DTYPES",
    "GRAM_NOISE",
    "INVALID_GRAM",
    "INVALID_LOSS",
    "NON_FINITE",
    "NO_CONVERGENCE",
    "NO_SOLUTION",
    "STATIONARY",
    "ZERO_GRADIENT",
    "aligned",
    "avgnorm",
    "cagrad",
    "check_gram",
    "check_list",
    "check_out_type",
    "check_state",
    "check_tasks",
    "combine",
    "combine_out",
    "dualproj",
    "equiangular",
    "excess",
    "fairgrad",
    "flat_offsets",
    "graddrop",
    "gradnorm",
    "gradvac",
    "gram",
    "imgrad",
    "list_offsets",
    "mgda",
    "normal_numbers",
    "onto_simplex",
    "pcgrad",
    "pcgrad_drawn",
    "simplex_descent",
    "task_status",
    "track_gram",
    "trimmed_mean",
    "upgrad",
    "visiting_order",
]
