"""Makes a subclass of an optimizer's class with added methods, and gives it to an object.

The subclass has one base, and the added methods are copied into it, not inherited. So it has the
memory layout and the metaclass of its base, whatever bases that has (ABC, Generic), and no class of
this package comes between the base's methods and those that they call with super().
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
    """Returns the subclass of an optimizer's class that also has another class's methods.

    Args:
        base: the optimizer's class, which is `_mtl_base` of the subclass.
        methods: the class whose functions and properties are copied. For isinstance and issubclass
            it is a base of the subclass.

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
    """Sets the object's class, without calling its __setattr__.

    Raises:
        TypeError: Python cannot change the object's class.
    """
    try:
        object.__setattr__(optimizer, "__class__", cls)
    except TypeError as error:
        raise _cannot_wrap(type(optimizer), error) from error


# Functions that the step of an optimizer with second derivatives of .grad calls.
_SECOND_ORDER = {"compute_hutchinson_hessian", "set_hessian", "get_trace"}


def refuse_base(base: Optimizer, added: Sequence[str]) -> None:
    """Raises an error if an optimizer does not work with a balanced .grad or with added names.

    Args:
        base: the optimizer.
        added: the public names that wrapping adds.

    Raises:
        NotImplementedError: its step does not use .grad, or differentiates it.
        ValueError: it already has an attribute of an added name.
    """
    name = type(base).__name__
    code = getattr(inspect.unwrap(type(base).step), "__code__", None)
    called = getattr(code, "co_names", ())
    if called == ("NotImplementedError",):
        raise NotImplementedError(
            f"{name} implements no step: it updates parameters during the backward pass, so there "
            "is no .grad to balance. Use an optimizer whose step reads .grad"
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
            f"{name} already has an attribute {hidden[0]!r}, which wrapping would hide: "
            "leave it as it is, and call mtlkernels.backward(losses, params, method) before its "
            "step()"
        )


def _cannot_wrap(base: type, error: Exception) -> TypeError:
    return TypeError(
        f"{base.__name__} cannot be wrapped, since its class cannot be extended ({error}): leave "
        "it as it is, and call mtlkernels.backward(losses, params, method) before its step()"
    )
