"""MTLOptimizer: an optimizer of any class gets one more method, `backward(losses)`.

Wrapping gives the object a subclass of its own class: it keeps its groups, state, hooks, schedulers
and `step`. Only `backward`, and what saves and copies a method's state, are new. The subclass has
one base, so that optimizers of any class can be wrapped, also those with a metaclass, slots or
other bases before torch's; `MTLOptimizer` knows it as a virtual subclass.
"""

from __future__ import annotations

import warnings
from abc import ABCMeta
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, cast, overload

import torch
from torch import Tensor

from mtlkernels import optimizer_state as method_state
from mtlkernels.aggregation.families import keeps_weights
from mtlkernels.aggregation.layout import UnfitGradientError
from mtlkernels.autograd.scale import Scaler
from mtlkernels.autograd.self_check import SelfCheck
from mtlkernels.engine.accumulation import Accumulation
from mtlkernels.engine.balanced_loss import balanced_sum, restored
from mtlkernels.engine.base import Engine, StepArguments
from mtlkernels.engine.coverage import warn_of_learned, warn_of_missing
from mtlkernels.engine.local import LOCAL
from mtlkernels.engine.options import Options, check_keeps_rows
from mtlkernels.engine.parameters import Losses, Runs
from mtlkernels.extended import extended, give_class, refuse_base
from mtlkernels.methods import GramMethod, LossMethod, Reused, RowMethod, get_method
from mtlkernels.report import Report


@dataclass
class _Balancing:
    """What wrapping adds to an optimizer: one object, which is never replaced."""

    method: GramMethod | LossMethod | RowMethod
    options: Options
    ranks: Engine | None = None  # takes the steps over several ranks
    check: SelfCheck | None = None
    accumulate: int = 1  # how many backward passes of `loss` are combined at once
    waiting: Accumulation = field(default_factory=Accumulation)
    report: Report | None = None  # of the last step
    warned_of_learnt: bool = False
    warned_of_rest: bool = False
    looked_for_unheld: bool = False

    @property
    def engine(self) -> Engine:
        """What takes the steps: this process, or the engine over several ranks."""
        return LOCAL if self.ranks is None else self.ranks

    def warn(self, losses: Losses | Runs, params: Sequence[Tensor]) -> None:
        """Warns once if the optimizer's groups lack parameters that it would have to train."""
        if not self.warned_of_learnt:
            self.warned_of_learnt = warn_of_learned(self.method, params)
        if not (self.looked_for_unheld or torch.compiler.is_compiling()):  # no graph to look at
            self.looked_for_unheld = True
            warn_of_missing(losses, params)


