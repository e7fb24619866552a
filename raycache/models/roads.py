"""How each class of transformer is split over ranks; :mod:`raycache.worker.split_roads` does it. Imports no torch."""

from __future__ import annotations

from typing import Literal

__all__ = ["ROADS", "WHOLE", "Road", "splits_unevenly"]

#: By whom tokens are split and attention is exchanged.
Road = Literal["ParaAttention", "diffusers", "a plan of ours"]

#: By the class name of the transformer. What is not here runs on one rank.
ROADS: dict[str, Road] = {
    "BriaTransformer2DModel": "a plan of ours",
    "ChromaTransformer2DModel": "a plan of ours",
    "CogVideoXTransformer3DModel": "ParaAttention",
    "ErnieImageTransformer2DModel": "a plan of ours",
    "Flux2Transformer2DModel": "ParaAttention",
    "Flux3Transformer2DModel": "a plan of ours",
    "FluxTransformer2DModel": "ParaAttention",
    "HunyuanImageTransformer2DModel": "a plan of ours",
    "HunyuanVideo15Transformer3DModel": "a plan of ours",
    "HunyuanVideoTransformer3DModel": "a plan of ours",
    "Krea2Transformer2DModel": "a plan of ours",
    "LTX2VideoTransformer3DModel": "diffusers",
    "LTXVideoTransformer3DModel": "diffusers",
    "LongCatImageTransformer2DModel": "a plan of ours",
    "MochiTransformer3DModel": "ParaAttention",
    "OvisImageTransformer2DModel": "a plan of ours",
    "QwenImage21Transformer2DModel": "a plan of ours",
    "QwenImageTransformer2DModel": "diffusers",
    "SD3Transformer2DModel": "a plan of ours",
    "WanTransformer3DModel": "diffusers",
    "WanVACETransformer3DModel": "a plan of ours",
    "ZImageTransformer2DModel": "a plan of ours",
}


_SANA = "its attention sums up all tokens first, and its feed-forward convolves each token with its neighbours"
#: Why no way is there for some that are left out, for the error that says so.
WHOLE: dict[str, str] = {
    "HunyuanVideoFramepackTransformer3DModel": "it packs frames of the past, in several sizes, with those it draws",
    "Kandinsky5Transformer3DModel": "what its sparse attention looks at is chosen from blocks of all tokens",
    "SanaTransformer2DModel": _SANA,
    "SanaVideoTransformer3DModel": _SANA,
    "WanAnimateTransformer3DModel": "its attention to a face takes tokens frame by frame, which a split cuts through",
}


def splits_unevenly(transformer: str) -> bool:
    """Whether tokens and heads of this class need not divide among the ranks."""
    return ROADS.get(transformer, "ParaAttention") != "ParaAttention"
