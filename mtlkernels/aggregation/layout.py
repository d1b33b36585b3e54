"""Raw gradients in, canonical gradients out; a flat direction in, aligned .grad views out.

The only place that meets what autograd hands out: expanded, transposed, overlapping, shared,
absent. A canonical gradient is dense in the strides of its parameter and seen as one contiguous
run of memory; what is dense already is used in place, never written to. Parameters are grouped by
dtype and device: one call of an op takes one group, Gram matrices of groups add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor

from mtlkernels.ops import FLOAT_DTYPES, flat_offsets

TaskGrads = Sequence[Sequence[Tensor | None]]


@dataclass
class Group:
    """The parameters of one dtype and device, and their canonical gradients."""

    params: list[int] = field(default_factory=list)  # positions in the caller's list
    shapes: list[torch.Size] = field(default_factory=list)
    strides: list[tuple[int, ...]] = field(default_factory=list)
    rows: list[list[Tensor]] = field(default_factory=list)  # T lists
    offsets: list[int] = field(default_factory=list)
    direction_dtype: torch.dtype = torch.float32  # what their weighted sum is rounded to
    copies: int = 1  # ranks that hold these gradients, of those whose Gram matrices are added up

    @property
    def device(self) -> torch.device:
        """Where the gradients are."""
        return self.rows[0][0].device

    @property
    def grads(self) -> list[Tensor]:
        """The task-major gradient list that the ops take."""
        return [grad for row in self.rows for grad in row]

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters' views of a flat direction, in their own shapes and strides."""
        places = zip(self.shapes, self.strides, self.offsets, strict=False)
        return [flat.as_strided(shape, stride, at) for shape, stride, at in places]

    def grads_of(self, flat: Tensor) -> list[Tensor]:
        """The same as tensors of their own, as a .grad is: not views to autograd.

        So `grad.detach_()` works, and writing to one does not count as writing to the others.
        """
        own = [view.data for view in self.views(flat)]
        for grad in own:
            grad._mtl_flat = flat  # type: ignore[attr-defined]  # how flat_behind knows its own
        return own

    def flat_behind(self, views: Sequence[Tensor | None]) -> Tensor | None:
        """The flat direction that P tensors are this group's `grads_of`, or None.

        Tensors that only lie in memory as such views would are not taken for them: what stands
        between them, padding to us, would be somebody else's.
        """
        flat: Tensor | None = getattr(views[0], "_mtl_flat", None)
        if (
            flat is None
            or flat.shape[0] != self.offsets[-1]
            or flat.dtype != self.direction_dtype
            or torch.compiler.is_compiling()  # a compiled graph has no addresses
        ):
            return None
        start, size = flat.data_ptr(), flat.element_size()
        for view, shape, stride, at in zip(
            views, self.shapes, self.strides, self.offsets, strict=False
        ):
            if (
                getattr(view, "_mtl_flat", None) is not flat
                or view is None
                or view.shape != shape
                or view.stride() != stride
                or view.data_ptr() != start + at * size
            ):
                return None
        return flat


class UnfitGradientError(TypeError):
    """A gradient of a kind that the ops do not take."""

    def __init__(self, task: int, position: int, param: Tensor, kind: str, cure: str) -> None:
        super().__init__(
            f"the gradient of task {task} for parameter {position} is {kind}: {cure}, or choose a "
            "loss method, which takes gradients of any kind"
        )
        self.task, self.param, self.kind, self.cure = task, param, kind, cure

    def among(self, params: Sequence[Tensor]) -> UnfitGradientError:
        """The same with the parameter's position in another list that holds it."""
        for p, param in enumerate(params):
            if param is self.param:
                return UnfitGradientError(self.task, p, param, self.kind, self.cure)
        return self


def group_gradients(
    task_grads: TaskGrads,
    params: Sequence[Tensor] | None = None,
    copies: Sequence[int] | None = None,
) -> list[Group]:
    """Canonical gradients of T tasks for P parameters, grouped by dtype and device.

    Args:
        task_grads: T lists of P tensors or None, None being an absent gradient.
        params: P parameters whose shapes and strides the direction takes; without them those of
            each parameter's first gradient. The direction of bfloat16 or float16 gradients for
            parameters whose .grad is float32 is float32, else of the gradients' dtype.
        copies: on how many ranks each of the P parameters stands; a group holds those of one count.

    Returns:
        Groups in the order of their first parameter. A parameter that no task reaches is in none.

    Raises:
        ValueError: lengths, shapes, dtypes or devices do not fit together.
        UnfitGradientError, TypeError: a gradient is sparse or complex, or not floating-point.
    """
    check_lengths(task_grads, params)
    groups: dict[tuple[torch.dtype, torch.dtype, torch.device, int], Group] = {}
    for p, grads in enumerate(zip(*task_grads, strict=True)):
        first = next((grad for grad in grads if grad is not None), None)
        if first is None:
            continue
        model = first if params is None else params[p]
        shape, dtype, device = model.shape, first.dtype, first.device
        fits = dtype in FLOAT_DTYPES
        for t, grad in enumerate(grads):
            if grad is not None and not (
                fits
                and grad.shape == shape
                and grad.dtype is dtype
                and grad.layout is torch.strided
                and grad.device == device
            ):
                _refuse(grad, model, first, t, p)
        summed = dtype
        if dtype is torch.bfloat16 or dtype is torch.float16:
            into = model.dtype if params is None else grad_dtype(model)
            summed = torch.float32 if into == torch.float32 else dtype
        count = 1 if copies is None else copies[p]
        group = groups.get((dtype, summed, device, count))
        if group is None:
            group = Group(rows=[[] for _ in grads], direction_dtype=summed, copies=count)
            groups[dtype, summed, device, count] = group
        strides, in_order = memory_order(model)
        absent: Tensor | None = None
        group.params.append(p)
        group.shapes.append(shape)
        group.strides.append(strides)
        for row, grad in zip(group.rows, grads, strict=True):
            if grad is None:
                absent = first.new_empty(0) if absent is None else absent
                row.append(absent)
            elif in_order and grad.is_contiguous():
                row.append(grad)
            else:
                row.append(canonical(grad, strides, in_order))
    for group in groups.values():
        group.offsets = flat_offsets([shape.numel() for shape in group.shapes])
    return list(groups.values())


