"""Benchmarks of the service: ``python -m benchmarks.NAME``. Nothing is written to ``docs/`` without ``--doc``."""

import sys

from raycache.quiet import be_quiet

# Only as a command, and before torch is imported; a test that imports a benchmark should see all warnings.
# While Python looks for the module of `-m`, `sys.argv[0]` is "-m".
if sys.argv[0] == "-m":
    be_quiet()