class MTLOptimizer(torch.optim.Optimizer, metaclass=ABCMeta):
    """Wraps an optimizer: `backward(losses)` balances several losses before the optimizer's step.

        optimizer = MTLOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-3), PCGrad())
        optimizer.zero_grad()
        report = optimizer.backward({"seg": seg_loss, "depth": depth_loss})
        optimizer.step()

    The result is `base` itself, now also an `MTLOptimizer`: `isinstance(optimizer, AdamW)` is
    true, and schedulers, optimizer hooks and earlier references keep working. `backward` writes the
    .grad of this optimizer's parameters and nothing else, so clipping, GradScaler and schedulers
    are used as in any loop. With a GradScaler, pass the unscaled losses and the scaler:
    `optimizer.backward(losses, scaler=scaler)`.

    Args:
        base: any torch optimizer.
        method: a Gram, row or loss method, or the name of one (`get_method`). If the method has
            parameters, add `method.parameters()` to one of base's groups.
        shared: the shared parameters; by default those that at least two losses reach. For Gram
            and row methods.
        weight_heads: multiply the gradients of head parameters by the tasks' weights too; by
            default a head gets the gradient of its own loss. For methods that have weights.
        parts: lists of parameters, for example one per layer. The report measures each of them, and
            a `PerPart` weighs each on its own; see `mtlkernels.backward`.
        every: compute new weights every so many steps and reuse them in between, see `Reused`.
        measure, apply, collect, rows_dtype: see `mtlkernels.backward`.
        module: with several ranks, the model that DistributedDataParallel, `fully_shard` or
            `parallelize_module` returned; see docs/distributed.md. Each rank passes its own losses;
            the step uses their mean over the ranks. None is the loss of a task without data.
        process_group: in place of a DistributedDataParallel, the ranks that hold the same
            parameters; beside the module of `parallelize_module`, those that hold the same pieces.
        stages: the ranks that hold the stages of a pipeline, each with an optimizer over its own
            parameters. Each task is then a function that runs its backward pass through all stages
            and returns its loss on the stage that knows it, None on the others: T backward passes
            of the pipeline.
        check_ranks: compare the weights of all ranks in each step and raise if they differ; waits
            for the device.
        accumulate: for `loss`: add up the task gradients of this many backward passes, then
            combine them.
        check: in the first step, and in steps that reach parameters for the first time, compare the
            sum of the task gradients with one more backward pass, of the summed loss. If they
            differ, an error is raised and nothing is written. False turns this check off.

    Raises:
        TypeError: base is not an optimizer, or its class cannot be extended; or method is neither a
            method nor a name.
        ValueError: base is wrapped already, has an attribute that the wrapping would hide
            (`method`, `backward`) or holds the state of another method; no method has that name; or
            an option does not apply to the method or to another option.
        NotImplementedError: base does not use .grad, or differentiates it; or the ranks share the
            model in a way that cannot be balanced. The message says what to do.
    """

    _mtl: _Balancing
    _mtl_base: ClassVar[type[torch.optim.Optimizer]]  # in the subclass: the class it extends

    def __new__(cls, *args: Any, **kwargs: Any) -> MTLOptimizer:
        return _wrap(*args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            f"{type(self).__name__} is made by wrapping: create the optimizer first, then call "
            "MTLOptimizer(optimizer, method)"
        )

    @property
    def method(self) -> GramMethod | LossMethod | RowMethod:
        """The method that combines the task gradients or the losses."""
        return self._mtl.method

    @property
    def report(self) -> Report | None:
        """The last step's report, None before the first; a `compile_step` only returns its own."""
        return self._mtl.report

    def loss(
        self,
        losses: Losses,
        *,
        features: Tensor | Sequence[Tensor] | None = None,
        accumulate: int | None = None,
    ) -> Tensor:
        """The sum of the losses as one loss whose own backward pass balances.

            loss = optimizer.loss({"seg": seg_loss, "depth": depth_loss})
            loss.backward()

        For loops that call `backward` themselves. `loss.backward()` adds to .grad what
        `optimizer.backward(losses)` adds, to the bit. What the loop does to the loss before,
        `loss / k` or `scaler.scale(loss)`, reaches the backward pass as a factor: .grad is
        multiplied by it, and the method sees the losses' own gradients. `loss + penalty` adds the
        penalty's ordinary gradient. Where gradients are off, the result is the plain sum.

        Each backward pass combines the task gradients of its own micro-batch; in a loop that
        accumulates over k of them, the sum of k balanced directions is not that of one large batch.
        With accumulate=k the task gradients of k backward passes are added up, and the k-th
        combines: the method sees their mean, weighted by the factors, and .grad is that direction
        times the sum of the factors. `step` combines what is left over and warns of it the first
        time; `zero_grad` drops it. What clips or unscales does so before `step`: give the last loss
        of a window that ends early accumulate=1, which combines all that waits.

        Args:
            losses: T scalar losses, as for `backward`.
            features: as for `backward`.
            accumulate: combine when this many backward passes wait, this one among them; by default
                what MTLOptimizer was given.

        Returns:
            0-d tensor. It can be differentiated once, with respect to all parameters: `inputs=` of
            `backward` and `torch.autograd.grad` do not reach them.

        Raises:
            TypeError, ValueError: losses are not what they have to be, or the method or an option
                stores no task gradients that could be added up. What else `backward` raises, the
                backward pass raises, with .grad as it was.
            RuntimeError: in the backward pass, if it is the second or has create_graph=True.
            NotImplementedError: torch.compile traces.
        """
        count = self._mtl.accumulate if accumulate is None else accumulate
        _check_accumulate(count, self._mtl.method, self._mtl.options)
        if count > 1:
            if features is not None:
                raise ValueError(
                    "accumulate= adds up task gradients, and features= stores none: leave one out"
                )
            _combine_at_step(self)

        def step(given: Losses, scale: Tensor | None, retain_graph: bool) -> None:
            _balance(self, given, features, scale, retain_graph, count)

        return balanced_sum(losses, step)

    @overload
    def backward(
        self,
        losses: Losses | Runs,
        *,
        features: Tensor | Sequence[Tensor] | None = None,
        scaler: Scaler | Tensor | None = None,
        accumulate: Literal[False] = False,
        retain_graph: bool = False,
    ) -> Report: ...

    @overload
    def backward(
        self,
        losses: Losses | Runs,
        *,
        scaler: Scaler | Tensor | None = None,
        accumulate: Literal[True],
        retain_graph: bool = False,
    ) -> None: ...

    def backward(
        self,
        losses: Losses | Runs,
        *,
        features: Tensor | Sequence[Tensor] | None = None,
        scaler: Scaler | Tensor | None = None,
        accumulate: bool = False,
        retain_graph: bool = False,
    ) -> Report | None:
        """Adds the method's direction to the parameters' .grad; see `mtlkernels.backward`.

        Args:
            losses: T scalar losses: a mapping from names, a TensorDict, a dataclass or NamedTuple,
                a sequence or a 1-D tensor; with stages= T functions.
            features: the trunk's output, which the heads read; the Gram matrix is then that of the
                gradients there.
            scaler: a GradScaler. The losses are unscaled; .grad is scaled.
            accumulate: add the task gradients to those of earlier micro-batches and write nothing;
                `combine` writes them, `zero_grad` drops them. They are added up as if the losses of
                one large batch were the sums of these: divide means by the number of micro-batches.
            retain_graph: keep the graph, for another backward pass through it.

        Returns:
            This step's report, on the device; None with `accumulate=True`.

        Raises:
            TypeError, ValueError: as in `mtlkernels.backward`; nothing has been written then.
        """
        mtl, params = self._mtl, _params(self)
        mtl.warn(losses, params)
        losses = cast(Losses, losses)  # functions are for `stages=`, whose engine looks
        given = StepArguments(
            *(losses, params, mtl.method, mtl.options, features, scaler, retain_graph, mtl.check)
        )
        if not accumulate:
            if mtl.waiting.rows is not None:
                raise ValueError(
                    "gradients of earlier micro-batches have not been combined: pass "
                    "accumulate=True for the last one too, then call combine()"
                )
            report = mtl.engine.step(given)
            if not torch.compiler.is_compiling():  # its tensors live in the compiled graph's memory
                mtl.report = report
            return report
        if features is not None:
            raise ValueError(
                "accumulate=True adds up task gradients, and features= takes none: leave one out"
            )
        mtl.waiting.add(mtl.engine.collect_step(given))
        return None

    def combine(self) -> Report:
        """Adds the method's direction for the accumulated task gradients to .grad, and drops them.

        Those that `backward(losses, accumulate=True)` or a loss of `loss` added up.

        Returns:
            One report for all micro-batches; its losses are the sums of theirs, or the means,
            weighted by their factors, of those given to `loss`.

        Raises:
            ValueError: nothing was accumulated.
        """
        rows = self._mtl.waiting.whole()
        if rows is None:
            raise ValueError(
                "nothing was accumulated: call backward(losses, accumulate=True) first"
            )
        mtl = self._mtl
        given = StepArguments({}, rows.params, mtl.method, mtl.options, check=mtl.check)
        try:
            report = mtl.engine.combine_rows(rows, given)
        except UnfitGradientError as error:
            raise error.among(_params(self)) from None
        mtl.waiting.clear()
        mtl.report = report
        return report

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Calls the base's own, and drops the task gradients that wait to be combined."""
        self._mtl.waiting.clear()
        self._mtl_base.zero_grad(self, *args, **kwargs)

    pc_backward = backward
    """The name that PCGrad ports use for `backward`."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The optimizer's own state dict; its first group holds the method's state as "mtl_state".

        With `flatten_optimizer_state_dict=True`, torch.distributed.checkpoint repeats a group's
        entries for each of its parameters: one object in memory, one copy per parameter on disk.
        """
        method_state.put(self.param_groups, self._mtl.method)  # first: the base's hooks see it too
        try:
            return self._mtl_base.state_dict(self, *args, **kwargs)
        finally:
            method_state.mark(self.param_groups, self._mtl.method)

    def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Restores the optimizer's and the method's state.

        A state dict saved before wrapping leaves the method's state unchanged. A flattened one
        (`flatten_optimizer_state_dict=True`) that was saved before wrapping must be loaded before
        wrapping too: torch looks in it for every entry of the optimizer's groups.

        Raises:
            ValueError: it holds another method's state, or only part of it; nothing was loaded.
        """
        groups = state_dict.get("param_groups")  # a load_state_dict_pre_hook may take other dicts
        if groups:
            method_state.check(groups, self._mtl.method)
        self._mtl_base.load_state_dict(self, state_dict, *args, **kwargs)
        self._mtl.waiting.clear()
        method_state.take(self.param_groups, self._mtl.method)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies as the base does, with the base's class in place of the one made by wrapping."""
        own, base = type(self), self._mtl_base
        reduced = cast("tuple[Any, ...]", base.__reduce_ex__(self, protocol))
        make, args, *rest = reduced
        make, *args = (base if part is own else part for part in (make, *args))
        return _rebuild, (base, self._mtl, make, tuple(args)), *rest


