"""raycache: images and videos from diffusion transformers, fast, on Ray Serve."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raycache.protocol.edits import EditRequest
    from raycache.protocol.schemas import GenerationRequest, GenerationResult
    from raycache.protocol.videos import VideoRequest

__all__ = ["EditRequest", "GenerationRequest", "GenerationResult", "VideoRequest", "__version__"]

#: The only definition; pyproject.toml reads it.
__version__ = "0.1.0"

#: Imported on first use: pydantic and numpy take half a second, too long for `raycache --help`.
_FROM = {
    "EditRequest": "raycache.protocol.edits",
    "GenerationRequest": "raycache.protocol.schemas",
    "GenerationResult": "raycache.protocol.schemas",
    "VideoRequest": "raycache.protocol.videos",
}


def __getattr__(name: str) -> object:
    if name not in _FROM:
        raise AttributeError(f"module 'raycache' has no attribute {name!r}")
    return getattr(import_module(_FROM[name]), name)
