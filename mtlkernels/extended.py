"""A subclass of any optimizer's class, and how an object becomes one of it.

The subclass has one base, and methods are copied into it instead of inherited: so it has the
memory layout and the metaclass of its base, whatever bases that has (ABC, Generic) and in which
order, and no class of ours comes between a base's methods and those that they call with super().
"""

from __future__ import annotations

from abc import ABCMeta
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


def _cannot_wrap(base: type, error: Exception) -> TypeError:
    return TypeError(
        f"{base.__name__} cannot be wrapped, since its class cannot be extended ({error}): leave "
        "it as it is, and call mtlkernels.backward(losses, params, method) before its step()"
    )