def _params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _balance(
    optimizer: MTLOptimizer,
    losses: Losses,
    features: Tensor | Sequence[Tensor] | None,
    scale: Tensor | None,
    retain_graph: bool,
    count: int,
) -> None:
    """The backward pass of `MTLOptimizer.loss`."""
    mtl, params = optimizer._mtl, _params(optimizer)
    mtl.warn(losses, params)
    check_surrounding = getattr(mtl.ranks, "check_surrounding", None)
    if check_surrounding is not None:
        check_surrounding(params)
    given = StepArguments(
        *(losses, params, mtl.method, mtl.options, features, scale, retain_graph, mtl.check)
    )
    in_place = features is not None or mtl.options.weighted or keeps_weights(mtl.method)
    with restored(params, in_place):
        if count == 1 and mtl.waiting.rows is None:
            mtl.report = mtl.engine.step(given)
            return
        mtl.waiting.add_weighted(mtl.engine.collect_step(given))
        if mtl.waiting.count >= count:
            optimizer.combine()


def _check_accumulate(
    count: int, method: GramMethod | LossMethod | RowMethod, options: Options
) -> None:
    """Raises ValueError where so many backward passes cannot be combined."""
    if isinstance(count, bool) or not (isinstance(count, int) and count >= 1):
        raise ValueError(f"accumulate={count!r}: it must be a whole number, at least 1")
    if count > 1:
        check_keeps_rows(method, options)


