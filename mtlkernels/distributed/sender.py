"""The order in which T rows, and the gradients of heads, go into a step's collectives."""

from __future__ import annotations

from mtlkernels.autograd.backwards import Row
from mtlkernels.distributed.buckets import Exchange


class Sender:
    """Sends T rows in order; heads go with their own task's row, or all together with the last."""

    def __init__(self, exchange: Exchange, last: int, apart: bool) -> None:
        self.exchange, self.last, self.apart = exchange, last, apart
        self.task = 0
        self.members = {
            p
            for lane in exchange.lanes
            for segments in lane.heads.values()
            for segment in segments
            for p in segment.whole.params
        }
        self.sum: Row = []

    def send(self, row: Row) -> None:
        heads = row
        if not self.apart:
            self.sum = self.sum or [None] * len(row)
            for p in self.members:
                have, more = self.sum[p], row[p]
                if more is not None:
                    self.sum[p] = more if have is None else have + more
            heads = self.sum
        self.exchange.send(self.task, row, heads)
        self.task += 1
