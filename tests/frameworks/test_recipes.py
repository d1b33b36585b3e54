"""What the recipes do beside training: the losses apart, resuming, records in their loggers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import FRAMEWORKS
from loops import executed, losses, prelude, swapped
from pages import LOOPS

import mtlkernels

pytestmark = [*FRAMEWORKS, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names_after(heading: str, *pairs: tuple[str, str], **more: Any) -> dict[str, Any]:
    names = {**prelude(), **more}
    executed(swapped(LOOPS[heading], *pairs))(names)
    return names


def test_the_trainer_of_transformers_resumes_where_it_was() -> None:
    """Two epochs in one go, and one from the checkpoint of the other."""
    every = (r'"output", gradient', '"output", save_strategy="epoch", num_train_epochs=2, gradient')
    once = names_after("Hugging Face Trainer", every)
    again = prelude()
    code = swapped(
        LOOPS["Hugging Face Trainer"],
        every,
        (r"\.train\(\)", '.train(resume_from_checkpoint="output/checkpoint-3")'),
    )
    executed(code)(again)
    for one, other in zip(once["model"].parameters(), again["model"].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_trainer_of_transformers_logs_the_losses_apart_and_evaluates() -> None:
    names = _trained()
    trainer = names["trainer"]
    assert {"near", "far", "loss"} <= trainer.state.log_history[0].keys()
    found = trainer.evaluate(names["dataset"])
    assert found["eval_loss"] == pytest.approx(_whole(names), rel=1e-4)


def _trained() -> dict[str, Any]:
    names = prelude()
    code = swapped(
        LOOPS["Hugging Face Trainer"],
        (
            r"remove_unused_columns=False",
            "remove_unused_columns=False, logging_steps=1, label_names=['labels']",
        ),
        (r"\nBalanced\(", "\ntrainer = Balanced("),
        (r"\.train\(\)", ""),
    )
    executed(code + "trainer.train()\n")(names)
    return names


def _whole(names: dict[str, Any]) -> float:
    """The mean of the batches' summed losses, as the Trainer weighs them: by their sizes."""
    total = 0.0
    with torch.no_grad():
        for batch in names["loader"]:
            total += float(sum(losses(names["model"], batch).values())) * len(batch["x"])
    return total / len(names["dataset"])


def test_records_of_the_monitor_go_where_lightning_and_transformers_log() -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger, trainer = CSVLogger("."), _trained()["trainer"]
    trainer.state.log_history.clear()
    monitor = mtlkernels.Monitor(logger, trainer, every=2)
    names = prelude()
    base = torch.optim.SGD(names["model"].parameters(), lr=0.1)
    optimizer = mtlkernels.MTLOptimizer(base, "pcgrad")
    for batch in names["loader"]:
        optimizer.zero_grad()
        optimizer.loss(losses(names["model"], batch)).backward()
        monitor(optimizer.report)
        optimizer.step()
    logger.save()
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert float(rows[0]["losses/near"]) > 0
    assert [entry["losses/near"] > 0 for entry in trainer.state.log_history] == [True] * 3


def test_lightning_and_monai_have_the_losses_apart() -> None:
    logged = names_after("Lightning")["trainer"].logged_metrics
    assert {"near", "far"} <= logged.keys()
    assert {"near", "far"} <= names_after("MONAI")["trainer"].state.metrics.keys()


def test_mmengine_counts_its_micro_batches() -> None:
    """OptimWrapper divides the loss by 2 and steps in every second batch."""
    ours, large = prelude(), prelude()
    code = swapped(
        LOOPS["mmengine"],
        (r'"pcgrad"\)', '"sum", accumulate=2)'),
        (r"OptimWrapper\(optimizer\)", "OptimWrapper(optimizer, accumulative_counts=2)"),
        (r"torch\.optim\.AdamW", "torch.optim.SGD"),
    )
    executed(code)(ours)
    for one, two in zip(*[iter(large["loader"])] * 2, strict=True):
        model = large["model"]
        model.zero_grad()
        for batch in (one, two):
            (sum(losses(model, batch).values()) / 2).backward()
        torch.optim.SGD(model.parameters(), lr=1e-3).step()
    for one, other in zip(ours["model"].parameters(), large["model"].parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert {"loss", "loss_near", "loss_far"} <= ours["log"].keys()
