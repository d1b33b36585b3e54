"""The contract: schema, fake kernel, gradient and typed function of every op. Imports no backend.

Backends attach themselves to `torch.ops.mtlkernels.*` by device (see dispatch.py). All ops read
their inputs only and return new tensors, except `combine_out`, `track_gram` and `excess`; all are
deterministic.

A *gradient list* is task-major, T * P tensors of one dtype on one device: task t's gradient for
parameter p stands at t * P + p. A tensor of zero elements is an absent gradient, a structural zero
that is never read. The elements of a parameter pair up across tasks in row-major order; contiguous
tensors are read in place, others are copied first.
"""

from mtlkernels.ops.draws import *
from mtlkernels.ops.gradient_lists import *
from mtlkernels.ops.registry import *
from mtlkernels.ops.solvers import *