def grad_dtype(param: Tensor) -> torch.dtype:
    """What a parameter's .grad is of: its own dtype, unless `param.grad_dtype` says another."""
    if torch.compiler.is_compiling() or not param.is_leaf:  # where torch knows of none
        return param.dtype
    return getattr(param, "grad_dtype", None) or param.dtype


def memory_order(model: Tensor) -> tuple[tuple[int, ...], bool]:
    """The strides of a parameter's canonical gradients, and whether they are row-major."""
    if model.is_contiguous():
        return model.stride(), True
    strides = dense_strides(model)
    return strides, is_row_major(model.shape, strides)


def canonical(grad: Tensor, strides: tuple[int, ...], in_order: bool) -> Tensor:
    """The gradient as a contiguous run of memory in the order of `strides`; a copy only if needed.

    in_order: `strides` is row-major, so that a contiguous gradient is canonical as it is.
    """
    if in_order:
        return grad if grad.is_contiguous() else grad.contiguous()
    if not same_strides(grad, strides):
        grad = torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device).copy_(
            grad
        )
    return grad.as_strided((grad.numel(),), (1,))


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's own strides where it fills its memory without overlap, else row-major ones."""
    expected = 1
    for size, stride in sorted(
        ((n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n != 1),
        key=lambda pair: pair[1],
    ):
        if stride != expected:
            return row_major(tensor.shape)
        expected *= size
    return tensor.stride()


def row_major(shape: torch.Size) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_row_major(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """Whether the strides order the elements as a contiguous tensor does."""
    expected = row_major(shape)
    return all(n == 1 or s == e for n, s, e in zip(shape, strides, expected, strict=True))


def same_strides(tensor: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether the tensor has these strides wherever a dimension has more than one element."""
    own = zip(tensor.shape, tensor.stride(), strides, strict=True)
    return all(n == 1 or have == want for n, have, want in own)


def check_lengths(task_grads: TaskGrads, params: Sequence[Tensor] | None) -> None:
    """Raises ValueError unless there is a gradient or None for each task and parameter."""
    if len(task_grads) == 0 or isinstance(task_grads, Tensor):
        raise ValueError("task_grads must be T lists of P tensors (or None), one list a task")
    expected = len(task_grads[0]) if params is None else len(params)
    for t, row in enumerate(task_grads):
        if isinstance(row, Tensor) or len(row) != expected:
            have = "a tensor" if isinstance(row, Tensor) else f"{len(row)} gradients"
            raise ValueError(
                f"task {t} has {have} for {expected} parameters: give one gradient, or None, "
                "for each parameter"
            )


def _refuse(grad: Tensor, model: Tensor, first: Tensor, t: int, p: int) -> NoReturn:
    """Says what is wrong with a gradient that does not fit."""
    name = f"the gradient of task {t} for parameter {p}"
    kind, cure = None, ""
    if grad.layout != torch.strided:
        kind, cure = "sparse", "use dense gradients (Embedding(sparse=False))"
    elif grad.is_complex() and model is first:  # gradients alone were given
        kind, cure = "complex", "balance torch.view_as_real of it instead"
    elif grad.is_complex():
        kind, pairs = "complex", (*grad.shape, 2)
        cure = f"hold a real parameter of shape {pairs} and use torch.view_as_complex of it"
    if kind is not None:
        raise UnfitGradientError(t, p, model, kind, cure)
    if grad.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} is {grad.dtype}: expected float32, float64, bfloat16 or float16")
    if grad.dtype != first.dtype:
        raise ValueError(
            f"{name} is {grad.dtype} where an earlier task's is {first.dtype}: "
            "a parameter's gradients must share one dtype"
        )
    if grad.device != first.device:
        raise ValueError(f"{name} is on {grad.device} where an earlier task's is on {first.device}")
    raise ValueError(f"{name} has shape {tuple(grad.shape)}, not {tuple(model.shape)}")
