"""The optimizer contract: what a wrapped optimizer still is, and where its gradients are.

What a training loop does with it is in test_contract_loop.py, what is saved, loaded and copied in
test_contract_state.py and test_contract_checkpoint.py.
"""

from __future__ import annotations

import pytest
import torch
from contract import BASES, Net, assert_same, batches, pair, train
from torch import Tensor

import mtlkernels
from mtlkernels import Mean, MTLOptimizer

pytestmark = pytest.mark.usefixtures("one_thread")

every_base = pytest.mark.parametrize("base", BASES)

# --------------------------------------------------------------------------------------- bases

# Sparse gradients are all that SparseAdam takes; the combined ones are dense.
OPTIMIZERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and cls not in (torch.optim.Optimizer, torch.optim.SparseAdam)
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_torch_optimizer_keeps_its_class_and_its_steps(name: str) -> None:
    cls = OPTIMIZERS[name]
    model, plain = Net(), Net()
    own = cls([model.trunk.weight, model.heads[0].weight], lr=0.01)
    optimizer = MTLOptimizer(own, Mean())
    assert optimizer is own
    assert isinstance(optimizer, cls)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(optimizer, MTLOptimizer)
    alone = cls([plain.trunk.weight, plain.heads[0].weight], lr=0.01)
    for x in batches(3):

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = model(x)[0]
            optimizer.backward([loss])
            return loss

        def plain_closure(x: Tensor = x) -> Tensor:
            alone.zero_grad()
            loss = plain(x)[0]
            loss.backward()
            return loss

        assert torch.equal(optimizer.step(closure), alone.step(plain_closure))
    assert_same(model, plain)
    assert not torch.equal(model.trunk.weight, Net().trunk.weight)


@every_base
def test_wrapping_changes_no_step_of_the_base(base: str) -> None:
    model, optimizer = pair(base, Mean())
    plain = Net()
    alone = BASES[base](plain.parameters())
    for x in batches(4):
        optimizer.zero_grad()
        optimizer.backward([model(x)[0]])
        optimizer.step()
        alone.zero_grad()
        plain(x)[0].backward()
        alone.step()
    assert_same(model, plain)


COMPILED = {
    "sgd": BASES["sgd"],
    "adam-foreach": BASES["adam-foreach"],
    # on a CPU torch steps a capturable optimizer only where it is compiled
    "adamw-capturable": lambda params: torch.optim.AdamW(params, lr=1e-2, capturable=True),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # by an import in it
@pytest.mark.parametrize("base", COMPILED)
def test_a_compiled_step_is_the_eager_step(base: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, optimizer = pair(base.removesuffix("-capturable"))
    twin, compiled = pair(COMPILED[base])
    step = torch.compile(compiled.step, backend="aot_eager")
    for x in batches(3):
        for own, its in ((model, optimizer), (twin, compiled)):
            its.zero_grad()
            its.backward(own(x))
        optimizer.step()
        step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_base_whose_own_attribute_wrapping_would_hide_is_refused() -> None:
    class Named(torch.optim.SGD):
        method = "nesterov"

    own = Named(Net().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="Named already has an attribute 'method'"):
        MTLOptimizer(own, Mean())
    assert type(own) is Named
    late = torch.optim.SGD(Net().parameters(), lr=0.1)
    late.backward = lambda loss: loss.backward()
    with pytest.raises(ValueError, match="SGD already has an attribute 'backward'"):
        MTLOptimizer(late, Mean())
    model = Net()
    own = Named(model.parameters(), lr=0.1)
    mtlkernels.backward(model(batches(1)[0]), list(model.parameters()), Mean())  # what it points to
    own.step()
    assert not torch.equal(model.trunk.weight, Net().trunk.weight)


# --------------------------------------------------------------------------- gradients in place


@every_base
def test_zero_grad_both_ways_gives_the_same_steps(base: str) -> None:
    first, a = pair(base)
    second, b = pair(base)
    for x in batches(4):
        a.zero_grad(set_to_none=True)
        b.zero_grad(set_to_none=False)
        a.backward(first(x))
        b.backward(second(x))
        a.step()
        b.step()
    assert_same(first, second)


def test_grad_stays_where_it_is_when_it_is_zeroed_in_place() -> None:
    model, optimizer = pair()
    seen = set()
    for x in batches(4):
        optimizer.zero_grad(set_to_none=False)
        optimizer.backward(model(x))
        optimizer.step()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(grads) == 4
        seen.add(tuple(grad.data_ptr() for grad in grads))
    assert len(seen) == 1


def test_grads_are_aligned_for_vector_loads() -> None:
    model, optimizer = pair()
    optimizer.backward(model(batches(1)[0]))
    assert all(p.grad.data_ptr() % 16 == 0 for p in model.parameters() if p.grad is not None)


def test_what_no_loss_reaches_is_not_decayed_and_has_no_state() -> None:
    model, optimizer = pair(lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.5))
    train(model, optimizer, batches(3))
    assert model.unused.weight.grad is None
    assert model.unused.weight not in optimizer.state
    assert torch.equal(model.unused.weight, Net().unused.weight)


def test_add_param_group_is_seen() -> None:
    model = Net()
    optimizer = MTLOptimizer(torch.optim.SGD([model.trunk.weight], lr=0.1), Mean())
    optimizer.add_param_group({"params": model.heads.parameters(), "lr": 0.0})
    optimizer.backward(model(batches(1)[0]))
    assert all(head.weight.grad is not None for head in model.heads)
    optimizer.step()
    assert torch.equal(model.heads[0].weight, Net().heads[0].weight)
    assert not torch.equal(model.trunk.weight, Net().trunk.weight)


def test_parameters_exchanged_in_the_groups_are_those_that_are_trained() -> None:
    """As libraries do that move a model after the optimizer has been made."""
    model, optimizer = pair("sgd")
    twin, other = pair("sgd")
    new = {p: torch.nn.Parameter(p.detach().clone()) for p in model.parameters()}
    for group in optimizer.param_groups:
        group["params"] = [new[p] for p in group["params"]]
    for module in (model.trunk, *model.heads, model.unused):
        module.weight = new[module.weight]
    train(model, optimizer, batches(3))
    train(twin, other, batches(3))
    assert_same(model, twin)
