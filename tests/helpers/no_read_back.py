"""A mode under which reading a tensor's values back to the host fails."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class NoReadBack(TorchDispatchMode):
    """Fails on the operators that copy a tensor's values to the host or depend on them."""

    FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.FORBIDDEN, f"{func} reads a tensor back"
        return func(*args, **(kwargs or {}))
