"""From the forward to .grad in one compiled graph, and what cannot go into it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from mtlkernels.aggregation.families import AnyMethod, keeps_weights
from mtlkernels.autograd.scale import Scaler
from mtlkernels.engine.options import Options
from mtlkernels.engine.parameters import Losses

Result = TypeVar("Result")

_NO_CHECKPOINTS = (
    "this torch recomputes what torch.utils.checkpoint dropped for one backward in a compiled "
    "graph, and compile_step takes one for each loss: leave the checkpoint out, or compile the "
    "model alone and call backward outside, where checkpoints work"
)


def compile_step(fn: Callable[..., Result] | None = None, **options: Any) -> Any:
    """torch.compile, in one graph, of a function that runs a model and backward(losses).

        @mtlkernels.compile_step
        def step(batch):
            losses = compute_losses(model, batch)
            return optimizer.backward(losses)

    Forward, T backwards, Gram matrix, weights, combination and the writing of .grad are one graph;
    `zero_grad` and `optimizer.step`, which torch does not trace into one, stay outside, and
    `torch.compile(optimizer.step)` makes a graph of its own. A method that makes its state in its
    first step is compiled again for the second. Plain `torch.compile` of such a function breaks the
    graph at `backward`, which then runs as it does outside.

    What autograd's graph would tell is not there. So each loss has to be computed for itself:
    entries of one `torch.stack` or `torch.cat` would make heads pass for shared, without an error.
    `measure=`, `features=`, `apply=`, `every=` and `collect=` are refused. Hooks on activations
    run, those on parameters do not. Above 64 tasks the plain torch solver is one
    node of the graph; it reads K back to the host, and a warning cannot be given here.

    Args:
        fn: takes tensors, calls `mtlkernels.backward` or an MTLOptimizer's `backward`. Everything
            from the parameters to the losses has to be computed inside.
        options: for torch.compile, for example dynamic=True or mode="reduce-overhead". Given
            alone, `@compile_step(dynamic=True)`, they make a decorator.

    Raises:
        NotImplementedError: this torch cannot trace backwards inside a compiled function.
        ValueError: options say fullgraph=False.
        RuntimeError: when it is called, where the model uses torch.utils.checkpoint, which torch
            does not recompute for several backwards in one graph.
    """
    if fn is None:
        return functools.partial(compile_step, **options)
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
        try:
            with config.patch(trace_autograd_ops=True):
                return compiled(*args, **kwargs)
        except RuntimeError as error:
            if "disjoint backward regions" in str(error) or "extra time" in str(error):
                raise RuntimeError(_NO_CHECKPOINTS) from error
            raise

    return step


def backwards_are_lost() -> bool:
    """Whether torch.compile traces, but not through torch.autograd.grad as `compile_step` has it.

    Then it leaves the graph there and goes on with losses whose graph it does not show.
    """
    compiling = torch.compiler.is_compiling()
    return compiling and not getattr(torch._dynamo.config, "trace_autograd_ops", False)


def untraced(fn: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Calls a function, and all that it calls, outside of what torch.compile traces."""
    return torch.compiler.disable(fn)(*args, **kwargs)


# So that nothing looks inside; torch.compiler.disable as a decorator would import torch._dynamo.
untraced._torchdynamo_disable = True  # type: ignore[attr-defined]
untraced._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "several backwards do not go into this graph: use mtlkernels.compile_step"
)


def refuse_without_graph(
    losses: Losses,
    method: AnyMethod,
    options: Options,
    features: bool,
    scaler: Scaler | Tensor | None,
) -> None:
    """torch.compile traces backwards, but has no autograd graph to look at."""
    if features or options.weighted or options.collect != "loop" or keeps_weights(method):
        refuse_tracing(
            "inside torch.compile only a backward a loss can be traced: leave out features=, "
            "measure=, apply=, collect= and every=, or compile the model alone"
        )
    if isinstance(losses, Tensor) and options.shared is None:
        refuse_tracing(
            "inside torch.compile heads cannot be told from what is shared where the losses are "
            "one tensor: give a list or a mapping, or name the shared parameters with shared="
        )
    if scaler is not None and not isinstance(scaler, Tensor):
        refuse_tracing(
            "torch.compile does not trace a GradScaler: take scale = scaler.scale(torch.ones(())) "
            "before the compiled function, and give it as scaler=scale"
        )


def refuse_tracing(sentence: str) -> NoReturn:
    """Raises while torch.compile traces, with a sentence that it shows."""
    torch._dynamo.graph_break(msg=sentence)  # whose error shows the sentence; a raise's would not
    raise NotImplementedError(sentence)
