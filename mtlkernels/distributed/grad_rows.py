"""Rows that backwards leave in .grad, where `torch.autograd.grad` cannot hand them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from mtlkernels.autograd.backwards import Row
from mtlkernels.distributed.local_parameters import Held

Answer = TypeVar("Answer")


def rows_of_grad(
    held: Held, runs: Sequence[Callable[[], Answer]]
) -> tuple[list[Row], list[Answer]]:
    """This rank's pieces of what each run leaves in .grad, and what it returns.

    .grad is afterwards as it was before, also where a run raises.

    Raises:
        ValueError: a run wrote over another's gradients, or over those that were there before.
    """
    params = held.params
    before = [param.grad for param in params]
    memory = [{*_memory(tensor.grad)} for tensor in held.tensors]
    rows: list[Row] = []
    answers: list[Answer] = []
    try:
        for run in runs:
            for param in params:
                param.grad = None
            answers.append(run())
            row = held.row([param.grad for param in params])
            for piece, taken in zip(row, memory, strict=True):
                if not taken.isdisjoint(_memory(piece)):
                    raise ValueError(
                        "a backward left its gradients in the memory of those before it, which it "
                        "overwrote: leave out what keeps that memory, gradient_as_bucket_view=True "
                        "for example"
                    )
                taken.update(_memory(piece))
            rows.append(row)
    finally:
        for param, grad in zip(params, before, strict=True):
            param.grad = grad
    return rows, answers


def _memory(piece: Tensor | None) -> list[int]:
    return [] if piece is None or piece.numel() == 0 else [piece.data_ptr()]
