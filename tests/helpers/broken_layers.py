"""Layers that do not bear several backward passes over one graph, and a network around one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Middle = Callable[[Tensor, nn.Module], Tensor]


class Reversible(torch.autograd.Function):
    """Computes its output again in the backward, and runs a backward inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.layer(x)
        out.backward(grad)
        return x.grad, None


class ReversibleOnce(torch.autograd.Function):
    """The same, which also forgets what it saved: a second backward fails."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer, ctx.x = layer, x.detach()
        return layer(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.x.requires_grad_()
        del ctx.x
        with torch.enable_grad():
            out = ctx.layer(x)
        out.backward(grad)
        return x.grad, None


class Overwriting(torch.autograd.Function):
    """Computes the gradient in the memory of what it saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.tanh(x)
        ctx.slope = 1 - out * out
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return ctx.slope.mul_(grad)


class Forgetful(torch.autograd.Function):
    """Gives a gradient the first time only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.first = True
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        first, ctx.first = ctx.first, False
        return 2 * grad if first else None


def hooked_once(x: Tensor, layer: nn.Module) -> Tensor:
    """A deep equilibrium layer as published code writes it: the hook removes itself."""
    with torch.no_grad():
        z = torch.zeros_like(x)
        for _ in range(40):
            z = torch.tanh(0.5 * layer(z) + x)
    z = torch.tanh(0.5 * layer(z) + x)
    start = z.detach().requires_grad_()
    again = torch.tanh(0.5 * layer(start) + x)

    def solve(grad: Tensor) -> Tensor:
        handle.remove()
        found = grad
        for _ in range(40):
            found = torch.autograd.grad(again, start, found, retain_graph=True)[0] + grad
        return found

    handle = z.register_hook(solve)
    return z


def normalising_hook(x: Tensor, layer: nn.Module) -> Tensor:
    z = layer(x)
    z.register_hook(lambda grad: grad / grad.norm())
    return z


def new_dropout(x: Tensor, layer: nn.Module) -> Tensor:
    def run(x: Tensor) -> Tensor:
        return nn.functional.dropout(layer(x), 0.5)

    return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)


WRITING: dict[str, Middle] = {
    "a backward inside": lambda x, layer: Reversible.apply(x, layer),
    "a backward inside, once": lambda x, layer: ReversibleOnce.apply(x, layer),
}
CHANGING: dict[str, Middle] = {
    "overwritten": lambda x, layer: Overwriting.apply(layer(x)),
    "given once": lambda x, layer: Forgetful.apply(layer(x)),
    "a hook that removes itself": hooked_once,
    "a hook that is not linear": normalising_hook,
    "a checkpoint that draws again": new_dropout,
}


class Net(nn.Module):
    """Shared layers around what is tried, and heads."""

    def __init__(self, middle: Middle | None = None, tasks: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.third = nn.Linear(6, 5)
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(tasks))
        self.middle = middle

    def features(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.first(x))
        z = self.second(z) if self.middle is None else self.middle(z, self.second)
        return torch.tanh(self.third(z))

    def of_features(self, z: Tensor) -> list[Tensor]:
        return [(head(z) - t).square().mean() for t, head in enumerate(self.heads)]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.of_features(self.features(x))

    def shared(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if "heads" not in name]
