"""From per-task gradients to the direction: ours beside a copy of the same bytes and the peers.

    python benchmarks/combine.py [--cases resnet18,lenet] [--tasks 2,3,4,8] [--dtype float32]

One set of gradients, which for a small network the cache holds, as it does right after a backward;
`python -m mtlkernels bench` rotates among many, and has more around it: see docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys

from mtlkernels.bench import main as bench
from mtlkernels.bench.cases import CASES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", default="resnet18,lenet", help=f"of {', '.join(CASES)}")
    parser.add_argument("--tasks", default="2,3,4,8", help="numbers of tasks")
    parser.add_argument("--dtype", default="float32", help="float32, float64, bfloat16, float16")
    parser.add_argument("--threads", default="2", help="torch's threads")
    parser.add_argument("--seconds", default="8", help="budget of a table")
    options = parser.parse_args()
    arguments = ["--case", options.cases, "--tasks", options.tasks, "--dtype", options.dtype]
    arguments += ["--threads", options.threads, "--seconds", options.seconds]
    return bench([*arguments, "--suites", "providers", "--cached"])


if __name__ == "__main__":
    sys.exit(main())
