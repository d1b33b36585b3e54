"""Tiny data folders of the layouts that studies.imbalance.data reads."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

ATTRIBUTES = [f"Attribute_{i}" for i in range(40)]
FACES = 12
HEIGHT, WIDTH = 24, 32


def nyuv2(root: Path, count: int = 3, classes: int = 13, labels: str = "label") -> Path:
    """Files as NumPy stores them in the published copy: labels float, holes of 0 and -1.

    Sample i has depth i + 1 everywhere but in the top row, and normals along x everywhere but in
    the left column; its labels run through all classes from the left, -1 in the bottom row.
    """
    for split in ("train", "val"):
        for i in range(count):
            rng = np.random.default_rng(i)
            depth = np.full((HEIGHT, WIDTH, 1), i + 1.0)
            depth[0] = 0
            normal = np.zeros((HEIGHT, WIDTH, 3))
            normal[:, 1:, 0] = 1
            label = np.tile(np.arange(WIDTH) % classes, (HEIGHT, 1)).astype(float)
            label[-1] = -1
            maps = {"image": rng.random((HEIGHT, WIDTH, 3)), labels: label, "depth": depth}
            for name, array in {**maps, "normal": normal}.items():
                save(root / split / name / f"{i}.npy", array)
    return root


def save(path: Path, array: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array.astype(np.float32))


def picture(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def celeba(root: Path) -> Path:
    """Twelve faces: 1 to 8 train, 9 and 10 val, 11 and 12 test; face i has attributes below i."""
    names = [f"{i:06}.jpg" for i in range(1, FACES + 1)]
    marks = [" ".join("1" if a < i else "-1" for a in range(40)) for i in range(1, FACES + 1)]
    lines = [str(FACES), " ".join(ATTRIBUTES) + " "]
    lines += [f"{name}  {mark}" for name, mark in zip(names, marks, strict=True)]
    parts = [0] * 8 + [1] * 2 + [2] * 2
    write(root / "Anno" / "list_attr_celeba.txt", "\n".join(lines) + "\n")
    pairs = [f"{name} {part}" for name, part in zip(names, parts, strict=True)]
    write(root / "Eval" / "list_eval_partition.txt", "\n".join(pairs) + "\n")
    for i, name in enumerate(names):
        picture(
            root / "Img" / "img_align_celeba" / name, np.full((218, 178, 3), 20 * i, dtype=np.uint8)
        )
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def taskonomy(root: Path, flat: bool) -> Path:
    """Two views; view 1 has a pixel of unknown depth at (0, 0) and normals along +y elsewhere."""
    for view in (0, 1):
        depth = np.full((HEIGHT, WIDTH), 1024 * (view + 1), dtype=np.uint16)
        depth[0, 0] = 65535
        normal = np.full((HEIGHT, WIDTH, 3), 127, dtype=np.uint8)
        normal[..., 1] = 254
        normal[-1, -1] = 127
        curvature = np.full((HEIGHT, WIDTH, 3), 127, dtype=np.uint8)
        curvature[..., 0] = 0
        maps = {"depth_zbuffer": depth, "normal": normal, "principal_curvature": curvature}
        maps["rgb"] = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
        for task, pixels in maps.items():
            place = root / task / "taskonomy" / "allensville"
            if flat:
                place = root / f"allensville_{task}" / task
            picture(place / f"point_7_view_{view}_domain_{task}.png", pixels)
    write(root / "split.csv", "id,building,point,view\n0,allensville,7,0\n1,allensville,7,1\n")
    return root


def pascal_context(root: Path) -> Path:
    """`one` shows a sofa beside a wall and a person with a head and a hand; `two` nobody.

    `two` has its classes in semseg/pascal-context. Left of column 10 is the class 368 (sofa, of
    NYUv2 too), right of it 207 (horse, which is not).
    """
    from scipy.io import savemat

    shape = (HEIGHT, WIDTH)
    labels = np.full(shape, 207, dtype=np.uint16)
    labels[:, :10] = 368
    classes = np.full(shape, 15, dtype=np.uint8)
    classes[:, :10], classes[0] = 18, 255
    salient = np.zeros(shape, dtype=np.uint8)
    salient[:, 16:], salient[0] = 128, 127
    normals = np.full((*shape, 3), 128, dtype=np.uint8)
    normals[..., 2] = 255
    head, hand, body = (np.zeros(shape, dtype=np.uint8) for _ in range(3))
    head[2:6, 20:24] = 1
    hand[4:8, 20:24] = 1
    body[2:20, 12:30] = 1
    person = struct(class_ind=15, mask=body, parts=structs(("head", head), ("lhand", hand)))
    cat = struct(class_ind=8, mask=head, parts=structs(("head", body)))
    alone = struct(class_ind=15, mask=body, parts=np.zeros((0, 0)))
    for name, folder, things in (
        ("one", "VOC12", (cat, person)),
        ("two", "pascal-context", (cat, alone)),
    ):
        for place in ("pascal-context/trainval", "human_parts"):
            (root / place).mkdir(parents=True, exist_ok=True)
        savemat(root / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": labels})
        objects = np.concatenate(things, axis=1)
        anno = struct(imname=name, objects=objects)
        savemat(root / "human_parts" / f"{name}.mat", {"anno": anno})
        picture(root / "semseg" / folder / f"{name}.png", classes)
        picture(root / "sal_distill" / f"{name}.png", salient)
        picture(root / "normals_distill" / f"{name}.png", normals)
        picture(root / "JPEGImages" / f"{name}.jpg", np.full((*shape, 3), 255, dtype=np.uint8))
    for split in ("train", "val"):
        write(root / "ImageSets" / "Context" / f"{split}.txt", "one\ntwo\n")
    return root


def struct(**fields: Any) -> np.ndarray[Any, Any]:
    """A MATLAB struct, 1 x 1, as scipy writes it."""
    made = np.empty((1, 1), dtype=[(name, object) for name in fields])
    for name, value in fields.items():
        made[name][0, 0] = value
    return made


def structs(*parts: tuple[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.concatenate([struct(part_name=name, mask=mask) for name, mask in parts], axis=1)


def yeast(path: Path, rows: int = 20, header: str = "Att") -> Path:
    """A table like river's: row i has features i + j / 1000, and label k if 2^k divides i."""
    names = [f"{header}{j}" for j in range(1, 104)] + [f"Class{k}" for k in range(1, 15)]
    lines = [",".join(names)]
    for i in range(rows):
        features = [f"{i + j / 1000:.3f}" for j in range(103)]
        lines.append(",".join(features + [str(int(i % 2**k == 0)) for k in range(14)]))
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return path
