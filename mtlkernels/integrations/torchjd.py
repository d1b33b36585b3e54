"""The Gram methods as TorchJD's aggregators and weightings, by the names of this library.

    from mtlkernels.integrations.torchjd import UPGrad  # in place of torchjd.aggregation

Every Gram method has an aggregator of its name, `UPGrad(...)`, and a weighting, `UPGradWeighting`;
both take the arguments of the method, and `pref_vector`, for TorchJD, in place of `preference`.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torchjd.aggregation import GramianWeightedAggregator, Weighting

from mtlkernels import ops
from mtlkernels.methods import METHODS, GramMethod


class MethodWeighting(Weighting[Tensor]):
    """TorchJD's `Weighting` of a Gram method: a Gram matrix (T, T) -> T weights, of its dtype.

    Args:
        method: any Gram method.
    """

    def __init__(self, method: GramMethod) -> None:
        super().__init__()
        self.method = method

    @torch.no_grad()
    def forward(self, gramian: Tensor, /) -> Tensor:
        return self.method(gramian.double()).to(gramian)


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


class _NamedWeighting(MethodWeighting):
    make: ClassVar[type[GramMethod]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(_method(self.make, args, kwargs))


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
