"""Where each parameter lies in the collectives, and the collectives of a step over replicas.

A task's gradients go into one vector for each dtype and device. It consists of W blocks, one for
each rank, and a block of a piece of each segment: of the parameters to balance (a segment for each
part of `parts=`), and behind them, where a task brings them, of heads. So what a rank gets of one
reduce-scatter are the same elements of every task, and one all-gather returns the direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from mtlkernels.aggregation.direction import add_flat, combine_group
from mtlkernels.aggregation.layout import Group, canonical, memory_order
from mtlkernels.autograd.backwards import Row
from mtlkernels.distributed import collectives
from mtlkernels.distributed.collectives import Pending
from mtlkernels.ops import flat_offsets

_ALIGN = 16  # elements that pieces are a multiple of, as a flat direction's own offsets are


@dataclass
class Segment:
    """Parameters of one section that lie behind each other, and are cut into W equal pieces.

    Attributes:
        section: the part of `parts=` that they belong to.
        whole: the parameters' places; without gradients.
        in_order: whether each parameter's memory is row-major.
        width: elements of a piece.
    """

    section: int
    whole: Group
    in_order: list[bool]
    width: int = 0

    def fill(self, flat: Tensor, row: Row) -> None:
        """Writes P gradients into W pieces behind each other: one pass, zeros where there is none.

        flat: (W * width).
        """
        zero = flat.new_zeros(())
        pieces, at = [], 0
        for i, p in enumerate(self.whole.params):
            start, size, grad = self.whole.offsets[i], self.whole.shapes[i].numel(), row[p]
            pieces.append(zero.expand(start - at))
            if grad is None:
                pieces.append(zero.expand(size))
            else:
                grad = canonical(grad, self.whole.strides[i], self.in_order[i])
                pieces.append(grad.flatten())
            at = start + size
        pieces.append(zero.expand(len(flat) - at))
        torch.cat(pieces, out=flat)

    def part(self, rows: Sequence[Tensor]) -> Group:
        """A piece of T rows as a group of one parameter."""
        whole = self.whole
        return Group(
            [0],
            [torch.Size([self.width])],
            [(1,)],
            [[row] for row in rows],
            flat_offsets([self.width]),
            whole.direction_dtype,
            whole.copies,
        )


@dataclass
class Lane:
    """What shares one collective: one dtype, one device.

    Attributes:
        shared: segments that every task has.
        heads: task -> the segments that it brings besides.
    """

    dtype: torch.dtype
    direction_dtype: torch.dtype
    device: torch.device
    shared: list[Segment] = field(default_factory=list)
    heads: dict[int, list[Segment]] = field(default_factory=dict)

    def segments(self, task: int) -> list[Segment]:
        """Those of one task's vector."""
        return [*self.shared, *self.heads.get(task, [])]

    def all_segments(self) -> list[Segment]:
        """Those of the direction."""
        return [*self.shared, *(s for own in self.heads.values() for s in own)]


Lanes = dict[tuple[torch.dtype, torch.dtype, torch.device], Lane]


