"""Graphs of several losses as people build them, and worse: what a cut below the heads meets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH = 6


@dataclass
class Problem:
    """Losses of one forward, their parameters, and what stands between trunk and heads."""

    params: list[nn.Parameter]
    losses: list[Tensor]
    features: list[Tensor]
    apart: list[Tensor] | None = None  # the same losses, each in a graph of its own alone


def _weights(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, dtype=dtype) / shape[0] ** 0.5) for shape in shapes]


def _inputs(width: int = 5) -> Tensor:
    return torch.randn(BATCH, width, dtype=torch.float64)


def trunk_and_heads(tasks: int = 3) -> Problem:
    a, b, *heads = _weights((5, 7), (7, 4), *[(4, 2)] * tasks)
    z = torch.tanh(torch.tanh(_inputs() @ a) @ b)
    losses = [((z @ h) - t).square().mean() for t, h in enumerate(heads)]
    return Problem([a, b, *heads], losses, [z])


def one_loss() -> Problem:
    return trunk_and_heads(1)


def no_heads() -> Problem:
    (a,) = _weights((5, 3))
    z = torch.tanh(_inputs() @ a)
    return Problem([a], [z[:, t].square().mean() for t in range(3)], [z])


def tied_weights() -> Problem:
    """Two heads use a matrix of the trunk again."""
    a, b, h = _weights((5, 4), (4, 4), (4, 2))
    z = torch.tanh(_inputs() @ a) @ b
    losses = [(z @ b).square().mean(), (torch.tanh(z) @ b.T).mean(), (z @ h).exp().mean()]
    return Problem([a, b, h], losses, [z])


def skip_around_features() -> Problem:
    """A head reads an early layer too."""
    a, b, h, g = _weights((5, 4), (4, 4), (4, 2), (4, 2))
    early = torch.tanh(_inputs() @ a)
    z = torch.tanh(early @ b)
    losses = [(z @ h + early @ g).square().mean(), (z @ g).square().mean()]
    return Problem([a, b, h, g], losses, [z])


def shared_layer_after_features() -> Problem:
    a, b, h, g = _weights((5, 4), (4, 4), (4, 2), (4, 2))
    z = torch.tanh(_inputs() @ a)
    deep = torch.tanh(z @ b)
    return Problem([a, b, h, g], [(deep @ h).square().mean(), (deep @ g - 1).square().mean()], [z])


def loss_of_a_loss() -> Problem:
    a, h = _weights((5, 4), (4, 2))
    z = torch.tanh(_inputs() @ a)
    first = z.square().mean()
    return Problem([a, h], [first, (first + (z @ h).mean()).exp()], [z])


def two_features() -> Problem:
    a, b, h, g, k = _weights((5, 4), (5, 3), (4, 2), (3, 2), (4, 1))
    x = _inputs()
    y, z = torch.tanh(x @ a), torch.sigmoid(x @ b)
    losses = [(y @ h).square().mean(), (z @ g).square().mean(), ((y @ k) * z).mean()]
    return Problem([a, b, h, g, k], losses, [y, z])


def complex_features() -> Problem:
    a, h, g = _weights((5, 4), (3, 2), (3, 2))
    z = torch.fft.rfft(_inputs() @ a)
    losses = [(z.abs() @ h).square().mean(), (z.real @ g).square().mean()]
    return Problem([a, h, g], losses, [z])


def some_tasks_only() -> Problem:
    """A layer that two of three losses reach, and a parameter that none does."""
    a, b, h, g, unused = _weights((5, 4), (4, 4), (4, 2), (4, 2), (2, 2))
    z = torch.tanh(_inputs() @ a)
    deep = torch.tanh(z @ b)
    losses = [(deep @ h).square().mean(), (deep @ g).square().mean(), z.square().mean()]
    return Problem([a, b, h, g, unused], losses, [z])


def parameter_as_a_loss() -> Problem:
    a, h = _weights((5, 4), (4, 2))
    scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    z = torch.tanh(_inputs() @ a) * scale
    return Problem([a, h, scale], [(z @ h).square().mean(), z.square().mean(), scale * 2], [z])


def stacked_losses() -> Problem:
    plain = trunk_and_heads()
    return Problem(
        plain.params,
        list(torch.stack(plain.losses) * 2.0),
        plain.features,
        [2.0 * loss for loss in plain.losses],
    )


def heads_on_several_stages(detach: bool = False) -> Problem:
    """Each head reads all stages of the trunk, as a feature pyramid's do."""
    a, b, c, *heads = _weights((5, 4), (4, 4), (4, 4), *[(4, 2)] * 6)
    first = torch.tanh(_inputs() @ a)
    second = torch.tanh(first @ b)
    third = torch.tanh(second @ c)
    if detach:
        first, second, third = (z.detach().requires_grad_() for z in (first, second, third))
    losses = [
        (first @ heads[0] + second @ heads[1] + third @ heads[2]).square().mean(),
        (third @ heads[3] * (second @ heads[4]) + first @ heads[5]).exp().mean(),
    ]
    return Problem([a, b, c, *heads], losses, [first, second, third])


