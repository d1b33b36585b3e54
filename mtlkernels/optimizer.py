"""MTLOptimizer: the drop-in. A person's own optimizer gets one more method, `backward(losses)`.

Wrapping mixes a class in front of the optimizer's own, on the very object: groups, state, hooks and
schedulers stay one thing, and `step` is the one it had. Only `backward` and what is needed to save
and copy a method's state are new.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from mtlkernels.arguments import Losses, Options
from mtlkernels.backprop import Scaler, collect_step, combine_rows, step
from mtlkernels.methods import GramMethod, LossMethod, Reused, RowMethod, get_method
from mtlkernels.report import Report
from mtlkernels.rows import Rows

_PREFIX = "mtl."  # marks the method's tensors in the first parameter group of a state dict


@dataclass
class _Balancing:
    """What wrapping adds to an optimizer, in one object that is never replaced."""

    method: GramMethod | LossMethod | RowMethod
    options: Options
    pending: Rows | None = None  # what accumulate=True has added up
    warned: bool = False

    def check_learnt(self, params: Sequence[Tensor]) -> None:
        """Warns once where the method learns and the optimizer does not hold what it learns."""
        if self.warned or not isinstance(self.method, LossMethod):
            return
        known = {id(param) for param in params}
        if all(id(param) in known for param in self.method.parameters()):
            return
        self.warned = True
        warnings.warn(
            f"{type(self.method).__name__} learns parameters that are in none of the optimizer's "
            "groups: add_param_group them, or step and zero them yourself",
            stacklevel=3,
        )


class MTLOptimizer(torch.optim.Optimizer):
    """Balances several losses in front of an optimizer's own step.

        optimizer = MTLOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-3), PCGrad())
        optimizer.zero_grad()
        report = optimizer.backward({"seg": seg_loss, "depth": depth_loss})
        optimizer.step()

    The result is `base` itself, now also an `MTLOptimizer`: `isinstance(optimizer, AdamW)` holds,
    and schedulers, optimizer hooks and references made before keep working. `backward` writes the
    .grad of this optimizer's parameters and nothing else, so clipping, GradScaler and schedulers go
    where they always went; only a loss method must not be given losses that a GradScaler has scaled
    (see `mtlkernels.backward`).

    Args:
        base: any torch optimizer.
        method: a Gram, row or loss method, or the name of one (`get_method`). What a method
            learns, `method.parameters()`, belongs into one of base's groups.
        shared: the parameters to balance; without it those that at least two losses reach. For
            Gram and row methods.
        weight_heads: for methods that weigh the tasks' gradients, multiply those of parameters
            that are not shared by the weights too; by default a head gets its own loss's gradient.
        parts: lists of parameters, for example one a layer, each balanced on its own; the method is
            then a `PerPart`, see `mtlkernels.backward`.

    Raises:
        TypeError: base is not an optimizer, or method is neither a method nor a name.
        ValueError: base is wrapped already, no method has that name, or shared, weight_heads or
            parts is given with a method that has no use for it.
    """

    _mtl: _Balancing

    def __new__(cls, *args: Any, **kwargs: Any) -> MTLOptimizer:
        if cls is not MTLOptimizer:
            raise TypeError(
                f"{cls.__name__} is made by wrapping: set up the optimizer first, then "
                "MTLOptimizer(optimizer, method)"
            )
        return _wrap(*args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `base` has been initialised by its own class, and stays as it is."""

    @property
    def method(self) -> GramMethod | LossMethod | RowMethod:
        """The method that balances."""
        return self._mtl.method

    @overload
    def backward(
        self,
        losses: Losses,
        *,
        features: Tensor | Sequence[Tensor] | None = None,
        scaler: Scaler | Tensor | None = None,
        accumulate: Literal[False] = False,
        retain_graph: bool = False,
    ) -> Report: ...

    @overload
    def backward(
        self,
        losses: Losses,
        *,
        scaler: Scaler | Tensor | None = None,
        accumulate: Literal[True],
        retain_graph: bool = False,
    ) -> None: ...

    def backward(
        self,
        losses: Losses,
        *,
        features: Tensor | Sequence[Tensor] | None = None,
        scaler: Scaler | Tensor | None = None,
        accumulate: bool = False,
        retain_graph: bool = False,
    ) -> Report | None:
        """Adds the method's direction to the parameters' .grad; see `mtlkernels.backward`.

        Args:
            losses: T scalar losses: a mapping from names, a sequence or a 1-D tensor.
            features: what the trunk returned and the heads read, to weigh the gradients there.
            scaler: a GradScaler, given the losses as they are; .grad comes out scaled.
            accumulate: add the tasks' gradients to those of the micro-batches before, and write
                nothing; `combine` writes. The sum is what one batch of all of them would give where
                its losses are the sums of theirs: divide means by the number of micro-batches.
            retain_graph: keep the graph, for another backward through it.

        Returns:
            This step's report, on the device; None with accumulate.

        Raises:
            TypeError, ValueError: as `mtlkernels.backward`; nothing has been written then.
        """
        mtl, params = self._mtl, self._params()
        mtl.check_learnt(params)
        if not accumulate:
            if mtl.pending is not None:
                raise ValueError(
                    "gradients of earlier micro-batches wait: accumulate=True for the last one "
                    "too, then combine()"
                )
            return step(losses, params, mtl.method, mtl.options, features, scaler, retain_graph)
        if features is not None:
            raise ValueError(
                "accumulate=True adds up rows, and features= takes none: leave one out"
            )
        rows = collect_step(losses, params, mtl.method, mtl.options, scaler, retain_graph)
        if mtl.pending is None:
            mtl.pending = rows
        else:
            mtl.pending.add(rows)
        return None

    def combine(self) -> Report:
        """Adds the method's direction for the accumulated gradients to .grad, and forgets them.

        Returns:
            The report of all micro-batches together; its losses are the sums of theirs.

        Raises:
            ValueError: nothing was accumulated.
        """
        rows = self._mtl.pending
        if rows is None:
            raise ValueError(
                "nothing was accumulated: call backward(losses, accumulate=True) first"
            )
        params = [param for param in self._params() if param.requires_grad]
        report = combine_rows(
            rows, params, cast("GramMethod | RowMethod", self._mtl.method), self._mtl.options
        )
        self._mtl.pending = None
        return report

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    pc_backward = backward
    """The name the PCGrad ports use."""

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's own state dict; the method's tensors stand in its first group."""
        state = super().state_dict()
        for key, value in self._mtl.method.state_dict().items():
            state["param_groups"][0][_PREFIX + key] = value
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores both. One saved before wrapping leaves the method's state as it is."""
        groups = [dict(group) for group in state_dict["param_groups"]]
        keys = [key for key in groups[0] if key.startswith(_PREFIX)]
        kept = {key[len(_PREFIX) :]: groups[0].pop(key) for key in keys}
        method = self._mtl.method
        if kept and _fixed(method, kept) != _fixed(method, method.state_dict()):
            raise ValueError(
                f"the state dict holds the state of another method ({', '.join(kept)}) than "
                f"{type(method).__name__}: nothing was loaded"
            )
        super().load_state_dict({**state_dict, "param_groups": groups})
        if kept:
            method.load_state_dict(kept)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_mtl": self._mtl}

    def __reduce__(self) -> tuple[Any, ...]:
        return _new_wrapped, (type(self).__mro__[2],), self.__getstate__()


