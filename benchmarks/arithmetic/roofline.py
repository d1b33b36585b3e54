"""What the GPU kernels must move and compute, and the time that leaves: on paper.

    python -m benchmarks.arithmetic.roofline [--dtype float32]

gram reads T N elements, combine reads T N and writes N. A multiply-add is one instruction: gram has
T (T + 1) / 2 of them a column of T elements, combine has T. GradDrop is one kernel that moves what
combine does, draws a number an element by some twenty integer instructions, which run at half the
rate of multiply-adds, and has four instructions an element read. gram's multiply-adds are float64,
after a conversion of each element. Expected microseconds are the
bytes over the memory bandwidth of the data sheet plus one launch of 3 us a kernel; gradients that
stay in a cache take less, so small cases are launches and little else. No number here was measured.
"""

from __future__ import annotations

import argparse

from benchmarks.suite.cases import CASES, numel

# Bytes a second, and instructions a second of float32 (a multiply-add is one), of float64, and of
# conversions to float64: from the data sheets and the programming guide's table of throughputs.
GPUS = {
    "H200": (4.8e12, 33.5e12, 16.7e12, 4.2e12),
    "A100-80GB": (2.04e12, 9.75e12, 4.87e12, 2.44e12),
    "RTX 4090": (1.01e12, 41.3e12, 0.65e12, 0.65e12),
}
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
SHOWN = ("lenet", "resnet18", "resnet50", "vit_b", "segnet_mtan", "lora")
LAUNCH = 3e-6
DRAW, DROP = 40, 4  # GradDrop's instructions an element written, and an element read
LAUNCHES = 3  # gram, the method's weights, combine


def moved(n: int, tasks: int, size: int) -> tuple[int, int]:
    """Bytes that gram and combine move."""
    return tasks * n * size, (tasks + 1) * n * size


def multiply_adds(n: int, tasks: int) -> tuple[int, int]:
    """Of gram and combine."""
    return tasks * (tasks + 1) // 2 * n, tasks * n


def expected_seconds(n: int, tasks: int, size: int, gpu: str) -> float:
    """For each kernel the longer of memory and arithmetic, and the launches."""
    bandwidth, rate, wide_rate, conversions = GPUS[gpu]
    (read, written), (products, terms) = moved(n, tasks, size), multiply_adds(n, tasks)
    gram = max(read / bandwidth, products / wide_rate + tasks * n / conversions)
    return gram + max(written / bandwidth, terms / rate) + LAUNCHES * LAUNCH


def graddrop_seconds(n: int, tasks: int, size: int, gpu: str) -> float:
    """The longer of memory and arithmetic, and one launch."""
    bandwidth, rate, _, _ = GPUS[gpu]
    return max(moved(n, tasks, size)[1] / bandwidth, (DRAW + DROP * tasks) * n / rate) + LAUNCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", default="float32", choices=SIZES)
    parser.add_argument("--tasks", default="2,3,8", help="numbers of tasks")
    options = parser.parse_args()
    size = SIZES[options.dtype]
    head = ["case", "tensors", "N", "T", "gram MB", "combine MB", "gram fma/element read"]
    head += [f"{gpu}, us" for gpu in GPUS] + [f"GradDrop {gpu}, us" for gpu in GPUS] + ["measured"]
    print(f"{options.dtype}; expected microseconds from gradients to direction, on paper\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for name in SHOWN:
        shapes = CASES[name]()
        n = numel(shapes)
        for tasks in map(int, options.tasks.split(",")):
            first, second = moved(n, tasks, size)
            row = [name, f"{len(shapes)}", f"{n:,}", f"{tasks}"]
            row += [f"{first / 1e6:.1f}", f"{second / 1e6:.1f}", f"{(tasks + 1) / 2:.1f}"]
            row += [f"{expected_seconds(n, tasks, size, gpu) * 1e6:.0f}" for gpu in GPUS]
            row += [f"{graddrop_seconds(n, tasks, size, gpu) * 1e6:.0f}" for gpu in GPUS]
            print("| " + " | ".join([*row, "no run committed yet"]) + " |")


if __name__ == "__main__":
    main()
