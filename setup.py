"""Builds the native library; everything else about the package is in pyproject.toml.

`mtlkernels._C` needs a C++20 compiler. MTLKERNELS_NO_EXT=1 leaves it out and gives a pure Python
package. Install with `pip install --no-build-isolation .`, so that the build sees the torch that
will run it.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

# The oldest LibTorch whose stable ABI the binary asks for: it runs on that version and later ones.
STABLE_ABI_TARGET = "0x020a000000000000"  # 2.10


def wants_extension() -> bool:
    return os.environ.get("MTLKERNELS_NO_EXT", "0") in ("", "0")


def version() -> str:
    lines = Path("pyproject.toml").read_text().splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("version"))


def extensions() -> tuple[list[Extension], dict[str, type]]:
    """The extensions to build and the build command that knows how."""
    if not wants_extension():
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
    sources = [
        str(p) for folder in ("", "ops_cpu", "cpu") for p in Path("csrc", folder).glob("*.cpp")
    ]
    cpu = Extension(
        "mtlkernels._C",
        sources=sorted(sources),
        depends=[str(p) for p in Path("csrc").rglob("*") if p.suffix in (".h", ".inl")],
        include_dirs=["csrc", pybind11.get_include(), *cpp_extension.include_paths()],
        library_dirs=cpp_extension.library_paths(),
        libraries=["c10", "torch_cpu"],
        define_macros=[
            ("TORCH_TARGET_VERSION", STABLE_ABI_TARGET),
            ("MTLKERNELS_VERSION", f'"{version()}"'),
            ("MTLKERNELS_TORCH_VERSION", f'"{torch.__version__}"'),
        ],
        extra_compile_args=["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall"],
        language="c++",
    )
    return [cpu], {"build_ext": cpp_extension.BuildExtension}


ext_modules, cmdclass = extensions()
setup(ext_modules=ext_modules, cmdclass=cmdclass)
