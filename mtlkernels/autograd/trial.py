"""Checks one step: T backward passes over a graph against one backward pass of the summed loss.

Only the part of the graph that several tasks share runs several times and can give wrong gradients.
So the reference starts at the cut below the heads, where the tasks meet, from the sum of the
gradients that the T passes deliver there; from there on it is the ordinary backward pass of the
summed loss. It uses `torch.autograd.grad`, which runs no post-accumulate-grad hooks and writes no
.grad. All .grad are None meanwhile, so that a .grad that a pass writes is noticed and removed.

Gradients may differ in norm by orders of magnitude, and a hook that removes itself changes only the
first task's. So task t = 0, 1, ... gets the weight a_t = max_s |g_s| / ((t + 1) |g_t|).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtlkernels.autograd.backward_errors import OnePassError
from mtlkernels.autograd.backwards import Row, gradients_below, starts
from mtlkernels.autograd.cut import crossing, cut_at_heads, dtypes_below

_NAMED = 4  # how many parameters a message names
_WHAT_TO_DO = (
    "Nothing was written. Give features=, the output of the shared layers, so that one backward "
    "pass runs through them, or train with sum(losses).backward(); check=False turns this check "
    "off"
)


class SelfCheckError(RuntimeError):
    """The task gradients do not add up to the gradient of the summed loss."""


class Trial:
    """Watches the backward passes of one step and compares their gradients.

    Args:
        params: P parameters.
        names: id of a parameter -> its name, if known.
        local: maps P gradients to this rank's part of them.

    Attributes:
        compared: whether there were finite numbers to compare.
        retains: whether the passes have to keep the graph: not if tasks share only leaves, as with
            separate batches.
        written: parameters, by position, whose .grad a pass wrote.
        differing: parameters, by position, whose task gradients do not add up; worst first.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        names: Mapping[int, str],
        local: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]] = lambda row: row,
    ) -> None:
        self.params, self.names, self.local = params, names, local
        self.compared = False
        self.retains = True
        self.written: list[int] = []
        self.differing: list[int] = []
        self._compared: Sequence[int] = ()
        self._reference: Sequence[Tensor | None] = ()
        self._factors: list[Tensor] = []
        self._unit: Tensor | None = None
        self._added = 0
        self._sums: dict[int, Tensor] = {}
        self._sizes: dict[int, Tensor] = {}
        self._eps, self._most = 0.0, 1.0

    @contextmanager
    def over(
        self, losses: Sequence[Tensor], scale: Tensor | None = None, retain_graph: bool = False
    ) -> Iterator[None]:
        """A context for T backward passes from the losses; they keep the graph if it `retains`.

        Call `weigh` with the gradients of each pass inside it.

        Raises:
            SelfCheckError: a pass wrote to .grad and then failed.
        """
        start = starts(losses, scale)
        cut = cut_at_heads(start.edges, self.params)
        self._start(cut.below, cut.edges)
        self.retains = any(edge.node.next_functions for edge in cut.edges)
        with self.watched(), crossing(cut, start.edges, start.seeds) as crossed:
            yield
            seeds: Row = [None] * len(cut.edges)
            for factor, cotangents in zip(self._factors, crossed, strict=True):
                for e, cotangent in cotangents.items():
                    seed, total = cotangent * factor.to(cotangent.device), seeds[e]
                    seeds[e] = seed if total is None else total + seed
                cotangents.clear()
            row: Row = [None] * len(self.params)
            members = [self.params[p] for p in cut.below]
            try:
                grads = gradients_below(cut, seeds, members, retain_graph, again=True)
            except OnePassError:  # there was one batched pass, so nothing ran twice: no check
                return
            for p, grad in zip(cut.below, grads, strict=True):
                row[p] = grad
            self._reference = self.local(row)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A context that records which .grad are written in it, and restores them."""
        before = [param.grad for param in self.params]
        failed = None
        for param in self.params:
            param.grad = None
        try:
            yield
        except Exception as error:
            failed = error
            raise
        finally:
            written = {p for p, param in enumerate(self.params) if param.grad is not None}
            self.written = sorted(written.union(self.written))
            for param, grad in zip(self.params, before, strict=True):
                param.grad = grad
            if failed is not None and written:
                raise SelfCheckError(self.message()) from failed

    def refer_to(self, row: Sequence[Tensor | None], edges: Sequence[GradientEdge]) -> None:
        """Sets the gradients of the summed loss, in place of `over` and `weigh`.

        Args:
            row: P gradients.
            edges: where the backward pass that computed them started.
        """
        self._start(range(len(self.params)), edges)
        self._reference = self.local(row)

    def _start(self, compared: Sequence[int], edges: Sequence[GradientEdge]) -> None:
        self._compared = compared
        dtypes, device = dtypes_below(edges), self.params[0].device
        self._eps = max((_eps(dtype, device) for dtype in dtypes), default=0.0)
        self._most = 2.0**8 if torch.float16 in dtypes else 2.0**20  # tiny gradients may be inexact

    @torch.no_grad()
    def weigh(self, *rows: Sequence[Tensor | None]) -> None:
        """Computes the weights a_t of the next tasks from their P gradients."""
        device = self.params[0].device
        for row in map(self.local, rows):
            lengths = [_length(grad) for p in self._compared if (grad := row[p]) is not None]
            own = torch.zeros((), dtype=torch.float64, device=device)
            if lengths:
                own = torch.stack([length.to(device) for length in lengths]).norm()
            if self._unit is None:
                self._unit = own
            self._unit = torch.where(self._unit > 0, self._unit, own)
            factor = (self._unit / own).clamp(1 / self._most, self._most)
            self._factors.append(torch.where(own > 0, factor / (len(self._factors) + 1), 1.0))

    @torch.no_grad()
    def add(self, *rows: Sequence[Tensor | None]) -> None:
        """Adds the next tasks' P gradients, as the step will use them."""
        for row in map(self.local, rows):
            factor = self._factors[self._added] if self._factors else None
            self._added += 1
            for p in self._compared:
                if (grad := row[p]) is not None:
                    self._eps = max(self._eps, _eps(grad.dtype, grad.device))
                    if factor is not None:
                        grad = grad * factor.to(grad.device)
                    size = _length(grad)
                    self._sums[p] = self._sums[p] + grad if p in self._sums else grad
                    self._sizes[p] = self._sizes[p] + size if p in self._sizes else size

    def judge(self) -> None:
        """Compares, with one read from the device.

        Raises:
            SelfCheckError: a pass wrote a .grad, or the gradients do not add up.
        """
        self.compare()
        if self.bad:
            raise SelfCheckError(self.message())

    @property
    def bad(self) -> bool:
        """Whether this step must not be taken."""
        return bool(self.written or self.differing)

    @torch.no_grad()
    def compare(self) -> None:
        """Sets `compared` and `differing`."""
        reference = self._reference
        if not reference:  # a pass failed
            return
        positions = [p for p in self._compared if reference[p] is not None or p in self._sums]
        if not positions:
            return
        scalars: list[Tensor] = []
        for p in positions:
            total, grad = self._sums.get(p), reference[p]
            apart = grad if total is None else total if grad is None else total - grad
            assert apart is not None
            nothing = torch.zeros((), dtype=torch.float64, device=apart.device)
            scalars += [_length(apart), self._sizes.get(p, nothing)]
        device = scalars[0].device
        numbers = torch.stack([scalar.to(device) for scalar in scalars]).tolist()
        self._judge_lengths(positions, numbers[::2], numbers[1::2])

    def _judge_lengths(
        self, positions: Sequence[int], apart: Sequence[float], sizes: Sequence[float]
    ) -> None:
        """Compares |sum_t g_t - g| with sum_t |g_t|.

        Rounding errors are relative to the terms of a gradient, and these may cancel: the gradient
        of a bias before a batch normalisation is pure rounding. So a difference must also be
        large beside the gradients of all parameters together.
        """
        total = math.hypot(*apart, *sizes)
        if not 0 < total < float("inf"):  # also if only the sum overflows, in float16 for example
            return
        self.compared = True
        # Deep models show at most 3 eps, which is 2 % in bfloat16.
        tolerance = min(2 * self._eps**0.5, 0.05)
        failing = [
            (away, p)
            for p, away, size in zip(positions, apart, sizes, strict=True)
            if not away <= tolerance * size
        ]
        if not sum(away * away for away, _ in failing) ** 0.5 <= 0.03 * tolerance * total:
            self.differing = [p for _, p in sorted(failing, reverse=True)]

    def message(self) -> str:
        """What is wrong, the likely causes, and what to do."""
        if self.written:
            return (
                f"a backward pass wrote the .grad of {self._listed(self.written)} itself, so "
                "torch.autograd.grad does not return these gradients. A torch.autograd.Function "
                "that runs a backward inside does that: reversible layers and some kinds of "
                f"checkpointing. {_WHAT_TO_DO}"
            )
        return (
            "the gradients of the tasks do not add up to the gradient of the summed loss at "
            f"{self._listed(self.differing)}: a part of the model that the tasks share does not "
            "give the same answer in several backward passes over one graph. Likely causes: a hook "
            "that removes itself; one that is not linear in the gradient, as clipping is (clip "
            ".grad after backward instead); a kernel that overwrites what it saved; or "
            "checkpointing that draws new random numbers. "
            f"{_WHAT_TO_DO}"
        )

    def _listed(self, positions: Sequence[int]) -> str:
        count, of = len(positions), len(self.params)
        named = ", ".join(name_of(p, self.params[p], self.names) for p in positions[:_NAMED])
        more = f" and {count - _NAMED} more" if count > _NAMED else ""
        return f"{count} of {of} parameters ({named}{more})"


def name_of(p: int, param: Tensor, names: Mapping[int, str]) -> str:
    """A parameter's name, or its position and shape where it has none."""
    return names.get(id(param), f"parameter {p} of shape {tuple(param.shape)}")


def _length(grad: Tensor) -> Tensor:
    """The norm, float64; of sparse gradients too."""
    values = grad.coalesce().values() if grad.is_sparse else grad
    return torch.linalg.vector_norm(values).to(torch.float64)


def _eps(dtype: torch.dtype, device: torch.device) -> float:
    """The relative rounding of one operation in a dtype, as matrix products compute in it."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return 0.0
    eps = torch.finfo(dtype).eps
    if dtype not in (torch.float32, torch.complex64):
        return eps
    if torch.get_float32_matmul_precision() != "highest":
        return torch.finfo(torch.bfloat16).eps
    return eps if device.type == "cpu" else 2.0**-10  # TensorFloat-32, which convolutions use
