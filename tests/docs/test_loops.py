"""The loops of the guides with `Sum` are the loops that people come from, parameter by parameter.

Those of other libraries are in test_framework_loops.py, those of several ranks in dist_readme.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops import CLIPS, assert_same_moves, executed, moves, swapped, under_sum
from pages import LOOPS
from torch import nn

import mtlkernels

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = 0.02  # float16 activations round what is summed in another order


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def plain(names: dict[str, Any], max_norm: float = float("inf"), anneal: bool = False) -> None:
    model, optimizer = names["model"], sgd(names["model"])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for batch in names["loader"]:
        optimizer.zero_grad()
        sum(names["losses"](model, batch).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        if anneal:
            scheduler.step()


def accumulated(
    names: dict[str, Any], parts: int, max_norm: float, scaler: torch.amp.GradScaler | None = None
) -> None:
    model, optimizer, loader = names["model"], sgd(names["model"]), names["loader"]
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    for i, batch in enumerate(loader, start=1):
        with torch.autocast("cpu", torch.float16, enabled=scaler.is_enabled()):
            total = sum(names["losses"](model, batch).values()) / parts
        scaler.scale(total).backward()
        if i % parts == 0 or i == len(loader):
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


@pytest.mark.parametrize("max_norm", CLIPS)
@pytest.mark.parametrize(
    "option",
    ["", "every=3", "measure=model.trunk.parameters()", 'apply="backward"', 'collect="batched"'],
)
def test_the_plain_loop_and_the_cheaper_steps(option: str, max_norm: float) -> None:
    code = swapped(
        under_sum(LOOPS["plain"]),
        (r"model\.parameters\(\), 1\.0", f"model.parameters(), {max_norm}"),
        (r'"sum"', f'"sum", {option}'),
        (r"torch\.save\(.*\n", ""),
    )
    own = moves(lambda names: plain(names, max_norm, anneal=True))
    assert_same_moves(moves(executed(code)), own)


@pytest.mark.parametrize("max_norm", CLIPS)
def test_mixed_precision(max_norm: float) -> None:
    code = swapped(
        under_sum(LOOPS["mixed_precision"]),
        (r"model\.parameters\(\), 1\.0", f"model.parameters(), {max_norm}"),
        (r"GradScaler\(device\)", "GradScaler(device, init_scale=1024.0)"),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    own = moves(lambda names: accumulated(names, 1, max_norm, scaler))
    assert_same_moves(moves(executed(code)), own, HALF)


@pytest.mark.parametrize("max_norm", CLIPS)
@pytest.mark.parametrize("parts", [1, 4])
def test_accumulation(parts: int, max_norm: float) -> None:
    """Two more batches than a multiple of four: they make a step too."""
    code = swapped(
        under_sum(LOOPS["accumulation"]),
        (r"model\.parameters\(\), 1\.0", f"model.parameters(), {max_norm}"),
        (r"parts = 2", f"parts = {parts}"),
    )
    own = moves(lambda names: accumulated(names, parts, max_norm))
    assert_same_moves(moves(executed(code)), own)


@pytest.mark.parametrize("max_norm", CLIPS)
@pytest.mark.parametrize("parts", [1, 4])
def test_accumulation_under_a_scaler(parts: int, max_norm: float) -> None:
    """The two loops above in one, as the guide says how."""

    def ours(names: dict[str, Any]) -> None:
        model, loader = names["model"], names["loader"]
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer = mtlkernels.MTLOptimizer(sgd(model), "sum")
        for i, batch in enumerate(loader, start=1):
            with torch.autocast("cpu", torch.float16):
                found = {n: loss / parts for n, loss in names["losses"](model, batch).items()}
            optimizer.backward(found, accumulate=True, scaler=scaler)
            if i % parts == 0 or i == len(loader):
                optimizer.combine()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    own = moves(lambda names: accumulated(names, parts, max_norm, scaler))
    assert_same_moves(moves(ours), own, HALF)


def test_features() -> None:
    def own(names: dict[str, Any]) -> None:
        names["losses"] = lambda model, batch: {
            t: (y - batch["labels"][:, [t]]).square().mean()
            for t, y in enumerate(model(batch["x"]))
        }
        plain(names)

    assert_same_moves(moves(executed(under_sum(LOOPS["cheap_steps"]))), moves(own))


def test_a_loop_that_cannot_be_changed() -> None:
    code = under_sum(LOOPS["fixed_loop"])
    assert_same_moves(moves(executed(code)), moves(plain))


# torch's own: inductor's modules are decorated with it when they are first imported.
@pytest.mark.filterwarnings("ignore:.torch.:DeprecationWarning", "ignore:.torch.:FutureWarning")
def test_compile() -> None:
    """The graphs are torch's to lower: its eager backend runs them as they are."""
    torch._dynamo.reset()
    code = swapped(
        under_sum(LOOPS["compile_step"]),
        (r"@mtlkernels\.compile_step", '@mtlkernels.compile_step(backend="eager")'),
        (r"compile\(optimizer\.step\)", 'compile(optimizer.step, backend="eager")'),
    )
    assert_same_moves(moves(executed(code)), moves(plain))