def _combine_at_step(optimizer: torch.optim.Optimizer) -> None:
    """From now on `step` combines what waits, once its closure has run."""
    if _before_step not in optimizer._optimizer_step_pre_hooks.values():
        optimizer.register_step_pre_hook(_before_step)


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> Any:
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        _combine_rest(optimizer)
        return None

    def run() -> Any:
        result = closure()
        _combine_rest(optimizer)
        return result

    return (
        ((args[0], run, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": run})
    )


def _combine_rest(optimizer: MTLOptimizer) -> None:
    """Combines what losses of `loss` have added up when the optimizer steps."""
    mtl = optimizer._mtl
    if not mtl.waiting.count:
        return
    if not mtl.warned_of_rest:
        mtl.warned_of_rest = True
        warnings.warn(
            f"step() came while the task gradients of {mtl.waiting.count} backward passes waited "
            "for more, as accumulate= says: they are combined now, after any clipping or unscaling "
            "of .grad. Give the last loss of such a window accumulate=1, or call combine() before "
            "clipping",
            stacklevel=4,
        )
    optimizer.combine()


def _wrap(
    base: torch.optim.Optimizer,
    method: GramMethod | LossMethod | RowMethod | str,
    *,
    every: int = 1,
    module: torch.nn.Module | None = None,
    process_group: Any = None,
    stages: Any = None,
    check_ranks: bool = False,
    check: bool = True,
    accumulate: int = 1,
    **options: Any,
) -> MTLOptimizer:
    if not isinstance(base, torch.optim.Optimizer):
        what = f"base is a {type(base).__name__}, which is not a torch.optim.Optimizer"
        if hasattr(base, "step"):
            raise TypeError(
                f"{what}: wrap the optimizer inside it, or leave it as it is and call "
                "mtlkernels.backward(losses, params, method) before its step()"
            )
        raise TypeError(f"{what}: give one, for example torch.optim.AdamW(model.parameters())")
    if isinstance(base, MTLOptimizer):
        raise ValueError("this optimizer is wrapped already: one MTLOptimizer is enough")
    if isinstance(method, str):
        method = get_method(method)
    if not isinstance(method, GramMethod | LossMethod | RowMethod):
        given = "the class" if isinstance(method, type) else "a"
        name = method.__name__ if isinstance(method, type) else type(method).__name__
        raise TypeError(
            f"method is {given} {name}: give a Gram, row or loss method, for "
            'example mtlkernels.PCGrad(), or its name, "pcgrad"'
        )
    unknown = sorted(set(options) - {field.name for field in fields(Options)})
    if unknown:
        raise TypeError(f"MTLOptimizer takes no {unknown[0]}=: see its docstring for its options")
    if every != 1:
        method = Reused(cast(GramMethod, method), every)
    refuse_base(base, [name for name in vars(MTLOptimizer) if not name.startswith("_")])
    own, wrapped = type(base), extended(type(base), MTLOptimizer)
    chosen = Options(**options)
    chosen.check(method)
    _check_accumulate(accumulate, method, chosen)
    balancing = _Balancing(method, chosen, accumulate=accumulate)
    if check:
        balancing.check = SelfCheck(base.param_groups, module)
    if any(given is not None for given in (module, process_group, stages)):
        from mtlkernels import distributed  # which loads DTensor and FSDP

        balancing.ranks = distributed.engine(
            module, process_group, stages, method, chosen, check_ranks=check_ranks
        )
    elif check_ranks:
        raise ValueError(
            "check_ranks= applies to several ranks: name the ranks with module=, "
            "process_group= or stages="
        )
    give_class(base, wrapped)
    try:
        vars(base)["_mtl"] = balancing
        method_state.take(base.param_groups, method)
        if accumulate > 1:
            _combine_at_step(base)
    except BaseException:
        give_class(base, own)
        vars(base).pop("_mtl", None)
        raise
    return cast(MTLOptimizer, base)


def _rebuild(
    base: type[torch.optim.Optimizer],
    balancing: _Balancing,
    make: Callable[..., torch.optim.Optimizer],
    args: tuple[Any, ...],
) -> torch.optim.Optimizer:
    """Creates a copy without its state: an object of the base's class, wrapped."""
    copy = make(*args)
    vars(copy)["_mtl"] = balancing
    give_class(copy, extended(base, MTLOptimizer))
    return copy
