"""What all ranks have to know alike before a step: tasks, parameters, who reaches what, a method.

Whether a parameter is shared, belongs to a head or is not reached decides where it lies in the
collectives, so it is settled before the first of them, on the host, from autograd's graph. A rank
that has no data for a task, or whose heads differ from step to step, has its own view of it; what
counts is the union. The views travel only in a step in which some rank's has changed, one number
says whether it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from mtlkernels.autograd.trial import SelfCheckError, Trial
from mtlkernels.distributed.collectives import Host
from mtlkernels.distributed.setting import Setting
from mtlkernels.engine.options import Options


class View(NamedTuple):
    """A step as one rank sees it.

    Attributes:
        tasks: T names.
        forms: shape, strides and dtype of P parameters.
        reach: sets of parameters, by position: of those that each task reaches, and perhaps more.
        present: the tasks, by position, of which this rank has a loss.
    """

    tasks: tuple[str, ...]
    forms: tuple[tuple[object, ...], ...]
    reach: tuple[tuple[int, ...], ...]
    present: tuple[int, ...]

    @staticmethod
    def of(
        tasks: tuple[str, ...],
        params: Sequence[Tensor],
        reach: Sequence[Sequence[int]],
        present: Sequence[int],
    ) -> View:
        """From the parameters themselves."""
        forms = tuple((tuple(p.shape), p.stride(), str(p.dtype)) for p in params)
        return View(tasks, forms, tuple(map(tuple, reach)), tuple(present))


class Agreement:
    """What the ranks of a group have settled, and whether it still holds.

    Attributes:
        host: what it talks through.
        reach: the sets of `View`, of what holds on some rank.
        present: the tasks, by position, of which some rank has a loss.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.reach: list[set[int]] = []
        self.present: list[int] = []
        self._own: View | None = None

    def settle(self, own: View, fingerprint: Callable[[], str]) -> None:
        """Makes `reach` that of this step.

        Args:
            own: what this rank sees.
            fingerprint: what has to be the same everywhere at the first step.

        Raises:
            ValueError: on all ranks, where they differ in more than what their tasks reach.
        """
        first = self._own is None
        if not self.host.any(own != self._own):
            return
        told = self.host.gather((own, fingerprint() if first else ""))
        for r, (view, mark) in enumerate(told):
            if view is None:
                raise RuntimeError(f"rank {r} of the group does not take this step: {mark}")
        views: list[View] = [view for view, _ in told]
        for r, (view, mark) in enumerate(told):
            where = f"rank {r} of the group differs from rank 0"
            if view.tasks != views[0].tasks:
                raise ValueError(
                    f"{where} in its losses, {', '.join(view.tasks)} and not "
                    f"{', '.join(views[0].tasks)}: give the same tasks in the same order, None for "
                    "one that a rank has no data for"
                )
            if view.forms != views[0].forms or len(view.reach) != len(views[0].reach):
                raise ValueError(f"{where} in its parameters: all ranks need the same model")
            if mark != told[0][1]:
                raise ValueError(
                    f"{where} in its method, its options or their state, a seed for example: set "
                    f"them up alike. It has {mark}, rank 0 has {told[0][1]}"
                )
        self.reach = [set().union(*sets) for sets in zip(*(v.reach for v in views), strict=True)]
        ranks = [set(view.present) for view in views]
        self.present = [t for t in range(len(own.tasks)) if any(t in rank for rank in ranks)]
        self._own = own

    @contextmanager
    def announced(self) -> Iterator[None]:
        """What is raised in here, before `settle`, ends the step on all ranks: none waits for it.

        Raises:
            RuntimeError: on the other ranks, by their `settle`.
        """
        with announced([self]):
            yield

    def tell(self, error: Exception) -> None:
        """In the place of `settle`: ends the step of the other ranks, who wait there."""
        self.host.any(True)
        self.host.gather((None, f"{type(error).__name__}: {error}"))


@contextmanager
def announced(agreements: Sequence[Agreement]) -> Iterator[None]:
    """Reports an error raised inside to the ranks of all agreements; see `Agreement.announced`."""
    try:
        yield
    except Exception as error:
        for agreement in agreements:
            agreement.tell(error)
        raise


def settle_together(
    agreements: Sequence[Agreement], own: View, fingerprint: Callable[[], str]
) -> None:
    """Settles one after the other, along each dimension of a mesh; all its ranks raise together."""
    failed: Exception | None = None
    for agreement in agreements:
        if failed is not None:
            agreement.tell(failed)
            continue
        try:
            agreement.settle(own, fingerprint)
        except (ValueError, RuntimeError) as error:
            failed = error
    if failed is not None:
        raise failed


def fingerprint(
    method: nn.Module, options: Options, setting: Setting, params: Sequence[Tensor]
) -> str:
    """How steps are taken, and what the method is and remembers; of what is long, the sum."""
    place = {id(param): p for p, param in enumerate(params)}
    named = [options.shared, options.measure, *(options.parts or [])]
    chosen = [
        *([place.get(id(member)) for member in members or []] for members in named),
        options.weight_heads,
        options.rows_dtype,
        setting,
    ]

    def told(value: Any) -> object:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().double()
        return value.tolist() if value.numel() <= 1024 else [*value.shape, value.sum().item()]

    state = {name: told(value) for name, value in method.state_dict().items()}
    return f"{method} {state} {chosen}"


@contextmanager
def watched_by(
    trial: Trial | None, losses: Sequence[Tensor], scale: Tensor | None, retain_graph: bool
) -> Iterator[None]:
    """`Trial.over`, if there is one; what it raises is left to `judge_together`."""
    if trial is None:
        yield
        return
    with suppress(SelfCheckError), trial.over(losses, scale, retain_graph):
        yield


def judge_together(trial: Trial, hosts: Sequence[Host]) -> None:
    """`Trial.judge` over the ranks: all raise where one finds a fault; one that compares will do.

    hosts: of the groups that a mesh has along each of its dimensions.

    Raises:
        SelfCheckError: on all ranks.
    """
    trial.compare()
    bad = trial.bad
    for host in hosts:
        flags = host.count([bad, trial.compared])
        bad, trial.compared = flags[0] > 0, flags[1] > 0
    if bad:
        others = "another rank found that its task gradients are wrong: its error says where"
        raise SelfCheckError(trial.message() if trial.bad else others)


def check_weights(weights: Tensor, hosts: Sequence[Host]) -> None:
    """Raises on all ranks, and names them, where some have other weights; reads the device.

    hosts: of the groups that a mesh has along each of its dimensions.

    Raises:
        RuntimeError: weights differ.
    """
    told = [(dist.get_rank(), repr(weights.tolist()))]
    for host in hosts:
        told = [pair for part in host.gather(told) for pair in part]
    usual, _ = Counter(answer for _, answer in told).most_common(1)[0]
    others = [(rank, answer) for rank, answer in told if answer != usual]
    if others:
        said = "; ".join(f"rank {rank} has {answer}" for rank, answer in others)
        raise RuntimeError(
            f"the weights differ between ranks: {said}, where the others have {usual}. A method "
            "must be a function of the Gram matrix, the losses and a state that all ranks share"
        )
