"""Where the time goes where a target is missed: small gradients, and those of 16 bits.

    python -m benchmarks.breakdown [--seconds 1]

Small gradients, in microseconds: "calls and lists" is the whole of gram, weights and combine on as
many tensors of one element each, "numbers" what their elements add in the cache, "cold" what
rotating among more sets than a cache holds adds to that. torchjd's better mode stands beside it.

Large ones: "arithmetic" is what gram and combine take for each element of gradients that the cache
holds, without calls and lists; "copy" what `torch.Tensor.copy_` takes for the bytes of one element,
read and written, from memory. No order of reading can make the first less than it is.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.suite.cases import CASES, gradients, numel
from benchmarks.suite.peers import Prepare, torchjd, torchjd_gram
from benchmarks.suite.providers import ours
from benchmarks.suite.timing import Run, interleaved, quartiles, rotating, sets_of

SMALL = ("lenet", "pinn")
TASKS = (2, 3, 8)
CACHED = 1 << 15  # elements: 8 tasks in float32 fit the second cache of a core
LARGE = 8_000_000


def medians(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    """Seconds of each, taken in turns."""
    return {name: quartiles(found)[1] for name, found in interleaved(runs, seconds).items()}


def small(case: str, num_tasks: int, seconds: float) -> str:
    shapes = CASES[case]()
    num_bytes = 4 * num_tasks * numel(shapes)
    many = [gradients(shapes, num_tasks, torch.float32, seed=k) for k in range(sets_of(num_bytes))]
    single = gradients([(1,)] * len(shapes), num_tasks, torch.float32)

    def cold(prepare: Prepare) -> Run:
        return rotating([prepare(grads) for grads in many])

    balance = ours(num_tasks, "pcgrad")
    peers = {"Jacobian": torchjd(num_tasks, "pcgrad"), "Gram": torchjd_gram(num_tasks, "pcgrad")}
    runs = {"lists": balance(single), "warm": balance(many[0]), "cold": cold(balance)}
    for name, peer in peers.items():
        runs |= {f"{name} warm": peer(many[0]), f"{name} cold": cold(peer)}
    us = {name: 1e6 * found for name, found in medians(runs, seconds).items()}
    warm, colder = (min(us[f"{name} {state}"] for name in peers) for state in ("warm", "cold"))
    return (
        f"{case:8}{num_tasks:3}{num_tasks * len(shapes):9}{us['lists']:17.1f}"
        f"{us['warm'] - us['lists']:9.1f}{us['cold'] - us['warm']:8.1f}"
        f"{warm:9.0f}{colder:7.0f}{warm / us['warm']:9.1f}{colder / us['cold']:7.1f}"
    )


def large(dtype: torch.dtype, num_tasks: int, seconds: float) -> str:
    balance = ours(num_tasks, "pcgrad")
    per_element = (2 * num_tasks + 1) * dtype.itemsize
    source = torch.zeros(LARGE * per_element // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    runs = {
        "lists": balance(gradients([(1,)], num_tasks, dtype)),
        "cached": balance(gradients([(CACHED,)], num_tasks, dtype)),
        "copy": lambda: target.copy_(source),
        "all": balance(gradients([(LARGE,)], num_tasks, dtype)),
    }
    taken = medians(runs, seconds)
    arithmetic = 1e12 * (taken["cached"] - taken["lists"]) / CACHED
    copy, whole = 1e12 * taken["copy"] / LARGE, 1e12 * taken["all"] / LARGE
    name = str(dtype).removeprefix("torch.")
    return (
        f"{name:10}{num_tasks:3}{arithmetic:12.0f}{copy:7.0f}{whole:7.0f}"
        f"{arithmetic / copy:19.2f}{whole / copy:12.2f}"
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.0, help="budget of a line")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"microseconds, float32, pcgrad{'ours':>25}{'torchjd':>17}{'torchjd / ours':>16}")
    print(
        f"{'case':8}{'T':>3}{'tensors':>9}{'calls and lists':>17}{'numbers':>9}{'cold':>8}"
        f"{'warm':>9}{'cold':>7}{'warm':>9}{'cold':>7}"
    )
    for case in SMALL:
        for num_tasks in TASKS:
            print(small(case, num_tasks, options.seconds), flush=True)
    print(f"\npicoseconds an element, pcgrad, one tensor of {LARGE:,} elements a task")
    print(
        f"{'dtype':10}{'T':>3}{'arithmetic':>12}{'copy':>7}{'ours':>7}"
        f"{'arithmetic / copy':>19}{'ours / copy':>12}"
    )
    for dtype in (torch.float32, torch.bfloat16):
        for num_tasks in TASKS:
            print(large(dtype, num_tasks, options.seconds), flush=True)


if __name__ == "__main__":
    main()
