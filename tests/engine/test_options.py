"""Options of a step: what they promise in numbers and memory, and what goes with what."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn
from trunk_and_heads import Model

import mtlkernels
from mtlkernels import SI, CAGrad, GradDrop, MTLOptimizer, PCGrad, TrimmedMean


def direction(method: mtlkernels.GramMethod, **options: object) -> Tensor:
    torch.manual_seed(0)
    model = Model().double()
    x = torch.randn(6, 5, dtype=torch.float64)
    mtlkernels.backward(model(x), list(model.parameters()), method, **options)
    return torch.cat([param.grad.reshape(-1) for param in model.trunk.parameters()])


WAYS = [
    {},
    {"collect": "batched"},
    {"apply": "backward"},
    {"collect": "ghost"},
    {"measure": True},
    {"features": True},
    {"every": 2},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_the_last_backward_lets_the_graph_go(options) -> None:
    """What the trunk saved for its backward is gone while the losses are still there."""
    torch.manual_seed(0)
    model = Model()
    given = dict(options)
    if "measure" in given:
        given["measure"] = [model.trunk[2].weight]
    features = given.pop("features", False)
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), PCGrad(), **given)
    for _ in range(2):  # the second one reuses weights with every=
        saved: list[weakref.ref[Tensor]] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: _kept(t, saved), lambda t: t
        ):
            z = model.trunk(torch.randn(6, 5))
        losses = [h(z).square().mean() for h in model.heads]
        alive = len([ref for ref in saved if ref() is not None])
        optimizer.backward(losses, features=z if features else None)
        del z
        left = len([ref for ref in saved if ref() is not None])
        assert 0 == left < alive
        assert len(losses) == 3


def _kept(tensor: Tensor, saved: list[weakref.ref[Tensor]]) -> Tensor:
    copy = tensor.clone()  # so that nobody else holds it
    saved.append(weakref.ref(copy))
    return copy


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"measure": [], "features": True}, "choose one"),
        ({"measure": [], "collect": "batched"}, "collect= says how to compute the task gradients"),
        (
            {"features": True, "collect": "batched"},
            "collect= says how to compute the task gradients",
        ),
        ({"apply": "backward", "rows_dtype": torch.bfloat16}, "rows_dtype= has no effect with"),
        ({"features": True, "rows_dtype": torch.bfloat16}, "rows_dtype= has no effect with"),
        ({"parts": [[]], "apply": "backward"}, "needs the task gradients of each part"),
        ({"parts": [[]], "features": True}, "needs the task gradients of each part"),
        ({"apply": "sum"}, 'choose "combine" or'),
        ({"collect": "vmap"}, 'choose "loop", "batched" or "ghost"'),
        ({"collect": "auto"}, 'choose "loop", "batched" or "ghost"'),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_told(options, sentence) -> None:
    model = Model()
    given = dict(options)
    z = model.trunk(torch.randn(6, 5))
    losses = [h(z).square().mean() for h in model.heads]
    if "measure" in given:
        given["measure"] = [model.trunk[2].weight]
    if "features" in given:
        given["features"] = z
    with pytest.raises(ValueError, match=sentence):
        mtlkernels.backward(losses, list(model.parameters()), CAGrad(), **given)
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize(
    "option", ["parts", "measure", "features", "apply", "collect", "rows_dtype"]
)
@pytest.mark.parametrize("method", [SI(), GradDrop(), TrimmedMean()], ids=repr)
def test_what_a_method_has_no_use_for_is_told(method, option) -> None:
    model = Model()
    z = model.trunk(torch.randn(6, 5))
    losses = [h(z).square().mean() + 1 for h in model.heads]
    value = {
        "parts": [list(model.trunk.parameters())],
        "measure": [model.trunk[2].weight],
        "features": z,
        "apply": "backward",
        "collect": "batched",
        "rows_dtype": torch.bfloat16,
    }[option]
    params = list(model.parameters())
    if option == "collect" and not isinstance(method, SI):
        mtlkernels.backward(losses, params, method, collect="batched")
        return
    with pytest.raises(ValueError, match=f"{option}= does not apply to {type(method).__name__}"):
        mtlkernels.backward(losses, params, method, **{option: value})


def test_parameters_that_a_checkpoint_hides_are_told() -> None:
    from torch.utils.checkpoint import checkpoint

    model = Model()
    x = torch.randn(6, 5)
    for options in ({}, {"apply": "backward"}):
        hidden = checkpoint(model.trunk[0], x.clone().requires_grad_(), use_reentrant=True)
        z = model.trunk[2](torch.tanh(hidden))
        losses = [h(z).square().mean() for h in model.heads]
        with pytest.raises(ValueError, match="set use_reentrant=False"):
            mtlkernels.backward(losses, list(model.parameters()), CAGrad(), **options)
    z = checkpoint(model.trunk, x, use_reentrant=False)
    losses = [h(z).square().mean() for h in model.heads]
    mtlkernels.backward(losses, list(model.parameters()), CAGrad())
    assert model.trunk[2].weight.grad is not None


def test_options_and_arguments_that_are_none_are_told() -> None:
    model = Model()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="MTLOptimizer takes no weigh_heads="):
        MTLOptimizer(base, PCGrad(), weigh_heads=True)
    losses = model(torch.randn(6, 5))
    for features, sentence in ((3, "features is a int"), ([3], "feature 0 is a int")):
        with pytest.raises(TypeError, match=sentence):
            mtlkernels.backward(losses, list(model.parameters()), CAGrad(), features=features)
    frozen = torch.ones(2)
    with pytest.raises(ValueError, match="has no graph"):
        mtlkernels.backward(losses, list(model.parameters()), CAGrad(), features=frozen)
    alien = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="measure= names a parameter"):
        mtlkernels.backward(losses, list(model.parameters()), CAGrad(), measure=[alien])
