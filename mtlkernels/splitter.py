"""A module between trunk and heads that balances inside one ordinary backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtlkernels.aggregation.families import (
    Weighting,
    check_method,
    keeps_weights,
    takes_rows,
    task_step,
    weighs_losses,
)
from mtlkernels.autograd.scale import Scaler, scale_of
from mtlkernels.engine.parameters import several_ranks
from mtlkernels.engine.plain import plain
from mtlkernels.engine.weighted_step import balance_features, combine_features
from mtlkernels.report import Report, Status


class Splitter(nn.Module):
    """Gives the trunk's features to T heads, and their T gradients, balanced, back to the trunk.

        splitter = Splitter(PCGrad(), num_tasks=2)
        for_seg, for_depth = splitter(trunk(images))
        loss = seg_loss(seg_head(for_seg)) + depth_loss(depth_head(for_depth))
        loss.backward()  # in a loop that cannot be changed

    The trunk gets the gradient of sum_t w_t L_t, with weights from the Gram matrix of the losses'
    gradients at the features, as with `backward(losses, features=...)`; heads get their own
    gradients. Each loss must reach the features through its own copy only, and enter the sum with
    factor 1: a factor counts as a larger loss. The copies share memory, so heads must not change
    theirs in place (`nn.ReLU(inplace=True)` as a first layer). If the loss does not use a copy in a
    step, that task is absent, and the method balances the others.

    Args:
        method: a Gram method that needs no losses: the splitter does not see them.
        num_tasks: T.
        scaler: the GradScaler that scales the loss, or its scale as a scalar tensor.

    Attributes:
        report: the report of the last backward pass, or None before the first.

    Raises:
        TypeError, ValueError: method is not a Gram method, or num_tasks not a positive integer.
        NotImplementedError: in the backward pass, if torch.distributed runs more than one rank.
    """

    def __init__(
        self, method: Weighting, num_tasks: int, *, scaler: Scaler | Tensor | None = None
    ) -> None:
        super().__init__()
        check_method(method)
        if weighs_losses(method) or takes_rows(method):
            raise ValueError(
                f"{type(method).__name__} does not compute weights from a Gram matrix, which is "
                "all that a Splitter has: use a Gram method, for example PCGrad()"
            )
        if keeps_weights(method):
            raise ValueError(
                f"{type(method).__name__} saves backward passes, and a Splitter takes one in every "
                "step: use the method without it"
            )
        if isinstance(num_tasks, bool) or not (isinstance(num_tasks, int) and num_tasks >= 1):
            raise ValueError(f"num_tasks={num_tasks}: it must be a whole number, at least 1")
        self._holds = (method,)
        self.num_tasks = num_tasks
        self.scaler = scaler
        self.report: Report | None = None

    @property
    def method(self) -> Weighting:
        """The method that computes the weights.

        Its state is in the model's state dict, but not among the model's buffers: `AveragedModel`
        averages buffers, which makes no sense for a method's seeds, counts and targets, whose
        shapes also change with the first losses.
        """
        return self._holds[0]

    def get_extra_state(self) -> dict[str, Any]:
        """The method's state, for the model's state dict."""
        return dict(self._module.state_dict())

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Loads what `get_extra_state` returned."""
        self._module.load_state_dict(state)

    @property
    def _module(self) -> nn.Module:
        return cast(nn.Module, self.method)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Splitter:
        self._module._apply(fn, recurse)  # the method moves with the model
        return super()._apply(fn, recurse)

    def forward(self, *features: Tensor) -> tuple[Any, ...]:
        """Returns T copies of the features, as views: no data is moved.

        Args:
            features: the trunk's output, one tensor or several.

        Returns:
            T tensors, or with several features T tuples of tensors.

        Raises:
            TypeError: a feature is not a tensor.
        """
        for z in features:
            if not isinstance(z, Tensor):
                raise TypeError(f"features hold a {type(z).__name__}: pass tensors, splitter(*z)")
        copies = _Split.apply(self, *features)
        count = len(features)
        if count == 1:
            return tuple(copies)
        return tuple(copies[t * count : (t + 1) * count] for t in range(self.num_tasks))

    @torch.no_grad()
    def _balance(self, cotangents: list[list[Tensor | None]]) -> list[Tensor | None]:
        if several_ranks():
            raise NotImplementedError(
                "a Splitter sees the features of one rank only, so the ranks' weights would "
                "differ: use MTLOptimizer(base, method, module=...) and backward(..., features=z)"
            )
        present = next((c for row in cotangents for c in row if c is not None), None)
        if present is None:
            return [None] * len(cotangents[0])
        scale = scale_of(self.scaler, present.device)
        here = [t for t, row in enumerate(cotangents) if any(c is not None for c in row)]
        with task_step(self.method, self.num_tasks, here) as step:
            rows = [cotangents[t] for t in step.order]
            method = plain(self.method) if step.alone else self.method
            found = balance_features(rows, cast(Weighting, method), None, scale)
        assert found.weights is not None
        names = tuple(map(str, range(self.num_tasks)))
        collected = "an ordinary backward, measured on features"
        report = Report(names, found.gram, found.weights, None, found.status, collected)
        self.report = report.of_tasks(names, step.order, Status.ZERO_GRADIENT)
        return combine_features(rows, found.weights)

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}"


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, splitter: Splitter, *features: Tensor) -> tuple[Tensor, ...]:
        ctx.splitter, ctx.count = splitter, len(features)
        ctx.set_materialize_grads(False)
        return tuple(z.view_as(z) for _ in range(splitter.num_tasks) for z in features)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        n = ctx.count
        rows = [list(cotangents[i : i + n]) for i in range(0, len(cotangents), n)]
        return (None, *ctx.splitter._balance(rows))
