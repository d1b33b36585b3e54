"""Stage "peers": what others take for the same direction, with the time that is left."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_check.records import Records, is_short
from benchmarks.gpu_check.rows import drawn
from benchmarks.gpu_check.timing import Deadline, record
from benchmarks.suite.cases import CASES
from benchmarks.suite.providers import PROVIDERS, SLOW_TO_SET_UP, Provider

METHOD = "pcgrad"
SETTINGS = [("resnet50", 3), ("resnet18", 3), ("resnet18", 8), ("vit_b", 3), ("lenet", 3)]


@torch.no_grad()
def main() -> None:
    deadline, records = Deadline(__doc__), Records.of_this_stage()
    for case, T in [("lenet", 2)] if is_short() else SETTINGS:
        grads = drawn(CASES[case](), T, torch.float32)
        for name, made in PROVIDERS.items():
            if name in SLOW_TO_SET_UP:
                continue
            if deadline.is_over():
                records.add("left out", case=case, T=T, run=name)
                continue
            record(
                records, "row", partial(_ready, made, T, grads),
                case=case, T=T, dtype="float32", run=name,
            )  # fmt: skip


def _ready(provider: Provider, T: int, grads: list[Tensor]) -> Callable[[], object]:
    return provider(T, METHOD)(grads)


if __name__ == "__main__":
    main()
