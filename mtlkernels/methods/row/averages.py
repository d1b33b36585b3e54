"""State of the gradients' size: one vector per task, in the layout of a flat direction."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import INVALID_LOSS
from mtlkernels.methods.numbers import decoded, encoded, pick
from mtlkernels.methods.row.base import RowMethod

_ROWS = "rows_"
_ASIDE = "rows_of_"  # and the position of a parameter
_LAYOUT = "row_parameters"

# For each gradient list: the positions of its parameters in the user's list, and their sizes.
Layout = list[list[tuple[int, int]]]


class KeepsRows(RowMethod):
    """A row method with T rows a gradient list and a count of its steps.

    The rows, float32 or for float64 gradients float64, are the buffers `rows_0`, `rows_1`, ... on
    their gradients' devices: zeros at the first call. They go through `state_dict`, and so do the
    positions of their parameters in the list that the step was given. If a step reaches other
    parameters than the one before, each parameter keeps its rows (`rows_of_<position>` while it is
    not reached), and a new one starts with zeros; such a step copies the rows.
    """

    growing = (_ROWS,)
    weighs = True

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(0, dtype=torch.int64))
        self._layout: Layout | None = None  # of the rows that there are, where it is known
        self._places: list[list[int]] | None = None  # of this step's parameters
        self._owners: dict[int, weakref.ref[Tensor]] = {}

    def for_parameters(
        self, places: list[list[int]], params: Mapping[int, Tensor] | None = None
    ) -> None:
        """Sets which parameters the next step's gradients belong to.

        Args:
            places: for each gradient list, the positions of its parameters.
            params: the parameters by position, to check that they are those of earlier steps.

        Raises:
            ValueError: other parameters have those positions now.
        """
        self._places = places
        if params is None or torch.compiler.is_compiling():
            return
        for place in [place for group in places for place in group]:
            owner = self._owners.get(place)
            known = None if owner is None else owner()
            if known is not None and known is not params[place]:
                raise ValueError(
                    f"parameter {place} of the list is not that of earlier steps, whose averages "
                    f"this {type(self).__name__} has: give all parameters in the same order in "
                    "each step, or reset() the method"
                )
            if known is None:
                self._owners[place] = weakref.ref(params[place])

    def _each(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        update: Callable[[Sequence[Tensor], Tensor], Tensor],
    ) -> list[Tensor]:
        """Calls `update` for each list with the present tasks' rows, which it may change."""
        answers, seats = [], self._present
        for grads, whole in zip(lists, self._rows(lists, num_tasks), strict=True):
            if seats is None:
                answers.append(update(grads, whole))
                continue
            rows = pick(whole, seats)
            answers.append(update(grads, rows))
            for seat, row in zip(seats, rows.unbind(), strict=True):
                whole[seat].copy_(row)
        return answers

    def _rows(self, lists: Sequence[Sequence[Tensor]], num_tasks: int) -> list[Tensor]:
        """The rows of all tasks for each list, created if there are none.

        Raises:
            ValueError: the rows belong to other gradients.
        """
        tasks = num_tasks if self._present is None else self._num_tasks
        sizes = [_sizes(grads, num_tasks) for grads in lists]
        places, self._places = self._places, None
        layout = None
        if places is not None:
            layout = [list(zip(p, n, strict=True)) for p, n in zip(places, sizes, strict=True)]
        elif self._layout is not None and [[n for _, n in g] for g in self._layout] == sizes:
            layout = self._layout
        kept = self._row_names()
        if layout is not None and self._layout is not None and layout != self._layout:
            self._lay_out(layout, lists)
            kept = self._row_names()
        names = [f"{_ROWS}{i}" for i in range(len(lists))]
        dtypes = [torch.promote_types(grads[0].dtype, torch.float32) for grads in lists]
        lengths = [ops.flat_offsets(numels)[-1] for numels in sizes]
        if not kept:
            for name, length, dtype, grads in zip(names, lengths, dtypes, lists, strict=True):
                rows = torch.zeros(tasks, length, dtype=dtype, device=grads[0].device)
                self.register_buffer(name, rows)
            kept = names
        if self._present is not None:
            for name in self._task_buffers():
                if self._grows(name):
                    setattr(self, name, self._grown(name, tasks))
        have = [getattr(self, name) for name in kept]
        wanted = [((tasks, n), dtype) for n, dtype in zip(lengths, dtypes, strict=True)]
        if [(tuple(rows.shape), rows.dtype) for rows in have] != wanted:
            raise self._others(tasks, lengths, dtypes)
        self._layout = layout
        for name, rows, grads in zip(names, have, lists, strict=True):
            if rows.device != grads[0].device:
                setattr(self, name, rows.to(grads[0].device))
        device = lists[0][0].device
        for name in ("step", *self._lazy):
            setattr(self, name, getattr(self, name).to(device))
        return [getattr(self, name) for name in names]

    def _row_names(self) -> list[str]:
        """Names of the buffers of the current layout, in order."""
        return [n for n in self._buffers if n.startswith(_ROWS) and not n.startswith(_ASIDE)]

    def _others(
        self, tasks: int, lengths: Sequence[int], dtypes: Sequence[torch.dtype], why: str = ""
    ) -> ValueError:
        """The error for rows that belong to other gradients."""
        stored = [getattr(self, name) for name in self._row_names()]
        return ValueError(
            f"the state of {type(self).__name__} is for {_described(stored)}, not "
            f"{' and '.join(f'{tasks} x {n}' for n in lengths)} in {_names(dtypes)}{why}: use a "
            "new method for another set of tasks or parameters"
        )

    def _lay_out(self, layout: Layout, lists: Sequence[Sequence[Tensor]]) -> None:
        """Moves the rows into another layout, and sets aside those of parameters not in it.

        Raises:
            ValueError: a parameter's size or dtype is not that of its rows; nothing has changed.
        """
        assert self._layout is not None
        pieces: dict[int, Tensor] = {
            int(name.removeprefix(_ASIDE)): getattr(self, name)
            for name in self._buffers
            if name.startswith(_ASIDE)
        }
        old = self._row_names()
        for name, group in zip(old, self._layout, strict=True):
            offsets = ops.flat_offsets([size for _, size in group])
            for (place, size), at in zip(group, offsets, strict=False):
                pieces[place] = getattr(self, name)[:, at : at + size]
        tasks = len(next(iter(pieces.values())))
        ends = [ops.flat_offsets([size for _, size in group])[-1] for group in layout]
        dtypes = [torch.promote_types(grads[0].dtype, torch.float32) for grads in lists]
        fresh = {}
        for i, (group, grads) in enumerate(zip(layout, lists, strict=True)):
            offsets = ops.flat_offsets([size for _, size in group])
            dtype = dtypes[i]
            rows = torch.zeros(tasks, offsets[-1], dtype=dtype, device=grads[0].device)
            for (place, size), at in zip(group, offsets, strict=False):
                piece = pieces.get(place)
                if piece is not None and (piece.shape[1], piece.dtype) != (size, dtype):
                    why = f" (parameter {place} has {size} numbers, not {piece.shape[1]})"
                    raise self._others(tasks, ends, dtypes, why)
                if piece is not None:
                    rows[:, at : at + size] = piece
            fresh[f"{_ROWS}{i}"] = rows
        here = {place for group in layout for place, _ in group}
        aside = {place: piece.clone() for place, piece in pieces.items() if place not in here}
        for name in [name for name in self._buffers if self._grows(name)]:
            delattr(self, name)
        for name, rows in (fresh | {f"{_ASIDE}{p}": piece for p, piece in aside.items()}).items():
            self.register_buffer(name, rows)

    def _track(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        scale: Tensor,
        rate: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        """Updates the rows, row <- row + rate (scale g - row), and returns their Gram matrix.

        A row whose scale is NaN is unchanged, and its row and column of the matrix are NaN.

        out: (T) tasks whose rows are unchanged, with zeros in the matrix; their scale is NaN.
        """

        def update(grads: Sequence[Tensor], rows: Tensor) -> Tensor:
            there = rows.device
            return ops.track_gram(grads, num_tasks, scale.to(there), rate.to(there), rows)

        gram, *more = self._each(lists, num_tasks, update)
        for part in more:
            gram = gram + part.to(gram.device)
        if out is None:
            self.step.add_(gram.isfinite().all())
            return gram
        gram = torch.where(out | out[:, None], 0.0, gram)
        self.step.add_(gram.isfinite().all() & ~out.all())
        return gram

    def _combined(self, lists: Sequence[Sequence[Tensor]], weights: Tensor) -> list[Tensor]:
        """sum_t w_t row_t for each list, in its gradients' dtype."""
        seats = range(len(weights)) if self._present is None else self._present
        return [
            ops.combine([rows[seat] for seat in seats], weights.to(rows.device)).to(grads[0].dtype)
            for grads, rows in zip(lists, self._rows(lists, len(weights)), strict=True)
        ]

    def _reset(self) -> None:
        super()._reset()
        self._layout, self._places, self._owners = None, None, {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_owners": {}}  # a copy may serve another model

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        layout = self._layout if self._row_names() else None
        destination[prefix + _LAYOUT] = encoded(layout or [], self.step.device)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *rest: Any, **named: Any
    ) -> None:
        own = dict(state_dict)
        layout = decoded(own.pop(prefix + _LAYOUT, None))
        self._layout = [[(p, n) for p, n in group] for group in layout] if layout else None
        self._places, self._owners = None, {}
        for name in [name for name in self._buffers if name.startswith(_ROWS)]:
            delattr(self, name)
        for key in own:
            if key.startswith(prefix + _ROWS):
                fresh = torch.empty_like(own[key], device=self.step.device)
                self.register_buffer(key[len(prefix) :], fresh)
        super()._load_from_state_dict(own, prefix, *rest, **named)


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
    """The losses in the dtype of `model`, and which of them are not positive."""
    if losses is None:
        raise ValueError(f"{name} needs the tasks' losses: pass losses= to aggregate")
    losses = losses.detach().to(model)
    good, out = (losses > 0) & losses.isfinite(), (losses <= 0) & losses.isfinite()
    return PositiveLosses(
        torch.where(good, losses, torch.nan), out, torch.where(good, 0, INVALID_LOSS)
    )


def _sizes(grads: Sequence[Tensor], num_tasks: int) -> list[int]:
    """How many numbers each parameter of a gradient list has."""
    params = len(grads) // num_tasks
    return [
        grads[p].numel() or max(grad.numel() for grad in grads[p::params]) for p in range(params)
    ]


def _described(rows_of_lists: Sequence[Tensor]) -> str:
    sizes = " and ".join(f"{len(rows)} x {rows.shape[1]}" for rows in rows_of_lists)
    return f"{sizes} numbers in {_names([rows.dtype for rows in rows_of_lists])}"


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
