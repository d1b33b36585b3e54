"""What C++ and Python both have: enums, status flags and limits, wherever Python has a copy."""

from __future__ import annotations

import importlib
from enum import Enum

import pytest

import mtlkernels
from mtlkernels import ops, reference
from mtlkernels.distributed import buckets

ENUMS = {
    each.__name__: each
    for each in vars(ops).values()
    if isinstance(each, type) and issubclass(each, Enum)
}


@pytest.fixture(scope="module")
def native() -> dict:
    _C = pytest.importorskip(
        "mtlkernels._C", reason="this package was built with MTLKERNELS_NO_EXT=1"
    )
    return _C.constants()


def values(enum: type[Enum]) -> dict[str, int]:
    return {member.name: member.value for member in enum}


def test_enums_of_the_ops(native: dict) -> None:
    assert ENUMS.keys() == {name for name, each in native.items() if isinstance(each, dict)} - {
        "Status"
    }
    for name, enum in ENUMS.items():
        assert native[name] == values(enum)


def test_status_flags(native: dict) -> None:
    """Python has one more: of a task without a loss no solver knows."""
    flags = values(mtlkernels.Status)
    assert flags.pop("ABSENT") not in native["Status"].values()
    assert native["Status"] == flags


def test_limits(native: dict) -> None:
    assert native["max_tasks"] == ops.MAX_NATIVE_TASKS
    assert native["align"] == reference.ALIGN == ops.flat_offsets([1])[-1]
    assert native["gram_noise"] == reference.GRAM_NOISE


def test_the_reference_has_the_flags() -> None:
    flags = values(mtlkernels.Status)
    assert flags.pop("ABSENT")
    assert flags == {name: getattr(reference, name) for name in flags}


def test_the_distributed_rooms_have_the_alignment() -> None:
    assert buckets._ALIGN == reference.ALIGN


def test_triton_has_the_same() -> None:
    pytest.importorskip("triton")
    launch, launchers, pcgrad, cagrad = (
        importlib.import_module(f"mtlkernels.triton_kernels.{name}")
        for name in ("launch", "launchers", "pcgrad", "cagrad")
    )
    assert launch.ALIGN == reference.ALIGN
    assert launchers.MAX_SOLVER_TASKS == ops.MAX_NATIVE_TASKS
    flags = {
        name: value.value
        for module in (pcgrad, cagrad)
        for name, value in vars(module).items()
        if name in mtlkernels.Status.__members__
    }
    assert len(flags) >= 4
    assert flags.items() <= values(mtlkernels.Status).items()
