"""The package's version: a constant, for a checkout that was built but not installed."""

__version__ = "0.1.0"
