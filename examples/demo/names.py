"""Gram methods by name, as the command lines take them: what has products to compare."""

from __future__ import annotations

import argparse

from mtlkernels.methods import GramMethod, find_method


def gram_method(name: str) -> GramMethod:
    """The Gram method of that name; raises ValueError where it is of another family."""
    found = find_method(name)
    if not issubclass(found, GramMethod):
        raise ValueError(f"{name!r} is a {found.family} method: choose Gram methods")
    return found()


def gram_methods(text: str) -> list[str]:
    """argparse's type for names with commas between them."""
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        try:
            gram_method(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return names
