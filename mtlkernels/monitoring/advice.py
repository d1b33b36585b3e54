"""One line on what is worth trying next. A log of gradients cannot say what trains better."""

from __future__ import annotations

from collections.abc import Sequence

from mtlkernels.monitoring.facts import OPPOSED, UNLIKE, flags, never_finite, pairs, ratio
from mtlkernels.monitoring.records import Record, mean, unbiased

BROKEN = ("NON_FINITE", "INVALID_LOSS", "INVALID_GRAM")
_COMPARE = "Compare on your own validation metrics: gradients do not say what trains better."


def next_step(records: Sequence[Record]) -> str:
    """What is broken comes first, then imbalance of the norms, then conflict."""
    broken = [
        f"{task} ({flag} in {count} of {len(records)} records)"
        for task, flag, count in flags(records)
        if flag in BROKEN
    ]
    if not broken:
        return _balance(records)
    return (
        f"First find out about {', '.join(broken)}: no method balances what is not finite or not "
        f"allowed, though a GradScaler begins with some such steps. Then: {_balance(records)}"
    )


def _balance(records: Sequence[Record]) -> str:
    tasks, norms = records[0]["tasks"], mean(records, "norms")
    if len(tasks) < 2:
        return "Nothing: one task needs no balancing."
    if norms.isfinite().sum() < 2:
        if never_finite(records):
            return "Record some steps in which gradients are finite, to see norms and conflicts."
        return (
            "Record some steps with a Gram method, for example Sum(), to see norms and conflicts."
        )
    silent = [task for task, norm in zip(tasks, norms.tolist(), strict=True) if norm == 0]
    if silent and unbiased(records):
        return (
            f"Take larger batches or more ranks: no signal beyond the noise was seen in the "
            f"gradient of {', '.join(silent)}, and balancing it would be balancing noise."
        )
    if silent:
        return (
            f"Find out why no gradient of {', '.join(silent)} reaches the shared parameters: a "
            "loss that is 0, saturated, or computed from something detached."
        )
    unlike = ratio(norms) >= UNLIKE
    lengths = mean(records, "weighted_norms")
    evened = unlike and bool(lengths.isfinite().all()) and ratio(lengths) < UNLIKE
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
