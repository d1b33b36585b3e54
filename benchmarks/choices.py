"""Ways to take a step from a batch to .grad: the plain one, loops people write, ours, torchjd's.

A choice is set up with a workload and the name of a Gram method, and returns a function to time,
which runs forward and backward and writes .grad, which was None. It returns how its gradients came
about, where it has something to say. A choice in `CYCLES` takes so many steps in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import mtlkernels
from benchmarks.models import Workload
from benchmarks.suite.peers import TORCHJD
from examples.demo.names import gram_method

Run = Callable[[], str]


def plain(work: Workload, method: str) -> Run:
    """One backward of the sum of the losses."""

    def run() -> str:
        torch.stack(work.losses()).sum().backward()
        return ""

    return run


def gradients(work: Workload, method: str) -> Run:
    """torch.autograd.grad, a loss at a time, over all parameters, and nothing more."""
    params = list(work.model.parameters())

    def run() -> str:
        losses = work.losses()
        for t, loss in enumerate(losses):
            retain = t < len(losses) - 1
            torch.autograd.grad(loss, params, retain_graph=retain, allow_unused=True)
        return ""

    return run


def textbook(work: Workload, method: str) -> Run:
    """The twenty lines that people write: T gradients, stacked; G G^T, weights, w^T G."""
    weigh = gram_method(method)
    heads = [list(head.parameters()) for head in work.model.heads.values()]
    shared = work.shared
    sizes = [param.numel() for param in shared]

    def run() -> str:
        losses, rows = work.losses(), []
        for t, (loss, own) in enumerate(zip(losses, heads, strict=True)):
            found = torch.autograd.grad(loss, shared + own, retain_graph=t < len(losses) - 1)
            rows.append(torch.cat([grad.reshape(-1) for grad in found[: len(shared)]]))
            for param, grad in zip(own, found[len(shared) :], strict=True):
                param.grad = grad
        stacked = torch.stack(rows)
        weights = weigh((stacked @ stacked.T).double())
        pieces = (weights.to(stacked.dtype) @ stacked).split(sizes)
        for param, piece in zip(shared, pieces, strict=True):
            param.grad = piece.view_as(param)
        return ""

    return run


def _optimizer(work: Workload, method: str, **options: Any) -> Any:
    base = torch.optim.SGD(work.model.parameters(), lr=1e-3)
    return mtlkernels.MTLOptimizer(base, gram_method(method), **options)


def _ours(**options: Any) -> Callable[[Workload, str], Run]:
    """The wrapper with some options."""

    def choice(work: Workload, method: str) -> Run:
        optimizer = _optimizer(work, method, **options)

        def run() -> str:
            collected: str = optimizer.backward(work.losses()).collected
            return collected

        return run

    return choice


def last_layer(work: Workload, method: str) -> Run:
    """Weights from the last shared layer."""
    return _ours(measure=work.last_layer)(work, method)


def features(work: Workload, method: str) -> Run:
    """Weights from the features."""
    optimizer = _optimizer(work, method)

    def run() -> str:
        z = work.features()
        losses = work.losses_of([z] * len(work.targets))
        collected: str = optimizer.backward(losses, features=z).collected
        return collected

    return run


def splitter(work: Workload, method: str) -> Run:
    """Weights from the features, inside one ordinary backward."""
    split = mtlkernels.Splitter(gram_method(method), len(work.targets))

    def run() -> str:
        torch.stack(work.losses_of(list(split(work.features())))).sum().backward()
        return split.report.collected if split.report else ""

    return run


def every(work: Workload, method: str) -> Run:
    """Five steps, of which the first asks for weights."""
    optimizer = _optimizer(work, method, every=EVERY)

    def run() -> str:
        for _ in range(EVERY):
            work.model.zero_grad(set_to_none=True)
            optimizer.backward(work.losses())
        return ""

    return run


def compiled(work: Workload, method: str) -> Run:
    """Forward to .grad as one graph of torch.compile."""
    optimizer = _optimizer(work, method)
    step = mtlkernels.compile_step(lambda: optimizer.backward(work.losses()).weights)

    def run() -> str:
        step()
        return ""

    return run


def torchjd_mtl(work: Workload, method: str) -> Run:
    """torchjd's mtl_backward, which tells trunk and heads apart, and jac_to_grad."""
    from torchjd import aggregation
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregator, shared = TORCHJD[method](aggregation), work.shared

    def run() -> str:
        z = work.features()
        mtl_backward(work.losses_of([z] * len(work.targets)), features=z)
        jac_to_grad(shared, aggregator)
        return ""

    return run


def torchjd_backward(work: Workload, method: str) -> Run:
    """torchjd's backward and jac_to_grad over all parameters, heads too, a loss at a time."""
    from torchjd import aggregation
    from torchjd.autojac import backward, jac_to_grad

    aggregator, params = TORCHJD[method](aggregation), list(work.model.parameters())

    def run() -> str:
        backward(work.losses(), parallel_chunk_size=1)
        jac_to_grad(params, aggregator, optimize_gramian_computation=True)
        return ""

    return run


class _Weightings:
    """torchjd.aggregation, which has a weighting for each aggregator: PCGradWeighting."""

    def __getattr__(self, name: str) -> Any:
        from torchjd import aggregation

        return getattr(aggregation, f"{name}Weighting")


def torchjd_engine(work: Workload, method: str) -> Run:
    """torchjd's Gram matrix of the trunk without task gradients, and a weighted backward."""
    from torchjd.autogram import Engine

    engine = Engine(work.model.encoder, batch_dim=None)
    weighting = TORCHJD[method](_Weightings())

    def run() -> str:
        losses = torch.stack(work.losses())
        losses.backward(weighting(engine.compute_gramian(losses)))
        return ""

    return run


EVERY = 5
PLAIN, GRADIENTS, ROWS = "plain step", "T gradients", "ours"
_EVERY = f"ours every={EVERY}"
_COMPILED = "ours compile_step"

CHOICES: dict[str, Callable[[Workload, str], Run]] = {
    PLAIN: plain,
    GRADIENTS: gradients,
    "textbook loop": textbook,
    ROWS: _ours(),
    'ours collect="ghost"': _ours(collect="ghost"),
    'ours collect="batched"': _ours(collect="batched"),
    "ours rows_dtype=bfloat16": _ours(rows_dtype=torch.bfloat16),
    'ours apply="backward"': _ours(apply="backward"),
    "ours measure=last layer": last_layer,
    "ours features=": features,
    "ours Splitter": splitter,
    _EVERY: every,
    _COMPILED: compiled,
    "torchjd mtl_backward": torchjd_mtl,
    "torchjd backward": torchjd_backward,
    "torchjd autogram": torchjd_engine,
}
"""By name; a name holds no comma, as command lines split names at commas."""

CYCLES = {_EVERY: EVERY}
SLOW_TO_COMPILE = (_COMPILED,)
# Those that write what `ours` writes but for rounding, where the method draws nothing at random.
EXACT = (
    "textbook loop",
    ROWS,
    'ours collect="ghost"',
    'ours collect="batched"',
    'ours apply="backward"',
)
