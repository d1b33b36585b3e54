"""`python -m mtlkernels demo`: real multi-task training on data that needs no network."""

from mtlkernels.demo.cli import main

__all__ = ["main"]
