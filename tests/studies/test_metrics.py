"""The examples' meters against numbers made by hand, and delta_m against a published row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from examples.demo.metrics import delta_m
from studies.imbalance import tasks
from studies.imbalance.metrics import (
    HIGHER_IS_BETTER,
    BinaryMeter,
    DepthMeter,
    Meter,
    NormalsMeter,
    SegmentationMeter,
    delta_by_convention,
    f1,
    mean_error,
)

# As published with Nash-MTL (ICML 2022) on NYUv2: single-task training, and Nash-MTL.
NYUV2_METRICS = {
    "segmentation": ("miou", "pixel_accuracy"),
    "depth": ("absolute", "relative"),
    "normals": ("mean_angle", "median_angle", "within_11.25", "within_22.5", "within_30"),
}
SINGLE = (38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15)
NASH = (40.13, 65.93, 0.5261, 0.2171, 25.26, 20.08, 28.40, 55.47, 68.15)


def nyuv2_results(row: tuple[float, ...]) -> dict[str, dict[str, float]]:
    numbers = iter(row)
    return {
        task: {metric: next(numbers) for metric in metrics}
        for task, metrics in NYUV2_METRICS.items()
    }


def logits(found: list[list[list[int]]], classes: int) -> Tensor:
    """Classes (B, H, W) -> logits (B, C, H, W) whose largest entries they are."""
    return functional.one_hot(torch.tensor(found), classes).movedim(-1, 1).float()


pytestmark = pytest.mark.usefixtures("one_thread")

# Two images of four pixels and three classes, of which the third appears in neither.
FOUND = [[[0, 0, 1, 1]], [[0, 1, 1, 0]]]
TRUE = torch.tensor([[[0, 1, 1, -1]], [[0, 0, 0, 0]]])


def test_iou_of_the_set() -> None:
    """Class 0: 3 shared of 6; class 1: 1 shared of 4; right 4 of 7."""
    meter = SegmentationMeter(3)
    for image in range(2):
        meter.update(logits(FOUND[image : image + 1], 3), TRUE[image : image + 1])
    result = meter.result()
    assert result["miou"] == pytest.approx((3 / 6 + 1 / 4) / 2)
    assert result["pixel_accuracy"] == pytest.approx(4 / 7)
    whole = SegmentationMeter(3)
    whole.update(logits(FOUND, 3), TRUE)
    assert whole.result() == result


def test_iou_of_each_image() -> None:
    """First image: 1/2, 1/2 and 2 of 3 right; second: 2/4, 0/2 and 2 of 4 right."""
    meter = SegmentationMeter(3, over="image")
    meter.update(logits(FOUND, 3), TRUE)
    meter.update(logits([[[0, 1, 2, 0]]], 3), torch.full((1, 1, 4), -1))
    result = meter.result()
    assert result["miou"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert result["pixel_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)


DEPTHS = (
    (torch.tensor([[[[2.0, 9.0]]]]), torch.tensor([[[[4.0, torch.nan]]]])),
    (torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[2.0, 2.0]]]])),
)


@pytest.mark.parametrize(
    ("over", "absolute", "relative"),
    [("set", 4 / 3, 1.5 / 3), ("batch", (2 + 1) / 2, (0.5 + 0.5) / 2)],
)
def test_depth_errors(over: str, absolute: float, relative: float) -> None:
    """Errors 2 of 4 m, 1 of 2 m, 1 of 2 m; an unknown pixel and an unknown batch do not count."""
    meter = DepthMeter(over)
    for prediction, target in DEPTHS:
        meter.update(prediction, target)
    meter.update(DEPTHS[0][0], torch.full((1, 1, 1, 2), torch.nan))
    result = meter.result()
    assert result["absolute"] == pytest.approx(absolute)
    assert result["relative"] == pytest.approx(relative)
    alone = tasks.ErrorMeter(over)
    for prediction, target in DEPTHS:
        alone.update(prediction, target)
    assert alone.result() == {"absolute": pytest.approx(absolute)}


def at_angles(*degrees: float) -> Tensor:
    """Vectors (1, 3, 1, N) of length 3 at angles from x."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return 3 * torch.stack((angle.cos(), angle.sin(), 0 * angle)).float()[None, :, None]


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ("set", (10 + 20 + 25 + 40 + 0 + 180) / 6),
        ("batch", ((10 + 20 + 25 + 40) / 4 + 90) / 2),
    ],
)
def test_angles(over: str, expected: float) -> None:
    meter = NormalsMeter(over)
    first = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 1, 5).clone()
    first[..., 4] = torch.nan
    meter.update(at_angles(10, 20, -25, 40, 77), first)
    meter.update(at_angles(0, 180), first[..., :2])
    result = meter.result()
    assert result["mean_angle"] == pytest.approx(expected, abs=1e-4)
    if over == "set":
        assert result["median_angle"] == pytest.approx(22.5, abs=1e-4)
        shares = (2 / 6, 3 / 6, 4 / 6)
    else:
        assert result["median_angle"] == pytest.approx((22.5 + 90) / 2, abs=1e-4)
        shares = ((1 / 4 + 1 / 2) / 2, (2 / 4 + 1 / 2) / 2, (3 / 4 + 1 / 2) / 2)
    for limit, share in zip(("11.25", "22.5", "30"), shares, strict=True):
        assert result[f"within_{limit}"] == pytest.approx(share)


