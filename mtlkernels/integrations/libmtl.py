"""This library's methods as weighting strategies of LibMTL's Trainer, by their names here.

    from mtlkernels.integrations.libmtl import UPGrad  # in place of LibMTL.weighting
    Trainer(weighting=UPGrad, ...)

Every method that needs no argument, or only the number of tasks, has a class of its name; others,
and other settings, come from `weighting(method, ...)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from LibMTL.weighting.abstract_weighting import AbsWeighting
from torch import Tensor

from mtlkernels.aggregation.families import AnyMethod, weighs_losses
from mtlkernels.engine.local import backward
from mtlkernels.functional import aggregate
from mtlkernels.methods import METHODS, find_method
from mtlkernels.report import Report


class MethodWeighting(AbsWeighting):
    """LibMTL's `AbsWeighting` of a method; see `weighting`.

    The shared parameters are LibMTL's `get_share_params()`; decoders get their own losses'
    gradients. With `rep_grad=True` the method weighs the gradients at the representations, of all
    their elements (LibMTL's own methods add them up over the batch first).

    Attributes:
        method: the method, part of the model: what it learns is trained, its state is saved.
        report: of the last step, None before.
    """

    make: ClassVar[Callable[[int], AnyMethod]]
    report: Report | None = None

    def init_param(self) -> None:
        """Sets up the method, when LibMTL builds the model."""
        self.method = type(self).make(self.task_num)

    def backward(self, losses: Tensor, **settings: Any) -> Any:
        """Writes .grad of all parameters.

        Args:
            losses: (T), as LibMTL's Trainer gives them.

        Returns:
            T weights as a numpy array, or None for a method that has none.

        Raises:
            TypeError: the Trainer was given `weight_args`.
            ValueError: as `mtlkernels.backward`; or rep_grad=True with a loss method.
        """
        if settings:
            raise TypeError(
                f"weight_args has {min(settings)}=: give a method's settings where its class is "
                'made, weighting("cagrad", c=0.5)'
            )
        named = dict(zip(self.task_name, losses.unbind(), strict=True))
        self.report = self._of_representations(named) if self.rep_grad else self._whole(named)
        weights = self.report.weights
        return None if weights is None else weights.cpu().numpy()

    def _whole(self, losses: Mapping[str, Tensor]) -> Report:
        shared = None if weighs_losses(self.method) else list(self.get_share_params())
        own = list(self.parameters())
        return backward(losses, own, self.method, shared=shared)

    def _of_representations(self, losses: Mapping[str, Tensor]) -> Report:
        method: Any = self.method
        if weighs_losses(method):
            raise ValueError(
                f"rep_grad=True is for methods that weigh gradients, and {type(self).__name__} "
                "weighs losses: set it to False"
            )
        last = len(losses) - 1
        for t, loss in enumerate(losses.values()):
            loss.backward(retain_graph=t < last)
        grads = [[self.rep_tasks[task].grad] for task in losses]
        values = torch.stack([loss.detach() for loss in losses.values()])
        direction, report = aggregate(grads, method, values, tasks=list(losses))
        reps = [self.rep[task] for task in losses] if isinstance(self.rep, dict) else [self.rep]
        if all(rep is reps[0] for rep in reps):
            reps[0].backward(direction[0])
            return report
        if report.weights is None:
            raise ValueError(
                f"{type(self).__name__} has no weights, and the tasks have representations of "
                "their own: choose a Gram method"
            )
        seeds = [w.to(g) * g for w, (g,) in zip(report.weights, grads, strict=True)]
        torch.autograd.backward(reps, seeds)
        return report


def weighting(method: str | type[Any], **settings: Any) -> type[MethodWeighting]:
    """A weighting strategy class for LibMTL's Trainer.

    Args:
        method: a method's class, or its name.
        settings: its arguments; `num_tasks` is filled in.

    Returns:
        A subclass of LibMTL's `AbsWeighting`, named as the method.

    Raises:
        ValueError: no method has that name.
    """
    cls: Any = find_method(method) if isinstance(method, str) else method

    def make(num_tasks: int) -> AnyMethod:
        if "num_tasks" in inspect.signature(cls).parameters:
            return cls(**{"num_tasks": num_tasks, **settings})
        return cls(**settings)

    doc = f"`mtlkernels.{cls.__name__}` as a weighting strategy of LibMTL."
    members = {"make": staticmethod(make), "__doc__": doc, "__module__": __name__}
    return type(cls.__name__, (MethodWeighting,), members)


def __getattr__(name: str) -> Any:
    cls = METHODS.get(name.lower())
    if cls is None or cls.__name__ != name:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()[name] = weighting(cls)
    return made
