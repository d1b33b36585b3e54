"""The Gram methods as TorchJD's aggregators and weightings, by the names of this library.

    from mtlkernels.integrations.torchjd import UPGrad  # in place of torchjd.aggregation

Every Gram method has an aggregator of its name, `UPGrad(...)`, and a weighting, `UPGradWeighting`;
both take the arguments of the method, and `pref_vector`, for TorchJD, in place of `preference`.
TorchJD multiplies by the numbers of `pref_vector` as they are, where `preference` means shares.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torchjd.aggregation import GramianWeightedAggregator, Weighting

from mtlkernels import ops
from mtlkernels.methods import METHODS, GramMethod

# TorchJD's of these names take the numbers of pref_vector as they are.
_RAW = tuple(METHODS[name] for name in ("alignedmtl", "dualproj", "upgrad"))


class MethodWeighting(Weighting[Tensor]):
    """TorchJD's `Weighting` of a Gram method: a Gram matrix (T, T) -> T weights, of its dtype.

    Args:
        method: any Gram method.
    """

    def __init__(self, method: GramMethod) -> None:
        super().__init__()
        self.method = method
        self.pref_vector: Tensor | None = None

    @torch.no_grad()
    def forward(self, gramian: Tensor, /) -> Tensor:
        weights = self.method(gramian.double())
        if self.pref_vector is not None and isinstance(self.method, _RAW):
            # the shares are over the tasks with a gradient, times their number with "sum"
            takes_part = gramian.diagonal() != 0
            total = torch.where(takes_part, self.pref_vector.to(weights), 0.0).sum()
            sums = getattr(self.method, "reduction", "mean") == "sum"
            weights = weights * (total / takes_part.sum().clamp_min(1) if sums else total)
        return weights.to(gramian)


class MethodAggregator(GramianWeightedAggregator):
    """TorchJD's `Aggregator` of a Gram method: a Jacobian (T, N) -> its direction, (N).

    The Gram matrix is exact for the numbers in the Jacobian, in float64, and the direction is
    rounded once. Where TorchJD computes the Gram matrix itself, with
    `optimize_gramian_computation=True`, it is in the Jacobian's dtype.

    Args:
        method: any Gram method.
    """

    def __init__(self, method: GramMethod) -> None:
        super().__init__(MethodWeighting(method))
        self.weighting = self.gramian_weighting << _gram

    @property
    def method(self) -> GramMethod:
        """The Gram method."""
        return cast(GramMethod, self.gramian_weighting.method)

    @torch.no_grad()
    def forward(self, matrix: Tensor, /) -> Tensor:
        return ops.combine(_rows(matrix), self.weighting(matrix).double())[: matrix.shape[1]]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.method!r})"


class _NamedAggregator(MethodAggregator):
    make: ClassVar[type[GramMethod]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(_method(self.make, args, kwargs))
        cast(MethodWeighting, self.gramian_weighting).pref_vector = _numbers(kwargs)


class _NamedWeighting(MethodWeighting):
    make: ClassVar[type[GramMethod]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(_method(self.make, args, kwargs))
        self.pref_vector = _numbers(kwargs)


def _numbers(kwargs: Any) -> Tensor | None:
    given = kwargs.get("pref_vector")
    return None if given is None else torch.as_tensor(given, dtype=torch.float64).detach().clone()


def _method(cls: type[GramMethod], args: Any, kwargs: Any) -> GramMethod:
    if "pref_vector" in kwargs:
        kwargs = {**kwargs, "preference": kwargs["pref_vector"]}
        del kwargs["pref_vector"]
    return cls(*args, **kwargs)


def _rows(matrix: Tensor) -> list[Tensor]:
    return [row.contiguous() for row in matrix.unbind()]


def _gram(matrix: Any) -> Any:
    return ops.gram(_rows(matrix), len(matrix))


def __getattr__(name: str) -> Any:
    cls = METHODS.get(name.removesuffix("Weighting").lower())
    if (
        cls is None
        or not issubclass(cls, GramMethod)
        or cls.__name__ != name.removesuffix("Weighting")
    ):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = _NamedWeighting if name.endswith("Weighting") else _NamedAggregator
    made = type(name, (base,), {"make": cls, "__doc__": cls.__doc__, "__module__": __name__})
    globals()[name] = made  # one class a name, which pickle finds
    return made
