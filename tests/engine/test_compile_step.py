"""Forward to .grad in one compiled graph: equal to eager while training, traced once."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from compilers import has_cpp_compiler
from gram_methods import GRAM_METHODS, VARIANTS, tasks_for
from torch import Tensor, nn
from torch_versions import compiles_steps

import mtlkernels
from mtlkernels import CAGrad, GradDrop, MTLOptimizer, PCGrad, compile_step
from mtlkernels.autograd.joins import root
from mtlkernels.engine.parameters import named_losses

pytestmark = [pytest.mark.usefixtures("one_thread"), compiles_steps]
inductor = pytest.mark.skipif(not has_cpp_compiler(), reason="inductor finds no C++ compiler")
# torch's own: inductor's modules are decorated with it when they are first imported.
quiet = pytest.mark.filterwarnings(
    "ignore:.torch.:DeprecationWarning", "ignore:.torch.:FutureWarning"
)
# What reuses weights looks at autograd's graph; PerPart wants parts.
REGISTERED = [name for name in GRAM_METHODS if name not in {"PerPart", "Reused", *VARIANTS}]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


class Model(nn.Module):
    def __init__(self, tasks: int = 3) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(tasks))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {f"task {t}": (h(z) - t).square().mean() + 0.1 for t, h in enumerate(self.heads)}


class Pair:
    """The same training twice: compiled, and eager."""

    def __init__(
        self, method: object, backend: str = "aot_eager", tasks: int = 3, **options: object
    ) -> None:
        torch.manual_seed(0)
        self.model = Model(tasks)
        self.twin = copy.deepcopy(self.model)
        self.optimizer, self.other = (
            MTLOptimizer(
                torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), copy.deepcopy(method)
            )
            for m in (self.model, self.twin)
        )

        def step(x: Tensor) -> mtlkernels.Report:
            return self.optimizer.backward(self.model(x))

        self.compiled = compile_step(step, backend=backend, **options)

    def step(self, x: Tensor, set_to_none: bool = True) -> None:
        """One step of each; the compiled one is close, and says the same."""
        report, expected = self.compiled(x), self.other.backward(self.twin(x))
        assert report.tasks == expected.tasks
        for name in ("gram", "weights", "losses", "status"):
            a, b = getattr(report, name), getattr(expected, name)
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        for optimizer in (self.optimizer, self.other):
            optimizer.step()
        for a, b in zip(self.model.parameters(), self.twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)
        for optimizer in (self.optimizer, self.other):
            optimizer.zero_grad(set_to_none=set_to_none)


def batches(sizes: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 5, generator=generator) for size in sizes]


@pytest.mark.parametrize("name", REGISTERED)
def test_five_training_steps_of_every_gram_method(name) -> None:
    """After two steps, in which some methods make their state, nothing is traced again."""
    tasks = tasks_for(name, 3)
    pair = Pair(GRAM_METHODS[name](tasks), "eager", tasks)
    for call, x in enumerate(batches([6] * 5)):
        with torch.compiler.set_stance("fail_on_recompile" if call >= 2 else "default"):
            pair.step(x)


@inductor
@quiet
@pytest.mark.parametrize("method", [PCGrad(), CAGrad(), GradDrop(seed=2)], ids=repr)
def test_inductor(method) -> None:
    pair = Pair(method, "inductor")
    for call, x in enumerate(batches([6] * 5)):
        with torch.compiler.set_stance("fail_on_recompile" if call >= 2 else "default"):
            pair.step(x)


@pytest.mark.parametrize("dynamic", [None, True])
def test_other_batch_sizes(dynamic) -> None:
    """Left alone, torch.compile makes the size dynamic when it first changes."""
    pair = Pair(PCGrad(), dynamic=dynamic)
    for call, x in enumerate(batches([6, 6, 8, 7, 9, 5])):
        with torch.compiler.set_stance("fail_on_recompile" if call >= 3 else "default"):
            pair.step(x)


def test_losses_are_not_compared_by_id_while_tracing(monkeypatch) -> None:
    """torch 2.11 and 2.12 do not trace id() of what the traced function has computed."""

    def untraceable(_: object) -> int:
        raise AssertionError("id() of a loss")

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr("mtlkernels.engine.parameters.id", untraceable, raising=False)
    losses = Model()(batches([6])[0])
    assert named_losses(losses) == (tuple(losses), list(losses.values()))


class Untraceable(Tensor):
    """A loss while torch 2.12 traces: its grad_fn cannot be looked at."""

    @property
    def grad_fn(self) -> None:
        raise AssertionError("grad_fn of a loss")


def test_the_graph_is_not_looked_at_while_tracing(monkeypatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    loss = torch.zeros(()).as_subclass(Untraceable)
    assert root(loss)[0] is loss


def test_gradients_keep_their_addresses() -> None:
    pair = Pair(PCGrad())
    first, *rest = batches([6] * 5)
    pair.step(first, set_to_none=False)
    places = [param.grad.data_ptr() for param in pair.model.parameters()]
    for x in rest:
        pair.step(x, set_to_none=False)
        assert [param.grad.data_ptr() for param in pair.model.parameters()] == places


def test_one_graph_and_no_copy() -> None:
    """What the graph holds of ours: a Gram matrix, a solve, combinations for trunk and heads."""
    seen: list[Counter] = []

    def backend(module: torch.fx.GraphModule, inputs: object) -> object:
        calls = [str(n.target) for n in module.graph.nodes if n.op == "call_function"]
        seen.append(Counter(c for c in calls if "mtlkernels" in c or "clone" in c or "copy" in c))
        return module

    pair = Pair(PCGrad(), backend)
    for x in batches([6] * 3):
        pair.step(x)
    assert len(seen) == 1
    assert seen[0] == {
        "mtlkernels.gram.default": 1,
        "mtlkernels.pcgrad_drawn.default": 1,
        "mtlkernels.combine.default": 2,
    }


def test_a_scale_goes_in_as_a_tensor() -> None:
    pair = Pair(mtlkernels.NashMTL())
    scaled = compile_step(
        lambda x, scale: pair.optimizer.backward(pair.model(x), scaler=scale), backend="aot_eager"
    )
    x = batches([6])[0]
    scaled(x, torch.tensor(64.0))
    pair.other.backward(pair.twin(x))
    for a, b in zip(pair.model.parameters(), pair.twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, 64 * b.grad)


def test_a_compiled_update_follows() -> None:
    pair = Pair(PCGrad())
    update = torch.compile(pair.optimizer.step, backend="aot_eager")
    for x in batches([6] * 3):
        pair.compiled(x)
        pair.other.backward(pair.twin(x))
        update()
        pair.other.step()
        for a, b in zip(pair.model.parameters(), pair.twin.parameters(), strict=True):
            torch.testing.assert_close(a, b)
        pair.optimizer.zero_grad()
        pair.other.zero_grad()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"collect": "batched"}, "only a backward a loss can be traced"),
        ({"apply": "backward"}, "only a backward a loss can be traced"),
        ({"every": 2}, "only a backward a loss can be traced"),
    ],
    ids=str,
)
def test_what_needs_autograd_s_graph_is_refused(options, sentence) -> None:
    model = Model()
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), PCGrad(), **options)
    step = compile_step(lambda x: optimizer.backward(model(x)), backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=sentence):
        step(batches([6])[0])
    assert all(param.grad is None for param in model.parameters())


def test_losses_in_one_tensor_are_refused() -> None:
    model = Model()
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), PCGrad())
    step = compile_step(
        lambda x: optimizer.backward(torch.stack(list(model(x).values()))), backend="eager"
    )
    with pytest.raises(torch._dynamo.exc.Unsupported, match="the losses are one tensor"):
        step(batches([6])[0])


def test_a_torch_that_cannot_is_told(monkeypatch) -> None:
    class Older:
        """torch._dynamo.config before it could trace backwards."""

    monkeypatch.setattr("torch._dynamo.config", Older())
    with pytest.raises(NotImplementedError, match="cannot trace"):
        compile_step(lambda x: x)


def test_one_graph_is_not_for_choice() -> None:
    with pytest.raises(ValueError, match="leave out fullgraph=False"):
        compile_step(lambda x: x, fullgraph=False)


def test_the_setting_is_only_there_while_the_step_runs() -> None:
    pair = Pair(PCGrad())
    before = torch._dynamo.config.trace_autograd_ops
    pair.step(batches([6])[0])
    assert torch._dynamo.config.trace_autograd_ops == before
