"""The examples' networks: published sizes, shapes, and which parameters which task reaches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtlkernels import AvgNorm, MTLOptimizer
from studies.imbalance import tasks
from studies.imbalance.networks.heads import SampleHead, dense_head, segnet_head
from studies.imbalance.networks.mtan import MTAN, MTANEncoder
from studies.imbalance.networks.resnet import Basic, Bottleneck, ResNet, resnet18, resnet50
from studies.imbalance.networks.segnet import SegNet
from studies.imbalance.networks.sharing import HardSharing, hard_sharing
from studies.imbalance.networks.vit import ViT, vit_small, vit_tiny

THREE = ("segmentation", "depth", "normals")
NARROW = (4, 4, 6, 6, 6)

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


@pytest.mark.parametrize(
    ("build", "tensors", "numbers", "largest"),
    [
        (resnet18, 60, 11_176_512, 2_359_296),
        (resnet50, 159, 23_508_032, 2_359_296),
        (lambda: ResNet(Bottleneck, (3, 4, 23, 3)), 312, 42_500_160, 2_359_296),
        (SegNet, 104, 24_943_296, 2_359_296),
        (lambda: MTANEncoder(THREE), 384, 44_117_184, 2_359_296),
        (vit_tiny, 150, 5_524_416, 147_456),
        (vit_small, 150, 21_665_664, 589_824),
        (lambda: ViT(768, 12, 12), 150, 85_798_656, 2_359_296),
        (lambda: ViT(1024, 24, 16), 294, 303_301_632, 4_194_304),
    ],
    ids=[
        *("resnet18", "resnet50", "resnet101", "segnet", "mtan", "vit-ti", "vit-s", "vit-b"),
        "vit-l",
    ],
)
def test_published_sizes(
    build: Callable[[], nn.Module], tensors: int, numbers: int, largest: int
) -> None:
    with torch.device("meta"):
        sizes = [parameter.numel() for parameter in build().parameters()]
    assert (len(sizes), sum(sizes), max(sizes)) == (tensors, numbers, largest)


def test_nyuv2_heads_have_the_published_size() -> None:
    heads = [segnet_head(64, channels) for channels in (13, 1, 3)]
    assert sum(p.numel() for head in heads for p in head.parameters()) == 111_889


@pytest.mark.parametrize("block", [Basic, Bottleneck])
def test_resnet_halves_five_times(block: type[Basic] | type[Bottleneck]) -> None:
    encoder = ResNet(block, (1, 2, 1, 1), width=4)
    features = encoder(torch.randn(2, 3, 65, 32))
    assert features.shape == (2, encoder.channels, 3, 1)
    assert encoder.channels == 32 * block.expansion


def test_a_resnet_block_is_its_formula() -> None:
    block = Basic(4, 8, stride=2).eval()
    x = torch.randn(2, 4, 6, 6)
    convolve = nn.functional.conv2d
    inner = convolve(x, block.conv1.weight, stride=2, padding=1) / (1 + 1e-5) ** 0.5
    change = convolve(inner.relu(), block.conv2.weight, padding=1) / (1 + 1e-5) ** 0.5
    assert block.downsample is not None
    kept = block.downsample(x)
    torch.testing.assert_close(block(x), (kept + change).relu())


def test_resnet_names_are_torchvisions() -> None:
    with torch.device("meta"):
        names = dict(resnet50().named_parameters())
    assert names["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert names["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert {"conv1.weight", "bn1.bias", "layer2.0.bn2.weight", "layer3.5.conv1.weight"} <= {*names}


def test_vit_gives_a_map_or_the_class_token() -> None:
    images = torch.randn(2, 3, 32, 48)
    encoder = ViT(16, 2, 4, (32, 48))
    tokens = ViT(16, 2, 4, (32, 48), output="token")
    tokens.load_state_dict(encoder.state_dict())
    assert encoder(images).shape == (2, 16, 2, 3)
    assert tokens(images).shape == (2, 16)
    with pytest.raises(ValueError, match="resize the images or pass size="):
        encoder(images[..., :32])
    with pytest.raises(ValueError, match="must divide"):
        ViT(16, 2, 4, (30, 48))


def test_vit_keeps_each_patch_at_its_place() -> None:
    """With attention silenced, a patch's features see their own 16 x 16 pixels alone."""
    encoder = ViT(16, 2, 4, (32, 48))
    for block in encoder.blocks:
        nn.init.zeros_(block.attn.proj.weight)
    images = torch.randn(1, 3, 32, 48)
    changed = images.clone()
    changed[..., :16, 32:] += 1
    differs = (encoder(images) != encoder(changed)).any(dim=1)[0]
    assert differs.tolist() == [[False, False, True], [False, False, False]]


def test_vit_attends_to_all_patches_and_knows_their_places() -> None:
    encoder = ViT(16, 1, 4, (32, 48))
    images = torch.zeros(1, 3, 32, 48)
    changed = images.clone()
    changed[..., :16, 32:] += 1
    before, after = encoder(images), encoder(changed)
    assert (before != after).any(dim=1).all()
    assert not torch.allclose(before[..., 0, 0], before[..., 0, 1], atol=1e-4)


