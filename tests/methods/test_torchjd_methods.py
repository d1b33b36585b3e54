"""Each method that torchjd has, with torchjd's settings, on gradients it solves well itself."""

from __future__ import annotations

import pytest
import torch
from hard_grams import random_rows
from torch import Tensor
from torchjd import aggregation as peer

from mtlkernels import (
    CRMOGM,
    IMTLG,
    MGDA,
    AlignedMTL,
    ConFIG,
    DualProj,
    FairGrad,
    FixedWeights,
    GradVac,
    Mean,
    PCGrad,
    Sum,
    UPGrad,
)

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT, RIDGED = 1e-8, 1e-4  # torchjd adds a ridge of 1e-4 to the trace in its projections
PAIRS = {
    "Sum": (Sum, peer.Sum, EXACT),
    "Mean": (Mean, peer.Mean, EXACT),
    "FixedWeights": (
        lambda: FixedWeights([0.3, 2.0, 1.0, 0.1]),
        lambda: peer.Constant(torch.tensor([0.3, 2.0, 1.0, 0.1], dtype=torch.float64)),
        EXACT,
    ),
    "UPGrad": (UPGrad, peer.UPGrad, 30 * RIDGED),
    "DualProj": (DualProj, peer.DualProj, 30 * RIDGED),
    "UPGrad-preferred": (
        lambda: UPGrad([0.1, 0.2, 0.3, 0.4]),
        lambda: peer.UPGrad(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)),
        30 * RIDGED,
    ),
    "MGDA": (MGDA, lambda: peer.MGDA(1e-12, 20000), 3e-2),  # Frank and Wolfe: 1 / iterations
    "IMTLG": (IMTLG, peer.IMTLG, EXACT),
    "ConFIG": (ConFIG, peer.ConFIG, EXACT),
    **{
        f"AlignedMTL-{scale}": (
            lambda s=scale: AlignedMTL(s, reduction="mean"),
            lambda s=scale: peer.AlignedMTL(scale_mode=s),
            EXACT,
        )
        for scale in ("min", "rmse")
    },
    "FairGrad": (FairGrad, lambda: peer.FairGrad(2.0), 1e-6),
    "FairGrad-1": (lambda: FairGrad(1.0), lambda: peer.FairGrad(1.0), 1e-6),
}


def gradients(seed: int) -> Tensor:
    G = random_rows(4, 12, seed)
    return G - 0.5 * G.mean(dim=0)


@pytest.mark.parametrize("name", PAIRS)
def test_direction(name: str) -> None:
    ours, theirs, tolerance = PAIRS[name]
    for seed in range(8):
        G = gradients(seed)
        got, want = G.T @ ours()(G @ G.T), theirs()(G)
        assert (got - want).norm() <= tolerance * want.norm()


def test_gradvac_over_steps_on_the_same_orders() -> None:
    ours, theirs = GradVac(beta=0.5), peer.GradVac(beta=0.5, eps=0.0)
    for seed in range(6):
        G = gradients(seed)
        torch.manual_seed(seed)
        others = [torch.tensor([j for j in range(4) if j != i]) for i in range(4)]
        order = torch.stack([row[torch.randperm(3)] for row in others])
        torch.manual_seed(seed)
        want = theirs(G)
        got = G.T @ ours(G @ G.T, order=order)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_pcgrad_on_the_same_orders() -> None:
    for seed in range(6):
        G = gradients(seed)
        torch.manual_seed(seed)
        order = torch.stack([(p := torch.randperm(4))[p != i] for i in range(4)])
        torch.manual_seed(seed)
        want = peer.PCGrad()(G)
        got = G.T @ PCGrad()(G @ G.T, order=order)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_crmogm_over_steps() -> None:
    ours = CRMOGM(FairGrad(2.0), alpha=0.9)
    theirs = peer.CRMOGMWeighting(peer.FairGradWeighting(2.0), alpha=0.9)
    for seed in range(5):
        G = gradients(seed)
        K = G @ G.T
        torch.testing.assert_close(ours(K), theirs(K), rtol=1e-5, atol=1e-7)
