"""One line on what is worth trying next. A log of gradients cannot say what trains better."""

from __future__ import annotations

from collections.abc import Sequence

from mtlkernels.diagnosis.facts import OPPOSED, UNLIKE, effective, flags, pairs, ratio
from mtlkernels.records import Record, mean

_COMPARE = "Compare on your own validation metrics: gradients do not say what trains better."


def next_step(records: Sequence[Record]) -> str:
    """What is broken comes first, then imbalance of the norms, then conflict."""
    broken = [task for task, flag, _ in flags(records) if flag in ("NON_FINITE", "INVALID_LOSS")]
    if broken:
        return (
            f"First find out why {', '.join(dict.fromkeys(broken))} gave losses or gradients that "
            "are not finite or not allowed: no method balances those."
        )
    norms = mean(records, "norms")
    if len(norms) < 2:
        return "Nothing: one task needs no balancing."
    if norms.isfinite().sum() < 2:
        return (
            "Record some steps with a Gram method, for example Sum(), to see norms and conflicts."
        )
    unlike = ratio(norms) >= UNLIKE
    lengths = effective(records)
    weighted = bool(lengths.isfinite().all())
    evened = unlike and weighted and ratio(lengths) < UNLIKE
    opposed = [pair for pair in pairs(records) if pair.cosine <= OPPOSED]
    if unlike and not evened:
        told = "AvgNorm, as the norms are far apart; it weighs them to one length"
        if opposed:
            told += f", and PCGrad or CAGrad, as {opposed[0].name} conflict in earnest"
        return f"{told}. {_COMPARE}"
    if opposed:
        worst = min(opposed, key=lambda pair: pair.cosine)
        return f"PCGrad or CAGrad, as {worst.name} point against each other. {_COMPARE}"
    reason = "the weights of this run even the norms out" if evened else "the norms are alike"
    return (
        f"Little to gain from balancing here: {reason}, and no pair is opposed in the mean "
        f"(cosines above {OPPOSED}). {_COMPARE}"
    )
