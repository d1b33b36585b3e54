"""Files that the examples' data sets can open, and must not take for what they are not."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import example_trees as trees
import numpy as np
import pytest

from studies.imbalance.data import taskonomy
from studies.imbalance.data.celeba import CelebA
from studies.imbalance.data.common import DataFolderError, read_pixels
from studies.imbalance.data.nyuv2 import NYUv2
from studies.imbalance.data.pascal_context import PascalContext
from studies.imbalance.data.taskonomy import Taskonomy
from studies.imbalance.data.yeast import read_yeast

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


def _taskonomy_file(root: Path, folder: str) -> Path:
    return root / f"allensville_{folder}" / folder / f"point_7_view_0_domain_{folder}.png"


@pytest.mark.parametrize(
    ("folder", "pixels", "told"),
    [
        ("depth_zbuffer", np.full(SIZE, 255, np.uint8), "16 bits was expected, not uint8"),
        ("depth_zbuffer", np.full((*SIZE, 3), 255, np.uint8), "16 bits was expected, not uint8"),
        ("rgb", np.full((4, 5, 3), 255, np.uint8), "domain_rgb.png and its depth differ in size"),
        ("normal", np.full((4, 5, 3), 255, np.uint8), "normal.png and its depth differ in size"),
    ],
    ids=["8 bits", "a picture", "rgb's size", "normals' size"],
)
def test_taskonomy_pictures_that_are_no_views(
    tmp_path: Path, folder: str, pixels: np.ndarray[Any, Any], told: str
) -> None:
    pytest.importorskip("PIL")
    data = Taskonomy(trees.taskonomy(tmp_path, flat=True), tmp_path / "split.csv")
    trees.picture(_taskonomy_file(tmp_path, folder), pixels)
    with pytest.raises(DataFolderError, match=told):
        data[0]


def test_taskonomy_depth_of_a_pillow_that_widens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    data = Taskonomy(trees.taskonomy(tmp_path, flat=True), tmp_path / "split.csv", ("depth",))
    monkeypatch.setattr(taskonomy, "read_pixels", lambda path: read_pixels(path).astype(np.int32))
    depth = data[0][1]["depth"]
    assert depth[0, 0, 0].isnan()
    assert depth[0, 1:].eq(2).all()


@pytest.mark.parametrize(
    "pixels",
    [
        np.full(SIZE, 128, np.uint8),
        np.full((*SIZE, 2), 128, np.uint8),
        np.full(SIZE, 128, np.uint16),
    ],
    ids=["grey", "grey and opacity", "16 bits"],
)
def test_pascal_context_normals_that_are_none(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> None:
    for package in ("PIL", "scipy", "skimage"):
        pytest.importorskip(package)
    data = PascalContext(trees.pascal_context(tmp_path))
    trees.picture(tmp_path / "normals_distill" / "one.png", pixels)
    with pytest.raises(DataFolderError, match=r"one\.png cannot be read \(normals in 8 bits and 3"):
        data[0]


def test_pascal_context_labels_with_channels(tmp_path: Path) -> None:
    for package in ("PIL", "scipy", "skimage"):
        pytest.importorskip(package)
    from scipy.io import savemat

    data = PascalContext(trees.pascal_context(tmp_path))
    savemat(
        tmp_path / "pascal-context" / "trainval" / "one.mat",
        {"LabelMap": np.zeros((*SIZE, 3), np.uint16)},
    )
    with pytest.raises(DataFolderError, match=r"LabelMap has height and width, not the shape \(24"):
        data[0]


def test_pascal_context_list_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "ImageSets" / "Context" / "train.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DataFolderError, match=r"train\.txt cannot be read"):
        PascalContext(tmp_path)


@pytest.mark.parametrize(
    ("folder", "array", "told"),
    [
        ("image", np.full((*SIZE, 3), 255), r"lies in \[0, 1\], not in \[255, 255\]"),
        ("image", np.full((*SIZE, 3), -0.5), r"lies in \[0, 1\], not in \[-0.5, -0.5\]"),
        ("image", np.full((*SIZE, 3), np.nan), r"lies in \[0, 1\], not in \[nan, nan\]"),
        ("image", np.full((*SIZE, 4), 0.5), "an image has 3 channels, not 4"),
        ("image", np.full(SIZE, 0.5), "an image has 3 channels, not 1"),
        ("label", np.zeros((*SIZE, 3)), "a map of classes has height and width"),
        ("depth", np.ones((*SIZE, 3)), "a map of depth has 1 channel, not 3"),
        ("depth", np.full((*SIZE, 1), np.inf), "a number is infinite; 0 is the mark"),
        ("normal", np.full((*SIZE, 3), np.inf), "a number is infinite; 0 is the mark"),
    ],
)
def test_arrays_that_are_no_maps(
    tmp_path: Path, folder: str, array: np.ndarray[Any, Any], told: str
) -> None:
    data = NYUv2(trees.nyuv2(tmp_path))
    trees.save(tmp_path / "train" / folder / "0.npy", array)
    with pytest.raises(DataFolderError, match=told):
        data[0]


def test_an_image_may_leave_its_range_by_rounding(tmp_path: Path) -> None:
    data = NYUv2(trees.nyuv2(tmp_path))
    trees.save(tmp_path / "train" / "image" / "0.npy", np.full((*SIZE, 3), 1 + 1e-6))
    assert data[0][0].shape == (3, *SIZE)


def test_a_number_with_leading_zeros_is_told(tmp_path: Path) -> None:
    trees.nyuv2(tmp_path)
    trees.save(tmp_path / "train" / "depth" / "00.npy", np.ones((*SIZE, 1)))
    with pytest.raises(DataFolderError, match=r"depth/00\.npy is not numbered like 0\.npy"):
        NYUv2(tmp_path)


def test_samples_count_from_the_end_too(tmp_path: Path) -> None:
    data = NYUv2(trees.nyuv2(tmp_path))
    assert [data[i][1]["depth"][0, 1, 0].item() for i in (-1, -2, -3)] == [3, 2, 1]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"sample {index} of 3"):
            data[index]


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("Eval/list_eval_partition.txt", "4.jpg 0", "4.jpg 3", "line 4 is not a file and a part"),
        (
            "Eval/list_eval_partition.txt",
            "000004.jpg 0\n",
            "000004.jpg 0\n000004.jpg 1\n",
            r"line 5 lists 000004\.jpg again",
        ),
        (
            "Anno/list_attr_celeba.txt",
            "000004.jpg ",
            "000003.jpg ",
            r"line 6 lists 000003\.jpg again",
        ),
        ("Anno/list_attr_celeba.txt", "Attribute_7 ", "Attribute_8 ", "gives two attributes one"),
    ],
)
def test_celeba_lists_that_contradict_themselves(
    tmp_path: Path, file: str, old: str, new: str, told: str
) -> None:
    pytest.importorskip("PIL")
    path = trees.celeba(tmp_path) / file
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(DataFolderError, match=told):
        CelebA(tmp_path)
