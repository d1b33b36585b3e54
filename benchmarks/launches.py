"""Blocks of each launch of the row kernels on a GPU, as the host's launch arithmetic gives them.

combine, graddrop, trimmed_mean, excess and the first pass of track_gram take one block a segment.
The first column has the segments that a Gram matrix keeps, whose number its workspace bounds; the
row kernels took those once. The second has their own.

    python -m benchmarks.launches [model ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.suite.cases import CASES, numel
from mtlkernels.dispatch import native

TASKS = (2, 8, 16, 32, 64, 100, 200, 448)


def smallest_and_sum(blocks: Sequence[int]) -> str:
    return f"{len(blocks):4} {min(blocks):6} {sum(blocks) / len(blocks):9.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Blocks of each launch of the row kernels.")
    parser.add_argument("model", nargs="*", default=["resnet50"])
    chosen = parser.parse_args(arguments).model
    if native is None:
        raise SystemExit("the launch arithmetic is native: build with `pip install .`")
    print("launches, blocks of the smallest launch, blocks of a launch on average")
    for name in chosen:
        numels = [numel([shape]) for shape in CASES[name]()]
        print(f"\n{name}: {len(numels)} parameters, {sum(numels):,} elements")
        print("    T   a Gram matrix's segments   their own segments")
        for T in TASKS:
            before, after = (native.launches(numels, T, gram) for gram in (True, False))
            print(f"{T:5}   {smallest_and_sum(before)}     {smallest_and_sum(after)}")


if __name__ == "__main__":
    main()
