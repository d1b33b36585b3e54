"""Builds the native libraries; everything else about the package is in pyproject.toml.

`mtlkernels._C` needs a C++20 compiler. `mtlkernels._C_cuda` is built as well where torch has CUDA
and nvcc is found, or with FORCE_CUDA=1, which needs nvcc alone; TORCH_CUDA_ARCH_LIST names its
GPUs. MTLKERNELS_NO_EXT=1 leaves both out and gives a pure Python package. Install with
`pip install --no-build-isolation .`, so that the build sees the torch that will run it.
"""

import os
import shutil
from pathlib import Path

from setuptools import Extension, setup

# The oldest LibTorch whose stable ABI the binary asks for: it runs on that version and later ones.
STABLE_ABI_TARGET = "0x020a000000000000"  # 2.10

# Ampere to Blackwell, and code that the driver compiles for what comes after.
CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
# Without contraction of a * b + c the solvers round as on the CPU; kernels ask for it themselves.
NVCC_FLAGS = ["-O3", "-std=c++20", "-fmad=false", "--extended-lambda", "-lineinfo"]


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def version() -> str:
    lines = Path("mtlkernels/__init__.py").read_text().splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("__version__"))


def cuda_home() -> Path | None:
    """The folder of the CUDA toolkit, by the usual variables, the usual place, and the path."""
    nvcc = shutil.which("nvcc")
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = [Path(p) for p in named if p] + ([Path(nvcc).resolve().parent.parent] if nvcc else [])
    return next((home for home in found if (home / "bin" / "nvcc").exists()), None)


def wants_cuda(torch_cuda: str | None, home: Path | None) -> bool:
    if is_set("FORCE_CUDA") and home is None:
        raise SystemExit(
            "mtlkernels: FORCE_CUDA=1 needs nvcc, and none is found: install the CUDA toolkit and "
            "set CUDA_HOME to its folder, or unset FORCE_CUDA to build for the CPU alone."
        )
    return is_set("FORCE_CUDA") or (torch_cuda is not None and home is not None)


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
    cpu = Extension(
        "mtlkernels._C",
        sources=sources("*.cpp", "ops_cpu/*.cpp", "cpu/*.cpp"),
        include_dirs=["csrc", pybind11.get_include(), *cpp_extension.include_paths()],
        libraries=["c10", "torch_cpu"],
        define_macros=[
            ("TORCH_TARGET_VERSION", STABLE_ABI_TARGET),
            ("MTLKERNELS_VERSION", f'"{version()}"'),
            ("MTLKERNELS_TORCH_VERSION", f'"{torch.__version__}"'),
        ],
        extra_compile_args=["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall"],
        **common,
    )
    built = [cpu]
    home = cuda_home()
    if wants_cuda(torch.version.cuda, home):
        # A torch without CUDA does not look for the toolkit. Only the stable ABI is linked, and
        # that is in torch's CPU library, so the binary is the same whatever torch builds it.
        cpp_extension.CUDA_HOME = str(home)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
        cuda = Extension(
            "mtlkernels._C_cuda",
            sources=sources("ops_cuda/*.cu"),
            include_dirs=cpp_extension.include_paths(),
            libraries=["c10", "torch_cpu"],
            define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI_TARGET)],
            extra_compile_args={"cxx": [], "nvcc": NVCC_FLAGS},
            extra_link_args=[
                *(f"-L{home / folder}" for folder in ("lib64", "lib")),
                *("-lcudart_static", "-ldl", "-lrt", "-lpthread"),
            ],
            **common,
        )
        built.append(cuda)
    return built, {"build_ext": cpp_extension.BuildExtension}


ext_modules, cmdclass = extensions()
setup(ext_modules=ext_modules, cmdclass=cmdclass)
