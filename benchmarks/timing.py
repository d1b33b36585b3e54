"""The package's interleaved timing, for the studies of this folder."""

from mtlkernels.bench.measure import interleaved, quartiles

__all__ = ["interleaved", "quartiles"]
