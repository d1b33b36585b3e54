"""State as long as the gradients: a row a task, in the layout of a flat direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import INVALID_LOSS, RowMethod

_ROWS = "rows_"


class KeepsRows(RowMethod):
    """A row method with T rows a gradient list and a count of its steps.

    The rows, float32 or for float64 gradients float64, are the buffers `rows_0`, `rows_1`, ... on
    their gradients' devices: zeros at the first call. They go through `state_dict`.
    """

    growing = (_ROWS,)
    weighs = True

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(0, dtype=torch.int64))

    def _rows(self, lists: Sequence[Sequence[Tensor]], num_tasks: int) -> list[Tensor]:
        """The rows of each list, made now where there are none.

        Raises:
            ValueError: they belong to other gradients.
        """
        shapes = [(num_tasks, _flat_length(grads, num_tasks)) for grads in lists]
        dtypes = [torch.promote_types(grads[0].dtype, torch.float32) for grads in lists]
        names = [f"{_ROWS}{i}" for i in range(len(lists))]
        if not any(name.startswith(_ROWS) for name in self._buffers):
            for name, shape, dtype, grads in zip(names, shapes, dtypes, lists, strict=True):
                rows = torch.zeros(shape, dtype=dtype, device=grads[0].device)
                self.register_buffer(name, rows)
        kept = [b for name, b in self._buffers.items() if b is not None and name.startswith(_ROWS)]
        if [(tuple(rows.shape), rows.dtype) for rows in kept] != list(
            zip(shapes, dtypes, strict=True)
        ):
            raise ValueError(
                f"the state of {type(self).__name__} is for {_told(kept)}, not "
                f"{' and '.join(f'{T} x {n}' for T, n in shapes)} in {_names(dtypes)}: use a new "
                "method for another set of tasks or parameters"
            )
        for name, rows, grads in zip(names, kept, lists, strict=True):
            if rows.device != grads[0].device:
                setattr(self, name, rows.to(grads[0].device))
        device = lists[0][0].device
        for name in ("step", *self._lazy):
            setattr(self, name, getattr(self, name).to(device))
        return [getattr(self, name) for name in names]

    def _track(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        scale: Tensor,
        rate: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        """Moves the rows, row <- row + rate (scale g - row), and gives their Gram matrix.

        A row whose scale is NaN stays as it is, and its row and column of the matrix are NaN.

        out: (T) whose rows stay and are zero in the matrix; their scale is NaN.
        """
        gram: Tensor | None = None
        for grads, rows in zip(lists, self._rows(lists, num_tasks), strict=True):
            there = rows.device
            part = ops.track_gram(grads, num_tasks, scale.to(there), rate.to(there), rows)
            gram = part if gram is None else gram + part.to(gram.device)
        assert gram is not None
        if out is None:
            self.step.add_(gram.isfinite().all())
            return gram
        gram = torch.where(out | out[:, None], 0.0, gram)
        self.step.add_(gram.isfinite().all() & ~out.all())
        return gram

    def _combined(self, lists: Sequence[Sequence[Tensor]], weights: Tensor) -> list[Tensor]:
        """sum_t w_t row_t for each list, in its gradients' dtype."""
        return [
            ops.combine(rows.unbind(), weights.to(rows.device)).to(grads[0].dtype)
            for grads, rows in zip(lists, self._rows(lists, len(weights)), strict=True)
        ]

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *rest: Any, **named: Any
    ) -> None:
        for name in [name for name in self._buffers if name.startswith(_ROWS)]:
            delattr(self, name)
        for key in state_dict:
            if key.startswith(prefix + _ROWS):
                fresh = torch.empty_like(state_dict[key], device=self.step.device)
                self.register_buffer(key[len(prefix) :], fresh)
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)


def ones(lists: Sequence[Sequence[Tensor]], num_tasks: int) -> Tensor:
    """(T) float64 ones on the first list's device."""
    return torch.ones(num_tasks, dtype=torch.float64, device=lists[0][0].device)


class PositiveLosses(NamedTuple):
    """What a rule that divides by losses sees of them.

    Attributes:
        losses: (T) NaN where one is not positive and finite.
        out: (T) which are <= 0: their tasks take no part.
        status: (T) INVALID_LOSS where one is not positive and finite, else 0.
    """

    losses: Tensor
    out: Tensor
    status: Tensor


def positive_losses(losses: Tensor | None, model: Tensor, name: str) -> PositiveLosses:
    """The losses in the dtype of `model`, and which of them cannot be divided by."""
    if losses is None:
        raise ValueError(f"{name} needs the tasks' losses")
    losses = losses.detach().to(model)
    good, out = (losses > 0) & losses.isfinite(), (losses <= 0) & losses.isfinite()
    return PositiveLosses(
        torch.where(good, losses, torch.nan), out, torch.where(good, 0, INVALID_LOSS)
    )


def _flat_length(grads: Sequence[Tensor], num_tasks: int) -> int:
    params = len(grads) // num_tasks
    numels = [
        grads[p].numel() or max(grad.numel() for grad in grads[p::params]) for p in range(params)
    ]
    return ops.flat_offsets(numels)[-1]


def _told(kept: Sequence[Tensor]) -> str:
    sizes = " and ".join(f"{len(rows)} x {rows.shape[1]}" for rows in kept)
    return f"{sizes} numbers in {_names([rows.dtype for rows in kept])}"


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
