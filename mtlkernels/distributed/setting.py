"""What a person may choose for steps over several ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Statistic = Literal["exact", "unbiased"]


@dataclass
class Setting:
    """How several ranks take a step, where a person may choose.

    Attributes:
        gram: "exact" weighs by K of the mean gradients; "unbiased" by an estimate of what K would
            be over infinitely many samples.
        check_ranks: compare the weights of all ranks in each step.
    """

    gram: Statistic = "exact"
    check_ranks: bool = False

    def __post_init__(self) -> None:
        if self.gram not in ("exact", "unbiased"):
            raise ValueError(f'gram={self.gram!r}: choose "exact" or "unbiased"')
