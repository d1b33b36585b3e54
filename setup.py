"""Builds the native libraries; everything else about the package is in pyproject.toml.

`mtlkernels._C` needs a C++20 compiler. `mtlkernels._C_cuda` is built as well where torch has CUDA
and nvcc is found. Environment variables:

* FORCE_CUDA=1 builds `_C_cuda` with any torch, and needs nvcc alone; FORCE_CUDA=0 leaves it out;
* TORCH_CUDA_ARCH_LIST names its GPUs, for example "8.0;9.0+PTX";
* MTLKERNELS_NO_EXT=1 leaves both out and gives a pure Python package.

`pip install --no-build-isolation .` builds with the torch that is there. `pip install .` builds
with a torch that pip fetches for the build; the libraries load with any torch from 2.10 on.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

# The oldest LibTorch whose stable ABI the binary asks for: it runs on that version and later ones.
STABLE_ABI_TARGET = "0x020a000000000000"  # 2.10

# Turing to Blackwell, and code that the driver compiles for what comes after; nvcc may know fewer.
CUDA_ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
OLDEST_NVCC = (12, 0)  # C++20 in device code
# Without contraction of a * b + c the solvers round as on the CPU; kernels ask for it themselves.
NVCC_FLAGS = ["-O3", "-std=c++20", "-fmad=false", "--extended-lambda", "-lineinfo"]


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def say(sentence: str) -> None:
    """What was decided; pip shows it with -v, and where the build fails."""
    print(f"mtlkernels: {sentence}", file=sys.stderr)


def version() -> str:
    lines = Path("mtlkernels/version.py").read_text().splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("__version__"))


def cuda_home() -> Path | None:
    """The folder of the CUDA toolkit, by the usual variables, the usual place, and the path."""
    nvcc = shutil.which("nvcc")
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = [Path(p) for p in named if p] + ([Path(nvcc).resolve().parent.parent] if nvcc else [])
    return next((home for home in found if (home / "bin" / "nvcc").exists()), None)


def ask_nvcc(home: Path, option: str) -> str:
    command = [str(home / "bin" / "nvcc"), option]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def nvcc_release(told: str) -> tuple[int, int]:
    """(13, 0) from what `nvcc --version` prints; (0, 0) where it does not say."""
    found = re.search(r"release (\d+)\.(\d+)", told)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def architectures(told: str) -> str:
    """The list to build for, of those that `nvcc --list-gpu-arch` prints."""
    known = set(re.findall(r"compute_(\d+)\b", told))
    kept = [name for name in CUDA_ARCHITECTURES if name.replace(".", "") in known]
    return ";".join(kept) + "+PTX"


def wants_cuda(torch_cuda: str | None, home: Path | None, nvcc: tuple[int, int]) -> bool:
    """Whether to build the CUDA library; says why not where torch has CUDA."""
    forced = os.environ.get("FORCE_CUDA", "")
    if forced == "0":
        return False
    if home is None:
        problem = "no nvcc is found: install the CUDA toolkit and set CUDA_HOME to its folder"
    elif nvcc < OLDEST_NVCC:
        problem = f"nvcc is {nvcc[0]}.{nvcc[1]}: version 12.0 or later is needed"
    elif forced or torch_cuda is not None:
        if torch_cuda not in (None, f"{nvcc[0]}.{nvcc[1]}"):
            say(
                f"torch has CUDA {torch_cuda} and nvcc is {nvcc[0]}.{nvcc[1]}: the CUDA library "
                f"links torch's stable ABI alone, and needs a driver for CUDA {nvcc[0]}"
            )
        return True
    else:
        return False
    if forced:
        raise SystemExit(
            f"mtlkernels: FORCE_CUDA={forced}, but {problem}, or unset FORCE_CUDA to build for the "
            "CPU alone."
        )
    if torch_cuda is not None:
        say(f"building for the CPU alone, though torch has CUDA {torch_cuda}: {problem}")
    return False


def sources(*patterns: str) -> list[str]:
    return sorted(str(path) for pattern in patterns for path in Path("csrc").glob(pattern))


def extensions() -> tuple[list[Extension], dict[str, type]]:
    """The extensions to build and the build command that knows how."""
    if is_set("MTLKERNELS_NO_EXT"):
        return [], {}
    try:
        import pybind11
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise SystemExit(
            f"mtlkernels: {error.name} is needed to build the extension. Install torch, pybind11 "
            "and ninja first and build with --no-build-isolation, or set MTLKERNELS_NO_EXT=1."
        ) from error
    common = {
        "depends": sources("**/*.h", "**/*.inl", "**/*.cuh"),
        "library_dirs": cpp_extension.library_paths(),
        "language": "c++",
    }
    names = [
        ("TORCH_TARGET_VERSION", STABLE_ABI_TARGET),
        ("MTLKERNELS_VERSION", f'"{version()}"'),
    ]
    cpu = Extension(
        "mtlkernels._C",
        sources=sources("*.cpp", "torch/cpu_*.cpp", "cpu/*.cpp"),
        include_dirs=[pybind11.get_include(), *cpp_extension.include_paths()],
        libraries=["c10", "torch_cpu"],
        define_macros=[*names, ("MTLKERNELS_TORCH_VERSION", f'"{torch.__version__}"')],
        extra_compile_args=["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall"],
        **common,
    )
    built = [cpu]
    home = cuda_home()
    nvcc = nvcc_release(ask_nvcc(home, "--version")) if home else (0, 0)
    if wants_cuda(torch.version.cuda, home, nvcc):
        # A torch without CUDA does not look for the toolkit, and one with another CUDA than nvcc's
        # refuses. Only the stable ABI is linked, and that is in torch's CPU library, so the binary
        # is the same whatever torch builds it; nvcc checks the host compiler itself.
        cpp_extension.CUDA_HOME = str(home)
        cpp_extension._check_cuda_version = lambda *_: None
        wanted = os.environ.setdefault(
            "TORCH_CUDA_ARCH_LIST", architectures(ask_nvcc(home, "--list-gpu-arch"))
        )
        say(f"building for CUDA with nvcc {nvcc[0]}.{nvcc[1]}, for compute capability {wanted}")
        flags = " ".join(cpp_extension._get_cuda_arch_flags())
        cuda = Extension(
            "mtlkernels._C_cuda",
            sources=sources("torch/*.cu", "torch/cuda_build.cpp"),
            include_dirs=cpp_extension.include_paths(),
            libraries=["c10", "torch_cpu"],
            define_macros=[*names, ("MTLKERNELS_CUDA_BUILD", f'"{code_for(flags)}"')],
            extra_compile_args={"cxx": ["-O3", "-std=c++20"], "nvcc": NVCC_FLAGS},
            extra_link_args=[
                *(f"-L{home / folder}" for folder in ("lib64", "lib")),
                *("-lcudart_static", "-ldl", "-lrt", "-lpthread"),
            ],
            **common,
        )
        built.append(cuda)
    return built, {"build_ext": cpp_extension.BuildExtension}


def code_for(flags: str) -> str:
    """ "8.0;9.0;9.0+PTX" from nvcc's -gencode flags: what the library's code is for."""
    found = re.findall(r"code=(sm|compute)_(\d+)(\d)([af]?)\b", flags)
    return ";".join(
        f"{major}.{minor}{suffix}{'' if kind == 'sm' else '+PTX'}"
        for kind, major, minor, suffix in found
    )


ext_modules, cmdclass = extensions()
setup(ext_modules=ext_modules, cmdclass=cmdclass)
