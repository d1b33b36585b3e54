"""What a person may choose for steps over several ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Setting:
    """How several ranks take a step, where a person may choose.

    Attributes:
        check_ranks: compare the weights of all ranks in each step.
    """

    check_ranks: bool = False
