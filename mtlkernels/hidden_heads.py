"""Heads that the graph does not tell from shared parameters, found by their gradients of zero.

Outputs that are joined and then picked by a mask, `torch.where`, a one-hot product or `einsum`,
heads in one `torch.autograd.Function` and scripted models hand a gradient of zeros to the other
tasks' heads. So a parameter at which the gradient of one task alone is ever anything but zero is a
head in all but name. A head whose weights start at zero, a mask that is empty in a batch or a dead
activation looks the same in a step or two: so the other tasks must have had other gradients than
zero elsewhere in several steps, between which the parameters have changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_EVIDENCE = 8  # steps in which each of the other tasks was seen elsewhere
_LAST = 64  # steps after which what is not decided stays so


class HiddenHeads:
    """Looks at the first steps' gradients, with a read from the device in steps 1, 2, 4, 8, ...

    It is done after the first step where no parameter is in question.
    """

    def __init__(self) -> None:
        self.done = False
        self._noted: list[tuple[Tensor, list[bool]]] = []
        self._params: list[Tensor] = []
        self._version = -1
        self._steps = 0
        self._seen: dict[str, Tensor] = {}  # of each task, (P) in how many steps it was not zero
        self._alive: dict[str, Tensor] = {}  # in how many steps it was not zero anywhere

    @torch.no_grad()
    def note(self, row: Sequence[Tensor | None]) -> None:
        """The next task's P gradients."""
        if self.done:
            return
        device = next((grad.device for grad in row if grad is not None), None)
        nothing = torch.zeros((), dtype=torch.bool, device=device)
        flags = [nothing if g is None else _has_entries(g).to(device) for g in row]
        self._noted.append((torch.stack(flags), [grad is not None for grad in row]))

    def look(self, tasks: Sequence[str], params: Sequence[Tensor]) -> dict[int, str]:
        """Counts the step whose T tasks have been noted.

        Args:
            tasks: T names.
            params: P parameters.

        Returns:
            The parameters that pass for shared and look like heads, by position, and the one task
            that each has. Once, in the step in which it is certain.
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
        if not same:  # from the beginning
            self._params, self._steps, self._seen, self._alive = members, 0, {}, {}
        self._version = version
        flags = [own.to(members[0].device)[shared] for own, _ in noted]
        for task, own in zip(tasks, flags, strict=True):
            self._seen[task] = own.int() + self._seen.get(task, 0)
            self._alive[task] = own.any().int() + self._alive.get(task, 0)
        self._steps += 1
        if self._steps & (self._steps - 1):
            return {}
        return {shared[p]: task for p, task in self._decide().items()}

    def _decide(self) -> dict[int, str]:
        """What the steps so far say; reads from the device."""
        tasks = list(self._seen)
        rows = [torch.cat([self._alive[task].view(1), self._seen[task]]) for task in tasks]
        numbers = torch.stack(rows).tolist()
        alive, seen = [row[0] for row in numbers], [row[1:] for row in numbers]
        found: dict[int, str] = {}
        open_ = False
        for p in range(len(self._params)):
            own = [t for t in range(len(tasks)) if seen[t][p]]
            open_ = open_ or len(own) < 2
            if len(own) == 1:
                others = [alive[t] for t in range(len(tasks)) if t != own[0]]
                if min([seen[own[0]][p], *others]) >= _EVIDENCE:
                    found[p] = tasks[own[0]]
        self.done = bool(found) or not open_ or self._steps >= _LAST
        return found


def _has_entries(grad: Tensor) -> Tensor:
    """Whether a gradient has an entry other than zero; a boolean scalar on its device."""
    if grad.layout is torch.sparse_coo:
        grad = grad._values()
    return grad.ne(0).any()


def _is(a: Tensor, b: Tensor) -> bool:
    return a is b
