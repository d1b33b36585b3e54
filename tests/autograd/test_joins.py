"""Losses that select from a joined tensor: where heads would pass for shared, and where not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.functional import cosine_similarity
from trunks import MODELS, Model

import mtlkernels
from mtlkernels import Sum
from mtlkernels.autograd.backwards import starts
from mtlkernels.autograd.cut import reached_by
from mtlkernels.autograd.graph import entries_of_one_join
from mtlkernels.autograd.joins import root

TASKS, BATCH = 3, 6


class Net(nn.Module):
    """A trunk and three heads of one output each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5))
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(TASKS))
        self.x, self.y = torch.randn(BATCH, 4), torch.randn(BATCH, TASKS)

    def outputs(self) -> list[Tensor]:
        z = self.trunk(self.x)
        return [head(z) for head in self.heads]

    def cat(self) -> Tensor:
        return torch.cat(self.outputs(), dim=1)

    def losses(self) -> list[Tensor]:
        return [error(out, self.y[:, t : t + 1]) for t, out in enumerate(self.outputs())]


def error(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def of_columns(net: Net, column: Callable[[Tensor, int], Tensor], join: Tensor) -> list[Tensor]:
    return [error(column(join, t), net.y[:, t].reshape(-1)) for t in range(TASKS)]


def columns(join: Tensor, of: Callable[[Tensor], Tensor]) -> list[Tensor]:
    return [of(join[:, t]) for t in range(TASKS)]


def trunk_penalty(net: Net) -> Tensor:
    return sum((p.square().sum() for p in net.trunk.parameters()), torch.zeros(()))


def written(net: Net, dim: int) -> Tensor:
    buffer = torch.zeros(BATCH, TASKS) if dim else torch.zeros(TASKS, BATCH)
    for t, out in enumerate(net.outputs()):
        if dim:
            buffer[:, t] = out[:, 0]
        else:
            buffer[t] = out[:, 0]
    return buffer if dim else buffer.t()


def written_views(net: Net) -> list[Tensor]:
    """Parts of a buffer that were taken before it was written to."""
    buffer = net.trunk(net.x).mean() * torch.ones(TASKS, BATCH)
    views = [buffer.view(-1)[t * BATCH : (t + 1) * BATCH] for t in range(TASKS)]
    for view, out in zip(views, net.outputs(), strict=True):
        view.copy_(out[:, 0])
    return [view.square().mean() for view in views]


def added_losses(net: Net) -> Tensor:
    buffer = torch.zeros(TASKS)
    for t, loss in enumerate(net.losses()):
        buffer[t] += loss
    return buffer


def scattered(net: Net) -> Tensor:
    buffer = torch.zeros(BATCH, TASKS)
    for t, out in enumerate(net.outputs()):
        buffer = buffer.select_scatter(out[:, 0], 1, t)
    return buffer


def chosen_rows(net: Net) -> list[Tensor]:
    """Samples of two tasks, put together by a mask and taken apart by it."""
    mine = (torch.arange(BATCH) % 2 == 0).unsqueeze(1)
    one, two, _ = net.outputs()
    out = torch.where(mine, one, two)
    return [out[mine].square().mean(), out[~mine].square().mean()]


def unrolled(net: Net) -> list[Tensor]:
    """Steps of time that each hold all tasks."""
    steps = [torch.cat([head(z) for head in net.heads], dim=1) for z in (net.trunk(net.x),) * 2]
    return [torch.stack(steps, dim=1)[..., t].square().mean() for t in range(TASKS)]


def one_selects(net: Net) -> list[Tensor]:
    out = net.cat()
    return [out[:, 0].square().mean(), out.square().mean()]


REFUSED: dict[str, Callable[[Net], Sequence[Tensor] | Tensor]] = {
    "two terms": lambda net: columns(net.cat(), lambda o: o.square().mean() + o.abs().mean()),
    "regulariser": lambda net: columns(net.cat(), lambda o: o.square().mean() + trunk_penalty(net)),
    "cosine": lambda net: columns(
        net.cat(), lambda o: 1 - cosine_similarity(o, net.y[:, 0], dim=0)
    ),
    "standardised": lambda net: columns(
        net.cat(), lambda o: ((o - o.mean()) / o.std() - 1).abs().mean()
    ),
    "written columns": lambda net: columns(written(net, 1), lambda o: o.square().mean()),
    "written rows": lambda net: columns(written(net, 0), lambda o: o.square().mean()),
    "written views": written_views,
    "added losses": added_losses,
    "scattered": lambda net: columns(scattered(net), lambda o: o.square().mean()),
    "where": chosen_rows,
    "stacked columns": lambda net: torch.stack(columns(net.cat(), lambda o: o.square().mean())),
    "stacked writes": lambda net: torch.stack(
        columns(written(net, 1), lambda o: o.square().mean())
    ),
    "learnt factor": lambda net: torch.stack(net.losses()) * nn.Parameter(torch.ones(TASKS)),
    "learnt variance": lambda net: (lambda s: torch.exp(-s) * torch.stack(net.losses()) + s)(
        nn.Parameter(torch.zeros(TASKS))
    ),
    "entries and a penalty": lambda net: [
        loss + trunk_penalty(net) for loss in torch.stack(net.losses())
    ],
    "masked_select": lambda net: of_columns(
        net, lambda o, t: o.masked_select((torch.arange(TASKS) == t).expand_as(o)), net.cat()
    ),
    "take": lambda net: of_columns(
        net, lambda o, t: o.take(torch.arange(BATCH) * TASKS + t), net.cat()
    ),
    "gather": lambda net: of_columns(
        net, lambda o, t: o.gather(1, torch.full((BATCH, 1), t)).view(-1), net.cat()
    ),
    "mask": lambda net: of_columns(
        net, lambda o, t: o[:, torch.arange(TASKS) == t].view(-1), net.cat()
    ),
    "narrow": lambda net: of_columns(net, lambda o, t: o.narrow(1, t, 1).reshape(-1), net.cat()),
    "unsafe_chunk": lambda net: of_columns(
        net, lambda o, t: o.unsafe_chunk(TASKS, 1)[t].reshape(-1), net.cat()
    ),
    "a join of joins": unrolled,
    "one selects, one reads all": one_selects,
}


@pytest.mark.parametrize("losses", REFUSED.values(), ids=list(REFUSED))
def test_heads_behind_a_join_that_losses_select_from_are_refused(losses: Callable) -> None:
    net = Net()
    wanted = r"computed from, entries of one tensor.*own entry before they are put.*shared="
    with pytest.raises(ValueError, match=wanted):
        mtlkernels.backward(losses(net), list(net.parameters()), Sum())
    assert all(p.grad is None for p in net.parameters())
    mtlkernels.backward(losses(net), list(net.parameters()), Sum(), shared=net.trunk.parameters())


def scaled_entries(losses: list[Tensor]) -> list[Tensor]:
    return [(t + 1.0) * loss for t, loss in enumerate(torch.stack(losses))]


def written_to(losses: list[Tensor], order: Sequence[int] = range(TASKS)) -> Tensor:
    vector = torch.zeros(TASKS)
    for t in order:
        vector[t] = losses[t]
    return vector


def written_over(losses: list[Tensor]) -> Tensor:
    """Each entry twice, the first time with another loss."""
    vector = torch.zeros(TASKS)
    for found in (losses[::-1], losses):
        for t, loss in enumerate(found):
            vector[t] = loss
    return vector


def written_in_place(losses: list[Tensor]) -> Tensor:
    """Over a stack, and a slice of two at a time."""
    vector = torch.stack(losses[::-1]) * 1.0
    vector[0] = losses[0]
    vector[1:] = torch.stack(losses[1:])
    return vector


def parts(losses: list[Tensor]) -> Tensor:
    return torch.cat([torch.stack(losses[:1]), torch.zeros(0), torch.hstack(losses[1:])])


SEEN_THROUGH: dict[str, Callable[[list[Tensor]], Sequence[Tensor] | Tensor]] = {
    "stack": torch.stack,
    "unbound": lambda losses: torch.stack(losses).unbind(0),
    "scaled entries": scaled_entries,
    "cat": lambda losses: torch.cat([loss.view(1) for loss in losses]),
    "cat, unsqueezed": lambda losses: 2.0 * torch.cat([loss.unsqueeze(0) for loss in losses]),
    "hstack": torch.hstack,
    "parts": parts,
    "slices": lambda losses: [torch.hstack(losses)[t : t + 1] for t in range(TASKS)],
    "from behind": lambda losses: [torch.hstack(losses)[t - TASKS] for t in range(TASKS)],
    "split": lambda losses: [part.squeeze() for part in torch.hstack(losses).split(1)],
    "written": written_to,
    "written backwards": lambda losses: written_to(losses, range(TASKS)[::-1]),
    "written over": written_over,
    "written in place": written_in_place,
    "written and scaled": lambda losses: (written_to(losses) * torch.arange(1, 4)).unbind(),
    "written and cloned": lambda losses: written_to(losses).clone().double(),
    "written as double": lambda losses: written_to([loss.double() for loss in losses]),
    "written twice": lambda losses: written_to(list(written_to(losses))),
    "stack of a cat": lambda losses: torch.stack(list(torch.hstack(losses))),
    "written from a stack": lambda losses: written_to(list(torch.stack(losses) * 0.5)),
    "stack of a stack": lambda losses: torch.stack(list(torch.stack(losses))),
    "scaled twice": lambda losses: torch.stack(scaled_entries(losses)) * torch.tensor([1, -2, 3]),
    "three levels": lambda losses: torch.stack(
        scaled_entries(torch.stack(losses).mul(0.5).unbind())
    ),
}


@pytest.mark.parametrize("form", SEEN_THROUGH.values(), ids=list(SEEN_THROUGH))
def test_stacks_are_seen_through_to_the_losses(form: Callable) -> None:
    net = Net()
    plain = net.losses()
    joined = form(plain)
    entries = joined.unbind() if isinstance(joined, Tensor) else joined
    assert not entries_of_one_join(entries)
    params = list(net.parameters())
    for loss, entry in zip(plain, entries, strict=True):
        start, seed = root(entry)
        assert behind(start.node) is loss.grad_fn
        expected = torch.autograd.grad(entry, net.trunk.parameters(), retain_graph=True)
        found = torch.autograd.grad(start, net.trunk.parameters(), seed, retain_graph=True)
        torch.testing.assert_close(found, expected)
    assert shared_of(entries, params) == set(map(id, net.trunk.parameters()))


def test_an_entry_without_a_graph_is_named() -> None:
    net = Net()
    losses = net.losses()
    losses[1] = losses[1].detach()
    some = torch.zeros(TASKS)
    some[0], some[2] = losses[0], losses[2]
    for joined in (torch.stack(losses), torch.hstack(losses), written_to(losses), some):
        with pytest.raises(
            ValueError, match=r"loss 1 of (the stack|those in one tensor) has no graph"
        ):
            mtlkernels.backward(joined, list(net.parameters()), Sum())


@pytest.mark.parametrize("form", SEEN_THROUGH.values(), ids=list(SEEN_THROUGH))
def test_heads_get_what_they_get_without_the_join(form: Callable) -> None:
    net, apart = Net(), Net()
    joined = form(net.losses())
    entries = joined.unbind() if isinstance(joined, Tensor) else joined
    factors = [
        entry.item() / loss.item() for entry, loss in zip(entries, apart.losses(), strict=True)
    ]
    optimizer = mtlkernels.MTLOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), "mgda")
    optimizer.backward(joined)
    plain = [factor * loss for factor, loss in zip(factors, apart.losses(), strict=True)]
    mtlkernels.backward(plain, list(apart.parameters()), mtlkernels.MGDA())
    for mine, expected in zip(net.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad)


