"""A FLUX model with random weights: the exact block geometry of FLUX.1-dev at a width that a laptop can compute.

Its images mean nothing, but they depend on the prompt, the seed and every block, which is enough for tests of control
flow. Nothing is downloaded; the folder loads with an unchanged ``FluxPipeline.from_pretrained``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycache.demo.built import build_once

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline  # diffusers' top-level names are untyped
    from transformers import CLIPTextConfig, CLIPTokenizer, T5Config, T5Tokenizer

TEXT_TOKENS = 64
CLIP_TOKENS = 77
LATENT_CHANNELS = 4
TEXT_WIDTH = 64


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """Split ``head_dim`` over FLUX's three position axes (index, row, column), each even: 16 -> (4, 6, 6).

    Raises:
        ValueError: if ``head_dim`` is odd or too small to give every axis two channels.
    """
    if head_dim % 2 or head_dim < 6:
        raise ValueError(f"head_dim must be even and at least 6 (rotary embedding over 3 axes), got {head_dim}")
    plane = max(2, head_dim * 3 // 8 // 2 * 2)
    return head_dim - 2 * plane, plane, plane


def build_noise_model(
    folder: Path, *, layers: int = 19, single_layers: int = 38, heads: int = 4, head_dim: int = 16, seed: int = 0
) -> Path:
    """Write a FLUX pipeline with random weights into ``folder``, or return immediately if it exists already.

    Args:
        folder: folder of the model, complete or absent; its parent is created.
        layers: double-stream blocks.
        single_layers: single-stream blocks.
        heads: attention heads (a Ulysses degree must divide them).
        head_dim: channels per head, even; the transformer's width is ``heads * head_dim``.
        seed: of the weights; the same arguments give the same bytes. The global torch generator is not changed.

    Returns:
        ``folder``.

    Raises:
        FileExistsError: if ``folder`` contains something else, or a noise model of other arguments.
        ValueError: if ``head_dim`` cannot carry FLUX's rotary embedding.
    """
    folder = Path(folder)
    record = {
        "kind": "noise",
        "layers": layers,
        "single_layers": single_layers,
        "heads": heads,
        "head_dim": head_dim,
        "seed": seed,
    }
    axes = rope_axes(head_dim)
    return build_once(
        folder, record, lambda to: _pipeline(layers, single_layers, heads, head_dim, axes, seed).save_pretrained(to)
    )


def _pipeline(
    layers: int, single_layers: int, heads: int, head_dim: int, axes: tuple[int, int, int], seed: int
) -> FluxPipeline:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.models import AutoencoderKL, FluxTransformer2DModel
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
    from transformers import CLIPTextModel, T5EncoderModel

    clip_words, t5_words = _vocabularies()
    clip_tokenizer, t5_tokenizer = _tokenizers(clip_words, t5_words)
    clip, t5 = _text_configs(len(clip_words), len(t5_words))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * LATENT_CHANNELS,
            num_layers=layers,
            num_single_layers=single_layers,
            attention_head_dim=head_dim,
            num_attention_heads=heads,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=axes,
        )
        _spread(transformer)
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(16, 16, 32, 32),
                layers_per_block=1,
                latent_channels=LATENT_CHANNELS,
                norm_num_groups=1,
                scaling_factor=1.0,
                shift_factor=0.0,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            text_encoder=CLIPTextModel(clip),
            tokenizer=clip_tokenizer,
            text_encoder_2=T5EncoderModel(t5),
            tokenizer_2=t5_tokenizer,
            transformer=transformer,
        )


def _vocabularies() -> tuple[list[str], list[str]]:
    """The vocabularies of CLIP and T5: letters, and tokens for start, end and padding."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    clip = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return clip, ["<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(33, 127))]


def _tokenizers(clip_words: list[str], t5_words: list[str]) -> tuple[CLIPTokenizer, T5Tokenizer]:
    from transformers import CLIPTokenizer, T5Tokenizer

    clip = CLIPTokenizer(
        vocab={word: index for index, word in enumerate(clip_words)}, merges=[], model_max_length=CLIP_TOKENS
    )
    t5 = T5Tokenizer(
        vocab=[(piece, 0.0 if index < 3 else -1.0) for index, piece in enumerate(t5_words)],
        extra_ids=0,
        model_max_length=TEXT_TOKENS,
    )
    return clip, t5


def _text_configs(clip_words: int, t5_words: int) -> tuple[CLIPTextConfig, T5Config]:
    from transformers import CLIPTextConfig, T5Config

    clip = CLIPTextConfig(
        vocab_size=clip_words,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=clip_words - 2,
        eos_token_id=clip_words - 1,
        pad_token_id=clip_words - 1,
    )
    starts: dict[str, Any] = {"decoder_start_token_id": 0}  # accepted, but not declared
    t5 = T5Config(
        vocab_size=t5_words,
        d_model=TEXT_WIDTH,
        d_kv=TEXT_WIDTH // 4,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        **starts,
    )
    return clip, t5


def _spread(transformer: torch.nn.Module) -> None:
    """Initialize adaLN projections and embedders wide enough that every block and the prompt have an effect.

    torch's default initialisation leaves gates of about 0.02 at this width: all residuals would be rounding-sized and
    a cached step would look like a computed one.
    """
    import torch

    for name, module in transformer.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        if "norm" in name:
            torch.nn.init.normal_(module.weight, std=0.6 * module.in_features**-0.5)
            torch.nn.init.normal_(module.bias, std=0.2)
        elif name in ("x_embedder", "context_embedder") or name.startswith("time_text_embed"):
            # The timestep has less weight than the text: neighbouring steps then differ by 0.05 to 0.1 in their first
            # block's residual, the range of published cache thresholds.
            gain = 0.4 if "timestep_embedder" in name else 1.0
            torch.nn.init.normal_(module.weight, std=gain * module.in_features**-0.5)
