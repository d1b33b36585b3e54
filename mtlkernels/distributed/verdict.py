"""From each rank's part of a step's numbers to the same weights on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtlkernels.aggregation.families import Weighting
from mtlkernels.aggregation.weighting import Balanced, balance_gram
from mtlkernels.distributed.collectives import Group, Hosts, add_up_together
from mtlkernels.distributed.consensus import check_weights
from mtlkernels.distributed.setting import Setting


@dataclass
class Totals:
    """Where the sums of a step are formed.

    Attributes:
        groups: ranks of each of them are summed over, one after the other.
        ranks: how many ranks that are in all, with their own losses.
        hosts: what the groups' ranks talk through.
        stages: how many ranks stand behind each of `ranks`, one of which has the losses.
    """

    groups: list[Group]
    ranks: int
    hosts: Hosts
    stages: int = 1

    def losses(self, losses: Tensor, scale: Tensor | None) -> Tensor:
        """(T) the means of the ranks' losses, NaN where their scales differ."""
        total, scales = add_up_together(
            [losses.double(), _powers(scale, losses.device)], self.groups
        )
        return (total / self.ranks + self._doubt(scales)).to(losses.dtype)

    def judge(
        self,
        gram: Tensor,
        losses: Tensor,
        method: Weighting,
        scale: Tensor | None,
        weight_heads: bool,
        setting: Setting,
    ) -> tuple[Balanced, Tensor]:
        """The method's answer and (T) global losses, from one packed sum over the ranks.

        Args:
            gram: this rank's part of K, (T, T) or with parts (B, T, T) float64; the parts add up.
            losses: (T) this rank's losses.
            method, scale, weight_heads: as for `balance_gram`.
            setting: whether weights are compared.

        Raises:
            RuntimeError: weights are compared and differ.
        """
        pieces = [gram, losses.double().to(gram.device), _powers(scale, gram.device)]
        gram, total, scales = add_up_together(pieces, self.groups)
        means = (total / self.ranks).to(losses)
        gram = gram + self._doubt(scales)
        found = balance_gram(gram, method, means, scale, weight_heads)
        if setting.check_ranks:
            assert found.weights is not None
            check_weights(found.weights, [self.hosts.of(group) for group in self.groups])
        return found, means

    def _doubt(self, scales: Tensor) -> Tensor:
        """0, or NaN where the scales of the ranks differ: GradScaler then skips everywhere."""
        mean, square = (scales / (self.ranks * self.stages)).unbind()
        same = square - mean.square() <= 1e-9 * square
        return torch.where(same, 0.0, torch.nan)


def _powers(scale: Tensor | None, device: torch.device) -> Tensor:
    """A scale and its square, whose means tell whether all ranks have the same."""
    if scale is None:
        return torch.ones(2, dtype=torch.float64, device=device)
    one = scale.detach().to(device, torch.float64).reshape(())
    return torch.stack([one, one.square()])