def behind(node: Node) -> Node:
    """The loss's own node: a view or a conversion may stand before it."""
    while "Mean" not in node.name():
        node = node.next_functions[0][0]
    return node


def shared_of(losses: Sequence[Tensor], params: Sequence[Tensor]) -> set[int]:
    reached = reached_by(starts(losses).edges, params)
    return {id(p) for i, p in enumerate(params) if sum(i in own for own in reached) >= 2}


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_joins_inside_a_trunk_need_no_names(model: Callable[[], Model]) -> None:
    torch.manual_seed(0)
    losses, trunk, heads = model()
    shared = [p for part in trunk for p in part.parameters()]
    params = [*shared, *(p for head in heads for p in head.parameters())]
    assert shared_of(losses, params) == set(map(id, shared))
    mtlkernels.backward(losses, params, Sum())


def test_a_custom_function_of_several_inputs_is_taken_for_a_layer() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, weight = ctx.saved_tensors
            return grad @ weight.T, x.T @ grad

    parts, shared = [nn.Linear(4, 2) for _ in range(2)], nn.Parameter(torch.randn(4, 3))
    x = torch.randn(6, 4)
    out = Product.apply(torch.cat([part(x) for part in parts], dim=1), shared)
    losses = list(out.square().mean(0))
    params = [shared, *(p for part in parts for p in part.parameters())]
    assert shared_of(losses, params) == set(map(id, params))
    mtlkernels.backward(losses, params, Sum())


