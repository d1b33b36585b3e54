"""Triton's kernels without a GPU: run in its interpreter, and compiled ahead of time."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

TESTS = Path(__file__).parents[1]
KINDS = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}

# The ops' own tests, on what is different for Triton: the interpreter is slow. Not bfloat16's
# denormals, which the interpreter, unlike a GPU, does not convert to float32 exactly.
INTERPRETED = [
    "triton_kernels/interpreted.py",
    *[
        f"ops/test_ops.py::test_numerics[{dtype}-{name}]"
        for dtype in ("float32", "bfloat16")
        for name in ("ordinary", "tasks_4", "tasks_9", "numel_513", "misaligned", "transposed")
    ],
    *[f"ops/test_ops.py::test_numerics[{dtype}-ordinary]" for dtype in ("float64", "float16")],
    *[f"ops/test_ops.py::test_numerics[float32-{n}]" for n in ("numel_4097", "zero_size_only")],
    *[
        f"ops/test_ops.py::test_combine_out[float32-{name}--0.5]"
        for name in ("ordinary", "absent_in_some_tasks", "numel_1025")
    ],
    "ops/test_ops.py::test_gram_where_squares_leave_float32[dtype0-ordinary-1e-25]",
    "ops/test_ops.py::test_gram_where_squares_leave_float32[dtype0-ordinary-1e+30]",
    "ops/test_ops.py::test_gram_of_tasks_of_very_different_scale",
    *[f"ops/test_gram_exact.py::test_every_number_of_tasks[ops-{dtype}-3]" for dtype in KINDS],
    *[f"ops/test_gram_exact.py::test_every_length[ops-float32-1-{n}]" for n in (1, 513, 4097)],
    "ops/test_gram_exact.py::test_the_ends_of_the_range[ops-dtype0-5]",
    "ops/test_gram_exact.py::test_pairs_that_nearly_agree[ops-float32--6]",
    "ops/test_gram_exact.py::test_rounding_that_has_one_sign[ops-2-equal]",
    "ops/test_gram_exact.py::test_absent_gradients_have_no_part[ops-float32]",
    "ops/test_gram_exact.py::test_infinite_sums_stay_infinite[ops-2]",
    "ops/test_overflow.py::test_combine[ops-dtype0-3-37]",
    "ops/test_overflow.py::test_combine[ops-dtype1-11-16]",
    "ops/test_overflow.py::test_combine_out[ops-37-out_dtype0]",
    "ops/test_overflow.py::test_what_does_not_fit_is_infinite[ops]",
    *[f"ops/test_ops.py::test_denormals_count[dtype{i}]" for i in (0, 2)],
    "ops/test_ops.py::test_diagonal_names_the_task_with_nan[float32-15-3-nan]",
    "ops/test_ops.py::test_diagonal_names_the_task_with_nan[float32-15-3--inf]",
    "ops/test_ops.py::test_lists_that_do_not_fit",
    "ops/test_ops.py::test_combine_out_with_beta_zero_does_not_read",
    *[
        f"ops/test_ops.py::test_combine_out_into_float32[{dtype}-{name}-{beta}]"
        for dtype, name, beta in (
            ("dtype0", "ordinary", "0.0"),
            ("dtype0", "numel_1025", "-0.5"),
            ("dtype1", "tasks_9", "1.0"),
        )
    ],
    "ops/test_ops.py::test_float32_keeps_what_16_bits_lose",
    "ops/test_ops.py::test_out_of_a_dtype_that_is_not_written",
    *[
        f"ops/test_wide_weights.py::test_products_count[{dtype}-{case}-ops]"
        for dtype, case in (
            ("float32", "1-0.0"),
            ("float32", "9-0.0"),
            ("float32", "2-1.0"),
            ("float32", "9-1e+39"),
            ("float32", "1--1e-50"),
            ("float64", "2-1.0"),
            ("float16", "2-0.0"),
        )
    ],
    "ops/test_wide_weights.py::test_each_weight_alone",
    "ops/test_wide_weights.py::test_ordinary_weights_are_added_up_in_float32",
    "ops/test_wide_weights.py::test_weights_that_are_not_finite_show[float32-1e+39-2-nan-ops]",
    "ops/test_wide_weights.py::test_weights_that_are_not_finite_show[float32-1.0-2-inf-ops]",
    *[
        f"methods/test_every_gram_method.py::test_{case}CAGrad]"
        for case in (
            "one_task[",
            "identical_gradients[",
            "opposite_gradients_cancel[",
            "a_zero_gradient_takes_no_part[1-",
            "all_gradients_zero[",
            "a_gradient_that_is_not_finite_is_named_and_poisons_the_direction[nan-",
            "scale_of_all_gradients[-12-",
            "scale_of_all_gradients[12-",
        )
    ],
    "methods/test_every_gram_method.py::test_hard_grams_are_solved[CAGrad-nearly-parallel]",
    *[
        f"methods/test_cagrad.py::test_cagrad_at_a_stationary_point_takes_the_nearest_direction_without_conflict[{T}]"
        for T in (3, 6)
    ],
    "methods/test_cagrad.py::test_cagrad_says_where_it_hangs_on_rounding",
    "methods/test_cagrad.py::test_cagrad_conventions",
    "ops/test_compile.py::test_equals_eager_and_compiles_once[PCGrad-ordinary]",
]


def interpreter_works() -> bool:
    """Before 3.9 it converts arrays of one element in a way that newer numpy refuses."""
    major, minor = importlib.metadata.version("triton").split(".")[:2]
    if (int(major), int(minor)) >= (3, 9):
        return True
    numpy = importlib.import_module("numpy")
    try:
        return int(numpy.ones(1)) == 1
    except (TypeError, DeprecationWarning):
        return False


def test_interpreted() -> None:
    if not interpreter_works():
        pytest.skip("this Triton's interpreter does not work with this numpy")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *INTERPRETED),
            *("-W", "ignore::RuntimeWarning"),  # numpy's, where a float overflows or is NaN
        ],
        cwd=TESTS,
        env={
            **os.environ,
            "PYTHONPATH": str(TESTS.parent),
            "MTLKERNELS_BACKEND": "triton",
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout


# ------------------------------------------------------------------------- ahead of time

INTS = ["num_blocks", "blocks_per_segment", "num_tasks", "num_params", "num_triangles"]
TYPES = {
    **dict.fromkeys(["table", "blocks", "seed", "step", "order", "status"], "*i64"),
    **dict.fromkeys(["partial", "K", "leak", "weights"], "*fp64"),
    **dict.fromkeys([*INTS, "weight_stride", "leak_stride", "beta_high", "beta_low"], "i32"),
    **dict.fromkeys(["num_segments", "tasks", "first", "count", "c_high", "c_low"], "i32"),
    **{f"a{i}": "i64" for i in range(32)},
}
ARCHITECTURES = [80, 90, 100]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels stay beside the repository's other ignored files: a second run is fast."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: nothing is compiled")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(TESTS.parent / ".triton"))


def build(kernel: Any, arch: int, warps: int = 4, dtype: str = "float32", **constants: Any) -> Any:
    """The kernel's binary; pointers are 16-byte aligned, as what torch allocates is."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if "DTYPE" in kernel.arg_names:
        constants["DTYPE"] = getattr(tl, dtype)
        constants["WIDE"] = tl.float64 if dtype == "float64" else tl.float32
    out = "float32" if constants.get("OUT") == "float32" else dtype
    if "OUT" in kernel.arg_names:
        constants["OUT"] = getattr(tl, out)
    types = {**TYPES, "out": f"*{KINDS[out]}"}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types[n] for n in names}
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"
    }
    source = ASTSource(
        kernel, signature, {(names.index(n),): value for n, value in constants.items()}, attributes
    )
    options = {"num_warps": warps, "enable_fp_fusion": True}
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    assert built.asm["cubin"][:4] == b"\x7fELF"
    return built