def test_segnet_puts_maxima_back_where_they_were() -> None:
    """What enters a level upwards is zero but at the pooled places of the same level downwards."""
    encoder = SegNet(NARROW)
    down, up = encoder.levels(torch.randn(2, 3, 32, 64))
    assert [tuple(leaving.shape[1:]) for _, leaving in down] == [
        *((4, 32, 64), (4, 16, 32), (6, 8, 16), (6, 4, 8), (6, 2, 4)),
    ]
    for (_, leaving), (entering, _) in zip(down, reversed(up), strict=True):
        windows = nn.functional.max_pool2d(leaving, 2).repeat_interleave(2, 2)
        maxima = leaving == windows.repeat_interleave(2, 3)
        assert entering.shape == leaving.shape
        assert entering[~maxima].eq(0).all()
    assert encoder(torch.randn(2, 3, 32, 64)).shape == (2, 4, 32, 64)
    with pytest.raises(ValueError, match="multiples of 32"):
        encoder(torch.randn(2, 3, 32, 48))


def test_closed_attention_shuts_its_task_off() -> None:
    """A task's features at the finest level are the trunk's, times a mask of its own."""
    encoder = MTANEncoder(THREE, NARROW).eval()
    image = torch.randn(2, 3, 32, 32)
    trunk = encoder.trunk(image)
    before = encoder(image)
    assert [*before] == [*THREE]
    for features in before.values():
        assert features.shape == trunk.shape == (2, 4, 32, 32)
        assert (features <= trunk).all()
    mask = encoder.get_submodule("up.depth.0.layers.4")
    assert isinstance(mask, nn.BatchNorm2d)
    nn.init.constant_(mask.bias, -200.0)
    after = encoder(image)
    assert after["depth"].abs().max() < 1e-30
    assert torch.equal(after["normals"], before["normals"])


def test_which_task_reaches_what_in_mtan() -> None:
    heads = {task: segnet_head(NARROW[0], 1) for task in THREE}
    model = MTAN(heads, NARROW)
    names, parameters = zip(*model.named_parameters(), strict=True)
    predictions = model(torch.randn(2, 3, 64, 32))
    for task in THREE:
        grads = torch.autograd.grad(
            predictions[task].square().sum(), parameters, retain_graph=True, allow_unused=True
        )
        reached = {name for name, grad in zip(names, grads, strict=True) if grad is not None}
        others = tuple(f".{other}." for other in THREE if other != task)
        assert reached == {name for name in names if not any(other in name for other in others)}


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "resnet-basic": lambda: ResNet(Basic, (1, 1, 1, 1), width=4),
    "resnet-bottleneck": lambda: ResNet(Bottleneck, (1, 1, 1, 1), width=4),
    "segnet": lambda: SegNet(NARROW),
    "vit": lambda: ViT(16, 1, 2, (64, 64)),
}
DENSE = (tasks.segmentation("segmentation", 5), tasks.depth("depth"), tasks.normals("normals"))


def dense_targets() -> dict[str, Tensor]:
    return {
        "segmentation": torch.randint(-1, 5, (2, 64, 64)),
        "depth": torch.rand(2, 1, 64, 64) + 1,
        "normals": nn.functional.normalize(torch.randn(2, 3, 64, 64), dim=1),
    }


@pytest.mark.parametrize("name", ENCODERS)
def test_hard_sharing_trains_on_dense_tasks(name: str) -> None:
    """Predictions have the inputs' size, and the last layer is one that the optimizer measures."""
    encoder = ENCODERS[name]()
    model = hard_sharing(encoder, encoder.channels, DENSE)
    images, targets = torch.randn(2, 3, 64, 64), dense_targets()
    last = [*encoder.last_layer().parameters()]
    assert last
    assert {id(p) for p in last} <= {id(p) for p in model.encoder.parameters()}
    optimizer = MTLOptimizer(torch.optim.Adam(model.parameters(), lr=1e-2), AvgNorm(), measure=last)
    history = []
    for _ in range(4):
        predictions = model(images)
        for task in DENSE:
            assert predictions[task.name].shape == (2, task.channels, 64, 64)
        losses = {
            task.name: task.loss(predictions[task.name], targets[task.name]) for task in DENSE
        }
        optimizer.zero_grad()
        report = optimizer.backward(losses)
        optimizer.step()
        history.append(torch.stack([*losses.values()]).sum().item())
        assert report.norms().min() > 0
    assert history[-1] < history[0]


def test_hard_sharing_of_attributes() -> None:
    forty = [tasks.binary(f"attribute {i}", dense=False) for i in range(40)]
    encoder = ResNet(Basic, (1, 1, 1, 1), width=4)
    model = hard_sharing(encoder, encoder.channels, forty)
    predictions = model(torch.randn(3, 3, 64, 64))
    assert [*predictions] == [task.name for task in forty]
    assert all(prediction.shape == (3, 1) for prediction in predictions.values())
    token = HardSharing(ViT(16, 1, 2, (32, 32), output="token"), {"a": SampleHead(16, 2)})
    assert token(torch.randn(3, 3, 32, 32))["a"].shape == (3, 2)


def test_a_head_stays_at_the_features_resolution() -> None:
    assert dense_head(8, 5, width=4)(torch.randn(2, 8, 7, 9)).shape == (2, 5, 7, 9)
    pooled = SampleHead(8, 5)
    features = torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(pooled(features), pooled.linear(features.mean(dim=(2, 3))))
