"""raycache: images and videos from diffusion transformers, fast, on Ray Serve."""

from raycache.protocol.edits import EditRequest
from raycache.protocol.schemas import GenerationRequest, GenerationResult
from raycache.protocol.videos import VideoRequest

__all__ = ["EditRequest", "GenerationRequest", "GenerationResult", "VideoRequest"]
