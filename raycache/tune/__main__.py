"""``python -m raycache.tune``: the same as `raycache tune`."""

import sys

from raycache.command.main import run_tool

if __name__ == "__main__":
    run_tool("tune", sys.argv[1:])
