"""Who imports whom: the table of rooms, walked, and what an import of the package loads."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mtlkernels

PACKAGE = Path(mtlkernels.__file__).parent
CSRC = Path(__file__).parents[1] / "csrc"

ANYTHING = None

# A room, or a module beside the rooms -> the others that it may import. All may import torch and
# the standard library. A new room needs a line.
PYTHON: dict[str, set[str] | None] = {
    "__init__": ANYTHING,
    "__main__": ANYTHING,
    "version": set(),
    "extras": set(),
    "reference": set(),
    "triton_kernels": set(),
    "ops": {"reference"},
    "cuda_library": {"version"},
    "dispatch": {"_C", "cuda_library", "ops", "reference", "triton_kernels", "version"},
    "report": set(),
    "auto_step": set(),
    "methods": {"ops"},
    "autograd": set(),
    "aggregation": {"ops", "report"},
    "engine": {"aggregation", "autograd", "ops", "report"},
    "distributed": {"aggregation", "autograd", "engine", "ops", "report"},
    "functional": {"aggregation", "autograd", "engine", "report"},
    "splitter": {"aggregation", "autograd", "engine", "report"},
    "integrations": {"aggregation", "engine", "functional", "methods", "ops", "report"},
    "monitoring": {"aggregation", "extras", "report"},
    "extended": set(),
    "optimizer_state": {"methods"},
    "optimizer": {
        *("aggregation", "autograd", "distributed", "engine", "extended", "methods"),
        *("optimizer_state", "report"),
    },
}
THIRD_PARTY = {"torch"}
TRITON_TOO = {"torch", "triton"}  # what triton_kernels may import
PLOT_TOO = {"torch", "matplotlib"}  # what figures may, once one is asked for
OF_ITS_OWN = {
    "triton_kernels": TRITON_TOO,
    "monitoring/figures": PLOT_TOO,
    "integrations/libmtl": {"torch", "LibMTL"},
    "integrations/torchjd": {"torch", "torchjd"},
}

STANDARD = r"<[a-z_]+>"  # no slash and no suffix: only the standard library's own headers
# Files -> what an #include of theirs may be.
CPP: dict[str, str] = {
    r"common/\w+\.h": rf'{STANDARD}|"\w+\.h"',
    r"linalg/\w+\.h": rf'{STANDARD}|"(\.\./common/)?\w+\.h"',
    r"solvers/\w+\.h": rf'{STANDARD}|"(\.\./(common|linalg)/)?\w+\.h"',
    r"cpu/\w+\.(cpp|h|inl)": rf"{STANDARD}|<immintrin\.h>|<sys/mman\.h>"
    r'|"(\.\./common/)?\w+\.(h|inl)"',
    r"cuda/\w+\.cuh": rf'{STANDARD}|<cuda_runtime\.h>|"cuda_on_cpu\.h"'
    r'|"\w+\.cuh"|"\.\./(common|linalg)/\w+\.h"',
    r"torch/\w+\.(cpp|h|cuh?)": rf"{STANDARD}|<dlfcn\.h>"
    r"|<torch/(csrc/stable|headeronly)/[\w/]+\.h>"
    r'|"(\.\./(common|linalg|solvers|cpu|cuda)/)?\w+\.(h|cuh)"',
    r"module\.cpp": rf'{STANDARD}|<pybind11/\w+\.h>|"(common|linalg|cpu|solvers)/\w+\.h"',
}


def module_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            assert node.module is not None
            if node.module == "mtlkernels":
                names |= {f"mtlkernels.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return names


def test_every_module_has_a_line() -> None:
    assert {room(path) for path in module_files()} == PYTHON.keys()


def test_the_architecture_page_has_this_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", page, re.M)
    assert len(rows) >= 12
    for name, imports in rows:
        assert set(re.findall(r"`(\w+)`", imports)) == (PYTHON[name] or set()) - {"_C"}, name


@pytest.mark.parametrize("path", module_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports(path: Path) -> None:
    allowed = PYTHON[room(path)]
    if allowed is ANYTHING:
        private = {name for name in imported(path) if re.search(r"^mtlkernels\..*\b_(?!_)", name)}
        assert not private
        return
    for name in imported(path):
        package, _, below = name.partition(".")
        if package == "mtlkernels":
            assert below.split(".")[0] in allowed | {room(path)}, f"{room(path)} imports {name}"
        else:
            within = path.relative_to(PACKAGE).with_suffix("").as_posix()
            known = OF_ITS_OWN.get(within, OF_ITS_OWN.get(room(path), THIRD_PARTY))
            assert package in sys.stdlib_module_names | known, f"{room(path)} imports {name}"


def dotted(path: Path) -> str:
    name = ".".join(("mtlkernels", *path.relative_to(PACKAGE).with_suffix("").parts))
    return name.removesuffix(".__init__")


def test_no_module_imports_itself_over_others() -> None:
    names = {dotted(path) for path in module_files()} - {"mtlkernels", "mtlkernels.__main__"}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for path in module_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and dotted(path) in names:
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[dotted(path)] |= below & names or {str(node.module)} & names
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_package_itself_needs_torch_alone() -> None:
    for name in ("__init__", "__main__"):
        for module in imported(PACKAGE / f"{name}.py"):
            package = module.split(".")[0]
            assert package in sys.stdlib_module_names | THIRD_PARTY | {"mtlkernels"}


SUFFIXES = (".cpp", ".h", ".inl", ".cu", ".cuh")


def source_files() -> list[Path]:
    return sorted(p for p in CSRC.rglob("*") if p.suffix in SUFFIXES)


def test_there_are_sources() -> None:
    assert len(source_files()) > 10


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(CSRC)))
def test_cpp_includes(path: Path) -> None:
    name = path.relative_to(CSRC).as_posix()
    rows = [allowed for files, allowed in CPP.items() if re.fullmatch(files, name)]
    assert len(rows) == 1, f"{name} has no line"
    includes = re.findall(r"^\s*#\s*include\s+(.+?)\s*(?://.*)?$", path.read_text(), re.MULTILINE)
    forbidden = [include for include in includes if not re.fullmatch(rows[0], include)]
    assert not forbidden


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(CSRC)))
def test_macros_of_torch_are_those_of_the_oldest_torch(path: Path) -> None:
    """Newer headers have newer macros, which a build against the version of setup.py lacks."""
    used = set(re.findall(r"\bSTABLE_TORCH_\w+", path.read_text()))
    assert used <= {"STABLE_TORCH_LIBRARY_IMPL", "STABLE_TORCH_LIBRARY_FRAGMENT"}


LOADED = """
import sys, subprocess, os
import torch  # built with CUDA, it asks ldconfig where its libraries are
def refuse(*_, **__): raise AssertionError("a process was started while importing")
subprocess.Popen = os.system = refuse
before = set(sys.modules)
import mtlkernels
print("\\n".join(".".join(name.split(".")[:3]) for name in set(sys.modules) - before))
"""


def test_importing_loads_nothing_else_and_compiles_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    packages = {name.split(".")[0] for name in loaded}
    assert "mtlkernels" in packages
    heavy = {"triton", "numpy", "scipy", "matplotlib", "skimage", "mlxtend", "tqdm", "sklearn"}
    assert not packages & heavy
    assert "mtlkernels.monitoring.figures" not in loaded
    assert not {name for name in loaded if re.match(r"torch\.(_inductor|_dynamo)", name)}
