"""Files that the examples' data sets can open, and must not take for what they are not."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import example_trees as trees
import pytest

from examples.data.common import DataFolderError
from examples.data.yeast import read_yeast

SIZE = (trees.HEIGHT, trees.WIDTH)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_yeast_stream_that_is_damaged_is_told(tmp_path: Path) -> None:
    path = trees.yeast(tmp_path / "yeast.csv.gz")
    stream = bytearray(path.read_bytes())
    stream[30:40] = bytes(byte ^ 0xFF for byte in stream[30:40])
    path.write_bytes(stream)
    with pytest.raises(DataFolderError, match=r"cannot be read \(Error -3 while decompressing"):
        read_yeast(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: row + ",1", "line 2 has 118 columns instead of 117"),
        (lambda row: row.rpartition(",")[0], "line 2 has 116 columns instead of 117"),
        (lambda row: "nan," + row.partition(",")[2], "a number is not finite"),
        (lambda row: "1e39," + row.partition(",")[2], "a number is not finite"),
        (lambda row: "0" * 200_000 + row, "field larger than field limit"),
    ],
    ids=["a column more", "a column less", "nan", "beyond float32", "no table"],
)
def test_a_yeast_table_of_other_rows_is_told(
    tmp_path: Path, change: Callable[[str], str], told: str
) -> None:
    path = trees.yeast(tmp_path / "yeast.csv.gz")
    header, *rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join([header, *map(change, rows)]).encode()))
    with pytest.raises(DataFolderError, match=told):
        read_yeast(path)
