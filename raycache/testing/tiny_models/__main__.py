"""``python -m raycache.testing.tiny_models FAMILY FOLDER``: writes a small pipeline with random weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from raycache.testing.tiny_models import TINY_FAMILIES, build_tiny

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Build the requested model and print its folder; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m raycache.testing.tiny_models", description=__doc__)
    parser.add_argument("family", choices=sorted(TINY_FAMILIES), help="which pipeline")
    parser.add_argument("folder", type=Path, help="folder of the model; created if missing")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    asked = parser.parse_args(arguments)
    try:
        print(build_tiny(asked.family, asked.folder, asked.seed))
    except (FileExistsError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
