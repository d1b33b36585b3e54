"""What the build decides about the CUDA library, and what the backends say of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_tools import ROOT

import mtlkernels

# Ops with a kernel on one device alone, which plain torch serves on the other.
ON_ONE_DEVICE: list[str] = []

DECIDE = """
import setuptools, sys
from pathlib import Path
setuptools.setup = lambda **_: None
sys.path.insert(0, ".")
import setup
print({call})
"""


def decide(call: str, force: str | None = None) -> subprocess.CompletedProcess[str]:
    """A call of setup.py's functions, without a build."""
    kept = {k: v for k, v in os.environ.items() if k != "FORCE_CUDA"}
    chosen = {} if force is None else {"FORCE_CUDA": force}
    return subprocess.run(
        [sys.executable, "-c", DECIDE.format(call=call)],
        env={**kept, "MTLKERNELS_NO_EXT": "1", **chosen},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


WITH = "Path('/x'), (13, 0)"
WITHOUT = "None, (0, 0)"


@pytest.mark.parametrize(
    ("torch_cuda", "toolkit", "force", "wanted"),
    [
        ("13.0", WITH, None, "True"),
        ("12.8", WITH, None, "True"),
        ("13.0", WITH, "0", "False"),
        ("13.0", WITHOUT, None, "False"),
        ("13.0", WITHOUT, "0", "False"),
        ("12.8", "Path('/x'), (11, 8)", None, "False"),
        (None, WITH, None, "False"),
        (None, WITH, "0", "False"),
        (None, WITH, "1", "True"),
    ],
)
def test_when_cuda_is_built(
    torch_cuda: str | None, toolkit: str, force: str | None, wanted: str
) -> None:
    done = decide(f"setup.wants_cuda({torch_cuda!r}, {toolkit})", force)
    assert done.stdout.strip() == wanted, done.stderr


@pytest.mark.parametrize(
    ("torch_cuda", "toolkit", "force", "said"),
    [
        ("13.0", WITHOUT, None, "building for the CPU alone, though torch has CUDA 13.0: no nvcc"),
        ("12.8", "Path('/x'), (11, 8)", None, "nvcc is 11.8: version 12.0 or later is needed"),
        ("12.8", WITH, None, "torch has CUDA 12.8 and nvcc is 13.0: the CUDA library links"),
        ("13.0", WITH, None, ""),
        (None, WITHOUT, None, ""),
        (None, WITHOUT, "1", "FORCE_CUDA=1, but no nvcc is found"),
        (None, "Path('/x'), (11, 8)", "1", "FORCE_CUDA=1, but nvcc is 11.8"),
    ],
)
def test_what_the_build_says(
    torch_cuda: str | None, toolkit: str, force: str | None, said: str
) -> None:
    """One sentence where CUDA was to be expected and is left out, or differs from torch's."""
    done = decide(f"setup.wants_cuda({torch_cuda!r}, {toolkit})", force)
    assert done.returncode == (1 if force else 0)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == (1 if said else 0)


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        ([75, 80, 86, 87, 89, 90, 100, 103, 120], "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"),
        ([50, 60, 70, 75, 80, 86, 87, 89, 90], "7.5;8.0;8.6;8.9;9.0+PTX"),
        ([80, 90, 121], "8.0;9.0+PTX"),
    ],
)
def test_architectures_are_those_that_nvcc_knows(known: list[int], wanted: str) -> None:
    told = "\\n".join(f"compute_{number}" for number in known)
    assert decide(f"setup.architectures('{told}')").stdout.strip() == wanted


def test_what_the_library_says_it_is_for() -> None:
    flags = (
        "-gencode=arch=compute_75,code=sm_75 -gencode=arch=compute_120,code=compute_120 "
        "-gencode=arch=compute_90a,code=sm_90a"
    )
    assert decide(f"setup.code_for({flags!r})").stdout.strip() == "7.5;12.0+PTX;9.0a"


def test_backends_say_why_cuda_is_not_native() -> None:
    told = mtlkernels.backends()["cuda"]["gram"]
    if told["serves"] != "native" and not os.environ.get("MTLKERNELS_BACKEND"):
        built = list(Path(mtlkernels.__file__).parent.glob("_C_cuda*.so"))
        reason = "no CUDA library" if torch.version.cuda and not built else "has no CUDA"
        assert reason in told["others"]["native"]


def test_ops_take_their_place_in_the_dispatcher() -> None:
    """Loading needs no CUDA in torch: the library asks for torch's CUDA side at its first call."""
    built = list(Path(mtlkernels.__file__).parent.glob("_C_cuda*.so"))
    if not built:
        pytest.skip("no _C_cuda here: build it with FORCE_CUDA=1")
    code = (
        "import torch, mtlkernels; from mtlkernels import ops\n"
        f"torch.ops.load_library({str(built[0])!r})\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "print(sorted(n for n in ops.SCHEMAS if has('mtlkernels::' + n, 'CPU')"
        " != has('mtlkernels::' + n, 'CUDA')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(ON_ONE_DEVICE), done.stdout + done.stderr
