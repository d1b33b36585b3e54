"""python -m benchmarks: our kernels beside a copy of the same bytes and beside the alternatives."""

import sys

from benchmarks.suite.command import main

if __name__ == "__main__":
    sys.exit(main())
