"""Detects heads that the graph does not show, from gradients that are zero.

The graph does not show which parameters are heads if outputs are joined and then picked by a mask,
`torch.where`, a one-hot product or `einsum`, if heads are in one `torch.autograd.Function`, or if
the model is scripted: the other tasks then have gradients of zeros there. So a parameter at which
only one task ever has a nonzero gradient is probably a head. Weights that start at zero, a mask
that is empty in a batch and a dead activation look the same for a step or two. So the other tasks
must have had nonzero gradients elsewhere in several steps, between which the parameters changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_EVIDENCE = 8  # steps in which each of the other tasks had a nonzero gradient elsewhere
_LAST = 64  # steps after which the search ends


class HiddenHeads:
    """Examines the gradients of the first steps; reads from the device in steps 1, 2, 4, 8, ...

    It is done once no parameter is in doubt, which may be after the first step.
    """

    def __init__(self) -> None:
        self.done = False
        self._noted: list[tuple[Tensor, list[bool]]] = []
        self._params: list[Tensor] = []
        self._version = -1
        self._steps = 0
        self._seen: dict[
            str, Tensor
        ] = {}  # task -> (P), in how many steps its gradient was nonzero
        self._alive: dict[str, Tensor] = {}  # task -> in how many steps it was nonzero anywhere

    @torch.no_grad()
    def note(self, row: Sequence[Tensor | None]) -> None:
        """Records the next task's P gradients."""
        if self.done:
            return
        device = next((grad.device for grad in row if grad is not None), None)
        nothing = torch.zeros((), dtype=torch.bool, device=device)
        flags = [nothing if g is None else _has_entries(g).to(device) for g in row]
        self._noted.append((torch.stack(flags), [grad is not None for grad in row]))

    def look(self, tasks: Sequence[str], params: Sequence[Tensor]) -> dict[int, str]:
        """Ends a step, after `note` was called for each of its T tasks.

        Args:
            tasks: T names.
            params: P parameters.

        Returns:
            Position -> the only task, of the parameters that are treated as shared and look like
            heads. Returned once, in the step in which it is certain.
        """
        noted, self._noted = self._noted[-len(tasks) :], []
        if self.done or len(noted) < 2:
            return {}
        counts = [sum(column) for column in zip(*(mask for _, mask in noted), strict=True)]
        shared = [p for p, count in enumerate(counts) if count > 1]
        members = [params[p] for p in shared]
        version = sum(param._version for param in members)
        same = len(members) == len(self._params) and all(map(_is, members, self._params))
        if not members or (same and version == self._version):
            return {}
        if not same:  # start again
            self._params, self._steps, self._seen, self._alive = members, 0, {}, {}
        self._version = version
        flags = [nonzero.to(members[0].device)[shared] for nonzero, _ in noted]
        for task, nonzero in zip(tasks, flags, strict=True):
            self._seen[task] = nonzero.int() + self._seen.get(task, 0)
            self._alive[task] = nonzero.any().int() + self._alive.get(task, 0)
        self._steps += 1
        if self._steps & (self._steps - 1):
            return {}
        return {shared[p]: task for p, task in self._decide().items()}

    def _decide(self) -> dict[int, str]:
        """Decides from the steps so far; reads from the device."""
        tasks = list(self._seen)
        rows = [torch.cat([self._alive[task].view(1), self._seen[task]]) for task in tasks]
        numbers = torch.stack(rows).tolist()
        alive, seen = [row[0] for row in numbers], [row[1:] for row in numbers]
        heads: dict[int, str] = {}
        open_ = False
        for p in range(len(self._params)):
            reaching = [t for t in range(len(tasks)) if seen[t][p]]
            open_ = open_ or len(reaching) < 2
            if len(reaching) == 1:
                others = [alive[t] for t in range(len(tasks)) if t != reaching[0]]
                if min([seen[reaching[0]][p], *others]) >= _EVIDENCE:
                    heads[p] = tasks[reaching[0]]
        self.done = bool(heads) or not open_ or self._steps >= _LAST
        return heads


def _has_entries(grad: Tensor) -> Tensor:
    """Whether a gradient has an entry other than zero; a boolean scalar on its device."""
    if grad.layout is torch.sparse_coo:
        grad = grad._values()
    return grad.ne(0).any()


def _is(a: Tensor, b: Tensor) -> bool:
    return a is b
