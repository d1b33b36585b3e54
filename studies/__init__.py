"""Experiments with the library, each with its plan, its results and the page they make."""
