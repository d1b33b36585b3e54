"""torch.distributed's collectives under one name, and what to say when one of them fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup


@contextmanager
def explained(what: str) -> Iterator[None]:
    """A failed collective's error, with what it means to a person."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"{what} failed: another rank died, hangs, or takes other steps than this one (the "
            "error above is torch's own; the first error of the other ranks says why). No .grad "
            "has been written"
        ) from error


class Pending:
    """A collective under way; its tensors stay alive until `wait`."""

    def __init__(self, what: str, work: Any, *tensors: Tensor) -> None:
        self.what, self.work, self.tensors = what, work, tensors

    def wait(self) -> None:
        """Orders what follows behind the collective: a stream on a GPU, this thread on a CPU.

        A second call does nothing.
        """
        if self.work is not None:
            with explained(self.what):
                self.work.wait()
        self.work, self.tensors = None, ()


def reduce_scatter(part: Tensor, whole: Tensor, group: Group) -> Pending:
    """Starts part <- this rank's piece of the sum of every rank's `whole`, W times as long."""
    # torch 2.13 renamed both and warns about the old names, 2.10 to 2.12 have only these.
    run = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    what = "reducing a task's gradients over the ranks"
    with explained(what):
        return Pending(what, run(part, whole, group=group, async_op=True), part, whole)


def all_gather(whole: Tensor, part: Tensor, group: Group) -> Pending:
    """Starts whole <- every rank's `part`, in the order of the ranks."""
    run = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    what = "gathering the direction from the ranks"
    with explained(what):
        return Pending(what, run(whole, part, group=group, async_op=True), whole, part)


def add_up(tensor: Tensor, groups: Sequence[Group], what: str) -> Tensor:
    """The tensor summed, in place, over each of the groups in turn: over a mesh, if its."""
    for group in groups:
        with explained(what):
            dist.all_reduce(tensor, group=group)
    return tensor


def add_up_together(pieces: Sequence[Tensor], groups: Sequence[Group]) -> list[Tensor]:
    """Small tensors of float64, on one device, summed over the groups in one collective each."""
    flat = add_up(torch.cat([p.flatten() for p in pieces]), groups, "adding up the Gram matrices")
    parts = flat.split([piece.numel() for piece in pieces])
    return [part.view(piece.shape) for part, piece in zip(parts, pieces, strict=True)]


class OfRanks:
    """What holds process groups: a copy of an optimizer shares it, and no file can hold it."""

    def __deepcopy__(self, memo: object) -> OfRanks:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an optimizer over several ranks cannot be pickled, process groups cannot: save its "
            "state_dict(), and wrap a fresh one"
        )


class Hosts:
    """The `Host` of each group, made once: one beside NCCL is a group of its own."""

    def __init__(self) -> None:
        self._known: list[tuple[Group, Host]] = []

    def of(self, group: Group) -> Host:
        """That of one group."""
        for known, host in self._known:
            if known is group:
                return host
        self._known.append((group, Host(group)))
        return self._known[-1][1]


class Host:
    """A group's ranks talking about things that live on the host, without waiting for a device."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._own: Group | None = None

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; one number."""
        return self.count([flag]) != [0]

    def count(self, flags: Sequence[bool]) -> list[int]:
        """On how many ranks each of the flags is set."""
        told = torch.tensor([int(flag) for flag in flags], device="cpu")
        with explained("agreeing on a step"):
            dist.all_reduce(told, group=self._ready())
        return told.tolist()

    def gather(self, thing: object) -> list[Any]:
        """Every rank's thing, in the order of the ranks."""
        group = self._ready()
        found: list[Any] = [None] * dist.get_world_size(group)
        with explained("agreeing on a step"):
            dist.all_gather_object(found, thing, group=group)
        return found

    def _ready(self) -> Group:
        """The group itself if it can carry tensors of the CPU, else one of gloo beside it."""
        if self._own is None:
            if "cpu:" in dist.get_backend_config(self.group):
                self._own = self.group
            else:
                self._own = dist.new_group(
                    dist.get_process_group_ranks(self.group),
                    backend="gloo",
                    use_local_synchronization=True,
                )
        return self._own
