"""What the service is measured by: ``python -m benchmarks.NAME``. Without ``--doc`` nothing goes into ``docs/``."""

import sys

from raycache.quiet import be_quiet

# As a command, and before it imports torch; a test that imports one of them wants all warnings.
# While Python looks for the module of `-m` it says so here.
if sys.argv[0] == "-m":
    be_quiet()
