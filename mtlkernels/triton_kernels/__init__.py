"""The ops in Triton: kernels and the functions that launch them.

Each function of OPS takes and returns what the op of its name does (mtlkernels/ops), on any device
that Triton compiles for, and on CPU tensors where TRITON_INTERPRET=1 was set before the first
import. Imports torch and Triton only; an op that is not here is served by plain torch.
"""

from mtlkernels.triton_kernels import launchers

OPS = {
    name: getattr(launchers, name)
    for name in ("gram", "combine", "combine_out", "pcgrad", "cagrad", "graddrop")
}

__all__ = ["OPS"]
