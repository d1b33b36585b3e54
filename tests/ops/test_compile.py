"""torch.compile: one graph, one node an op, the same bits as eager, and no recompilation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from compilers import has_cpp_compiler
from inputs import sample
from torch import Tensor

from mtlkernels import (
    CRMOGM,
    MGDA,
    AlignedMTL,
    AvgNorm,
    CAGrad,
    GradVac,
    GramMethod,
    Mean,
    NashMTL,
    Normalized,
    PCGrad,
    PerPart,
    SDMGrad,
    Sum,
    UPGrad,
    ops,
)

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS: dict[str, Callable[[], GramMethod]] = {
    "Sum": Sum,
    "Mean": Mean,
    "PCGrad": lambda: PCGrad(seed=7),
    "CAGrad": CAGrad,
    "AvgNorm": AvgNorm,
    "UPGrad": UPGrad,
    "GradVac": GradVac,
    "CRMOGM": lambda: CRMOGM(Normalized(MGDA())),
    "NashMTL": NashMTL,
    "AlignedMTL": AlignedMTL,
    "SDMGrad": SDMGrad,
    "PerPart": lambda: PerPart(GradVac()),
}
SOLVER = {
    "PCGrad": ["pcgrad_drawn"],
    "CAGrad": ["cagrad"],
    "AvgNorm": ["avgnorm"],
    "UPGrad": ["upgrad"],
    "GradVac": ["visiting_order", "gradvac"],
    "CRMOGM": ["mgda"],
    "NashMTL": ["fairgrad"],
    "AlignedMTL": ["aligned"],
    "SDMGrad": ["simplex_descent"],
    "PerPart": ["visiting_order", "gradvac"],
}
SAMPLES = ["ordinary", "one_task", "zero_size_middle", "channels_last"]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def step_of(method: GramMethod) -> Callable[[list[Tensor], int], tuple[Tensor, ...]]:
    def step(grads: list[Tensor], num_tasks: int) -> tuple[Tensor, ...]:
        K = ops.gram(grads, num_tasks)
        weights = method(K)
        return K, weights, method.status, ops.combine(grads, weights)

    return step


def batches(name: str, calls: int) -> list[tuple[list[Tensor], int]]:
    """The sample, then the same layouts with other elements."""
    grads, num_tasks = sample(name, torch.float32)
    return [([(1 - 0.7 * i) * grad for grad in grads], num_tasks) for i in range(calls)]


def assert_same(compiled: tuple[Tensor, ...], eager: tuple[Tensor, ...]) -> None:
    for got, expected in zip(compiled, eager, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("method", "name"),
    [(m, "absent_in_some_tasks") for m in METHODS] + [("PCGrad", name) for name in SAMPLES],
)
def test_equals_eager_and_compiles_once(method: str, name: str) -> None:
    eager = step_of(METHODS[method]())
    compiled = torch.compile(step_of(METHODS[method]()), backend="aot_eager", fullgraph=True)
    for call, batch in enumerate(batches(name, 5)):
        with torch.compiler.set_stance("fail_on_recompile" if call >= 2 else "default"):
            assert_same(compiled(*batch), eager(*batch))


def test_pcgrad_draws_anew_in_each_compiled_call() -> None:
    method = PCGrad(seed=7)
    draw = torch.compile(
        lambda K: (method(K), method.step.clone()), backend="aot_eager", fullgraph=True
    )
    plain = PCGrad(seed=7)
    K = torch.full((5, 5), -0.2, dtype=torch.float64) + 1.2 * torch.eye(5, dtype=torch.float64)
    K += 0.1 * torch.outer(*2 * [torch.arange(5.0, dtype=torch.float64)])
    drawn = []
    for call in range(6):
        weights, step = draw(K)
        assert torch.equal(weights, plain(K))
        assert step == call + 1
        drawn.append(tuple(weights.tolist()))
    assert len(set(drawn)) > 1


# torch's own: inductor's modules are decorated with it when they are first imported.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch._prims_common.check. is deprecated:FutureWarning")
@pytest.mark.skipif(not has_cpp_compiler(), reason="inductor finds no C++ compiler")
def test_inductor_equals_eager() -> None:
    def step_of_all() -> Callable[[list[Tensor], int], list[Tensor]]:
        steps = [step_of(make()) for make in METHODS.values()]
        return lambda grads, num_tasks: [x for step in steps for x in step(grads, num_tasks)]

    eager, compiled = step_of_all(), torch.compile(step_of_all(), fullgraph=True)
    for call, batch in enumerate(batches("absent_in_some_tasks", 4)):
        with torch.compiler.set_stance("fail_on_recompile" if call >= 2 else "default"):
            assert_same(compiled(*batch), eager(*batch))


@pytest.mark.parametrize("method", METHODS)
def test_graph_has_one_node_an_op(method: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def capture(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    step = torch.compile(step_of(METHODS[method]()), backend=capture, fullgraph=True)
    step(*sample("ordinary", torch.float32))
    assert len(graphs) == 1
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    called = Counter(t.split(".")[1] for t in targets if t.startswith("mtlkernels."))
    assert called == Counter(["gram", *SOLVER.get(method, ["task_status"]), "combine"])


def test_compiled_combine_out_writes_in_place() -> None:
    grads, num_tasks = sample("ordinary", torch.float32)
    weights = torch.ones(num_tasks)
    expected = ops.combine(grads, weights)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def accumulate(out: Tensor) -> Tensor:
        ops.combine_out(grads, weights, out, 1.0)
        return out.sum()

    out = torch.zeros_like(expected)
    address = out.data_ptr()
    assert accumulate(out) == expected.sum()
    assert out.data_ptr() == address
    assert torch.equal(out, expected)


def test_compiled_gradients_equal_eager() -> None:
    def loss(grads: list[Tensor], weights: Tensor) -> Tensor:
        return ops.combine(grads, weights).square().sum() + ops.gram(grads, 3).diagonal().sum()

    grads, _ = sample("ordinary", torch.float64)
    results = []
    for run in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaves = [grad.clone().requires_grad_() for grad in grads]
        weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
        run(leaves, weights).backward()
        results.append([leaf.grad for leaf in (*leaves, weights)])
    assert_same(*results)