def lay_out(
    tensors: Sequence[Tensor],
    copies: Sequence[int],
    sections: Sequence[Sequence[int]],
    heads: Mapping[int, Sequence[int]],
    ranks: int,
    rows_dtype: torch.dtype | None = None,
) -> list[Lane]:
    """The lanes of a step.

    Args:
        tensors: P plain tensors.
        copies: see `Group`.
        sections: positions to balance, a list a part.
        heads: task -> positions that its vector carries besides.
        ranks: W.
        rows_dtype: what the rows of float32 tensors are kept and sent in.
    """
    lanes: Lanes = {}
    for section, members in enumerate(sections):
        for lane, segment in _segments(lanes, tensors, copies, members, section, rows_dtype):
            lane.shared.append(segment)
    for task, members in heads.items():
        for lane, segment in _segments(lanes, tensors, copies, members, 0, rows_dtype):
            lane.heads.setdefault(task, []).append(segment)
    for lane in lanes.values():
        for segment in lane.all_segments():
            whole = segment.whole
            whole.offsets = flat_offsets([shape.numel() for shape in whole.shapes])
            segment.width = -(-whole.offsets[-1] // (ranks * _ALIGN)) * _ALIGN
    return list(lanes.values())


def _segments(
    lanes: Lanes,
    tensors: Sequence[Tensor],
    copies: Sequence[int],
    members: Sequence[int],
    section: int,
    rows_dtype: torch.dtype | None,
) -> list[tuple[Lane, Segment]]:
    """The members by dtype, device and number of copies, each with its lane."""
    found: dict[object, tuple[Lane, Segment]] = {}
    for p in members:
        tensor = tensors[p]
        narrow = rows_dtype is not None and tensor.dtype == torch.float32
        dtype = rows_dtype if narrow and rows_dtype is not None else tensor.dtype
        key = (dtype, tensor.dtype, tensor.device)
        if (key, copies[p]) not in found:
            lane = lanes.setdefault(key, Lane(*key))
            whole = Group(direction_dtype=tensor.dtype, copies=copies[p])
            found[key, copies[p]] = lane, Segment(section, whole, [])
        segment = found[key, copies[p]][1]
        strides, in_order = memory_order(tensor)
        segment.whole.params.append(p)
        segment.whole.shapes.append(tensor.shape)
        segment.whole.strides.append(strides)
        segment.in_order.append(in_order)
    return list(found.values())


class Exchange:
    """One step's collectives over W replicas: T rows out, a T-th of each back, the direction in.

    `send` starts a task's reduce-scatter, which runs while the next task's backward does; two
    tasks' whole rows stand in memory at most, and of all T this rank's W-th part.
    """

    def __init__(self, lanes: Sequence[Lane], group: collectives.Group) -> None:
        self.lanes, self.group = lanes, group
        self.ranks = dist.get_world_size(group)
        self._rows: list[list[Tensor]] = [[] for _ in lanes]
        self._pending: list[list[Pending]] = [[] for _ in lanes]

    def send(self, task: int, row: Row, heads: Row) -> None:
        """Starts the reduction of a task's gradients, and of the heads' that go with them."""
        for lane, rows, pending in zip(self.lanes, self._rows, self._pending, strict=True):
            segments = lane.segments(task)
            width = sum(segment.width for segment in segments)
            own = torch.empty(width, dtype=lane.dtype, device=lane.device)
            if width:
                if len(pending) >= 2:
                    pending[-2].wait()
                whole = own.new_empty(self.ranks * width)
                shared = len(lane.shared)
                for i, (segment, at) in enumerate(_places(segments)):
                    given = row if i < shared else heads
                    if len(segments) == 1:
                        segment.fill(whole, given)
                        break
                    flat = own.new_empty(self.ranks * segment.width)
                    segment.fill(flat, given)
                    blocks = whole.view(self.ranks, width)[:, at : at + segment.width]
                    blocks.copy_(flat.view(self.ranks, segment.width))
                if lane.dtype == torch.float16:  # whose sums overflow
                    whole.div_(self.ranks)
                pending.append(collectives.reduce_scatter(own, whole, self.group))
            rows.append(own)

    def parts(self, num_sections: int) -> list[list[Group]]:
        """This rank's pieces of the mean gradients of all tasks, section by section."""
        sections: list[list[Group]] = [[] for _ in range(num_sections)]
        for lane, rows, pending in zip(self.lanes, self._rows, self._pending, strict=True):
            for work in pending:
                work.wait()
            if lane.dtype != torch.float16:
                for own in rows:
                    own.div_(self.ranks)
            for segment, at in _places(lane.shared):
                part = segment.part([own[at : at + segment.width] for own in rows])
                sections[segment.section].append(part)
        return sections

    def write(
        self,
        sections: Sequence[Sequence[Group]],
        weights: Tensor,
        head_weights: Tensor,
        tensors: Sequence[Tensor],
    ) -> None:
        """Combines this rank's pieces, gathers all ranks' and adds them to .grad.

        Args:
            sections: what `parts` gave.
            weights: (B, T), a row a section.
            head_weights: (T), of what a task brings besides.
            tensors: P, whose .grad is written.
        """
        todo = [iter(groups) for groups in sections]
        gathered = []
        for lane, rows in zip(self.lanes, self._rows, strict=True):
            own = [combine_group(next(todo[s.section]), weights[s.section]) for s in lane.shared]
            behind = sum(segment.width for segment in lane.shared)
            for task, segments in lane.heads.items():
                for segment, at in _places(segments, behind):
                    piece = rows[task][at : at + segment.width]
                    own.append(combine_group(segment.part([piece]), head_weights[task : task + 1]))
            part = own[0] if len(own) == 1 else torch.cat(own)
            whole = part.new_empty(self.ranks * len(part))
            if len(part):
                gathered.append((lane, whole, collectives.all_gather(whole, part, self.group)))
        for _, _, work in gathered:
            work.wait()
        for lane, whole, _ in gathered:
            segments = lane.all_segments()
            for segment, at in _places(segments):
                blocks = whole.view(self.ranks, -1)[:, at : at + segment.width]
                flat = blocks.reshape(-1)[: segment.whole.offsets[-1]]
                if flat.storage_offset():  # one rank: no copy was made, and views count from 0
                    flat = flat.clone()
                add_flat(segment.whole, flat, tensors)


def _places(segments: Sequence[Segment], at: int = 0) -> list[tuple[Segment, int]]:
    """Segments, and where the piece of each begins in a block."""
    found = []
    for segment in segments:
        found.append((segment, at))
        at += segment.width
    return found


def mean_rows(
    rows: Sequence[Row], tensors: Sequence[Tensor], group: collectives.Group
) -> list[Row]:
    """The mean over W ranks of whole gradients, in one all-reduce for each dtype and device.

    Args:
        rows: T lists of P gradients, None where no rank has one; the same places on all ranks.
        tensors: P plain tensors.

    Returns:
        T lists of P gradients, in their parameters' strides.
    """
    ranks = dist.get_world_size(group)
    found: list[Row] = [[None] * len(tensors) for _ in rows]
    lanes: dict[object, list[tuple[int, int]]] = {}
    for t, row in enumerate(rows):
        for p, grad in enumerate(row):
            if grad is not None:
                lanes.setdefault((grad.dtype, grad.device), []).append((t, p))
    for places in lanes.values():
        pieces = []
        for t, p in places:
            grad = rows[t][p]
            assert grad is not None
            pieces.append(canonical(grad, *memory_order(tensors[p])).flatten())
        flat = torch.cat(pieces).div_(ranks)
        collectives.add_up(flat, [group], "reducing the gradients over the ranks")
        for (t, p), piece in zip(places, flat.split([len(x) for x in pieces]), strict=True):
            strides, _ = memory_order(tensors[p])
            found[t][p] = piece.as_strided(tensors[p].shape, strides)
    return found
