"""benchmarks/launches.py: many tasks get as many blocks as a few do."""

from __future__ import annotations

import pytest

from benchmarks import launches

pytest.importorskip("mtlkernels._C", reason="the launch arithmetic is native")


def test_blocks_of_every_number_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    launches.main(["vit_b", "lenet"])
    vit, lenet = capsys.readouterr().out.split("\n\n")[1:]
    rows = {int(row.split()[0]): row.split()[1:] for row in vit.splitlines()[2:]}
    assert rows.keys() == set(launches.TASKS)
    for T, (count, _, before, again, smallest, after) in rows.items():
        assert count == again
        assert int(smallest) >= 500
        if T > 16:
            assert float(after) > 10 * float(before)
    assert "21,330 elements" in lenet
