"""`python -m mtlkernels report`: what a run's records say, in words and on one page."""

from mtlkernels.diagnosis.cli import main
from mtlkernels.diagnosis.words import diagnose

__all__ = ["diagnose", "main"]
