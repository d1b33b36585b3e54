"""What the sanitizers watch: each kernel over lists and a few solvers, on sizes at the edges."""

from __future__ import annotations

import torch

from benchmarks.gpu_check.records import Records, device
from benchmarks.gpu_check.timing import synchronize
from mtlkernels import CAGrad, PCGrad, UPGrad, ops


@torch.no_grad()
def main() -> None:
    records = Records.of_this_stage()
    for T in (2, 9):
        for dtype in (torch.float32, torch.bfloat16):
            sizes = (3, 5000, 17)
            grads = [torch.randn(n, device=device()).to(dtype) for _ in range(T) for n in sizes]
            K = ops.gram(grads, T)
            for method in (PCGrad(), CAGrad(), UPGrad()):
                ops.combine(grads, method.to(device())(K))
            seed, step = torch.zeros(2, dtype=torch.int64, device=device())
            ops.graddrop(grads, T, seed, step, torch.zeros(T, device=device()).double())
            ops.trimmed_mean(grads, T, (T - 1) // 2)
            synchronize()
            records.add("ran", T=T, dtype=str(dtype)[6:])


if __name__ == "__main__":
    main()
