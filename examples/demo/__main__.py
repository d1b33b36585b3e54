"""python -m examples.demo, from the repository's root."""

import sys

from examples.demo.cli import main

sys.exit(main())
