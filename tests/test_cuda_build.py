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
print(setup.wants_cuda({torch_cuda!r}, {home}))
"""


def decide(
    torch_cuda: str | None, home: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k != "FORCE_CUDA"}
    return subprocess.run(
        [sys.executable, "-c", DECIDE.format(torch_cuda=torch_cuda, home=home)],
        env={**kept, "MTLKERNELS_NO_EXT": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("torch_cuda", "home", "force", "wanted"),
    [
        ("13.0", "Path('/x')", "0", "True"),
        ("13.0", "None", "0", "False"),
        (None, "Path('/x')", "0", "False"),
        (None, "Path('/x')", "1", "True"),
    ],
)
def test_when_cuda_is_built(torch_cuda: str | None, home: str, force: str, wanted: str) -> None:
    done = decide(torch_cuda, home, FORCE_CUDA=force)
    assert done.stdout.strip() == wanted, done.stderr


def test_forced_without_nvcc_is_one_sentence() -> None:
    done = decide(None, "None", FORCE_CUDA="1")
    assert done.returncode == 1
    assert "FORCE_CUDA=1 needs nvcc" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


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