def test_an_angle_keeps_its_digits_near_zero() -> None:
    """acos of a float32 cosine sees no angle below 0.02 degrees."""
    meter = NormalsMeter()
    meter.update(at_angles(0.001).double(), at_angles(0.0).double())
    assert meter.result()["mean_angle"] == pytest.approx(0.001, rel=1e-3)


def attributes() -> list[BinaryMeter]:
    """Three attributes: F1 2/3 and error 1/4, F1 0 and error 1/2, and one that never is nor was."""
    rows = (
        ([1.0, 1.0, -1.0, -1.0], [1.0, 0.0, 0.0, 0.0]),
        ([-1.0, 2.0, -1.0, -1.0], [1.0, 0.0, 0.0, 0.0]),
        ([-1.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.0, torch.nan]),
    )
    meters = []
    for said, true in rows:
        meter = BinaryMeter()
        for half in (slice(0, 2), slice(2, 4)):
            meter.update(torch.tensor(said)[half, None], torch.tensor(true)[half])
        meters.append(meter)
    return meters


def test_attributes_by_hand() -> None:
    first, second, third = (meter.result() for meter in attributes())
    assert first == {"error": 0.25, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)}
    assert second == {"error": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert third["error"] == 0
    assert all(math.isnan(third[name]) for name in ("precision", "recall", "f1"))
    assert mean_error(attributes()) == pytest.approx(25.0)


def test_edges_are_judged_by_f1_and_not_by_saying_nothing() -> None:
    """One pixel of 100 is an edge; saying so, and so of two others, errs more than silence does."""
    truth = torch.zeros(1, 1, 10, 10)
    truth[0, 0, 0, 0] = 1
    silent, finding = torch.full_like(truth, -1.0), torch.full_like(truth, -1.0)
    finding[0, 0, 0, :3] = 1.0
    edges = tasks.binary("edges", dense=True)
    found = []
    for prediction in (silent, finding):
        meter = edges.meter()
        meter.update(prediction, truth)
        found.append({"edges": meter.result()})
    assert found[0]["edges"]["error"] < found[1]["edges"]["error"]
    assert delta_by_convention(found[0], found[1], "astmt") == pytest.approx(-100)
    assert next(iter(tasks.binary("label", dense=False).meter().result())) == "error"
    assert set(found[0]["edges"]) == {"error", "precision", "recall", "f1"}


@pytest.mark.parametrize("first", [True, False])
def test_a_metric_that_is_nan_is_refused(first: bool) -> None:
    good, bad = {"edges": {"f1": 0.5}}, {"edges": {"f1": math.nan}}
    results, base = (bad, good) if first else (good, bad)
    with pytest.raises(ValueError, match="f1 of edges is NaN, as of data in which"):
        delta_by_convention(results, base, "libmtl")
    rest = {"edges": {"f1": 0.5, "precision": math.nan}}
    assert delta_by_convention(rest, good, "astmt") == 0


def test_more_logits_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="4 logits a pixel are more than the meter's 3 classes"):
        SegmentationMeter(3).update(logits(FOUND, 4), TRUE)


def test_f1_averages_by_hand() -> None:
    """Macro: (2/3 + 0) / 2; micro: one hit, three said and two true."""
    assert f1(attributes(), "macro") == pytest.approx(1 / 3)
    assert f1(attributes(), "micro") == pytest.approx(2 / 5)
    assert math.isnan(f1([BinaryMeter()], "micro"))


@pytest.mark.parametrize(
    "meter",
    [SegmentationMeter(3), DepthMeter(), DepthMeter("batch"), NormalsMeter(), BinaryMeter()],
)
def test_a_meter_that_saw_nothing_gives_nan(meter: Meter) -> None:
    result = meter.result()
    assert result.keys() <= HIGHER_IS_BETTER.keys()
    assert all(math.isnan(number) for number in result.values())


def test_an_unknown_variant_is_refused() -> None:
    for build in (lambda: SegmentationMeter(3, "batch"), lambda: DepthMeter("image")):
        with pytest.raises(ValueError, match="is none of set"):
            build()
    with pytest.raises(ValueError, match="'weighted' is none of macro, micro"):
        f1(attributes(), "weighted")
    with pytest.raises(ValueError, match="'recall' is none of error, f1"):
        BinaryMeter("recall")
    with pytest.raises(ValueError, match="'ours' is none of nash, libmtl, astmt"):
        delta_by_convention(nyuv2_results(NASH), nyuv2_results(SINGLE), "ours")


