"""The model and images that most tests of a step start from."""

from convolution_and_heads import images, model

__all__ = ["images", "model"]
