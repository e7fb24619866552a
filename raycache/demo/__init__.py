"""The bundled demonstration model: a simple world, a small FLUX trained on it, and a judge of its images."""

from __future__ import annotations

import sys
from pathlib import Path

from raycache.quiet import be_quiet

__all__ = ["demo_model_path"]

# Only for `python -m raycache.demo.NAME`, and before torch is imported: while Python looks for that module,
# `sys.argv[0]` is "-m".
if sys.argv[:1] == ["-m"]:
    be_quiet()


def demo_model_path() -> Path:
    """Folder of the bundled model, for ``FluxPipeline.from_pretrained``.

    Raises:
        FileNotFoundError: if the package was installed without it.
    """
    folder = Path(__file__).parent / "flux_tiny"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"the bundled model is missing: {folder} has no model_index.json. Install raycache from its repository or "
            "wheel, or train the model again: `python -m raycache.demo.training --out DIR`"
        )
    return folder
