"""How each class of transformer is split over ranks; :mod:`raycache.worker.split_roads` does it. Imports no torch."""

from __future__ import annotations

from typing import Literal

__all__ = ["ROADS", "WHOLE", "Road", "splits_unevenly"]

#: What splits the tokens and replaces attention.
Road = Literal["ParaAttention", "diffusers", "a plan of ours"]

#: By the class name of the transformer. Classes not listed run on one rank.
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
#: Why some classes cannot be split, for the error message.
WHOLE: dict[str, str] = {
    "HunyuanVideoFramepackTransformer3DModel": "it packs past frames, in several sizes, with those that it generates",
    "Kandinsky5Transformer3DModel": "its sparse attention selects from blocks of all tokens",
    "SanaTransformer2DModel": _SANA,
    "SanaVideoTransformer3DModel": _SANA,
    "WanAnimateTransformer3DModel": "its attention to a face takes tokens frame by frame, but a split cuts frames",
}


def splits_unevenly(transformer: str) -> bool:
    """Whether tokens and heads of this class need not divide among the ranks."""
    return ROADS.get(transformer, "ParaAttention") != "ParaAttention"
