"""Blocks of Markdown made from results: docs/benchmarks.md, docs/scaling.md, results/cpu.md.

A block stands between `<!-- bench: NAME -->` and `<!-- bench: end -->`; `fill` writes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from benchmarks.suite.results import Results, Row
from benchmarks.suite.tables import WHOLE_HEAD, memory_tables, milliseconds, ratio, whole_steps
from benchmarks.suite.targets import TORCHJD, targets, times_ours

BLOCK = re.compile(r"(<!-- bench: (?!end)([\w-]+) -->\n).*?(<!-- bench: end -->)", re.DOTALL)
NAMES = {
    "pinn": "PINN, 5 x 50",
    "lenet": "LeNet",
    "qm9": "QM9 network",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mmoe": "MMoE experts",
    "segnet_mtan": "SegNet-MTAN",
    "lora": "LoRA, rank 16, on 8 B",
    "vit_b": "ViT-B/16",
    "vit_l": "ViT-L/16",
    "llama_1b": "Llama 3.2, 1 B",
}


def fill(document: str, results: Results) -> str:
    """The document with every block in it made from the results.

    Raises:
        ValueError: a block has a name that is none of `BLOCKS`.
    """

    def made(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        if name not in BLOCKS:
            raise ValueError(f"no block is called {name!r}: choose one of {', '.join(BLOCKS)}")
        return f"{begin}{BLOCKS[name](results)}{end}"

    return BLOCK.sub(made, document)


def _table(lines: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    rule = "|---|" + "---:|" * (len(lines[0]) - 1)
    return "\n".join([head, rule, *body]) + "\n"


def _case(row: Row) -> list[str]:
    dtype = "" if row.dtype == "float32" else f", {row.dtype}"
    size = f"{row.numel / 1e6:.2f} M" if row.numel < 1e7 else f"{row.numel / 1e6:.0f} M"
    return [f"{NAMES.get(row.case, row.case)}{dtype}", size, str(row.tasks)]


def peers(results: Results) -> str:
    """PCGrad by everybody: ours in milliseconds, the others in times ours."""
    others = {
        "torchjd, better mode": TORCHJD,
        "stack + matmul": ("stack + matmul",),
        "_foreach": ("torch._foreach",),
        "conflictfree": ("conflictfree",),
        "pytorch_optimizer": ("pytorch_optimizer",),
        "paper's loop": ("textbook loop",),
    }
    lines = [["gradients", "N", "T", "ours, ms", "x copy", *others]]
    for key, rows in results.of("providers").items():
        mine = next((row for row in rows if row.name == "ours" and row.seconds), None)
        if key[4] != "pcgrad" or mine is None or mine.median is None:
            continue
        line = [*_case(mine), milliseconds(mine.median), ratio(mine.over_copy or 0)]
        for names in others.values():
            value = times_ours(rows, *names)
            line.append("-" if value is None else f"{ratio(value)} x")
        lines.append(line)
    return _table(lines)


def environment(results: Results) -> str:
    """On what, with what, when."""
    facts = results.environment
    versions = ", ".join(f"{name} {version}" for name, version in facts["peers"].items())
    where = facts.get("gpu") or f"{facts['processor']}, {facts['processors']} processors"
    commit = f", commit {facts['commit']}" if facts["commit"] else ""
    after = facts.get("load_after")
    return (
        f"`{facts['command']}` on {facts['date'][:10]}{commit}: {where}, {facts['memory_gb']} GB, "
        f"{facts['threads']} threads, {facts['system']}, Python {facts['python']}, torch "
        f"{facts['torch']}, {versions}; load average {facts['load_before']} before"
        f"{'' if after is None else f' and {after} after'}, the threads of the run included.\n"
    )


def goals(results: Results) -> str:
    """Targets, what was measured, and whether that will do."""
    lines = [["measure", "target", "measured", "worst", "missed by"]]
    for target in targets(results):
        sign = "<=" if target.at_most else ">="
        unit = f" {target.unit}" if target.unit else ""
        wanted = f"{sign} {target.bound:g}{unit}"
        worst = target.worst
        if worst is None:
            lines.append([target.measure, wanted, "not in this run", "", ""])
            continue
        values = sorted(target.found.values())
        spread = (
            f"{ratio(values[0])} to {ratio(values[-1])}" if len(values) > 1 else ratio(worst[1])
        )
        missed = [f"{name}: {ratio(value)}" for name, value in target.missed.items()]
        lines.append(
            [target.measure, wanted, f"{spread}{unit}", worst[0], "; ".join(missed) or "met"]
        )
    return _table(lines)


def providers(results: Results) -> str:
    """Every row of every comparison."""
    lines = [
        [
            *("gradients", "N", "T", "provider", "ms", "quartiles", "GB/s", "x copy", "x ours"),
            *("peak MB", "operators", "host reads"),
        ]
    ]
    for rows in results.of("providers").values():
        mine = next((row.median for row in rows if row.name == "ours"), None)
        for row in rows:
            if row.seconds is None:
                lines.append([*_case(row), row.name, row.told, *[""] * 7])
                continue
            low, median, high = row.seconds
            lines.append(
                [
                    *_case(row),
                    row.name,
                    milliseconds(median),
                    f"{milliseconds(low)} - {milliseconds(high)}",
                    f"{row.bytes / median / 1e9:.1f}",
                    ratio(row.over_copy or 0),
                    "" if mine is None else ratio(median / mine),
                    "" if row.peak is None else f"{row.peak / 1e6:.2f}",
                    "" if row.operators is None else str(row.operators),
                    "" if row.reads is None else str(row.reads),
                ]
            )
    return _table(lines)


def stages(results: Results) -> str:
    """Each stage, milliseconds and over a copy of its own bytes."""
    lines = [["gradients", "N", "T", "stage", "ms", "GB/s", "x copy", "peak MB", "operators"]]
    for rows in results.of("stages").values():
        for row in rows:
            median = row.median or 0
            rate = f"{row.bytes / median / 1e9:.1f}" if row.bytes else ""
            over = "" if row.over_copy is None else ratio(row.over_copy)
            peak = f"{(row.peak or 0) / 1e6:.2f}"
            line = [row.name, milliseconds(median), rate, over, peak, str(row.operators)]
            lines.append([*_case(row), *line])
    return _table(lines)


def steps(results: Results) -> str:
    """The parts of a whole step, milliseconds and shares."""
    lines = [["model", "T", "forward", "backward", "balancing", "update", "balancing's share"]]
    for key, rows in results.of("step").items():
        medians = {row.name: row.median or 0 for row in rows}
        share = 100 * medians["balancing"] / sum(medians.values())
        lines.append([key[1], str(key[2]), *map(milliseconds, medians.values()), f"{share:.1f} %"])
    return _table(lines)


def whole(results: Results) -> str:
    """Whole steps of every model beside the plain one."""
    tables = list(results.of("steps").items())
    lines = [["model", "T", "step", *WHOLE_HEAD[1:]]]
    lines += [[key[1], str(key[2]), *cells] for key, rows in tables for cells in whole_steps(rows)]
    return _table(lines)


def memory(results: Results) -> str:
    """Peak memory of each way to take a step, a table a model."""
    tables = memory_tables(results).items()
    return "\n".join(_table([[model, *lines[0][1:]], *lines[1:]]) for model, lines in tables)


def scaling(results: Results) -> str:
    """Along each axis."""
    lines = [["axis", "N", "T", "tensors", "threads", "ms", "GB/s", "x copy"]]
    for row in results.rows:
        if row.suite == "scaling":
            sizes = [f"{row.numel:,}", str(row.tasks), f"{row.tensors:,}", str(row.threads)]
            if row.median is None:
                lines.append([row.case, *sizes, row.told, "", ""])
                continue
            rate = f"{row.bytes / row.median / 1e9:.1f}"
            over = ratio(row.over_copy or 0)
            lines.append([row.case, *sizes, milliseconds(row.median), rate, over])
    return _table(lines)


BLOCKS: dict[str, Callable[[Results], str]] = {
    "peers": peers,
    "environment": environment,
    "targets": goals,
    "providers": providers,
    "stages": stages,
    "steps": steps,
    "whole-steps": whole,
    "memory": memory,
    "scaling": scaling,
}