def local_bytes(built: Any) -> int:
    """Bytes of local memory a thread: what did not fit the registers."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, check=True
        ).stdout.decode()
    stack, local = (int(re.search(rf"{n}:(\d+)", told)[1]) for n in ("STACK", "LOCAL"))
    return stack + local


def launched() -> dict[str, Any]:
    """Every kernel that the launchers start, by name."""
    from mtlkernels.triton_kernels import launch, launchers

    found = {name: value for name, value in vars(launchers).items() if name.endswith("_kernel")}
    return {**found, "write_addresses": launch.write_addresses}


def test_integers_are_not_specialised() -> None:
    """Else a list of another length compiles its kernels again, in the middle of a training run."""
    kernels = launched()
    assert len(kernels) == 7
    special = {
        f"{name}({param.name})"
        for name, kernel in kernels.items()
        for param in kernel.params
        if not param.is_constexpr and TYPES.get(param.name, "*")[0] != "*"
        if not param.do_not_specialize
    }
    assert special == set()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tasks", [2, 3, 8, 20])
def test_gram_compiles(arch: int, tasks: int) -> None:
    from mtlkernels.triton_kernels import launchers
    from mtlkernels.triton_kernels.gram import GROUP, gram_kernel

    grouped = tasks > launchers.MAX_TRIANGLE
    rows = 2 * GROUP if grouped else tasks
    for dtype, parts in (("float32", 4), ("bfloat16", 8), ("float64", 2)):
        built = build(
            gram_kernel, arch, dtype=dtype, ROWS=rows, GROUP=GROUP if grouped else 0,
            BLOCK=launchers.BLOCK, PARTS=parts, LANES=launchers.GRAM_LANES, ALIGNED=True,
        )  # fmt: skip
        assert local_bytes(built) <= 8  # of a branch, not of a sum
        # 16 bytes a load, a multiply-add for each element of them and pair.
        assert re.search(r"ld\.global\.v[24]\.b(32|64)", built.asm["ptx"])
        assert built.asm["ptx"].count("fma.rn.f64") >= rows * (rows + 1) // 2 * parts


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tasks", [2, 3, 8, 0])
def test_combine_compiles(arch: int, tasks: int) -> None:
    from mtlkernels.triton_kernels import launchers
    from mtlkernels.triton_kernels.combine import combine_kernel

    for dtype in ("float32", "bfloat16"):
        built = build(
            combine_kernel, arch, 8, dtype, UNROLLED=tasks, ACCUMULATE=tasks == 3, ALIGNED=True,
            BLOCK=launchers.BLOCK, LANES=launchers.PIECE,
        )  # fmt: skip
        assert local_bytes(built) == 0
        if dtype == "float32":
            loads = built.asm["ptx"].count("ld.global.v4.b32")
            assert loads >= max(tasks, 1) + (tasks == 3)
            assert "st.global.v4.b32" in built.asm["ptx"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("size", [2, 8, 32, 64])
def test_cagrad_compiles(arch: int, size: int) -> None:
    from mtlkernels.triton_kernels import launchers
    from mtlkernels.triton_kernels.cagrad import cagrad_kernel

    warps = launchers.solver_warps(size)
    built = build(cagrad_kernel, arch, warps, RESCALE=1, SUM=True, SIZE=size)
    # Two tiles of 64 x 64 and what is made of them are more than the registers of one program.
    assert local_bytes(built) <= (96 if size < 64 else 1024)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_other_kernels_compile(arch: int) -> None:
    from mtlkernels.triton_kernels import launchers
    from mtlkernels.triton_kernels.combine import combine_kernel
    from mtlkernels.triton_kernels.graddrop import graddrop_kernel
    from mtlkernels.triton_kernels.gram import finish_kernel, gram_kernel
    from mtlkernels.triton_kernels.launch import write_addresses
    from mtlkernels.triton_kernels.pcgrad import pcgrad_kernel

    piece: dict[str, Any] = {"BLOCK": launchers.BLOCK, "LANES": launchers.PIECE, "ALIGNED": True}
    unaligned = {**piece, "ALIGNED": False}
    built = [
        build(write_addresses, arch),
        build(finish_kernel, arch, GROUP=4, LANES=256),
        build(pcgrad_kernel, arch, 1, MEAN=False, SIZE=8),
        build(graddrop_kernel, arch, 8, **piece),
        build(graddrop_kernel, arch, 8, "bfloat16", **piece),
        build(combine_kernel, arch, 8, UNROLLED=3, ACCUMULATE=False, **unaligned),
        build(combine_kernel, arch, 8, "float64", UNROLLED=3, ACCUMULATE=False, **piece),
        build(
            combine_kernel, arch, 8, "bfloat16", UNROLLED=3, ACCUMULATE=True, OUT="float32", **piece
        ),
        build(
            combine_kernel, arch, 8, "float16", UNROLLED=0, ACCUMULATE=False, OUT="float32", **piece
        ),
        build(
            gram_kernel,
            arch,
            4,
            "float64",
            ROWS=3,
            GROUP=0,
            **{**piece, "PARTS": 2, "LANES": launchers.GRAM_LANES},
        ),
    ]
    assert [local_bytes(kernel) for kernel in built] == [0] * len(built)
    assert "ld.global.v4.b32" not in built[5].asm["ptx"]  # unknown alignment: no wide loads
