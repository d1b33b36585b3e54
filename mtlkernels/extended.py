"""A subclass of any optimizer's class, how an object becomes one of it, and which should not.

The subclass has one base, and methods are copied into it instead of inherited: so it has the
memory layout and the metaclass of its base, whatever bases that has (ABC, Generic) and in which
order, and no class of ours comes between a base's methods and those that they call with super().
"""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Sequence
from types import FunctionType, new_class
from typing import Any

from torch.optim import Optimizer

_classes: dict[type[Optimizer], type[Optimizer]] = {}


def extended(base: type[Optimizer], methods: ABCMeta) -> type[Optimizer]:
    """The subclass of an optimizer's class that has another class's methods too.

    Args:
        base: the class. The subclass knows it as `_mtl_base`.
        methods: whose functions and properties the subclass gets. For isinstance and issubclass it
            is a base of the subclass.

    Raises:
        TypeError: the class cannot have subclasses.
    """
    if base not in _classes:
        added: dict[str, Any] = {
            name: member
            for name, member in vars(methods).items()
            if isinstance(member, FunctionType | property) and name != "__new__"
        }
        added |= {"__module__": methods.__module__, "__doc__": methods.__doc__, "_mtl_base": base}
        try:
            made = new_class("MTL" + base.__name__, (base,), exec_body=lambda ns: ns.update(added))
        except Exception as error:
            raise _cannot_wrap(base, error) from error
        methods.register(made)
        _classes[base] = made
    return _classes[base]


def give_class(optimizer: Optimizer, cls: type[Optimizer]) -> None:
    """Makes this the object's class, whatever the object's own __setattr__ does.

    Raises:
        TypeError: Python cannot give the object another class.
    """
    try:
        object.__setattr__(optimizer, "__class__", cls)
    except TypeError as error:
        raise _cannot_wrap(type(optimizer), error) from error


# What the step of an optimizer calls that takes second derivatives from .grad.
_SECOND_ORDER = {"compute_hutchinson_hessian", "set_hessian", "get_trace"}


def refuse_base(base: Optimizer, added: Sequence[str]) -> None:
    """Raises where an optimizer would not step on a balanced .grad, or would miss its own code.

    Args:
        base: the optimizer.
        added: the public names that wrapping adds.

    Raises:
        NotImplementedError: it does not step on .grad, or differentiates it.
        ValueError: it has an attribute of its own of an added name.
    """
    name = type(base).__name__
    code = getattr(inspect.unwrap(type(base).step), "__code__", None)
    called = getattr(code, "co_names", ())
    if called == ("NotImplementedError",):
        raise NotImplementedError(
            f"{name} has no step of its own: it updates parameters while their backward runs, so "
            "that there is no .grad to balance. Use an optimizer that steps on .grad"
        )
    if _SECOND_ORDER & set(called):
        raise NotImplementedError(
            f"{name} differentiates .grad in its step, which needs create_graph=True, and a "
            "balanced .grad has no graph: leave it as it is. Before its step(), take report = "
            "mtlkernels.backward(losses, params, method, retain_graph=True), zero_grad() and "
            "(report.weights * torch.stack(losses)).sum().backward(create_graph=True)"
        )
    hidden = [n for n in added if hasattr(base, n) and not hasattr(Optimizer, n)]
    if hidden:
        raise ValueError(
            f"{name} has an attribute {hidden[0]!r} of its own, which wrapping would hide from it: "
            "leave it as it is, and call mtlkernels.backward(losses, params, method) before its "
            "step()"
        )


def _cannot_wrap(base: type, error: Exception) -> TypeError:
    return TypeError(
        f"{base.__name__} cannot be wrapped, since its class cannot be extended ({error}): leave "
        "it as it is, and call mtlkernels.backward(losses, params, method) before its step()"
    )
