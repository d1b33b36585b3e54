"""Models that join tensors in their trunk: what losses share there their graph tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

# Losses, the modules that at least two of them share, and those that they do not.
Model = tuple[list[Tensor], list[nn.Module], list[nn.Module]]


def linear_heads(width: int, features: Sequence[Tensor]) -> tuple[list[Tensor], list[nn.Module]]:
    """A loss a feature, of a layer of its own."""
    heads: list[nn.Module] = [nn.Linear(width, 2) for _ in features]
    return [head(z).square().mean() for head, z in zip(heads, features, strict=True)], heads


def plain() -> Model:
    trunk = nn.Linear(4, 5)
    losses, heads = linear_heads(5, [trunk(torch.randn(6, 4)).relu()] * 3)
    return losses, [trunk], heads


class Tokens(nn.Module):
    """A vision transformer but for its heads: a class token beside patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.place = nn.Parameter(torch.zeros(1, 5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        joined = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1)
        return self.block(joined + self.place)


def class_token() -> Model:
    trunk = Tokens()
    losses, heads = linear_heads(8, [trunk(torch.randn(2, 1, 4, 4))[:, 0]] * 2)
    return losses, [trunk], heads


def class_token_without_heads() -> Model:
    """The block that reads all tokens reaches what the token and its way around do not."""
    trunk = Tokens()
    z = trunk(torch.randn(2, 1, 4, 4))
    return [z[:, 0].square().mean(), z[:, 1:].abs().mean()], [trunk], []


def skips() -> Model:
    down, deep, up = (
        nn.Conv2d(1, 3, 3, padding=1),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(7, 4, 1),
    )
    early = down(torch.randn(2, 1, 4, 4)).relu()
    late = interpolate(deep(max_pool2d(early, 2)), scale_factor=2)
    z = up(torch.cat([early, late], dim=1))
    heads = [nn.Conv2d(4, k, 1) for k in (1, 2)]
    return [head(z).square().mean() for head in heads], [down, deep, up], heads


def channels_of_a_net_with_skips() -> Model:
    """No heads: the last layer's channels are the tasks'."""
    trunk = skips()[1]
    early = trunk[0](torch.randn(2, 1, 4, 4))
    out = trunk[2](torch.cat([early, trunk[1](early)], dim=1))
    return [out[:, :2].square().mean(), out[:, 2:].abs().mean()], trunk, []


def last_output(trunk: nn.RNNBase) -> Model:
    losses, heads = linear_heads(5, [trunk(torch.randn(3, 4, 2))[0][:, -1]] * 2)
    return losses, [trunk], heads


def steps_of_a_cell() -> Model:
    """Each step of time holds what all losses reach."""
    cell, layer = nn.RNNCell(2, 4), nn.Linear(4, 3)
    state, outputs = torch.zeros(3, 4), torch.zeros(3, 3, 3)
    for t in range(3):
        state = cell(torch.randn(3, 2), state)
        outputs[:, t] = layer(state)
    return [outputs[..., k].square().mean() for k in range(3)], [cell, layer], []


def dense() -> Model:
    first, second = nn.Linear(4, 3), nn.Linear(7, 3)
    x = torch.randn(6, 4)
    x = torch.cat([x, first(x).relu()], dim=1)
    x = torch.cat([x, second(x).relu()], dim=1)
    losses, heads = linear_heads(10, [x] * 3)
    return losses, [first, second], heads


def experts() -> Model:
    """Gates of a task's own over experts."""
    x, layers = torch.randn(6, 4), [nn.Linear(4, 5) for _ in range(3)]
    joined = torch.stack([layer(x).relu() for layer in layers], dim=1)
    gates = [nn.Linear(4, 3) for _ in range(2)]
    mixed = [(gate(x).softmax(1).unsqueeze(2) * joined).sum(1) for gate in gates]
    losses, heads = linear_heads(5, mixed)
    return losses, [*layers], [*gates, *heads]


def cross_stitch() -> Model:
    x, layers = torch.randn(6, 4), [nn.Linear(4, 5) for _ in range(2)]
    units = nn.ParameterList([torch.eye(2)])
    joined = torch.stack([layer(x) for layer in layers])
    mixed = (units[0][:, :, None, None] * joined).sum(1).unbind()
    losses, heads = linear_heads(5, mixed)
    return losses, [*layers, units], heads


def attention_masks() -> Model:
    x, layers = torch.randn(6, 4), [nn.Linear(4, 5) for _ in range(2)]
    joined = torch.cat([layer(x).relu() for layer in layers], dim=1)
    masks = [nn.Linear(10, 10) for _ in range(3)]
    losses, heads = linear_heads(10, [mask(joined).sigmoid() * joined for mask in masks])
    return losses, [*layers], [*masks, *heads]


def chunks() -> Model:
    trunk = nn.Linear(4, 9)
    losses, heads = linear_heads(3, trunk(torch.randn(6, 4)).chunk(3, dim=1))
    return losses, [trunk], heads


def joined_with_data() -> Model:
    """The target stands beside each output; the heads' outputs are joined with no other head's."""
    trunk = nn.Linear(4, 5)
    z, heads = trunk(torch.randn(6, 4)), [nn.Linear(5, 1) for _ in range(2)]
    pairs = [torch.cat([head(z), torch.randn(6, 1)], dim=1) for head in heads]
    return [(p[:, 0] - p[:, 1]).square().mean() for p in pairs], [trunk], [*heads]


def whole_joins() -> Model:
    """Losses that read all outputs share all heads."""
    trunk = nn.Linear(4, 5)
    z, heads = trunk(torch.randn(6, 4)), [nn.Linear(5, 1) for _ in range(2)]
    out = torch.cat([head(z) for head in heads], dim=1)
    return [out.square().mean(), out.softmax(1).amax()], [trunk, *heads], []


def boxes() -> Model:
    """A head of several outputs, its part for boxes decoded in place."""
    trunk, head = nn.Linear(4, 5), nn.Linear(5, 6)
    out = head(trunk(torch.randn(6, 4))).clone()
    out[:, :2] = out[:, :2].sigmoid()
    return [out[:, :2].square().mean(), out[:, 2].abs().mean()], [trunk, head], []


def join_of_ones_own() -> Model:
    """Parts that one loss alone selects from."""
    trunk = nn.Linear(4, 5)
    z, heads = trunk(torch.randn(6, 4)), [nn.Linear(5, 1) for _ in range(3)]
    out = torch.cat([head(z) for head in heads[:2]], dim=1)
    mine = out[:, 0].square().mean() + out[:, 1].abs().mean()
    return [mine, heads[2](z).square().mean()], [trunk], [*heads]


MODELS: dict[str, Callable[[], Model]] = {
    "plain": plain,
    "class token": class_token,
    "class token without heads": class_token_without_heads,
    "skips": skips,
    "channels of a net with skips": channels_of_a_net_with_skips,
    "LSTM": lambda: last_output(nn.LSTM(2, 5, batch_first=True)),
    "deep GRU": lambda: last_output(nn.GRU(2, 5, num_layers=2, batch_first=True)),
    "steps of a cell": steps_of_a_cell,
    "dense": dense,
    "experts": experts,
    "cross-stitch": cross_stitch,
    "attention masks": attention_masks,
    "chunks": chunks,
    "joined with data": joined_with_data,
    "whole joins": whole_joins,
    "boxes": boxes,
    "a join of one's own": join_of_ones_own,
}
