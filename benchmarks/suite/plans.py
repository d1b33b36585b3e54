"""Which tables a run measures: a quick one, a full one, or what was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.choices import CHOICES, SLOW_TO_COMPILE
from benchmarks.suite.cases import Shapes, numel
from benchmarks.suite.providers import PROVIDERS, SLOW_TO_SET_UP

Table = tuple[str, int, str]  # case, T, dtype

# Small gradients are decided by the cost of a call, large ones by the bandwidth.
QUICK: list[Table] = [
    *(("lenet", T, "float32") for T in (2, 3, 8)),
    ("pinn", 3, "float32"),
    *(("resnet18", T, "float32") for T in (2, 3, 8)),
    ("resnet18", 3, "bfloat16"),
]
FULL: list[Table] = [
    *(("lenet", T, "float32") for T in (2, 3, 8)),
    *(("pinn", T, "float32") for T in (2, 3, 8)),
    *(("resnet18", T, "float32") for T in (2, 3, 8)),
    *(("resnet18", T, "bfloat16") for T in (2, 3, 8)),
    *(("resnet18", T, "float32") for T in (20, 40)),
    *(("vit_b", T, "float32") for T in (3, 2, 8)),
    *(("lenet", T, "float32") for T in (20, 40)),
    *(("qm9", T, "float32") for T in (2, 11)),
    *(("resnet50", T, "float32") for T in (2, 3)),
    ("segnet_mtan", 3, "float32"),
    ("lora", 4, "float32"),
    ("mmoe", 32, "float32"),
    ("vit_b", 3, "bfloat16"),
    ("vit_l", 3, "float32"),
    ("llama_1b", 2, "bfloat16"),
]
# Whole steps: two networks that the host decides, the demo's, a ResNet, a ViT and a recommender.
WHOLE_QUICK = [("narrow", 3), ("deep", 3), ("demo", 3), ("recommender", 8)]
WHOLE_FULL = [
    *(("narrow", T) for T in (2, 3, 8)),
    *(("deep", T) for T in (2, 3, 8)),
    *(("demo", T) for T in (3, 8)),
    *(("resnet18_narrow", T) for T in (3, 8)),
    *(("vit_small", T) for T in (3, 8)),
    ("recommender", 8),
    *(("wide", T) for T in (8, 40)),
]
MEMORY_MODELS = ("wide", "recommender", "resnet18_narrow", "demo")
MEMORY_TASKS = (3, 8, 40)
STEPS_QUICK = [("dense maps", 3)]
STEPS_FULL = [("dense maps", 2), ("dense maps", 3), ("dense maps", 8), ("digits", 2)]
# Elements of a large case: there the reference, in float64, would take most of a run's time, and
# beyond a few tasks so would what passes over the gradients once for each pair of tasks.
LARGE, FEW = 1_000_000, 8
FOR_EACH_PAIR = ("torch._foreach", "conflictfree", "pytorch_optimizer", "textbook loop")


def tables(
    full: bool, cases: Sequence[str], tasks: Sequence[int], dtypes: Sequence[str]
) -> list[Table]:
    """The tables of a run; what is asked for replaces that part of the plan, as a product."""
    plan = FULL if full else QUICK
    if not cases and not tasks:
        return [table for table in plan if not dtypes or table[2] in dtypes]
    cases = cases or list(dict.fromkeys(case for case, _, _ in plan))
    return [(c, T, d) for c in cases for T in tasks or (2, 3, 8) for d in dtypes or ("float32",)]


def providers(asked: Sequence[str], shapes: Shapes, tasks: int) -> list[str]:
    """Those of one table; ours is always there, what takes long where it is asked for."""
    if asked:
        return list(dict.fromkeys(["ours", *asked]))
    left_out = set(SLOW_TO_SET_UP)
    if numel(shapes) > LARGE:
        left_out.add("reference")
        left_out.update(FOR_EACH_PAIR if tasks > FEW else ())
    return [name for name in PROVIDERS if name not in left_out]


def staged(table: Table, full: bool) -> bool:
    """Whether the stages of a table are measured one by one."""
    case, tasks, dtype = table
    if not full:
        return case == "resnet18" and tasks in (3, 8) and dtype == "float32"
    return case in ("lenet", "resnet18", "vit_b")


def steps(full: bool, models: Sequence[str], tasks: Sequence[int]) -> list[tuple[str, int]]:
    """The models and numbers of tasks of the whole steps; what is asked for is a product."""
    plan = WHOLE_FULL if full else WHOLE_QUICK
    if not models and not tasks:
        return plan
    return [(m, T) for m in models or dict.fromkeys(m for m, _ in plan) for T in tasks or (3, 8)]


def memories(models: Sequence[str], tasks: Sequence[int]) -> list[tuple[str, Sequence[int]]]:
    """The models of the table of memory, each with its numbers of tasks."""
    return [(model, tasks or MEMORY_TASKS) for model in models or MEMORY_MODELS]


def choices(asked: Sequence[str], full: bool) -> list[str]:
    """The ways to take a step; compiling one takes minutes, so a quick run leaves it out."""
    return list(asked or (name for name in CHOICES if full or name not in SLOW_TO_COMPILE))
