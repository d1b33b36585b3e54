"""Which CUDA library is loaded, and what is reported where none serves the GPUs that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtlkernels import cuda_library
from mtlkernels.version import __version__

MINE = [".cpython-312-x86_64-linux-gnu.so", ".abi3.so", ".so"]
H200, T4 = ("NVIDIA H200", (9, 0)), ("Tesla T4", (7, 5))


def built(folder: Path, tag: str = MINE[0], version: str = __version__, codes: str = "9.0") -> Path:
    """A file that says what a library says, between what is not text."""
    path = folder / f"_C_cuda{tag}"
    path.write_bytes(
        b"\x7fELF\0\xff" + cuda_library.MARK + f"{version} for {codes}".encode() + b"\0\1"
    )
    return path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was loaded, in a process whose torch has CUDA and whose GPU is an H200."""
    paths: list[str] = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.ops, "load_library", paths.append)
    monkeypatch.setattr(cuda_library, "FOLDER", tmp_path)
    monkeypatch.setattr(cuda_library, "EXTENSION_SUFFIXES", MINE)
    monkeypatch.setattr(cuda_library, "visible_gpus", lambda: [H200])
    return paths


def test_of_two_tags_this_pythons_is_loaded(loaded: list[str], tmp_path: Path) -> None:
    built(tmp_path, ".cpython-311-x86_64-linux-gnu.so")
    mine = built(tmp_path)
    built(tmp_path, ".cpython-39-x86_64-linux-gnu.so")
    assert cuda_library.load() is None
    assert loaded == [str(mine)]


def test_another_pythons_alone_is_not_loaded(loaded: list[str], tmp_path: Path) -> None:
    built(tmp_path, ".cpython-311-x86_64-linux-gnu.so")
    reason = cuda_library.load()
    assert reason is not None
    assert "_C_cuda.cpython-311-x86_64-linux-gnu.so was built for another Python" in reason
    assert "_C_cuda.cpython-312-x86_64-linux-gnu.so: build it with" in reason
    assert loaded == []


@pytest.mark.parametrize("version", ["0.0.9", "99.0"])
def test_another_versions_is_not_loaded(loaded: list[str], tmp_path: Path, version: str) -> None:
    built(tmp_path, version=version)
    reason = cuda_library.load()
    assert reason is not None
    assert f"is of version {version}, not {__version__}: build it again" in reason
    assert loaded == []


def test_a_library_that_does_not_say_is_not_loaded(loaded: list[str], tmp_path: Path) -> None:
    (tmp_path / f"_C_cuda{MINE[0]}").write_bytes(b"\x7fELF of an earlier commit")
    reason = cuda_library.load()
    assert reason is not None
    assert "is of version unknown" in reason
    assert loaded == []


def test_none_is_said(loaded: list[str]) -> None:
    reason = cuda_library.load()
    assert reason is not None
    assert "this build has no CUDA library" in reason


def test_a_gpu_without_kernels_is_reported_at_load(
    loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(tmp_path, codes="8.0;9.0;9.0+PTX")
    monkeypatch.setattr(cuda_library, "visible_gpus", lambda: [T4])
    assert cuda_library.load() == (
        "the CUDA library has kernels for compute capability 8.0;9.0;9.0+PTX and none for "
        'Tesla T4 (7.5): build it with TORCH_CUDA_ARCH_LIST="7.5"'
    )
    assert loaded == []


def test_beside_a_gpu_that_is_served_it_is_a_warning(
    loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(tmp_path)
    monkeypatch.setattr(cuda_library, "visible_gpus", lambda: [H200, T4])
    with pytest.warns(RuntimeWarning, match=r"none for Tesla T4 \(7\.5\)"):
        assert cuda_library.load() is None
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("codes", "capability", "runs"),
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 9), True),  # machine code runs on later minor versions of its major one
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0;8.0+PTX", (12, 0), True),
        ("12.0+PTX", (9, 0), False),
        ("9.0a", (9, 0), True),
        ("9.0a;9.0a+PTX", (10, 0), False),
        ("10.0a", (10, 3), False),
        ("7.5;8.0;9.0", (10, 0), False),
    ],
)
def test_what_code_runs_where(codes: str, capability: tuple[int, int], runs: bool) -> None:
    assert cuda_library.has_kernels(codes, capability) == runs


def test_without_nvml_no_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(cuda_library.ctypes, "CDLL", missing)
    assert cuda_library.visible_gpus() == []


class Nvml:
    """A machine with an H200 and a T4, of which only the T4 is visible."""

    GPUS = (H200, T4)

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle) -> int:  # noqa: N802
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetName(self, handle, name, size) -> int:  # noqa: N802
        name.value = self.GPUS[handle.value - 1][0].encode()
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor) -> int:  # noqa: N802
        major._obj.value, minor._obj.value = self.GPUS[handle.value - 1][1]
        return 0


def test_the_visible_gpus_are_those_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_library.ctypes, "CDLL", lambda _: Nvml())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_get_nvml_device_index", lambda device: device + 1)
    assert cuda_library.visible_gpus() == [T4]
