"""What some of the supported versions of torch cannot do: marks that skip with the version."""

from __future__ import annotations

import pytest
import torch

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

# torch._dynamo.config.trace_autograd_ops came with 2.11; compile_step refuses without it.
compiles_steps = pytest.mark.skipif(
    VERSION < (2, 11),
    reason=f"torch {torch.__version__} does not trace torch.autograd.grad: compile_step needs 2.11",
)
