"""raycache: images from diffusion transformers, fast, on Ray Serve."""

from raycache.protocol.schemas import GenerationRequest, GenerationResult

__all__ = ["GenerationRequest", "GenerationResult"]
