"""The guides' loops in other libraries with `Sum` are those libraries' own loops.

Each is compared, parameter by parameter, with the library's loop over the summed loss: without and
with accumulation over a number of batches that is not a multiple, an active and an inactive
clipping, in float32 and under a GradScaler. The libraries allow float16 on a GPU alone, so they are
given a scaler for the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import FRAMEWORKS
from loops import CLIPS, assert_same_moves, executed, moves, swapped, under_sum
from pages import LOOPS
from torch import Tensor, nn

pytestmark = [*FRAMEWORKS, pytest.mark.usefixtures("one_thread")]

every = [
    pytest.mark.parametrize("parts", [1, 4]),
    pytest.mark.parametrize("max_norm", CLIPS),
    pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"]),
]


def all_combinations(test: Any) -> Any:
    for mark in every:
        test = mark(test)
    return test


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=1024.0)


def tolerance(half: bool) -> float:
    return 0.02 if half else 1e-4  # float16 activations round what is summed in another order


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05)


# ------------------------------------------------------------------------------------- Lightning


@all_combinations
def test_lightning(
    parts: int, max_norm: float, half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against automatic optimisation, which accumulates, scales and clips by itself."""
    import lightning
    from lightning.pytorch.plugins import MixedPrecision

    def trainer(**options: Any) -> Any:
        plugins = [MixedPrecision("16-mixed", "cpu", scaler())] if half else None
        kept_quiet = ("checkpointing", "progress_bar", "model_summary")
        quiet = {"logger": False, **{f"enable_{what}": False for what in kept_quiet}}
        return original(
            accelerator="cpu", plugins=plugins, default_root_dir=tmp_path, **quiet, **options
        )

    original = lightning.Trainer
    monkeypatch.setattr(lightning, "Trainer", trainer)

    class Own(lightning.LightningModule):
        def __init__(self, names: dict[str, Any]) -> None:
            super().__init__()
            self.model, self.losses = names["model"], names["losses"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return sum(self.losses(self.model, batch).values())

    def own(names: dict[str, Any]) -> None:
        fit = trainer(max_epochs=1, accumulate_grad_batches=parts, gradient_clip_val=max_norm)
        fit.fit(Own(names), names["loader"])

    code = swapped(
        under_sum(LOOPS["Lightning"]),
        (r"accumulate_grad_batches=2", f"accumulate_grad_batches={parts}"),
        (r"gradient_clip_val=1\.0", f"gradient_clip_val={max_norm}"),
    )
    assert_same_moves(moves(executed(code)), moves(own), tolerance(half))


# ---------------------------------------------------------------------------------------- Fabric


@all_combinations
def test_fabric(parts: int, max_norm: float, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning
    from lightning.fabric.plugins import MixedPrecision

    def fabric() -> Any:
        plugins = [MixedPrecision("16-mixed", "cpu", scaler())] if half else None
        return original(accelerator="cpu", plugins=plugins)

    original = lightning.Fabric
    monkeypatch.setattr(lightning, "Fabric", fabric)

    def own(names: dict[str, Any]) -> None:
        fabric = lightning.Fabric()
        model, optimizer = fabric.setup(names["model"], sgd(names["model"]))
        loader = fabric.setup_dataloaders(names["loader"])
        for i, batch in enumerate(loader, start=1):
            fabric.backward(sum(names["losses"](model, batch).values()) / parts)
            if i % parts == 0 or i == len(loader):
                fabric.clip_gradients(model, optimizer, max_norm=max_norm)
                optimizer.step()
                optimizer.zero_grad()

    code = swapped(
        under_sum(LOOPS["Fabric"]),
        (r"parts = 2", f"parts = {parts}"),
        (r"max_norm=1\.0", f"max_norm={max_norm}"),
    )
    assert_same_moves(moves(executed(code)), moves(own), tolerance(half))


def test_fabric_s_own_refusal_is_explained() -> None:
    """Losses of Fabric's wrapper under a scaler: Fabric refuses any backward but its own."""
    import lightning
    from lightning.fabric.plugins import MixedPrecision
    from loops import prelude

    import mtlkernels

    names = prelude()
    plugin = MixedPrecision("16-mixed", "cpu", scaler())
    fabric = lightning.Fabric(accelerator="cpu", plugins=[plugin])
    wrapped = mtlkernels.MTLOptimizer(sgd(names["model"]), "sum")
    model, optimizer = fabric.setup(names["model"], wrapped)
    found = names["losses"](model, next(iter(names["loader"])))
    with pytest.raises(RuntimeError, match=r"model\.module under fabric\.autocast\(\)"):
        optimizer.backward(found, scaler=plugin.scaler)


# ------------------------------------------------------------------------------------ Accelerate


@pytest.fixture
def accelerate() -> Iterator[Any]:
    import accelerate

    yield accelerate
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def give_scaler(accelerator: Any) -> Any:
    accelerator.scaler, accelerator.native_amp = scaler(), True
    accelerator.state._mixed_precision = "fp16"
    return accelerator


@all_combinations
def test_accelerate(
    accelerate: Any, parts: int, max_norm: float, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accelerator(**options: Any) -> Any:
        made = original(cpu=True, **options)
        return give_scaler(made) if half else made

    original = accelerate.Accelerator
    monkeypatch.setattr(accelerate, "Accelerator", accelerator)

    def own(names: dict[str, Any]) -> None:
        accelerator = accelerate.Accelerator(gradient_accumulation_steps=parts)
        model, optimizer, loader = accelerator.prepare(
            names["model"], sgd(names["model"]), names["loader"]
        )
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(sum(names["losses"](model, batch).values()))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), max_norm)
                optimizer.step()
                optimizer.zero_grad()

    code = swapped(
        under_sum(LOOPS["Accelerate"]),
        (r"accumulation_steps=2", f"accumulation_steps={parts}"),
        (r"model\.parameters\(\), 1\.0", f"model.parameters(), {max_norm}"),
    )
    assert_same_moves(moves(executed(code)), moves(own), tolerance(half))


# ------------------------------------------------------------------------- Hugging Face Trainer


@all_combinations
def test_hugging_face_trainer(
    parts: int,
    max_norm: float,
    half: bool,
    accelerate: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers

    def create(self: Any) -> None:
        original(self)
        if half:
            give_scaler(self.accelerator)

    original = transformers.Trainer.create_accelerator_and_postprocess
    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", create)
    monkeypatch.chdir(tmp_path)

    class Own(transformers.Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            return sum(self.losses(model, inputs).values())

    def own(names: dict[str, Any]) -> None:
        arguments = transformers.TrainingArguments(
            "own",
            gradient_accumulation_steps=parts,
            max_grad_norm=max_norm,
            report_to="none",
            remove_unused_columns=False,
        )
        model = names["model"]
        trainer = Own(
            model, arguments, train_dataset=names["dataset"], optimizers=(sgd(model), None)
        )
        trainer.losses = names["losses"]
        trainer.train()

    code = swapped(
        under_sum(LOOPS["Hugging Face Trainer"]),
        (r"accumulation_steps=2", f"accumulation_steps={parts}, max_grad_norm={max_norm}"),
    )
    assert_same_moves(moves(executed(code)), moves(own), tolerance(half))
