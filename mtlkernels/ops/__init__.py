"""The contract: schema, fake kernel, gradient and typed function of every op. Imports no backend.

Backends attach themselves to `torch.ops.mtlkernels.*` by device (see dispatch.py). All ops read
their inputs only and return new tensors, except `combine_out`, `track_gram` and `excess`; all are
deterministic.

A *gradient list* is task-major, T * P tensors of one dtype on one device: task t's gradient for
parameter p stands at t * P + p. A tensor of zero elements is an absent gradient, a structural zero
that is never read. The elements of a parameter pair up across tasks in row-major order; contiguous
tensors are read in place, others are copied first.
"""

from mtlkernels.ops.convex import IMGradForm, dualproj, imgrad, mgda, upgrad
from mtlkernels.ops.fair import fairgrad
from mtlkernels.ops.gradient_lists import combine, combine_out, cross_gram, flat_offsets, gram
from mtlkernels.ops.registry import (
    FLOAT_DTYPES,
    LIBRARY,
    MAX_NATIVE_TASKS,
    SCHEMAS,
    check_gram,
)
from mtlkernels.ops.rows import excess, graddrop, track_gram, trimmed_mean
from mtlkernels.ops.solvers import (
    NormScale,
    Rescale,
    avgnorm,
    cagrad,
    pcgrad,
    pcgrad_drawn,
    task_status,
    visiting_order,
)
from mtlkernels.ops.spectral import AlignedScale, EquiangularLength, aligned, equiangular
from mtlkernels.ops.stateful import (
    gradnorm,
    gradvac,
    normal_numbers,
    onto_simplex,
    simplex_descent,
)

__all__ = [
    "FLOAT_DTYPES",
    "LIBRARY",
    "MAX_NATIVE_TASKS",
    "SCHEMAS",
    "AlignedScale",
    "EquiangularLength",
    "IMGradForm",
    "NormScale",
    "Rescale",
    "aligned",
    "avgnorm",
    "cagrad",
    "check_gram",
    "combine",
    "combine_out",
    "cross_gram",
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