def test_a_way_through_a_single_number_reads_the_whole_join() -> None:
    net = Net()
    out = net.cat()
    losses = columns((out - out.mean()) / out.std(), lambda o: o.square().mean())
    assert not entries_of_one_join(losses)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
def test_nested_tensors_are_looked_at_too(layout: torch.layout) -> None:
    net = Net()
    trunk, heads = net.trunk(net.x), net.outputs()
    for joined, refused in ([trunk, trunk[:2]], False), (heads[:2], True):
        rows = torch.nested.as_nested_tensor(joined, layout=layout) * 2
        losses = [part.square().mean() for part in rows.unbind()]
        assert entries_of_one_join(losses) == refused


def test_long_graphs_are_walked_in_a_time_that_grows_with_them() -> None:
    """2^400 ways lead down; a buffer written to step by step is as deep as it is long."""
    net = Net()
    out = net.cat()
    for _ in range(400):
        out = out.sin() + out.cos()
    assert entries_of_one_join(columns(out, lambda o: o.mean()))
    buffer = torch.zeros(2000, 2)
    for t in range(2000):
        buffer[t] = net.heads[0](net.trunk(net.x)[0])
    assert not entries_of_one_join([buffer[:, 0].sum(), buffer[:, 1].sum()])


def test_a_graph_that_was_looked_at_is_let_go() -> None:
    net = Net()
    out = net.cat()

    def hook(*_: object) -> None:
        """What the graph alone holds."""

    out.grad_fn.register_hook(hook)
    gone = weakref.ref(hook)
    assert entries_of_one_join(columns(out, lambda o: o.mean()))
    del hook, out
    gc.collect()
    assert gone() is None
