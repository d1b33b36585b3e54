"""`python -m mtlkernels bench`: what balancing costs, beside a copy and beside the alternatives."""

from mtlkernels.bench.cli import main

__all__ = ["main"]
