"""The README's loops of "Several GPUs" as they stand there, on every process of torchrun."""

from __future__ import annotations

import copy
import gc
import re
import warnings

import torch
import torch.distributed as dist
from dist_models import whole
from test_readme import README, prelude, section


def blocks() -> list[str]:
    """Python blocks of the section, in order."""
    text = section(README.read_text(), 2, "Several GPUs")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    for code in blocks():
        names = prelude()
        model = names["model"]
        before = copy.deepcopy(model.state_dict())
        exec(compile(code, "README.md", "exec"), names)
        for name, value in model.state_dict().items():
            now = whole(value)
            assert now.isfinite().all()
            assert not torch.equal(now, before[name]), f"{name} was not trained"
    print(f"{len(blocks())} loops, rank {dist.get_rank()} of {dist.get_world_size()}")
    gc.collect()  # cycles hold the group, whose threads must end before Python does
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
