"""Several processes on gloo: what dist_replicas.py and dist_shards.py check, a rank that dies.

One start of a process group runs all scenarios of a file that are for its number of ranks.
"""

from __future__ import annotations

from pathlib import Path

import dist_harness
import pytest
import torch.distributed as dist

pytestmark = [pytest.mark.dist, pytest.mark.skipif(not dist.is_available(), reason="no gloo")]

STARTS = [
    *(("dist_replicas", 2), ("dist_replicas", 4), ("dist_shards", 2), ("dist_shards", 4)),
    *(("dist_traffic", 2), ("dist_traffic", 4)),
]
CASES = [(*start, name) for start in STARTS for name in dist_harness.scenarios(*start)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks save here, four load."""
    return tmp_path_factory.mktemp("dist")


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, int], dist_harness.Outcome]:
    return {}


@pytest.mark.parametrize(
    ("module", "world", "name"), CASES, ids=[f"{m}-{w}-{n}" for m, w, n in CASES]
)
def test_scenario(module: str, world: int, name: str, outcomes, folder) -> None:
    start = module, world
    for needed in [("dist_shards", 2), start] if start == ("dist_shards", 4) else [start]:
        if needed not in outcomes:
            outcomes[needed] = dist_harness.run(*needed, folder)
    for rank, error in enumerate(outcomes[start][name]):
        assert not error, f"rank {rank} of {world}: {error}"


def test_the_others_say_so_where_a_rank_dies() -> None:
    survivor, dead = dist_harness.run("dist_death", 2)["a_rank_dies"]
    assert not survivor, survivor
    assert "did not get there" in dead
