"""raycache: images from diffusion transformers, fast, on Ray Serve."""

from raycache.protocol.edits import EditRequest
from raycache.protocol.schemas import GenerationRequest, GenerationResult

__all__ = ["EditRequest", "GenerationRequest", "GenerationResult"]
