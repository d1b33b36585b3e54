"""collect="ghost": the Gram matrix and .grad of the default, without task gradients."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mtlkernels
from benchmarks.suite.memory import peak_bytes
from mtlkernels.engine import ghost_gram

pytestmark = pytest.mark.usefixtures("one_thread")
Losses = Callable[[], list[Tensor | None]]
WIDTH = 24


class Cosines(mtlkernels.GramMethod):
    """Weights that depend on K smoothly, so that an error of K shows in .grad."""

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        return 1 + (gram / gram.diagonal().sqrt().clamp_min(1e-300)).mean(dim=1).tanh()


@pytest.fixture(autouse=True)
def _no_layer_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost_gram, "_CALLS", 0)


def step(losses: Losses, params: list[nn.Parameter], **options: object) -> mtlkernels.Report:
    for param in params:
        param.grad = None
    torch.manual_seed(5)
    return mtlkernels.backward(losses(), params, Cosines(), **options)


def compare(
    losses: Losses, params: list[nn.Parameter], gram: float = 1e-6, grad: float = 1e-5, **options
) -> mtlkernels.Report:
    """Both ways; K relative to the norms, .grad relative to that of all parameters."""
    want = step(losses, params, **options)
    grads = [None if param.grad is None else param.grad.clone() for param in params]
    have = step(losses, params, collect="ghost", **options)
    assert have.gram is not None
    assert want.gram is not None
    norms = want.gram.diagonal().sqrt()
    assert ((have.gram - want.gram).abs() <= gram * norms[:, None] * norms).all()
    torch.testing.assert_close(have.gram, have.gram.T, rtol=0, atol=0)
    total = sum(float(g.square().sum()) for g in grads if g is not None) ** 0.5
    for param, expected in zip(params, grads, strict=True):
        assert (param.grad is None) == (expected is None)
        if expected is not None and param.grad is not None:
            assert float((param.grad - expected).norm()) <= grad * total
    assert have.weights is not None
    return have


class Tied(nn.Module):
    """One matrix twice, once as x W and once as x W^T, and a third time as W x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.tanh(x.flatten(0, -2) @ self.weight) @ self.weight.T
        return (self.weight @ flat.T).T.reshape(x.shape)


class Columns(nn.Module):
    """A weight that multiplies from the left."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).mean(dim=0)
        columns = torch.stack([rows * k for k in (1.0, -2.0, 0.5, 3.0)], dim=1)
        out = torch.addmm(self.bias, self.weight, columns)
        return x + out.T.mean(dim=0)


class Pointwise(nn.Module):
    """1 x 1 convolutions, with a stride and in groups, and one of 3 x 3."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(WIDTH, 2 * WIDTH, 1, stride=2),
            nn.Conv2d(2 * WIDTH, 2 * WIDTH, 1, groups=2),
            nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.Conv2d(WIDTH, WIDTH, 1, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        image = x.flatten(0, -2).T.reshape(1, WIDTH, 1, -1).expand(2, -1, 2, -1)
        return x + self.layers(image).mean(dim=(0, 2, 3))


class Adapter(nn.Module):
    """A frozen matrix and two factors of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.up(self.down(x))


class Turned(nn.Module):
    """A linear layer on an input whose batch and sequence are exchanged, which takes no addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, -2)).transpose(0, -2)


