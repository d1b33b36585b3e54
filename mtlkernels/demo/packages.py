"""The demo's optional packages: imported when needed, and missed in one clear sentence."""

from __future__ import annotations

import importlib
from types import ModuleType

DISTRIBUTIONS = {"skimage": "scikit-image"}
"""Import names that differ from the name under which pip knows the package."""


class MissingPackageError(RuntimeError):
    """A package of the `demo` extra is not installed."""


def require(module: str) -> ModuleType:
    """Import `module`, dotted or not; raise `MissingPackageError` where its package is absent."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        name = DISTRIBUTIONS.get(package, package)
        raise MissingPackageError(
            f"the demo needs {name}, which is not installed: pip install 'mtlkernels[demo]'"
        ) from error
