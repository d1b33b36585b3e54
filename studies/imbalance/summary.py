"""What was found, in sentences that follow from the numbers by fixed rules."""

from __future__ import annotations

from collections.abc import Sequence

from studies.imbalance.answers import (
    EQUAL,
    PAPERS_RULE,
    duels,
    norm_ratio,
    points,
    rivals,
    scores,
    settings_of,
)
from studies.imbalance.config import FULL, HALF, PRETRAINED, Config, Part
from studies.imbalance.ranks import Estimate
from studies.imbalance.storage import Folder

WORDS = {HALF: "half of the data", PRETRAINED: "a pre-trained encoder", FULL: "all of the data"}


def summary_block(config: Config, folder: Folder) -> str:
    """A paragraph a question."""
    methods = [_methods_line(config, folder, part) for part in config.parts]
    settings = [
        _settings_line(config, folder, part) for part in config.parts if len(settings_of(part)) > 1
    ]
    paragraphs = [_norms_line(config, folder), *methods, *settings]
    return "\n".join(f"- {paragraph}" for paragraph in paragraphs) + "\n"


def _norms_line(config: Config, folder: Folder) -> str:
    held = [rivals(found) for found in points(config, folder) if found.runs == EQUAL]
    below, above, open_ = _counts([one.first for one in held])
    text = (
        f"Question 1, the {len(held)} data and encoders with equal weights: the smaller a task's "
        f"gradient norm the more it loses in {below}, the larger the more in {above}, no clear "
        f"sign in {open_}."
    )
    leads = [one.lead for one in held if one.lead is not None]
    if leads:
        behind, ahead, undecided = _counts(leads)
        text += (
            f" Of the {len(leads)} with more than two tasks the norm explains more than the angle "
            f"in {ahead}, less in {behind}, undecided in {undecided}."
        )
    return text


def _counts(estimates: Sequence[Estimate]) -> tuple[int, int, int]:
    """How many intervals lie below 0, above 0, and hold it."""
    below = sum(estimate.high < 0 for estimate in estimates)
    above = sum(estimate.low > 0 for estimate in estimates)
    return below, above, len(estimates) - below - above


def _methods_line(config: Config, folder: Folder, part: Part) -> str:
    found = scores(config, folder, part)
    text = f"Question 2, {part.name}: equal weights gain {found['equal'].mean:+.2f} %"
    if "grid" in found:
        ratio = found["grid"].steps / found["equal"].steps
        text += f", the grid's choice {found['grid'].mean:+.2f} % at {ratio:.0f} times the steps"
    if PAPERS_RULE in found:
        text += f", the paper's rule {found[PAPERS_RULE].mean:+.2f} %"
    told = [
        f"{name} against {of}: {duel.verdict}"
        for name, method, rival, of in (
            ("the rule", PAPERS_RULE, "grid", "the choice"),
            ("the rule", PAPERS_RULE, "equal", "equal weights"),
            ("the choice", "grid", "equal", "equal weights"),
        )
        for duel in duels(found, rival)
        if duel.method == method
    ]
    if told:
        text += f" ({'; '.join(told)})"
    return f"{text}."


def _settings_line(config: Config, folder: Folder, part: Part) -> str:
    told = [
        f"with {WORDS[setting]} {scores(config, folder, part, setting)['equal'].mean:+.2f} % at a "
        f"ratio of norms of {norm_ratio(config, folder, part, setting):.2g}"
        for setting in (HALF, PRETRAINED, FULL)
        if setting in settings_of(part)
    ]
    return f"Question 3, {part.name}, equal weights: {'; '.join(told)}."
