"""The CUDA library through nvcc: that it compiles, and what its kernels take of a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_tools import ROOT, compiled, nvcc
from torch.utils import cpp_extension

SOURCES = sorted((ROOT / "csrc" / "torch").glob("*.cu"))
FLAGS = [
    *("-O3", "-std=c++20", "-fmad=false", "--extended-lambda", "--expt-relaxed-constexpr"),
    *("-cubin", "-Xptxas", "-v", "-Werror", "all-warnings"),
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]
THREADS, REGISTERS = 128, 65536


def cubin(source: Path) -> tuple[Path, str]:
    includes = [word for path in cpp_extension.include_paths() for word in ("-isystem", path)]
    command = [nvcc(), *FLAGS, *includes, "-arch=sm_90", str(source)]
    return compiled(f"{source.stem}_sm_90", command)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_compiles(source: Path) -> None:
    output, _ = cubin(source)
    assert output.stat().st_size > 0


def kernels(report: str) -> list[tuple[str, int, int]]:
    """(mangled name, registers, bytes spilled) of each kernel of a ptxas report."""
    entries = re.split(r"Compiling entry function '", report)[1:]
    found = []
    for entry in entries:
        name = entry.split("'")[0]
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        assert spills, entry
        assert registers, entry
        found.append((name, int(registers[1]), int(spills[1]) + int(spills[2])))
    return found


def test_list_kernels_keep_their_sums_in_registers() -> None:
    _, report = cubin(ROOT / "csrc" / "torch" / "cuda_gradient_lists.cu")
    found = kernels(report)
    for what, count in (("gram_kernel", 4 * 8 * 2), ("combine_kernel", 6 * 4 * 2)):
        assert len([name for name, _, _ in found if what in name]) == count
    for what in ("track_kernel", "excess_kernel"):
        assert len([name for name, _, _ in found if what in name]) == 4 * 2
    for name, registers, spilled in found:
        assert spilled == 0, f"{name} spills {spilled} bytes"
        assert registers * THREADS * 2 <= REGISTERS, f"{name} takes {registers} registers"


def test_row_kernels_keep_their_rows_in_registers() -> None:
    output, report = cubin(ROOT / "csrc" / "torch" / "cuda_elementwise.cu")
    found = kernels(report)
    for what in ("graddrop_kernel", "trimmed_kernel"):
        assert len([name for name, _, _ in found if what in name]) == 4 * 4 * 2
    for name, registers, spilled in found:
        assert spilled == 0, f"{name} spills {spilled} bytes"
        assert registers * THREADS * 4 <= REGISTERS, f"{name} takes {registers} registers"
    for name, code in machine_code(output).items():
        if "trimmed_kernel" in name and "Li8ELb1E" in name:
            continue  # more tasks than a thread holds: an element at a time
        assert re.search(r"LDG\.E\.128", code), f"{name} has no 16-byte load"
        assert re.search(r"STG\.E\.128", code), f"{name} has no 16-byte store"


def machine_code(path: Path) -> dict[str, str]:
    """The machine code of each function of a cubin."""
    printed = path.with_name(path.name + ".sass")
    if not printed.exists():
        command = [cuobjdump(), "-sass", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed.write_text(done.stdout)
    parts = re.split(r"Function : (\S+)", printed.read_text())[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def cuobjdump() -> str:
    beside = Path(torch.__file__).parent.parent / "triton" / "backends" / "nvidia" / "bin"
    found = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(beside))
    if found is None:
        pytest.skip("no cuobjdump: it comes with the CUDA toolkit and with triton")
    return found


def test_list_kernels_load_sixteen_bytes_at_a_time() -> None:
    output, _ = cubin(ROOT / "csrc" / "torch" / "cuda_gradient_lists.cu")
    functions = machine_code(output)
    assert any("gram_kernel" in name for name in functions)
    for name, code in functions.items():
        if "gram_kernel" in name or "combine_kernel" in name:
            assert re.search(r"LDG\.E\.128", code), f"{name} has no 16-byte load"
        if re.search("combine_kernel|track_kernel|excess_kernel", name):
            assert re.search(r"LDG\.E\.128", code), f"{name} has no 16-byte load"
            assert re.search(r"STG\.E\.128", code), f"{name} has no 16-byte store"
        # Counted are the blocks that have ended: one counter for a group of segments, one for all.
        atomics = re.findall(r"(?<![.\w])(?:ATOM|RED)[\w.]*", code)
        counters = ["ATOMG.E.INC.STRONG.GPU"] * 2 if "gram_kernel" in name else []
        assert atomics == counters, name
