"""Ops for methods with a state, which goes in and comes out, and normal random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels import reference
from mtlkernels.ops.registry import LIBRARY, call, define, define_sized, fake, refuse_gradients

onto_simplex = reference.onto_simplex  # a few torch ops on T numbers: differentiable, no kernel

_gradvac = define_sized(
    "gradvac",
    "(Tensor gram, Tensor order, Tensor phi, float beta, bool corrected)"
    " -> (Tensor, Tensor, Tensor)",
)
_gradnorm = define_sized(
    "gradnorm",
    "(Tensor gram, Tensor losses, Tensor state, Tensor start, float alpha, float rate)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
_simplex_descent = define_sized(
    "simplex_descent",
    "(Tensor gram, Tensor state, int rounds, float rate, float momentum, float pull, float damping,"
    " bool relative) -> (Tensor, Tensor, Tensor)",
)
_normal_numbers = define("normal_numbers", "(Tensor seed, Tensor step, int n) -> Tensor")

for _name in ("gradvac", "gradnorm", "simplex_descent"):
    refuse_gradients(_name)


def gradvac(
    gram: Tensor, order: Tensor, phi: Tensor, beta: float, corrected: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """GradVac's weights (arXiv 2010.05874), exact, from K alone. Degree 0.

    Args:
        gram: (T, T) float64.
        order: (T, T-1) int64, row i the other tasks as task i visits them.
        phi: (T, T) float64, the target cosines.
        beta: how far a target moves towards the cosine met, in 0 .. 1.
        corrected: move the targets of corrected pairs only.

    Returns:
        weights (T) float64, status (T) int64 and the next step's targets (T, T).
    """
    return _gradvac(len(gram), gram, order, phi, beta, corrected)


def gradnorm(
    gram: Tensor, losses: Tensor, state: Tensor, start: Tensor, alpha: float, rate: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GradNorm's weights (arXiv 1711.02257) from T norms and T losses. Degree 0.

    Args:
        gram: (T, T) float64.
        losses: (T) float64.
        state: (T) float64, the weights, which sum to T.
        start: (T) float64, each task's first loss, NaN before there is one.
        alpha: strength of the pull towards equal training rates.
        rate: step of the weights.

    Returns:
        weights (T) float64 of this step, status (T) int64, and the next step's state and start.
    """
    return _gradnorm(len(gram), gram, losses, state, start, alpha, rate)


def simplex_descent(
    gram: Tensor,
    state: Tensor,
    rounds: int,
    rate: float,
    momentum: float,
    pull: float,
    damping: float,
    relative: bool,
    preference: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """SDMGrad's (arXiv 2305.18409) and MoDo's (arXiv 2305.20057) weights: projected descent.

    From v = 0, `rounds` times: v <- momentum v + A (w + pull / T) + damping w and
    w <- projection on the simplex of w - rate v. Degree 0 where `relative`.

    Args:
        gram: (T, T) float64, A: a Gram matrix, or the cross-Gram of two batches (`cross_gram`).
        state: (T) float64, w on the simplex.
        rounds, rate, momentum, pull, damping: as above.
        relative: take A in units of s^2, s the mean of the sqrt(max(A_ii, 0)).
        preference: (T) float64, at least 0, in place of 1 / T as a share of its sum. No kernel has
            it: it is a few torch ops on T x T numbers, which read nothing back.

    Returns:
        weights (T) float64, (w + pull / T) / (1 + pull); status (T) int64, and the next state (T).
    """
    numbers = (rounds, rate, momentum, pull, damping, relative)
    if preference is not None:
        return reference.simplex_descent(gram, state, *numbers, preference)
    return _simplex_descent(len(gram), gram, state, *numbers)


def normal_numbers(seed: Tensor, step: Tensor, n: int) -> Tensor:
    """(n) float64 standard normal numbers, a function of the int64 scalars seed and step alone."""
    return call(_normal_numbers, seed, step, n)


@fake("gradvac")
def _(
    gram: Tensor, order: Tensor, phi: Tensor, beta: float, corrected: bool
) -> tuple[Tensor, Tensor, Tensor]:
    reference.check_gram(gram)
    status = gram.new_empty(gram.shape[0], dtype=torch.int64)
    return gram.new_empty(gram.shape[0]), status, torch.empty_like(phi)


@fake("gradnorm")
def _(
    gram: Tensor, losses: Tensor, state: Tensor, start: Tensor, alpha: float, rate: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reference.check_gram(gram)
    status = gram.new_empty(gram.shape[0], dtype=torch.int64)
    weights, following, first = (gram.new_empty(gram.shape[0]) for _ in range(3))
    return weights, status, following, first


@fake("simplex_descent")
def _(gram: Tensor, state: Tensor, *_: float) -> tuple[Tensor, Tensor, Tensor]:
    reference.check_gram(gram)
    status = gram.new_empty(gram.shape[0], dtype=torch.int64)
    return gram.new_empty(gram.shape[0]), status, torch.empty_like(state)


@torch.library.register_fake("mtlkernels::normal_numbers", lib=LIBRARY)
def _(seed: Tensor, step: Tensor, n: int) -> Tensor:
    return seed.new_empty(n, dtype=torch.float64)