def hooks_at_the_cut() -> Problem:
    """Gradient reversal and scaling, on features, on a parameter of several heads, on a loss."""
    a, b, h, g = _weights((5, 4), (4, 4), (4, 2), (4, 2))
    z = torch.tanh(_inputs() @ a)
    z.register_hook(lambda grad: -grad)
    b.register_hook(lambda grad: 0.5 * grad)
    first = ((z @ b) @ h).square().mean()
    first.register_hook(lambda grad: 3 * grad)
    return Problem([a, b, h, g], [first, ((z @ b.T) @ g).square().mean() + first.exp()], [z])


def one_output_of_two() -> Problem:
    """Features are one half of a tensor of which a head reads the other half as well."""
    a, h, g = _weights((5, 8), (4, 2), (4, 2))
    z, rest = (_inputs() @ a).chunk(2, dim=1)
    losses = [(z @ h).square().mean(), (z @ g).square().mean() + (z * rest).mean()]
    return Problem([a, h, g], losses, [z])


def a_layer_of_one_task_below_the_features() -> Problem:
    a, private, h, g = _weights((5, 4), (4, 3), (4, 2), (3, 2))
    z = torch.tanh(_inputs() @ a)
    y = torch.tanh(z @ private)
    losses = [(z @ h).square().mean(), (y @ g).square().mean()]
    return Problem([a, private, h, g], losses, [z, y])


GRAPHS: list[Callable[[], Problem]] = [
    trunk_and_heads,
    one_loss,
    no_heads,
    tied_weights,
    skip_around_features,
    shared_layer_after_features,
    loss_of_a_loss,
    two_features,
    complex_features,
    some_tasks_only,
    parameter_as_a_loss,
    stacked_losses,
    heads_on_several_stages,
    hooks_at_the_cut,
    one_output_of_two,
    a_layer_of_one_task_below_the_features,
]


def rows(problem: Problem, of: list[Tensor] | None = None) -> list[list[Tensor | None]]:
    """autograd's own gradients, a task at a time; the graph stays."""
    inputs = problem.params if of is None else of
    return [
        list(torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True))
        for loss in problem.apart or problem.losses
    ]


def gram(rows: list[list[Tensor | None]], columns: list[int]) -> Tensor:
    """Their inner products over some of the parameters."""
    flat = []
    for row in rows:
        like = [next(r[p] for r in rows if r[p] is not None) for p in columns]
        parts = [
            torch.zeros_like(m) if row[p] is None else row[p]
            for p, m in zip(columns, like, strict=True)
        ]
        real = [torch.view_as_real(part) if part.is_complex() else part for part in parts]
        flat.append(torch.cat([part.reshape(-1) for part in real]))
    G = torch.stack(flat)
    return G @ G.T