def test_delta_of_the_published_nash_mtl_row() -> None:
    """Published: -4.04. The row as printed, rounded, gives -4.0468."""
    results, base = nyuv2_results(NASH), nyuv2_results(SINGLE)
    assert delta_by_convention(results, base, "nash") == pytest.approx(-4.04, abs=0.01)
    assert delta_by_convention(base, base, "nash") == 0


def test_the_same_row_in_the_other_conventions() -> None:
    """Gains of segmentation 4.0907, of depth 22.0059, of normals -3.1544 percent in the mean; of
    mIoU alone 4.7781, of the absolute error 22.1054, of the mean angle -0.9996. DB-MTL's table of
    the same rows, with tasks counting equally, prints +7.65 for Nash-MTL.
    """
    results, base = nyuv2_results(NASH), nyuv2_results(SINGLE)
    assert delta_by_convention(results, base, "libmtl") == pytest.approx(7.6474, abs=1e-4)
    assert delta_by_convention(results, base, "astmt") == pytest.approx(8.6280, abs=1e-4)


def test_delta_by_hand_with_groups() -> None:
    """Gains of 10 and 30 percent in one task and -10 in the other."""
    values, base, higher = [1.1, 0.7, 0.9], [1.0, 1.0, 1.0], [True, False, True]
    groups = ["a", "a", "b"]
    assert delta_m(values, base, higher, groups, "gain") == pytest.approx((20 - 10) / 2)
    assert delta_m(values, base, higher, groups) == pytest.approx(-5)
    assert delta_m(values, base, higher) == pytest.approx(-10)
    with pytest.raises(ValueError, match="base of zero"):
        delta_m([1.0], [0.0], [True])
    with pytest.raises(ValueError, match="zip"):
        delta_m(values, base, higher, ["a"])


def test_losses_count_known_entries_alone() -> None:
    zeros = torch.zeros(1, 4, 1, 2, requires_grad=True)
    task = tasks.segmentation("s", 4)
    loss = task.loss(zeros, torch.tensor([[[2, -1]]]))
    assert loss.item() == pytest.approx(math.log(4))
    (gradient,) = torch.autograd.grad(loss, zeros)
    assert gradient[..., 1].eq(0).all()
    assert task.loss(zeros, torch.full((1, 1, 2), -1)).item() == 0
    edges = tasks.binary("e", dense=True, positive_weight=0.95)
    prediction = torch.zeros(1, 1, 1, 3)
    target = torch.tensor([[[[1.0, 0.0, torch.nan]]]])
    expected = (2 * 0.95 + 2 * 0.05) / 2 * math.log(2)
    assert edges.loss(prediction, target).item() == pytest.approx(expected)
    lone = tasks.binary_error(prediction, torch.tensor([[[[1.0, torch.nan, torch.nan]]]]), 0.95)
    assert lone.item() == pytest.approx(1.9 * math.log(2))
    plain = tasks.binary("b", dense=False)
    wrong, right = torch.tensor([[3.0]]), torch.tensor([0.0])
    assert plain.loss(wrong, right).item() == pytest.approx(3 + math.log1p(math.exp(-3)))
    with pytest.raises(ValueError, match="between 0 and 1"):
        tasks.binary("b", dense=False, positive_weight=1.0)


@pytest.mark.parametrize(
    "task",
    [
        tasks.segmentation("a", 5),
        tasks.depth("b"),
        tasks.normals("c"),
        tasks.regression("d", 2),
        tasks.binary("e", dense=True),
        tasks.binary("f", dense=False),
    ],
    ids=lambda task: task.name,
)
def test_a_task_fits_its_own_target(task: tasks.Task) -> None:
    """A few steps from zero lower the loss, and the meter takes what the loss takes."""
    torch.manual_seed(0)
    shape = (2, task.channels, 4, 4) if task.dense else (2, task.channels)
    if task.name == "a":
        target = torch.randint(-1, 5, (2, 4, 4))
    elif task.name == "f":
        target = torch.tensor([0.0, 1.0])
    else:
        target = torch.rand(shape).round() if task.name == "e" else torch.rand(shape) + 0.1
        target[0, :, 0, 0] = torch.nan
    prediction = (0.1 * torch.randn(shape)).requires_grad_()
    before = task.loss(prediction, target)
    optimizer = torch.optim.Adam([prediction], lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(prediction, target).backward()
        optimizer.step()
    assert task.loss(prediction, target) < 0.5 * before
    meter = task.meter()
    meter.update(prediction.detach(), target)
    for metric, number in meter.result().items():
        assert math.isfinite(number)
        assert metric in HIGHER_IS_BETTER