class Direct(nn.Module):
    """Parameters that no layer reads: a scale, a shift, and an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(1))
        self.mix = nn.Parameter(torch.randn(2, WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...a,kab->...b", x * self.scale + self.shift, self.mix)


LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(WIDTH, WIDTH),
    lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    lambda: nn.Sequential(nn.Linear(WIDTH, 8 * WIDTH), nn.ReLU(), nn.Linear(8 * WIDTH, WIDTH)),
    lambda: nn.LayerNorm(WIDTH),
    lambda: nn.RMSNorm(WIDTH),
    nn.Tanh,
    Tied,
    Columns,
    Pointwise,
    Adapter,
    Turned,
    Direct,
]


class Network(nn.Module):
    """Random layers on embedded or given rows, some called twice, and heads at random depths."""

    def __init__(self, draw: random.Random, tasks: int) -> None:
        super().__init__()
        self.table = nn.Embedding(40, WIDTH, padding_idx=draw.choice([None, 3]))
        self.embeds, self.times = draw.random() < 0.5, draw.randint(1, 2)
        self.layers = nn.ModuleList(draw.choice(LAYERS)() for _ in range(draw.randint(2, 5)))
        if draw.random() < 0.5:
            self.layers.append(draw.choice(list(self.layers)))
        self.depths = [draw.randint(1, len(self.layers)) for _ in range(tasks)]
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(tasks))
        self.ties = self.embeds and draw.random() < 0.5
        self.shape = draw.choice([(5,), (2, 3), (1,), (3, 1)])
        self.draw = draw
        for param in self.parameters():
            if draw.random() < 0.1:
                param.requires_grad_(False)
        self.heads.requires_grad_(True)

    def losses(self) -> list[Tensor]:
        x = torch.randn(*self.shape, WIDTH)
        if self.embeds:
            for _ in range(self.times):
                x = x + self.table(torch.randint(0, 6, self.shape))
        found = [x]
        for layer in self.layers:
            found.append(layer(found[-1]))
        outputs = [head(found[d]) for head, d in zip(self.heads, self.depths, strict=True)]
        if self.ties:
            outputs[0] = outputs[0] + (found[self.depths[0]] @ self.table.weight.T).mean()
        return [(y - t).square().mean() for t, y in enumerate(outputs)]


@pytest.mark.parametrize("seed", range(40))
def test_a_random_network_gets_the_same_gram_matrix_and_grad(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    tasks = draw.choice([1, 2, 3, 5])
    network = Network(draw, tasks)
    absent = draw.randrange(tasks) if tasks > 2 and draw.random() < 0.5 else None
    params = list(network.parameters())

    def losses() -> list[Tensor | None]:
        found: list[Tensor | None] = list(network.losses())
        if absent is not None:
            found[absent] = None
        return found

    compare(losses, params, weight_heads=draw.random() < 0.3)


def perceptron(width: int = 128, layers: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*parts)


def regressions(trunk: nn.Module, x: Tensor, heads: nn.ModuleList) -> Losses:
    return lambda: [
        (head(z) - t).square().mean() for z in [trunk(x)] for t, head in enumerate(heads)
    ]


def set_up(width: int = 128, tasks: int = 3, rows: int = 8) -> tuple[nn.Module, Losses, list]:
    trunk = perceptron(width)
    heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(tasks))
    params = [*trunk.parameters(), *heads.parameters()]
    return trunk, regressions(trunk, torch.randn(rows, width), heads), params


def test_wide_layers_form_no_task_gradients() -> None:
    _, losses, params = set_up()
    report = compare(losses, params)
    assert "6 of 6 shared parameters without task gradients" in report.collected


def test_small_layers_are_not_worth_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    _, losses, params = set_up()
    monkeypatch.undo()
    report = compare(losses, params)
    assert "0 of 6 shared parameters" in report.collected


def test_layers_with_many_rows_form_them_and_k_is_the_default() -> None:
    _, losses, params = set_up(width=8, rows=512)
    report = compare(losses, params, gram=1e-12, grad=1e-6)
    assert "0 of 6 shared parameters" in report.collected


def test_memory_is_that_of_output_gradients() -> None:
    _, losses, params = set_up(width=256, tasks=6)
    sizes = {}
    for collect in ("loop", "ghost"):
        for param in params:
            param.grad = None
        built = losses()
        cpu = torch.device("cpu")
        run = lambda built=built, collect=collect: mtlkernels.backward(  # noqa: E731
            built, params, Cosines(), collect=collect
        )
        sizes[collect] = peak_bytes(run, cpu)
    weights = 3 * 256 * 256 * 4
    assert sizes["loop"] > 6 * weights
    assert sizes["ghost"] < 2 * weights


def test_k_survives_cancellation_that_float32_products_would_not() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    x = 100 + torch.randn(16, 64)  # one direction of A A^T is 1e4 times all others
    heads = torch.randn(3, 16, 64)
    heads = heads - heads.mean(dim=1, keepdim=True)  # and D_t is orthogonal to it

    def losses() -> list[Tensor]:
        y = layer(x)
        return [(y * head).sum() for head in heads]

    params = list(layer.parameters())
    report = step(losses, params, collect="ghost")
    A, D = x.double(), heads.double()
    G = (D.transpose(1, 2) @ A).flatten(1)
    torch.testing.assert_close(report.gram, G @ G.T, rtol=1e-9, atol=0)


def test_autocast_agrees_to_bfloat16() -> None:
    _trunk, losses, params = set_up()

    def cast() -> list[Tensor | None]:
        with torch.autocast("cpu", torch.bfloat16):
            return losses()

    report = compare(cast, params, gram=2e-2, grad=2e-2)
    assert "6 of 6 shared parameters" in report.collected


@pytest.mark.parametrize("kind", ["checkpoint", "offload"])
def test_activations_that_hooks_keep_are_left_to_task_gradients(kind: str) -> None:
    trunk, _, _params = set_up()
    x, heads = torch.randn(8, 128), [nn.Linear(128, 1) for _ in range(3)]

    def losses() -> list[Tensor | None]:
        if kind == "checkpoint":
            z = checkpoint(trunk, x, use_reentrant=False)
        else:
            with torch.autograd.graph.save_on_cpu():
                z = trunk(x)
        return [head(z).square().mean() for head in heads]

    report = compare(losses, [*trunk.parameters()])
    assert "0 of 6 shared parameters" in report.collected


def test_hooks_of_parameters_change_every_task_gradient() -> None:
    _trunk, losses, params = set_up()
    params[2].register_hook(lambda grad: grad * 3)
    report = compare(losses, params)
    assert "4 of 6 shared parameters" in report.collected


def test_a_hook_on_the_graph_between_a_layer_and_its_parameter_is_noticed() -> None:
    trunk, _, params = set_up()
    weight = params[0]
    x, heads = torch.randn(8, 128), [nn.Linear(128, 1) for _ in range(3)]

    def losses() -> list[Tensor | None]:
        turned = weight.t()
        turned.register_hook(lambda grad: grad * 3)
        z = trunk[1:](x @ turned)
        return [head(z).square().mean() for head in heads]

    with pytest.raises(RuntimeError, match="leave collect= out"):
        mtlkernels.backward(losses(), params, Cosines(), collect="ghost", check=True)
    assert all(param.grad is None for param in params)


def test_named_shared_parameters_scaler_and_kept_graph() -> None:
    _trunk, losses, params = set_up()
    compare(losses, params, shared=params[:3])
    compare(losses, params, scaler=torch.tensor(1024.0))
    built = losses()
    for _ in range(2):
        mtlkernels.backward(built, params, Cosines(), collect="ghost", retain_graph=True)


def test_the_optimizer_takes_it_with_every_and_checks_its_first_step() -> None:
    _trunk, losses, params = set_up()
    twin = copy.deepcopy(params)
    base = torch.optim.SGD(params, lr=1e-2)
    optimizer = mtlkernels.MTLOptimizer(base, mtlkernels.UPGrad(), collect="ghost", every=2)
    told = []
    for _ in range(3):
        optimizer.zero_grad()
        told.append(optimizer.backward(losses()).collected)
        optimizer.step()
    assert ["kept weights" in text for text in told] == [False, True, False]
    assert any(not torch.equal(a, b) for a, b in zip(params, twin, strict=True))
    with pytest.raises(ValueError, match="ghost"):
        optimizer.backward(losses(), accumulate=True)


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        (mtlkernels.GradDrop, {}, "collect= does not apply to GradDrop"),
        (mtlkernels.SI, {}, "collect= does not apply to SI"),
        (Cosines, {"apply": "backward"}, "leave out apply="),
        (Cosines, {"rows_dtype": torch.bfloat16}, 'collect="ghost", which store no task gradients'),
        (Cosines, {"parts": [[]]}, "leave out"),
        (Cosines, {"measure": []}, "collect= says how to compute the task gradients"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_a_sentence(method, options, sentence) -> None:
    _, losses, params = set_up()
    with pytest.raises(ValueError, match=sentence):
        mtlkernels.backward(losses(), params, method(), collect="ghost", **options)
    assert all(param.grad is None for param in params)


def test_replicas_refuse_it(tmp_path) -> None:
    _, losses, params = set_up()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        group = torch.distributed.group.WORLD
        base = torch.optim.SGD(params, lr=1e-2)
        optimizer = mtlkernels.MTLOptimizer(
            base, mtlkernels.UPGrad(), collect="ghost", process_group=group
        )
        with pytest.raises(NotImplementedError, match="sums over the ranks"):
            optimizer.backward(losses())
    finally:
        torch.distributed.destroy_process_group()
