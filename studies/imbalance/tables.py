"""The answers as Markdown: tables, and sentences that follow from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

from studies.imbalance.answers import (
    EQUAL,
    GRID_POINTS,
    PAPERS_RULE,
    Duel,
    apart,
    duels,
    metrics,
    norm_ratio,
    points,
    rivals,
    scores,
    settings_of,
)
from studies.imbalance.config import FULL, Config, Part
from studies.imbalance.ranks import Estimate, Rivals
from studies.imbalance.results import (
    Score,
    best_weights,
    captions,
    environment,
    metric_names,
    task_names,
)
from studies.imbalance.specs import grid_points, methods_of
from studies.imbalance.storage import Folder

RUNS = {EQUAL: EQUAL, GRID_POINTS: f"{GRID_POINTS}: one seed, weights are set"}
UNIT = "gain over single-task training, %, higher is better"


def data_block(config: Config, folder: Folder) -> str:
    """What was run on what."""
    lines = [["data and encoder", "steps", "batch", "peak rate", "methods", "grid points", "seeds"]]
    for part in config.parts:
        tasks = len(task_names(config, folder, part))
        grid = len(grid_points(part, tasks)) if part.levels else 0
        lines.append(
            [
                part.name,
                f"{part.steps}",
                f"{part.batch}",
                f"{part.rate:g}",
                f"{len(part.methods)}",
                f"{grid or '-'}",
                f"{len(config.seeds)}",
            ]
        )
    listed = "\n".join(f"- {caption}." for caption in captions(config, folder))
    return f"{listed}\n\n{_table(lines)}\nRun with {environment(config, folder)}.\n"


def norms_block(config: Config, folder: Folder) -> str:
    """Question 1."""
    head = ["data and encoder", "runs", "points", "with weighted norm", "with angle"]
    lines = [[*head, "lead of the norm", "with the weight alone", "with the norm alone"]]
    sentences = []
    for found in points(config, folder):
        held, alone = rivals(found), apart(found)
        lines.append(
            [
                found.part,
                RUNS[found.runs],
                f"{held.points}",
                *(_estimate(e) if e else "-" for e in (held.first, held.second, held.lead)),
                *(f"{value:+.2f}" for value in alone or ()),
                *("-" for _ in range(0 if alone else 2)),
            ]
        )
        sentences.append(f"- {found.part}, {found.runs}: {_norm_sentence(held)}")
    return _table(lines) + "\n" + "\n".join(sentences) + "\n"


def methods_block(config: Config, folder: Folder) -> str:
    """Question 2: a table a part, from the best method down, and AvgNorm against the grid."""
    blocks = []
    for part in config.parts:
        found = scores(config, folder, part)
        order = sorted(found, key=lambda method: -found[method].mean)
        head = ["method", UNIT, "each seed", "steps", "seconds", "cost over equal weights"]
        rows = [_method_row(method, found[method], found["equal"]) for method in order]
        text = f"### {part.name}\n\n{_table([head, *rows])}"
        if "grid" in found:
            weights = ", ".join(f"{weight:g}" for weight in best_weights(config, folder, part))
            text += f"\nThe search chose the weights {weights}.\n"
        text += f"\n{_metrics_table(config, folder, part, found)}"
        if held := duels(found, "grid"):
            text += f"\n{_duel_sentences(held, found)}"
        blocks.append(text)
    return "\n".join(blocks)


def settings_block(config: Config, folder: Folder) -> str:
    """Question 3."""
    lines = [["data and encoder", "method", *SETTING_NAMES.values()]]
    ratios = [["data and encoder", *SETTING_NAMES.values()]]
    for part in config.parts:
        settings = settings_of(part)
        if len(settings) < 2:
            continue
        found = {setting: scores(config, folder, part, setting) for setting in settings}
        for method in methods_of(part, settings[1]):
            cells = [
                _spread(found[setting][method]) if setting in found else "-"
                for setting in SETTING_NAMES
            ]
            lines.append([part.name, method, *cells])
        values = [
            f"{norm_ratio(config, folder, part, setting):.2g}" if setting in found else "-"
            for setting in SETTING_NAMES
        ]
        ratios.append([part.name, *values])
    if len(lines) == 1:
        return "No other setting than all of the data was run.\n"
    return (
        f"{UNIT[0].upper()}{UNIT[1:]}; mean ± deviation over the seeds:\n\n{_table(lines)}\n"
        "Largest over smallest gradient norm under equal weights:\n\n"
        f"{_table(ratios)}"
    )


SETTING_NAMES = {
    "half": "half of the data",
    "pretrained": "that half, encoder pre-trained on the other",
    FULL: "all of the data",
}


def _norm_sentence(held: Rivals) -> str:
    side = _side(held.first)
    if held.lead is None:
        rival = "Two tasks have one angle, which is no rival."
    elif held.lead.low > 0:
        rival = "The norm explains more than the angle does."
    elif held.lead.high < 0:
        rival = "The angle explains more than the norm does."
    else:
        rival = "Whether norm or angle explains more is open."
    return f"{side} {rival}"


def _side(estimate: Estimate) -> str:
    if estimate.high < 0:
        return "the smaller a task's weighted norm, the more it loses."
    if estimate.low > 0:
        return "the larger a task's weighted norm, the more it loses."
    return "the interval of the correlation with the weighted norm holds 0."


def _duel_sentences(held: Sequence[Duel], found: dict[str, Score]) -> str:
    head = ["method", "points above the grid's choice", "", "points above equal weights", ""]
    against = {duel.method: duel for duel in held}
    lines = [
        [
            f"`{duel.method}`",
            *(_duel(against[duel.method]) if duel.method in against else ["-", "-"]),
            *_duel(duel),
        ]
        for duel in duels(found, "equal")
    ]
    chance = held[0].chance
    text = (
        f"{_table([head, *lines])}\n{chance[0].upper()}{chance[1:]}. All are compared with the "
        "same runs, so the verdicts of a column are not independent.\n"
    )
    rule = against.get(PAPERS_RULE)
    if rule is None:
        return text
    ratio = found["grid"].steps / found[PAPERS_RULE].steps
    return (
        f"{text}\nThe paper's rule, `{PAPERS_RULE}`, ends {rule.mean:+.2f} points from the "
        f"grid search's choice ({rule.verdict}); the search took {ratio:.0f} times its steps.\n"
    )


def _duel(duel: Duel) -> list[str]:
    return [f"{duel.mean:+.2f}", duel.verdict]


def _metrics_table(config: Config, folder: Folder, part: Part, found: dict[str, Score]) -> str:
    """What the percentages are of: each task's metric alone and under a few methods."""
    shown = [None, *(method for method in ("equal", "grid", PAPERS_RULE) if method in found)]
    columns = [dict(metrics(config, folder, part, method)) for method in shown]
    kinds = metric_names(config, folder, part)
    lines = [
        ["task", "metric on the test data", *(f"`{name}`" if name else "alone" for name in shown)]
    ]
    for task, kind in kinds.items():
        lines.append([task, kind, *(f"{column[task]:.3g}" for column in columns)])
    return _table(lines)


def _method_row(method: str, held: Score, equal: Score) -> list[str]:
    return [
        f"`{method}`",
        _spread(held),
        ", ".join(f"{gain:+.2f}" for gain in held.gains),
        f"{held.steps:.0f}",
        f"{held.seconds:.1f}",
        f"{held.seconds / equal.seconds:.1f}",
    ]


def _spread(held: Score) -> str:
    return f"{held.mean:+.2f} ± {held.deviation:.2f}"


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    rule = "|---|" + "---:|" * (len(lines[0]) - 1)
    return "\n".join([head, rule, *body]) + "\n"
