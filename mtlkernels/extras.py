"""Packages of the extras: imported when needed, missed in a sentence."""

from __future__ import annotations

import importlib
from types import ModuleType

DISTRIBUTIONS = {"skimage": "scikit-image", "PIL": "pillow"}
"""Import names that differ from the name under which pip knows the package."""


class MissingPackageError(ModuleNotFoundError):
    """A package of an extra is not installed."""


def require(module: str, user: str = "the demo", extra: str = "demo") -> ModuleType:
    """Import `module`, dotted or not; raise `MissingPackageError` where its package is absent.

    The error says that `user` needs it and that the extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        name = DISTRIBUTIONS.get(package, package)
        raise MissingPackageError(
            f"{user} needs {name}, which is not installed: pip install 'mtlkernels[{extra}]'"
        ) from error
