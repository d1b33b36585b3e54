"""The parts of several ranks that one process can check."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from mtlkernels import MTLOptimizer, UPGrad
from mtlkernels.aggregation.layout import group_gradients
from mtlkernels.autograd.backwards import starts
from mtlkernels.autograd.cut import reached_by
from mtlkernels.distributed import buckets as segments
from mtlkernels.distributed import collectives
from mtlkernels.distributed.buckets import Exchange, Segment, lay_out
from mtlkernels.distributed.checks import losses_of_rank


def test_reach_is_what_autograd_finds() -> None:
    """Shared by all, by some, by one; a parameter in trunk and head; two stages; none."""
    torch.manual_seed(0)
    trunk, stage = nn.Linear(3, 4), nn.Linear(4, 4)
    heads = [nn.Linear(4, 1) for _ in range(3)]
    lonely = nn.Linear(2, 2)
    params = [p for module in (trunk, stage, *heads, lonely) for p in module.parameters()]
    z = torch.tanh(trunk(torch.randn(5, 3)))
    deep = torch.tanh(stage(z))
    losses = [
        heads[0](z).mean(),
        heads[1](deep).mean() + trunk.weight.sum(),
        (heads[2](deep) * heads[0](z)).mean(),
        torch.zeros((), requires_grad=True) * 1,
        torch.zeros((), requires_grad=True),
    ]
    found = reached_by(starts(losses).edges, params)
    for loss, own in zip(losses, found, strict=True):
        grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        assert own == [p for p, grad in enumerate(grads) if grad is not None]
    assert [len(own) for own in found] == [4, 6, 8, 0, 0]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_a_segment_is_the_flat_direction_in_equal_pieces(ranks: int) -> None:
    """Whatever strides gradients come in, with zeros for absent ones, gaps and the end."""
    params = [torch.empty(3, 5), torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)]
    params += [torch.empty(0, 4), torch.empty(()), torch.empty(17)]
    row: list[Tensor | None] = [torch.randn(p.shape) for p in params]
    row[0] = torch.randn(5, 3).T
    row[3] = None
    (lane,) = lay_out(params, [1] * 5, [range(5)], {}, ranks)
    (segment,) = lane.shared
    assert segment.width % 16 == 0
    assert (segment.width - 16) * ranks < segment.whole.offsets[-1] <= segment.width * ranks
    flat = torch.full((ranks * segment.width,), torch.nan)
    segment.fill(flat, row)
    for p, view in zip(segment.whole.params, segment.whole.views(flat), strict=True):
        expected = row[p] if row[p] is not None else torch.zeros(params[p].shape)
        torch.testing.assert_close(view, expected, rtol=0, atol=0)
    total = sum(g.sum() for g in row if g is not None)
    torch.testing.assert_close(flat.sum(), total)


def test_segments_by_dtype_and_number_of_copies() -> None:
    params = [torch.empty(3), torch.empty(4).double(), torch.empty(5), torch.empty(6)]
    lanes = lay_out(params, [1, 1, 2, 2], [[0, 1], [2]], {1: [3]}, 2, torch.bfloat16)

    def told(segments: list[Segment]) -> list[tuple[int, list[int], int]]:
        return [(s.section, s.whole.params, s.whole.copies) for s in segments]

    assert [lane.dtype for lane in lanes] == [torch.bfloat16, torch.float64]
    assert [lane.direction_dtype for lane in lanes] == [torch.float32, torch.float64]
    assert told(lanes[0].shared) == [(0, [0], 1), (1, [2], 2)]
    assert told(lanes[0].heads[1]) == [(0, [3], 2)]
    assert told(lanes[1].shared) == [(0, [1], 1)]


def test_two_rows_are_on_their_way_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of T rows, whole ones: one that is sent while the one before it may not have arrived."""
    under_way: list[collectives.Pending] = []
    most = 0

    class Work:
        def wait(self) -> None:
            under_way.pop(0)

    def reduce_scatter(part: Tensor, whole: Tensor, group: object) -> collectives.Pending:
        nonlocal most
        part.copy_(whole)
        under_way.append(collectives.Pending("", Work(), whole))
        most = max(most, len(under_way))
        return under_way[-1]

    monkeypatch.setattr(collectives, "reduce_scatter", reduce_scatter)
    monkeypatch.setattr(segments.dist, "get_world_size", lambda group: 1)
    params = [torch.empty(5)]
    exchange = Exchange(lay_out(params, [1], [[0]], {}, 1), cast(Any, None))
    for t in range(5):
        exchange.send(t, [torch.full((5,), float(t))], [None])
    ((group,),) = exchange.parts(1)
    assert most == 2
    assert not under_way
    assert [row[0][0].item() for row in group.rows] == [0, 1, 2, 3, 4]


def test_a_group_has_one_host() -> None:
    """Where it needs a group of its own, that is made once."""
    hosts, groups = collectives.Hosts(), [cast(Any, object()) for _ in range(2)]
    first, second = (hosts.of(group) for group in groups)
    assert first is not second
    assert [hosts.of(group) for group in groups] == [first, second]


def test_groups_keep_the_number_of_copies_apart() -> None:
    grads = [[torch.ones(2), torch.ones(3), torch.ones(4)]]
    groups = group_gradients(grads, copies=[1, 4, 1])
    assert [(group.params, group.copies) for group in groups] == [([0, 2], 1), ([1], 4)]


def test_a_loss_that_is_none() -> None:
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    given = losses_of_rank({"a": None, "b": weight.sum()}, [weight])
    first, second = given.values
    assert given.tasks == ("a", "b")
    assert given.present == (1,)
    assert second.item() == 2
    assert first.item() == 0
    assert first.requires_grad
    assert first.dtype == torch.float64
    given = losses_of_rank((None, None), [weight])
    assert [value.item() for value in given.values] == [0, 0]
    assert given.present == ()
    with pytest.raises(ValueError, match="no losses"):
        losses_of_rank([], [weight])
    with pytest.raises(TypeError, match="not a tensor"):
        losses_of_rank([weight.sum(), 3.0], [weight])


def test_options_of_several_ranks_without_any() -> None:
    model = nn.Linear(2, 2)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="name the ranks with module="):
        MTLOptimizer(base, UPGrad(), check_ranks=True)
    with pytest.raises(TypeError, match="MTLOptimizer takes no gram="):
        MTLOptimizer(base, UPGrad(), gram="unbiased")
    with pytest.raises(ValueError, match="say how ranks share them"):
        MTLOptimizer(base, UPGrad(), module=model)
    assert type(base) is torch.optim.SGD
