"""The examples' data sets, on tiny folders of the layouts in which the field shares them."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import example_trees as trees
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from mtlkernels.extras import MissingPackageError
from studies.imbalance.data.augment import Resize
from studies.imbalance.data.celeba import CelebA
from studies.imbalance.data.cityscapes import Cityscapes
from studies.imbalance.data.common import DataFolderError
from studies.imbalance.data.nyuv2 import NYUv2
from studies.imbalance.data.pascal_context import PARTS, PascalContext
from studies.imbalance.data.taskonomy import Taskonomy
from studies.imbalance.data.yeast import LABELS, Yeast, read_yeast, river_file

SIZE = (trees.HEIGHT, trees.WIDTH)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_nyuv2_marks_what_is_unknown(tmp_path: Path) -> None:
    data = NYUv2(trees.nyuv2(tmp_path), "val")
    assert len(data) == 3
    image, targets = data[1]
    assert [task.name for task in data.tasks] == [*targets]
    stored = np.load(tmp_path / "val" / "image" / "1.npy")
    assert image.dtype == torch.float32
    assert torch.equal(image, torch.from_numpy(stored).permute(2, 0, 1))
    label, depth, normals = targets["segmentation"], targets["depth"], targets["normals"]
    assert label.dtype == torch.int64
    assert label.shape == SIZE
    assert label[-1].eq(-1).all()
    assert label[0].tolist() == [i % 13 for i in range(trees.WIDTH)]
    assert depth.shape == (1, *SIZE)
    assert depth[:, 0].isnan().all()
    assert depth[:, 1:].eq(2).all()
    assert normals.shape == (3, *SIZE)
    assert normals[:, :, 0].isnan().all()
    assert torch.equal(normals[:, 5, 5], torch.tensor([1.0, 0.0, 0.0]))


def test_samples_make_batches_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    data = NYUv2(trees.nyuv2(tmp_path, count=12), "train")
    depths = [targets["depth"][:, 0, 1, 0] for _, targets in DataLoader(data, batch_size=4)]
    assert torch.cat(depths).tolist() == [i + 1 for i in range(12)]


@pytest.mark.parametrize(("folder", "classes"), [("label", 7), ("label_7", 7), ("label_19", 19)])
def test_cityscapes_in_each_folder_of_labels(tmp_path: Path, folder: str, classes: int) -> None:
    data = Cityscapes(trees.nyuv2(tmp_path, 2, classes, folder), classes=classes)
    _, targets = data[1]
    assert targets.keys() == {"segmentation", "disparity"}
    assert targets["segmentation"].max() == classes - 1
    assert targets["segmentation"].min() == -1
    assert targets["disparity"][0, 0].isnan().all()
    assert targets["disparity"][0, 1:].eq(2).all()
    assert [task.name for task in data.tasks] == ["segmentation", "disparity"]
    assert data.tasks[0].channels == classes


def test_cityscapes_prefers_the_seven_classes_by_name(tmp_path: Path) -> None:
    trees.nyuv2(tmp_path, 1, 7, "label_7")
    trees.save(tmp_path / "train" / "label" / "0.npy", np.full(SIZE, 5.0))
    assert Cityscapes(tmp_path)[0][1]["segmentation"][0].tolist() == [i % 7 for i in range(32)]


def _remove(*parts: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root.joinpath(*parts))


def _unlink(*parts: str) -> Callable[[Path], None]:
    return lambda root: root.joinpath(*parts).unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_remove("train"), "there is no folder"),
        (_remove("train", "normal"), "there is no folder"),
        (_unlink("train", "image", "1.npy"), "1.npy is missing"),
        (_unlink("train", "depth", "2.npy"), "3 images but 2 files in depth"),
        (lambda root: (root / "train/label/1.npy").write_bytes(b"no"), "cannot be read"),
        (
            lambda root: trees.save(root / "train/label/1.npy", np.full(SIZE, 0.5)),
            "holds 0.5, which",
        ),
        (
            lambda root: trees.save(root / "train/label/1.npy", np.full(SIZE, 13)),
            "from 0 to 12 nor",
        ),
        (lambda root: trees.save(root / "train/label/1.npy", np.full(SIZE, -2)), "holds -2, which"),
        (lambda root: trees.save(root / "train/label/1.npy", np.full(SIZE, np.nan)), "holds nan"),
        (lambda root: trees.save(root / "train/depth/1.npy", np.ones((4, 5, 1))), "(4, 5) pixels"),
        (lambda root: trees.save(root / "train/normal/1.npy", np.ones((*SIZE, 2))), "3 components"),
    ],
)
def test_a_broken_folder_is_told_with_the_tree(
    tmp_path: Path, damage: Callable[[Path], object], told: str
) -> None:
    damage(trees.nyuv2(tmp_path))
    with pytest.raises(DataFolderError) as caught:
        NYUv2(tmp_path)[1]
    assert told in str(caught.value)
    assert f"Expected:\n{tmp_path}/\n  train/" in str(caught.value)
    assert "normal/0.npy ...   (H, W, 3) unit vectors" in str(caught.value)


def test_a_split_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'test'"):
        NYUv2(trees.nyuv2(tmp_path), "test")
    with pytest.raises(ValueError, match="7 or 19"):
        Cityscapes(tmp_path, classes=8)
    with pytest.raises(IndexError, match="sample 3 of 3"):
        NYUv2(tmp_path)[3]


MAKERS: dict[str, Callable[[Path], object]] = {
    "NYUv2": NYUv2,
    "Cityscapes": Cityscapes,
    "PASCAL-Context": PascalContext,
    "Taskonomy": lambda root: Taskonomy(root, root / "split.csv"),
    "CelebA": CelebA,
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
def test_no_data_is_told_with_the_tree(tmp_path: Path, name: str, there: bool) -> None:
    root = tmp_path / "data"
    if there:
        root.mkdir()
    with pytest.raises(DataFolderError) as caught:
        MAKERS[name](root)
    assert str(caught.value).startswith(f"{name}: ")
    assert f"Expected:\n{root}/\n  " in str(caught.value)


@pytest.mark.parametrize(("split", "faces"), [("train", range(1, 9)), ("test", (11, 12))])
def test_celeba_attributes_of_each_split(tmp_path: Path, split: str, faces: range) -> None:
    pytest.importorskip("PIL")
    data = CelebA(trees.celeba(tmp_path), split)
    assert [task.name for task in data.tasks] == trees.ATTRIBUTES
    for (image, targets), face in zip((data[i] for i in range(len(data))), faces, strict=True):
        assert image.shape == (3, 64, 64)
        torch.testing.assert_close(
            image.mean(), torch.tensor(20 * (face - 1) / 255), atol=1e-2, rtol=0
        )
        assert [*targets] == trees.ATTRIBUTES
        assert torch.stack([*targets.values()]).tolist() == [float(a < face) for a in range(40)]


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("Anno/list_attr_celeba.txt", "000003.jpg  1", "000003.jpg  0", "line 5 is not a file"),
        ("Anno/list_attr_celeba.txt", "Attribute_7 ", "", "39 names instead of 40"),
        ("Anno/list_attr_celeba.txt", "12\n", "13\n", "promises 13 images, 12 follow"),
        ("Eval/list_eval_partition.txt", "000004.jpg 0\n", "", "000004.jpg stands in one alone"),
        ("Eval/list_eval_partition.txt", "000004.jpg 0", "000004.jpg", "cannot be read"),
        ("Eval/list_eval_partition.txt", " 1", " 2", "has no image of val"),
    ],
)
def test_broken_lists_of_celeba(tmp_path: Path, file: str, old: str, new: str, told: str) -> None:
    pytest.importorskip("PIL")
    path = trees.celeba(tmp_path) / file
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(DataFolderError, match=told):
        CelebA(tmp_path, "val")


@pytest.mark.parametrize("flat", [True, False])
def test_taskonomy_in_both_layouts(tmp_path: Path, flat: bool) -> None:
    pytest.importorskip("PIL")
    data = Taskonomy(trees.taskonomy(tmp_path, flat), tmp_path / "split.csv")
    assert len(data) == 2
    image, targets = data[1]
    assert image.eq(1).all()
    assert [task.name for task in data.tasks] == [*targets] == ["depth", "normals", "curvature"]
    assert targets["depth"].shape == (1, *SIZE)
    assert targets["depth"][0, 1:].eq(4).all()
    for target in targets.values():
        assert target[:, 0, 0].isnan().all()
        assert target[:, 0, 1].isfinite().all()
    assert torch.equal(targets["normals"][:, 2, 2], torch.tensor([0.0, 1.0, 0.0]))
    assert targets["normals"][:, -1, -1].isnan().all()
    assert targets["depth"][:, -1, -1].isfinite().all()
    assert torch.equal(targets["curvature"][:, 2, 2], torch.tensor([-1.0, 0.0]))


def test_taskonomy_masks_by_depth_without_that_task(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    trees.taskonomy(tmp_path, flat=True)
    _, targets = Taskonomy(tmp_path, tmp_path / "split.csv", tasks=("normals",))[0]
    assert [*targets] == ["normals"]
    assert targets["normals"][:, 0, 0].isnan().all()
    with pytest.raises(ValueError, match="no task 'rgb'"):
        Taskonomy(tmp_path, tmp_path / "split.csv", tasks=("rgb",))


def test_pascal_context_reads_five_tasks(tmp_path: Path) -> None:
    for package in ("PIL", "scipy", "skimage"):
        pytest.importorskip(package)
    data = PascalContext(trees.pascal_context(tmp_path))
    assert len(data) == 2
    image, targets = data[0]
    assert [task.name for task in data.tasks] == [*targets]
    assert image.shape == (3, *SIZE)
    assert image.eq(1).all()
    assert targets["segmentation"][0].eq(-1).all()
    assert targets["segmentation"][1, :10].eq(18).all()
    assert targets["segmentation"][1, 10:].eq(15).all()
    saliency, normals = targets["saliency"], targets["normals"]
    assert saliency[0, 1:, 16:].eq(1).all()
    assert saliency.sum() == (trees.HEIGHT - 1) * 16
    assert normals[:, :, 10:].isnan().all()
    assert normals[2, :, :10].min() > 0.9999
    edges = targets["edges"][0]
    assert edges[1:].sum(dim=1).eq(1).all()  # thinning may shorten a line by its end
    assert edges[:, 9:11].sum() == edges.sum()
    parts = targets["parts"]
    assert parts[2:4, 20:24].eq(1).all()
    assert parts[4:8, 20:24].eq(4).all()
    assert parts.count_nonzero() == 6 * 4
    assert data[1][1]["parts"].eq(-1).all()
    assert torch.equal(data[1][1]["segmentation"], targets["segmentation"])


def test_pascal_context_names_24_parts() -> None:
    assert len(PARTS) == 24
    assert set(PARTS.values()) == set(range(1, 7))


def test_pascal_context_at_one_size_makes_batches(tmp_path: Path) -> None:
    for package in ("PIL", "scipy", "skimage"):
        pytest.importorskip(package)
    trees.pascal_context(tmp_path)
    trees.picture(tmp_path / "JPEGImages" / "two.jpg", np.zeros((50, 40, 3), dtype=np.uint8))
    _, targets = PascalContext(tmp_path)[1]
    assert targets["segmentation"].shape == targets["edges"].shape[1:] == (50, 40)
    data = PascalContext(tmp_path, "val", Resize(16, 16))
    images, targets = default_collate([data[0], data[1]])
    assert images.shape == (2, 3, 16, 16)
    assert targets["parts"].shape == (2, 16, 16)
    assert targets["normals"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    "file", ["sal_distill/one.png", "human_parts/one.mat", "pascal-context/trainval/one.mat"]
)
def test_a_broken_file_of_pascal_context(tmp_path: Path, file: str) -> None:
    for package in ("PIL", "scipy", "skimage"):
        pytest.importorskip(package)
    data = PascalContext(trees.pascal_context(tmp_path))
    whole = (tmp_path / file).read_bytes()
    for broken in (b"", b"no" * 200, whole[: len(whole) // 2]):
        (tmp_path / file).write_bytes(broken)
        with pytest.raises(DataFolderError, match=r"one\.\w+ cannot be read"):
            data[0]
    (tmp_path / file).unlink()
    with pytest.raises(DataFolderError, match=r"one\.\w+ is missing"):
        data[0]


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CelebA(trees.celeba(tmp_path))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingPackageError, match=r"needs pillow.*mtlkernels\[data\]"):
        data[0]


def test_yeast_from_a_table(tmp_path: Path) -> None:
    path = trees.yeast(tmp_path / "yeast.csv.gz")
    features, labels = read_yeast(path)
    assert features.shape == (20, 103)
    assert features[3, 2].item() == pytest.approx(3.002)
    assert labels[4].tolist() == [1, 1, 1, *[0] * 11]
    train, test = Yeast("train", path), Yeast("test", path)
    assert (len(train), len(test)) == (13, 7)
    torch.testing.assert_close(train.features.mean(dim=0), torch.zeros(103), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.features.std(dim=0), torch.ones(103))
    everything = torch.cat((train.features, test.features))[:, 0].sort().values
    torch.testing.assert_close(everything.diff(), everything.diff()[:1].expand(19))
    inputs, targets = default_collate([train[0], train[1]])
    assert inputs.shape == (2, 103)
    assert [*targets] == [*LABELS]
    assert torch.stack([*targets.values()], dim=1).tolist() == train.labels[:2].tolist()


def test_a_broken_table_of_yeast(tmp_path: Path) -> None:
    path = trees.yeast(tmp_path / "yeast.csv.gz", header="Feature")
    with pytest.raises(DataFolderError, match="the columns are not Att1"):
        Yeast(path=path)
    path.write_bytes(b"no")
    with pytest.raises(DataFolderError, match="cannot be read"):
        Yeast(path=path)
    with pytest.raises(DataFolderError, match="cannot be read"):
        Yeast(path=tmp_path / "nothing.csv.gz")
    with pytest.raises(ValueError, match="no split 'val'"):
        Yeast("val", path)


def test_no_river_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataFolderError, match=r"pip install 'river>=0\.26'"):
        Yeast()


@pytest.mark.skipif(importlib.util.find_spec("river") is None, reason="river is not installed")
def test_the_real_yeast() -> None:
    features, labels = read_yeast(river_file())
    assert features.shape == (2417, 103)
    assert labels.sum(dim=0).tolist()[0] == 762
    assert labels.mean(dim=0).min() == pytest.approx(0.0141, abs=1e-4)
    assert labels.mean(dim=0).max() == pytest.approx(0.752, abs=1e-3)
    assert (len(Yeast("train")), len(Yeast("test"))) == (1500, 917)
