"""The loops of the guide on several GPUs, on every process of torchrun.

They run as they stand there; and with `Sum`, each rank with samples of its own, they move every
parameter as plain DistributedDataParallel and plain fully_shard do.
"""

from __future__ import annotations

import copy
import gc
import re
import warnings
from typing import Any

import torch
import torch.distributed as dist
from dist_models import whole
from loops import CLIPS, assert_same_moves, executed, swapped, under_sum
from loops import prelude as larger_prelude
from pages import ROOT, blocks, prelude
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

GUIDE = ROOT / "docs" / "guides" / "several_gpus.md"
LOOPS = blocks(GUIDE.read_text())


def moves(run: Any) -> dict[str, Tensor]:
    """How far each whole parameter moves, on this rank's half of the samples."""
    names = larger_prelude()
    mine = names["dataset"][dist.get_rank() :: dist.get_world_size()]
    names["loader"] = torch.utils.data.DataLoader(mine, batch_size=8)
    model: nn.Module = names["model"]
    before = copy.deepcopy(model.state_dict())
    run(names)
    return {name: whole(value) - before[name] for name, value in model.state_dict().items()}


def plain(names: dict[str, Any], way: str, max_norm: float) -> None:
    """The loop that people come from."""
    model = names["model"]
    if way == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        for layer in (model.trunk, *model.heads):
            fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in names["loader"]:
        optimizer.zero_grad()
        sum(names["losses"](model, batch).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()


def compare() -> None:
    for way, code in zip(("ddp", "fsdp2"), LOOPS, strict=True):
        code = re.sub(r".*init_process_group\(\)\n", "", under_sum(code))
        for max_norm in CLIPS:
            clip = (r"model\.parameters\(\), 1\.0", f"model.parameters(), {max_norm}")
            own = moves(lambda names, way=way, clip=max_norm: plain(names, way, clip))
            assert_same_moves(moves(executed(swapped(code, clip))), own)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    for code in LOOPS:
        names = prelude()
        model = names["model"]
        before = copy.deepcopy(model.state_dict())
        exec(compile(code, GUIDE.name, "exec"), names)
        for name, value in model.state_dict().items():
            now = whole(value)
            assert now.isfinite().all()
            assert not torch.equal(now, before[name]), f"{name} was not trained"
    compare()
    print(f"{len(LOOPS)} loops, rank {dist.get_rank()} of {dist.get_world_size()}")
    gc.collect()  # cycles hold the group, whose threads must end before Python does
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
