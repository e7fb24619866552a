"""Which of diffusers' transformers the cache works on, and why not on the others.

``python -c "import cache_core.supported as m; print(m.models_table())"`` prints the table of models in Markdown.
"""

from __future__ import annotations

__all__ = ["MODELS", "UNSUPPORTED", "models_table", "supported_models"]

#: Transformer classes that are tested in tiny versions, by the name of their family.
MODELS: dict[str, tuple[str, ...]] = {
    "FLUX": ("FluxTransformer2DModel",),
    "FLUX.2": ("Flux2Transformer2DModel",),
    "Qwen-Image": ("QwenImageTransformer2DModel",),
    "Stable Diffusion 3": ("SD3Transformer2DModel",),
    "HunyuanImage": ("HunyuanImageTransformer2DModel",),
    "Z-Image": ("ZImageTransformer2DModel",),
    "CogView4": ("CogView4Transformer2DModel",),
    "Bria": ("BriaTransformer2DModel",),
    "PixArt": ("PixArtTransformer2DModel",),
    "DiT": ("DiTTransformer2DModel",),
    "Wan": ("WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel"),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel"),
    "CogVideoX": ("CogVideoXTransformer3DModel",),
    "Mochi": ("MochiTransformer3DModel",),
    "LTX-Video": ("LTXVideoTransformer3DModel",),
    "Kandinsky 5": ("Kandinsky5Transformer3DModel",),
    "Motif-Video": ("MotifVideoTransformer3DModel",),
    "Chroma": ("ChromaTransformer2DModel",),
    "HunyuanVideo 1.5": ("HunyuanVideo15Transformer3DModel",),
    "Qwen-Image 2.1": ("QwenImage21Transformer2DModel",),
    "Lumina 2": ("Lumina2Transformer2DModel",),
    "Sana": ("SanaTransformer2DModel",),
    "LTX-2": ("LTX2VideoTransformer3DModel",),
    "FLUX.3": ("Flux3Transformer2DModel",),
    "ERNIE-Image": ("ErnieImageTransformer2DModel",),
    "Krea 2": ("Krea2Transformer2DModel",),
    "Ideogram 4": ("Ideogram4Transformer2DModel",),
    "SkyReels V2": ("SkyReelsV2Transformer3DModel",),
    "ChronoEdit": ("ChronoEditTransformer3DModel",),
    "HiDream-I1": ("HiDreamImageTransformer2DModel",),
    "GLM-Image": ("GlmImageTransformer2DModel",),
    "Ovis-Image": ("OvisImageTransformer2DModel",),
    "LongCat-Image": ("LongCatImageTransformer2DModel",),
}

#: Transformer classes whose blocks are in diffusers' registry and that cannot be had, with the reason.
UNSUPPORTED: dict[str, str] = {
    "Cosmos3OmniTransformer": "packs all samples of a call into one sequence without a batch dimension",
    "LatteTransformer3DModel": "its spatial and temporal blocks take turns on the same states, batched once by frame "
    "and once by token, so a video has no row of its own",
    "PriorTransformer": "draws an embedding, not a picture: a handful of tokens, nothing to save",
    "Transformer2DModel": "a part of a U-Net, which calls many of them per step",
    "TransformerTemporalModel": "a part of a U-Net, which calls many of them per step",
}


def supported_models() -> dict[str, tuple[str, ...]]:
    """Families whose diffusers transformers work with every method, with their class names.

    Supported means tested: uncached output unchanged, every method runs, pictures of a batch decide for themselves.
    :data:`UNSUPPORTED` names those that diffusers registers and the cache refuses, with the reason.
    """
    return dict(MODELS)


def models_table() -> str:
    """What :func:`supported_models` says, and what it does not, as Markdown."""
    import diffusers

    rows = ["| family | diffusers transformer | branches |", "|---|---|---|"]
    for family, classes in MODELS.items():
        for name in classes:
            named = hasattr(getattr(diffusers, name), "cache_context")
            branches = "by `cache_context`, else by call" if named else "by call"
            rows.append(f"| {family} | `{name}` | {branches} |")
    rows += ["", "| not supported | why |", "|---|---|"]
    rows += [f"| `{name}` | {reason} |" for name, reason in UNSUPPORTED.items()]
    return "\n".join(rows)
