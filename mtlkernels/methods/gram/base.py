"""The base classes of Gram methods, which compute weights from K alone."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import (
    ILL_CONDITIONED,
    INVALID_GRAM,
    NON_FINITE,
    ZERO_GRADIENT,
    Method,
)
from mtlkernels.methods.tasks import Kind


class GramMethod(Method):
    """A rule that turns the Gram matrix of T gradients into T weights; d = sum_t w_t g_t.

    A subclass only has to define `forward`. If it does not set `status`, the report derives the
    status from K.

    Attributes:
        own_head_weights: whether `head_weights` returns anything but the weights.
        takes_parts: whether, in a step with `parts=`, `forward` gets the parts' Gram matrices
            (B, T, T) and returns (B, T) weights; other methods get the sum, K of all parameters.
        inverts_gram: whether the weights solve equations in K, which amplify its rounding where
            gradients are nearly dependent.
    """

    family = "Gram"
    cost = "T backward passes"
    own_head_weights: bool = False
    takes_parts: ClassVar[bool] = False
    inverts_gram: bool = False

    def __call__(self, gram: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Runs `forward` with K in float64.

        A method also takes the float32, bfloat16 or float16 K of another library, whose entries are
        only exact to 6e-8, 4e-3 or 5e-4 of |g_i| |g_j|. It solves for the given numbers. The status
        of a method that inverts K says ILL_CONDITIONED where that rounding may move the direction
        by more than 1 %. `ops.gram` gives a K that is exact in float64.
        """
        if not gram.is_floating_point():
            raise RuntimeError(f"a Gram matrix is float64, this one is {gram.dtype}: use ops.gram")
        exact = gram.double()
        weights: Tensor = super().__call__(exact, *args, **kwargs)
        if gram.dtype != torch.float64 and any(
            isinstance(m, GramMethod) and m.inverts_gram for m in self.modules()
        ):
            doubtful = nearly_dependent(exact, 100 * torch.finfo(gram.dtype).eps / 2)
            self.status = self.status | torch.where(doubtful, ILL_CONDITIONED, 0)
        return weights

    @abstractmethod
    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        """Returns the weights of one step.

        Args:
            gram: (T, T) float64, K_ij = <g_i, g_j>, symmetric, from `ops.gram`.
            losses: (T) the tasks' losses, for the methods that use them.

        Returns:
            (T) float64 on gram's device.
        """

    def head_weights(self, gram: Tensor, losses: Tensor | None, weights: Tensor) -> Tensor:
        """The factors by which `weight_heads=True` multiplies the gradients of heads: the weights.

        A method whose published code has another rule for heads overrides it.

        Args:
            gram, losses: as for `forward`.
            weights: (T), the result of `forward`.

        Returns:
            (T) float64 on gram's device.
        """
        return weights


def finished(weights: Tensor, status: Tensor) -> Tensor:
    """Weights as every solver gives them: 0 for a zero gradient, all NaN where K is unusable.

    Args:
        weights: (T).
        status: (T) of `ops.task_status`.
    """
    weights = torch.where((status & ZERO_GRADIENT) > 0, 0.0, weights)
    return torch.where(((status & (NON_FINITE | INVALID_GRAM)) > 0).any(), torch.nan, weights)


def nearly_dependent(gram: Tensor, noise: float) -> Tensor:
    """Whether the cosines' smallest eigenvalue is below T times the noise of one cosine.

    Args:
        gram: (T, T) float64; gradients of length zero take no part.
        noise: how far a cosine may be off.

    Returns:
        () bool on gram's device.
    """
    lengths = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(lengths > 0, lengths, torch.inf)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    cosines = torch.where(eye > 0, 1, gram / scale[:, None] / scale)
    failed: Tensor = torch.linalg.cholesky_ex(cosines - len(gram) * noise * eye).info
    return failed > 0


class Drawing(GramMethod):
    """A Gram method that draws random numbers, the same on every device and rank."""

    seed: Tensor
    step: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))
        self.register_buffer("step", torch.tensor(0, dtype=torch.int64))

    def _draw_order(self, gram: Tensor) -> Tensor:
        """The next visiting order, (T, T-1)."""
        self._follow(gram)
        order = ops.visiting_order(self.seed, self.step, len(gram))
        self.step.add_(1)
        return order

    def _draw_normal(self, gram: Tensor) -> Tensor:
        """The next T standard normal numbers."""
        self._follow(gram)
        numbers = ops.normal_numbers(self.seed, self.step, len(gram))
        self.step.add_(1)
        return numbers

    def _follow(self, gram: Tensor) -> None:
        if self.step.device != gram.device:
            self.to(gram.device)


class SizedByTasks(GramMethod):
    """A Gram method whose buffers are empty until the first call, which gives them T entries."""

    _sized: ClassVar[dict[str, tuple[Kind, float]]]  # name -> see `register_lazy`

    def __init__(self) -> None:
        super().__init__()
        for name, (kind, fill) in self._sized.items():
            self.register_lazy(name, kind, fill)

    def _first_call(self, gram: Tensor) -> bool:
        """Whether the buffers must be filled now.

        Raises:
            ValueError: they belong to another number of tasks.
        """
        first = next(iter(self._sized))
        have = len(getattr(self, first))
        if have not in (0, len(gram)):
            raise ValueError(
                f"the state of {type(self).__name__} is for {have} tasks, not {len(gram)}: "
                "use a new method for another set of tasks"
            )
        if have and getattr(self, first).device != gram.device:
            self.to(gram.device)
        return have == 0
