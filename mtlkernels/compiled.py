"""From the forward to .grad in one compiled graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def compile_step(fn: Callable[..., Result], **options: Any) -> Callable[..., Result]:
    """torch.compile, in one graph, of a function that runs a model and backward(losses).

        @mtlkernels.compile_step
        def step(batch):
            losses = compute_losses(model, batch)
            return optimizer.backward(losses)

    Forward, T backwards, Gram matrix, weights, combination and the writing of .grad are one graph;
    `zero_grad` and `optimizer.step`, which torch does not trace into one, stay outside, and
    `torch.compile(optimizer.step)` makes a graph of its own. Losses go in as a list or a mapping,
    each computed for itself: a compiled graph does not tell what a loss reaches through
    `torch.stack` or `torch.cat`. A method that makes its state in its first step is compiled again
    for the second.

    Args:
        fn: takes tensors, calls `mtlkernels.backward` or an MTLOptimizer's `backward`. Everything
            from the parameters to the losses has to be computed inside. Gram and row methods
            on rows over all shared parameters; `measure=`, `features=`, `apply=`, `every=` and
            `collect=` look at autograd's graph, which is not there.
        options: for torch.compile, for example dynamic=True or mode="reduce-overhead".

    Raises:
        NotImplementedError: this torch cannot trace backwards inside a compiled function.
        ValueError: options say fullgraph=False.
    """
    # Not at the top: importing torch._dynamo takes longer than importing torch.
    from torch._dynamo import config

    if not hasattr(config, "trace_autograd_ops"):
        raise NotImplementedError(
            f"torch {torch.__version__} cannot trace torch.autograd.grad inside a compiled "
            "function: update torch, or compile the model alone and call backward outside"
        )
    if not options.setdefault("fullgraph", True):
        raise ValueError("compile_step makes one graph: leave out fullgraph=False")
    compiled = torch.compile(fn, **options)

    @functools.wraps(fn)
    def step(*args: Any, **kwargs: Any) -> Result:
        with config.patch(trace_autograd_ops=True):
            return compiled(*args, **kwargs)

    return step
