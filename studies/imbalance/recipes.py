"""The study's methods by name, with this library's defaults but for what stands here.

Implementations differ in whether a method's weights reach the heads. Each method follows:

* heads weighted: the grid search, AvgNorm, SLW and NTKMTL, which scale losses; IMTL-G and Nash-MTL
  as in the nash-mtl code, which weighs the losses (other code replaces the shared gradient alone);
* heads left their own loss's gradient: CAGrad and FairGrad as in their authors' code, and PCGrad
  and DB-MTL, as all four replace the shared gradient;
* no choice: UW and FAMO, whose weights are part of one loss.

AvgNorm and SLW of the last shared layer measure there and take one weighted backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mtlkernels
from mtlkernels import GramMethod, LossMethod, RowMethod

Method = GramMethod | LossMethod | RowMethod

PLAIN = ("equal", "grid")
"""What needs no method: the backward of a weighted sum of the losses."""

UW_RATE = 0.025
"""Learning rate of UW's own numbers, larger than the networks'."""


@dataclass(frozen=True)
class Recipe:
    """`make(tasks, seed)` gives a new method for so many tasks.

    `heads`: whether heads get the weights too; None where the method has no such choice. `last`:
    whether norms are measured on the last shared layer instead of on all that is shared.
    """

    make: Callable[[int, int], Method]
    heads: bool | None = False
    last: bool = False

    def options(self, last: list[Any]) -> dict[str, Any]:
        """What to give to MTLOptimizer beside the method."""
        chosen: dict[str, Any] = {} if self.heads is None else {"weight_heads": self.heads}
        return {**chosen, "measure": last} if self.last else chosen

    def told(self, tasks: int, seed: int) -> dict[str, Any]:
        """All that it sets, as JSON holds it."""
        method = self.make(tasks, seed)
        rate = UW_RATE if list(method.parameters()) else None
        return {"method": repr(method), "heads": self.heads, "last": self.last, "rate": rate}


SCALES: dict[str, Any] = {
    **{name: name for name in ("sum", "max", "mean", "rms", "median", "min", "harmonic")},
    "one": 1.0,
}
"""Every S of AvgNorm."""

RECIPES: dict[str, Recipe] = {
    **{
        f"avgnorm-{name}-{where}": Recipe(
            lambda tasks, seed, scale=scale: mtlkernels.AvgNorm(scale),  # type: ignore[misc]
            heads=True,
            last=where == "last",
        )
        for name, scale in SCALES.items()
        for where in ("last", "all")
    },
    "slw": Recipe(lambda tasks, seed: mtlkernels.SLW(), heads=True, last=True),
    "ntkmtl": Recipe(lambda tasks, seed: mtlkernels.NTKMTL(), heads=True),
    "dbmtl": Recipe(lambda tasks, seed: mtlkernels.DBMTL()),
    "imtlg": Recipe(lambda tasks, seed: mtlkernels.IMTLG(), heads=True),
    "pcgrad": Recipe(lambda tasks, seed: mtlkernels.PCGrad(seed=seed)),
    "cagrad": Recipe(lambda tasks, seed: mtlkernels.CAGrad()),
    "fairgrad": Recipe(lambda tasks, seed: mtlkernels.FairGrad()),
    "nashmtl": Recipe(lambda tasks, seed: mtlkernels.NashMTL(), heads=True),
    "uw": Recipe(lambda tasks, seed: mtlkernels.UW(tasks), heads=None),
    "famo": Recipe(lambda tasks, seed: mtlkernels.FAMO(), heads=None),
}


def check_recipe(name: str) -> None:
    """Raises ValueError where no method of the study has that name."""
    if name not in PLAIN and name not in RECIPES:
        raise ValueError(f"{name!r} is none of {', '.join([*PLAIN, *RECIPES])}")