def _wrap(
    base: torch.optim.Optimizer,
    method: GramMethod | LossMethod | RowMethod | str,
    *,
    every: int = 1,
    **options: Any,
) -> MTLOptimizer:
    if not isinstance(base, torch.optim.Optimizer):
        raise TypeError(
            f"base is a {type(base).__name__}: give a torch optimizer, "
            "for example torch.optim.AdamW(model.parameters())"
        )
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
    if every != 1:
        method = Reused(cast(GramMethod, method), every)
    chosen = Options(**options)
    chosen.check(method)
    _take_method_state(base, method)
    base._mtl = _Balancing(method, chosen)  # type: ignore[attr-defined]
    base.__class__ = _wrapped_class(type(base))
    return base  # type: ignore[return-value]


def _fixed(method: GramMethod | LossMethod | RowMethod, keys: Iterable[str]) -> set[str]:
    """The keys of a method's state that it has before its first call too."""
    return {key for key in keys if not key.startswith(method.growing)}


def _take_method_state(base: torch.optim.Optimizer, method: torch.nn.Module) -> None:
    """Moves a method's state that base loaded before the wrapping from its groups to the method."""
    group = base.param_groups[0]
    kept = {key[len(_PREFIX) :]: group[key] for key in group if key.startswith(_PREFIX)}
    if not kept:
        return
    if kept.keys() != method.state_dict().keys():
        raise ValueError(
            f"base holds the state of another method ({', '.join(kept)}) than "
            f"{type(method).__name__}: wrap it with that method, or load the state dict after "
            "wrapping"
        )
    method.load_state_dict(kept)
    for key in kept:
        del group[_PREFIX + key]


_classes: dict[type[torch.optim.Optimizer], type[MTLOptimizer]] = {}


def _wrapped_class(base: type[torch.optim.Optimizer]) -> type[MTLOptimizer]:
    if base not in _classes:
        name = "MTL" + base.__name__
        _classes[base] = type(name, (MTLOptimizer, base), {"__module__": __name__})
    return _classes[base]


def _new_wrapped(base: type[torch.optim.Optimizer]) -> MTLOptimizer:
    wrapped = _wrapped_class(base)
    return object.__new__(wrapped)
