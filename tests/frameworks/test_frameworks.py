"""Training loops of other libraries take the steps of a plain one, bit for bit.

`make test-frameworks` installs the libraries and runs these; all is offline and on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import Net, assert_same, assert_same_state, batches
from frameworks import FRAMEWORKS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtlkernels import UW, GradVac, MoCo, MTLOptimizer, PCGrad

pytestmark = [*FRAMEWORKS, pytest.mark.usefixtures("one_thread")]

METHODS = {"PCGrad": PCGrad, "GradVac": GradVac, "MoCo": MoCo, "UW": lambda: UW(3)}
every_method = pytest.mark.parametrize("name", METHODS)
XS = batches(6)


def wrapped(model: nn.Module, method: nn.Module) -> MTLOptimizer:
    params = [*model.parameters(), *method.parameters()]
    return MTLOptimizer(torch.optim.AdamW(params, lr=1e-2), method)


def plain(method: nn.Module, xs: list[Tensor], bf16: bool = False) -> tuple[Net, MTLOptimizer]:
    """What the libraries' loops have to equal: clipped steps, the rate halved every two."""
    model = Net()
    optimizer = wrapped(model, method)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    norms = []
    for x in xs:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = model(x)
        optimizer.backward(losses)
        norms.append(nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.5))
        optimizer.step()
        schedule.step()
    assert max(norms) > 0.5
    return model, optimizer


# ------------------------------------------------------------------------------------- Lightning


def lightning_module(method: nn.Module) -> Any:
    import lightning

    class Balanced(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = Net()
            self.classes: set[type] = set()

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = wrapped(self.net, method)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": schedule}

        def training_step(self, x: Tensor, _: int) -> None:
            optimizer = self.optimizers()
            assert isinstance(optimizer, torch.optim.AdamW)
            self.classes.add(type(optimizer.optimizer))
            optimizer.zero_grad()
            optimizer.backward(self.net(x))
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            self.lr_schedulers().step()

    return Balanced()


def fit(module: Any, xs: list[Tensor], ckpt: Path | None = None, **options: Any) -> Any:
    import lightning

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1 if ckpt is None else 2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(xs, batch_size=None), ckpt_path=ckpt, weights_only=True)
    return trainer


@every_method
def test_lightning_s_manual_optimisation(name: str) -> None:
    module = lightning_module(METHODS[name]())
    trainer = fit(module, XS)
    model, optimizer = plain(METHODS[name](), XS)
    assert_same(module.net, model)
    assert_same_state(trainer.optimizers[0].method, optimizer.method)
    assert module.classes == {type(optimizer)}


def test_lightning_s_bf16_autocast() -> None:
    module = lightning_module(PCGrad())
    fit(module, XS, precision="bf16-mixed")
    assert_same(module.net, plain(PCGrad(), XS, bf16=True)[0])
    assert not torch.equal(module.net.trunk.weight, plain(PCGrad(), XS)[0].trunk.weight)


@every_method
def test_lightning_resumes_with_the_method_s_state(name: str, tmp_path: Path) -> None:
    module = lightning_module(METHODS[name]())
    fit(module, XS[:3]).save_checkpoint(tmp_path / "half")
    resumed = lightning_module(METHODS[name]())
    trainer = fit(resumed, XS[:3], ckpt=tmp_path / "half")
    assert trainer.global_step == 6
    model, optimizer = plain(METHODS[name](), XS[:3] * 2)
    assert_same(resumed.net, model)
    assert_same_state(trainer.optimizers[0].method, optimizer.method)


# ------------------------------------------------------------------------------------ Accelerate


@pytest.fixture
def accelerate() -> Iterator[Any]:
    import accelerate

    yield accelerate
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.parametrize("mixed", ["no", "bf16"])
@every_method
def test_accelerate_prepares_and_steps(accelerate: Any, name: str, mixed: str) -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=mixed)
    model = Net()
    optimizer = wrapped(model, METHODS[name]())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    model, prepared, loader, schedule = accelerator.prepare(
        model, optimizer, DataLoader(XS, batch_size=None), schedule
    )
    assert prepared.optimizer is optimizer
    for x in loader:
        prepared.zero_grad()
        optimizer.backward(model(x))
        accelerator.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.5)
        prepared.step()
        schedule.step()
    twin, other = plain(METHODS[name](), XS, bf16=mixed == "bf16")
    assert_same(accelerator.unwrap_model(model), twin)
    assert_same_state(optimizer.method, other.method)


