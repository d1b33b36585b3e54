"""The planner: every element of every parameter belongs to exactly one piece of work."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mtlkernels

_C = pytest.importorskip(
    "mtlkernels._C",
    reason="the planner is native: this package was built with MTLKERNELS_NO_EXT=1",
)

ALIGN, BLOCK, WORKSPACE, MAX_SEGMENTS = 16, 4096, 1 << 20, 1024

SIZES = st.one_of(
    st.sampled_from([0, 1, 15, 16, 17, 4095, 4096, 4097, 2**20, 2**31 - 1, 2**31, 2**31 + 1]),
    st.integers(0, 100),
    st.integers(0, 50_000),
    st.integers(0, 2**41),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(SIZES, max_size=40), st.integers(1, 600))
@example([], 1)
@example([0, 0], 3)
@example([0, 1, 0], 2)
@example([2**40 + 3, 0, 2**31 + 1, 7], 2)
@example([16] * 3000, 64)
@example([1] * 3000, 361)
def test_pieces_cover_each_parameter_once(numels: list[int], tasks: int) -> None:
    plan = _C.plan(numels, tasks)
    offsets, segments = plan["offsets"], plan["segments"]

    ends = [at + n for at, n in zip(offsets, numels, strict=False)]
    assert offsets[0] == 0
    assert len(offsets) == len(numels) + 1
    assert plan["flat_length"] == offsets[-1]
    assert offsets == mtlkernels.ops.flat_offsets(numels)
    assert all(at % ALIGN == 0 for at in offsets)
    assert all(0 <= next_at - end < ALIGN for end, next_at in zip(ends, offsets[1:], strict=True))

    covered = [0] * len(numels)
    last = (-1, -1)
    for pieces in segments:
        assert pieces
        for param, begin, length, flat in pieces:
            assert length > 0
            assert begin == covered[param]
            assert flat == offsets[param] + begin
            assert (param, begin) > last
            covered[param] += length
            last = (param, begin)
    assert covered == numels


@settings(max_examples=200, deadline=None)
@given(st.lists(SIZES, max_size=40), st.integers(1, 600))
@example([2**41], 1)
@example([2**41], 361)
@example([2**41], 362)
def test_segments_are_bounded_and_end_at_blocks(numels: list[int], tasks: int) -> None:
    segments = _C.plan(numels, tasks)["segments"]
    pairs = tasks * (tasks + 1) // 2
    assert len(segments) <= MAX_SEGMENTS
    assert len(segments) <= 1 or len(segments) * pairs * 8 <= WORKSPACE
    starts = {pieces[0][3] // BLOCK for pieces in segments}
    assert len(starts) == len(segments)
    for pieces in segments[1:]:
        param, begin, _, flat = pieces[0]
        # A segment starts at a block, unless only padding lies between that block and its piece.
        assert flat % BLOCK == 0 or begin == 0
        assert param > 0 or begin > 0


@pytest.mark.parametrize(("tasks", "message"), [(0, "at least 1"), (-1, "at least 1")])
def test_refuses_fewer_tasks_than_one(tasks: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.plan([3], tasks)


def test_refuses_negative_sizes() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        _C.plan([3, -1], 2)


@pytest.mark.parametrize("gram", [True, False])
@settings(max_examples=100, deadline=None)
@given(numels=st.lists(SIZES, max_size=40), tasks=st.integers(1, 448))
def test_launches_cover_every_segment(numels: list[int], tasks: int, gram: bool) -> None:
    """Two launches may share one: where a table ends inside it."""
    segments = len(_C.plan(numels, tasks, gram)["segments"])
    launches = _C.launches(numels, tasks, gram)
    assert all(blocks >= 1 for blocks in launches)
    assert segments <= sum(launches) <= segments + max(0, len(launches) - 1)
    assert len(launches) == -(-sum(n > 0 for n in numels) // (4063 // (tasks + 2)))


@pytest.mark.parametrize("tasks", [1, 8, 32, 64, 100, 200, 448])
def test_row_kernels_have_blocks_enough_for_any_number_of_tasks(tasks: int) -> None:
    """Where a Gram matrix keeps few segments: 25 million elements in 160 tensors."""
    launches = _C.launches([160_000] * 160, tasks)
    assert min(launches[:-1] or launches) >= 256
    assert sum(launches) >= 850


def test_refuses_more_tasks_than_a_table_holds() -> None:
    with pytest.raises(ValueError, match="no table holds"):
        _C.launches([3], 5000)
