"""A Gram method's weights for several steps: computed in one, reused in those after it."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels.methods.gram.base import GramMethod
from mtlkernels.methods.numbers import decoded, encoded


class Reused(GramMethod):
    r"""Any Gram method, called every k steps; a step between costs one weighted backward pass.

    .. math:: w^{(k)} = w\bigl(K^{(m \lfloor k / m \rfloor)}\bigr)

    In a step that reuses weights, `backward` and `MTLOptimizer` compute no Gram matrix, and the
    report has none. The method's state changes only in the steps that call it. NashMTL's authors
    call this `update_weights_every` (arXiv 2202.01017).

    After a step whose gradients were not finite, its weights are not finite either, and neither are
    those of the steps that reuse them. With a GradScaler, which reads from the device anyway, the
    next step calls the method again.

    Args:
        method: any Gram method.
        every: k, at least 1.

    Use when:
        T backward passes cost most of a step and the weights change slowly.

    Avoid when:
        weights jump from batch to batch: they are stale in the steps between.
    """

    paper = "arXiv 2202.01017"
    cost = "T backward passes every k-th step, else 1"
    keeps = "T weights, the method's own state"

    weights: Tensor

    def __init__(self, method: GramMethod, every: int) -> None:
        super().__init__()
        if not isinstance(method, GramMethod) or isinstance(method, Reused):
            raise ValueError(f"method is a {type(method).__name__}, not a Gram method to be reused")
        if isinstance(every, bool) or not (isinstance(every, int) and every >= 1):
            raise ValueError(f"every={every}: it must be a whole number, at least 1")
        self.method = method
        self.every = every
        self.used = 0  # steps that the weights have served; a number on the host, so never a wait
        self.tasks: tuple[str, ...] | None = None  # whose they are, where that is known
        self.register_lazy("weights")
        if method.own_head_weights:
            self.register_lazy("heads")  # its own weights for heads, kept with the others

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        self._check(len(gram))
        weights = self.method(gram, losses)
        self.status = self.method.status
        self.weights = weights.detach().clone()
        self.used, self.tasks = 0, None
        return weights

    def head_weights(self, gram: Tensor, losses: Tensor | None, weights: Tensor) -> Tensor:
        heads = self.method.head_weights(gram, losses, weights)
        if hasattr(self, "heads"):
            self.heads = heads.detach().clone()
        return heads

    def kept_weights(self, tasks: tuple[str, ...], read: bool = False) -> Tensor | None:
        """The weights of the coming step, (T) float64, or None where the method is to be asked.

        Args:
            tasks: T names.
            read: whether the weights may be read from the device, to see that they are finite.

        Weights of other tasks, of which this step has more or fewer, are not reused.

        Raises:
            ValueError: they are of another number of tasks, without names.
        """
        if not 0 < self.used < self.every:
            return None
        self._check(len(tasks))
        if self.tasks not in (None, tasks):
            return None
        if read and not torch.isfinite(self.weights).all():
            return None
        return self.weights

    def count(self, tasks: tuple[str, ...]) -> None:
        """Counts a step that the weights have served, the first one too."""
        if len(self.weights):  # else no step has asked the method yet
            self.used += 1
            self.tasks = tasks

    def _check(self, num_tasks: int) -> None:
        if len(self.weights) not in (0, num_tasks):
            raise ValueError(
                f"this Reused has the weights of {len(self.weights)} tasks and got {num_tasks}: "
                "make a new one"
            )

    def _reset(self) -> None:
        super()._reset()
        self.used, self.tasks = 0, None

    def get_extra_state(self) -> Tensor:
        return encoded([self.used, self.tasks], self.weights.device)

    def set_extra_state(self, state: Tensor) -> None:
        if state.dim() == 0:  # as it once was, without names
            self.used, self.tasks = int(state), None
            return
        self.used, tasks = decoded(state)
        self.tasks = None if tasks is None else tuple(tasks)

    def extra_repr(self) -> str:
        return f"every={self.every}"