def test_accelerate_s_accumulation_adds_up_and_steps_every_second_batch(accelerate: Any) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Net()
    optimizer = wrapped(model, PCGrad())
    model, prepared, loader = accelerator.prepare(model, optimizer, DataLoader(XS, batch_size=None))
    for x in loader:
        with accelerator.accumulate(model):
            optimizer.backward([loss / 2 for loss in model(x)])
            prepared.step()
            prepared.zero_grad()
    twin = Net()
    other = wrapped(twin, PCGrad())
    for first, second in zip(XS[::2], XS[1::2], strict=True):
        for x in (first, second):
            other.backward([loss / 2 for loss in twin(x)])
        other.step()
        other.zero_grad()
    assert_same(accelerator.unwrap_model(model), twin)


@every_method
def test_accelerate_saves_and_loads_the_method_s_state(
    accelerate: Any, name: str, tmp_path: Path
) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = plain(METHODS[name](), XS)
    model, _ = accelerator.prepare(model, optimizer)
    accelerator.save_state(tmp_path)
    saved = {key: value.clone() for key, value in optimizer.method.state_dict().items()}
    for x in XS[:2]:
        optimizer.zero_grad()
        optimizer.backward(model(x))
        optimizer.step()
    accelerator.load_state(tmp_path)
    for key, value in optimizer.method.state_dict().items():
        assert torch.equal(value, saved[key])


def test_an_optimizer_that_accelerate_prepared_may_be_wrapped_too(accelerate: Any) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = Net()
    own = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, prepared = accelerator.prepare(model, own)
    optimizer = MTLOptimizer(prepared, PCGrad(seed=4))
    for x in XS:
        optimizer.zero_grad()
        optimizer.backward(model(x))
        optimizer.step()
    twin = Net()
    other = wrapped(twin, PCGrad(seed=4))
    for x in XS:
        other.zero_grad()
        other.backward(twin(x))
        other.step()
    assert_same(model, twin)
    fresh = wrapped(Net(), PCGrad(seed=99))
    fresh.load_state_dict(optimizer.state_dict())
    assert_same_state(fresh.method, other.method)
    optimizer.method.step.zero_()
    optimizer.load_state_dict(fresh.state_dict())
    assert_same_state(optimizer.method, other.method)


# ------------------------------------------------------------------------- Hugging Face Trainer


class TwoHeads(nn.Module):
    """A tiny random BERT, set up from numbers, with a head for tokens and one for sentences."""

    def __init__(self) -> None:
        super().__init__()
        import transformers

        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.trunk = transformers.BertModel(config)
        self.tokens = nn.Linear(16, 32)
        self.sentence = nn.Linear(16, 2)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.trunk(input_ids)
        tokens = self.tokens(out.last_hidden_state).flatten(0, 1)
        return {
            "tokens": nn.functional.cross_entropy(tokens, input_ids.flatten()),
            "sentence": nn.functional.cross_entropy(self.sentence(out.pooler_output), labels),
        }


@pytest.mark.parametrize("accumulate", [1, 2])
def test_hugging_face_trainer(accumulate: int, tmp_path: Path) -> None:
    import transformers

    given: list[dict[str, Tensor]] = []

    class Balanced(transformers.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            inputs = self._prepare_inputs(inputs)
            given.append({key: value.clone() for key, value in inputs.items()})
            losses = model(**inputs)
            steps = self.current_gradient_accumulation_steps
            optimizer = self.optimizer.optimizer
            optimizer.backward({name: loss / steps for name, loss in losses.items()})
            return sum(losses.values()).detach() / steps

    generator = torch.Generator().manual_seed(2)
    dataset = [
        {
            "input_ids": torch.randint(32, (8,), generator=generator),
            "labels": torch.randint(2, (), generator=generator),
        }
        for _ in range(24)
    ]
    model = TwoHeads()
    optimizer = wrapped(model, PCGrad())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=4,
        save_steps=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0.5,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Balanced(model, arguments, train_dataset=dataset, optimizers=(optimizer, schedule))
    trainer.train()
    assert len(given) == 4 * accumulate

    twin = TwoHeads()
    other = wrapped(twin, PCGrad())
    rate = torch.optim.lr_scheduler.StepLR(other, 2, 0.5)
    for i, inputs in enumerate(given):
        losses = twin(**inputs)
        other.backward({name: loss / accumulate for name, loss in losses.items()})
        if (i + 1) % accumulate == 0:
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            other.step()
            rate.step()
            other.zero_grad()
    assert_same(model, twin)
    saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt")
    other.load_state_dict(saved)
    assert_same_state(optimizer.method, other.method)
