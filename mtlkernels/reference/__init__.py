"""Every op in plain torch: the specification of the kernels, and what serves where they do not.

Runs on any device and for any number of tasks. Meant to be read; the arithmetic is float64 wherever
the kernels promise more than float32.
"""

from mtlkernels.reference.cagrad import *
from mtlkernels.reference.convex import *
from mtlkernels.reference.draws import *
from mtlkernels.reference.fair import *
from mtlkernels.reference.gradient_lists import *
from mtlkernels.reference.solvers import *
from mtlkernels.reference.spectral import *
from mtlkernels.reference.status import *
