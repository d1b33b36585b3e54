"""Ways to take a step from a batch to .grad: the plain one, ours, and torchjd's.

A choice is set up with a workload and returns a function to time, which runs forward and backward
and writes .grad, that was None. All weigh by UPGrad, which draws nothing at random. What a choice
has to tell of its step, its function returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import mtlkernels
from benchmarks.models import Workload

Run = Callable[[], str]


def plain(work: Workload) -> Run:
    """One backward of the sum of the losses."""

    def run() -> str:
        torch.stack(work.losses()).sum().backward()
        return ""

    return run


def _ours(work: Workload, **options: Any) -> Run:
    method = mtlkernels.UPGrad()
    params = list(work.model.parameters())

    def run() -> str:
        return mtlkernels.backward(work.losses(), params, method, **options).collected

    return run


def rows(work: Workload) -> Run:
    """A backward a loss."""
    return _ours(work)


def batched(work: Workload) -> Run:
    """The heads one by one, one batched backward below them."""
    return _ours(work, collect="batched")


def bfloat16(work: Workload) -> Run:
    """Rows kept in bfloat16."""
    return _ours(work, rows_dtype=torch.bfloat16)


def no_rows(work: Workload) -> Run:
    """The same Gram matrix without keeping rows."""
    return _ours(work, apply="backward")


def last_layer(work: Workload) -> Run:
    """Weights from the last shared layer."""
    return _ours(work, measure=work.last_layer)


def features(work: Workload) -> Run:
    """Weights from the features."""
    method = mtlkernels.UPGrad()
    params = list(work.model.parameters())

    def run() -> str:
        z = work.features()
        losses = work.losses_of([z] * len(work.targets))
        return mtlkernels.backward(losses, params, method, features=z).collected

    return run


def splitter(work: Workload) -> Run:
    """Weights from the features, inside one ordinary backward."""
    split = mtlkernels.Splitter(mtlkernels.UPGrad(), len(work.targets))

    def run() -> str:
        torch.stack(work.losses_of(list(split(work.features())))).sum().backward()
        return split.report.collected if split.report else ""

    return run


def reusing(work: Workload) -> Run:
    """A step whose weights are those of an earlier one."""
    method = mtlkernels.Reused(mtlkernels.UPGrad(), every=1_000_000)
    params = list(work.model.parameters())
    mtlkernels.backward(work.losses(), params, method)

    def run() -> str:
        return mtlkernels.backward(work.losses(), params, method).collected

    return run


def compiled(work: Workload) -> Run:
    """Forward to .grad as one graph of torch.compile."""
    method = mtlkernels.UPGrad()
    params = list(work.model.parameters())
    step = mtlkernels.compile_step(
        lambda: mtlkernels.backward(work.losses(), params, method).weights
    )

    def run() -> str:
        step()
        return ""

    return run


def torchjd_mtl(work: Workload) -> Run:
    """torchjd's mtl_backward, which tells trunk and heads apart, and jac_to_grad."""
    from torchjd.aggregation import UPGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregator, shared = UPGrad(), work.shared

    def run() -> str:
        z = work.features()
        mtl_backward(work.losses_of([z] * len(work.targets)), features=z)
        jac_to_grad(shared, aggregator)
        return ""

    return run


def torchjd_backward(work: Workload) -> Run:
    """torchjd's backward and jac_to_grad over all parameters, heads too, a loss at a time."""
    from torchjd.aggregation import UPGrad
    from torchjd.autojac import backward, jac_to_grad

    aggregator, params = UPGrad(), list(work.model.parameters())

    def run() -> str:
        backward(work.losses(), parallel_chunk_size=1)
        jac_to_grad(params, aggregator, optimize_gramian_computation=True)
        return ""

    return run


def torchjd_engine(work: Workload) -> Run:
    """torchjd's Gram matrix of the trunk without rows, and a weighted backward, heads too."""
    from torchjd.aggregation import UPGradWeighting
    from torchjd.autogram import Engine

    engine, weighting = Engine(work.model.encoder, batch_dim=None), UPGradWeighting()

    def run() -> str:
        losses = torch.stack(work.losses())
        losses.backward(weighting(engine.compute_gramian(losses)))
        return ""

    return run


PLAIN, ROWS, REUSING = "plain step", "rows", "every=10, reusing step"

CHOICES: dict[str, Callable[[Workload], Run]] = {
    PLAIN: plain,
    ROWS: rows,
    'collect="batched"': batched,
    "rows_dtype=bfloat16": bfloat16,
    'apply="backward"': no_rows,
    "measure=last shared layer": last_layer,
    "features=z": features,
    "Splitter": splitter,
    REUSING: reusing,
    "compile_step": compiled,
    "torchjd mtl_backward": torchjd_mtl,
    "torchjd backward": torchjd_backward,
    "torchjd autogram": torchjd_engine,
}
