"""Which of diffusers' transformers the cache supports, and why not the others."""

from __future__ import annotations

__all__ = ["MODELS", "UNSUPPORTED", "supported_models", "unsupported_table"]

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
    "AuraFlow": ("AuraFlowTransformer2DModel",),
    "CogView3-Plus": ("CogView3PlusTransformer2DModel",),
    "PRX": ("PRXTransformer2DModel",),
    "OmniGen": ("OmniGenTransformer2DModel",),
    "Bria Fibo": ("BriaFiboTransformer2DModel", "BriaFibo2Transformer2DModel"),
    "Lumina-Next": ("LuminaNextDiT2DModel",),
    "JoyImage": ("JoyImageEditTransformer3DModel", "JoyImageEditPlusTransformer3DModel"),
    "Nucleus-Image": ("NucleusMoEImageTransformer2DModel",),
    "Allegro": ("AllegroTransformer3DModel",),
    "ConsisID": ("ConsisIDTransformer3DModel",),
    "Cosmos": ("CosmosTransformer3DModel",),
    "EasyAnimate": ("EasyAnimateTransformer3DModel",),
    "Helios": ("HeliosTransformer3DModel",),
    "AnyFlow": ("AnyFlowTransformer3DModel",),
    "Sana Video": ("SanaVideoTransformer3DModel",),
    "Kandinsky 6": ("Kandinsky6Transformer3DModel",),
}

_SOUND = "generates only sound, no image or video"
_U_NET_PART = "a part of a U-Net, which calls many of them per step"

#: All other transformers of diffusers, with the reason why they are refused.
UNSUPPORTED: dict[str, str] = {
    "AceStepTransformer1DModel": _SOUND,
    "AnyFlowFARTransformer3DModel": "generates a video chunk by chunk and keeps keys and values of earlier chunks, "
    "which its blocks write",
    "Cosmos3OmniTransformer": "packs all samples of a call into one sequence without a batch dimension",
    "DreamLiteTransformer2DModel": _U_NET_PART,
    "HunyuanDiT2DModel": "its later blocks take the outputs of earlier ones (skip connections), which a reused middle "
    "does not have",
    "Kandinsky6SRTransformer3DModel": "its sparse attention selects its tokens again at every step, in a kernel "
    "for GPUs: not tested",
    "LatteTransformer3DModel": "its spatial and temporal blocks take turns on the same states, batched once by frame "
    "and once by token, so a video has no row of its own",
    "LongCatAudioDiTTransformer": _SOUND,
    "MiniMaxH3Transformer3DModel": "packs sound and video with one table of noise levels for the whole batch, so an "
    "image has no row of its own in it: not tested",
    "MiniMaxMusic3RVQDepthDecoder": _SOUND,
    "MiniMaxMusic3Transformer1DModel": _SOUND,
    "PriorTransformer": "generates an embedding, not an image: a handful of tokens, nothing to save",
    "RFD4ProteinaTransformer": "generates proteins",
    "SanaWMLTX2RefinerTransformer3DModel": "keeps keys and values of a sliding window, which its blocks write",
    "SanaWMTransformer3DModel": "amplifies rounding: without a cache, in float32, an image in a batch differs from "
    "the same image alone by 2e-4, so that the effect of a cache cannot be distinguished from that",
    "StableAudio3DiTModel": _SOUND,
    "StableAudioDiTModel": _SOUND,
    "T5FilmDecoder": _SOUND,
    "Transformer2DModel": _U_NET_PART,
    "TransformerTemporalModel": _U_NET_PART,
    "UVit2DModel": "fills in masked tokens of a codebook: there are no latents that change little from step to step",
    "WanAnimate2Transformer3DModel": "keeps keys and values of the reference, which its blocks write, and leaves out a "
    "block for the negative prompt",
}


def supported_models() -> dict[str, tuple[str, ...]]:
    """Families whose diffusers transformers work with every method, with their class names.

    Supported means tested: the uncached output is unchanged, every method runs, every image decides for itself.
    :data:`UNSUPPORTED` names all others that diffusers has, with the reason.
    """
    return dict(MODELS)


def unsupported_table() -> str:
    """:data:`UNSUPPORTED` as a Markdown table."""
    rows = ["| not supported | why |", "| --- | --- |"]
    return "\n".join(rows + [f"| `{name}` | {reason} |" for name, reason in UNSUPPORTED.items()])
