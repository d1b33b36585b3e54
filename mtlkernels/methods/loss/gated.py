"""Gated: an offline loss that counts while the online policy rarely succeeds."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels.methods.loss.base import LossMethod


class Gated(LossMethod):
    r"""AHPO's gate between on-policy and off-policy learning (MM-HELIX, arXiv 2510.08540).

    .. math::
        L = L_{\text{online}} + \xi L_{\text{offline}}, \qquad \xi = 1\bigl[\,\text{successes} <
        \text{threshold}\bigr]

    The offline loss (imitation of an expert) has the weight 1 while fewer of a prompt's rollouts
    than the threshold succeed, else 0; all other losses have the weight 1. Degree 1 in the losses.

        method.observe(int((rewards == 1).sum()))
        optimizer.backward({"online": grpo_loss, "offline": expert_loss})

    Args:
        threshold: the number of successes that closes the gate. The paper's value is not known, so
            there is no default.
        gated: the offline loss, by its name or its position; the second one by default.

    The gate belongs to the prompts that the count is of: with several prompts in a batch, give a
    loss for each prompt its own step, or mask the offline loss by yourself. `observe` must be given
    the same count on all ranks. Before the first count there are no successes: the gate is open.

    Use when:
        rewards are sparse, and expert trajectories should help until the policy succeeds by itself.

    Avoid when:
        the expert loss should fade gradually: the gate is 0 or 1.
    """

    paper = "arXiv 2510.08540"
    keeps = "a count"

    successes: Tensor

    def __init__(self, threshold: int, gated: int | str = 1) -> None:
        super().__init__()
        if not threshold >= 0:
            raise ValueError(f"threshold={threshold}: it must be at least 0")
        if not isinstance(gated, str) and gated < 0:
            raise ValueError(f"gated={gated}: give a name, or a position from 0 on")
        self.threshold = threshold
        self.gated = gated
        self.register_buffer("successes", torch.tensor(0, dtype=torch.int64))

    @torch.no_grad()
    def observe(self, successes: int | Tensor) -> None:
        """Sets the number of successful rollouts for the steps that follow.

        Args:
            successes: an integer, or a tensor of one element, which is not read.
        """
        count = torch.as_tensor(successes)
        if count.numel() != 1:
            raise ValueError(f"successes has {count.numel()} elements: give one count")
        self.successes = count.detach().to(torch.int64).reshape(()).clone()

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses)
        place = self.place_of(self.gated, len(losses), "gated")
        if place is None:
            return losses.sum()
        opened = (self.successes < self.threshold).to(losses)
        gate = torch.arange(len(losses), device=losses.device) == place
        return (torch.where(gate, opened, 1.0) * losses).sum()

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, gated={self.gated!r}"
