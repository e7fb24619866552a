"""Gemma's tokenizer, built here, and its text encoders: Gemma 2 and Gemma 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Gemma2Model, Gemma3ForConditionalGeneration, GemmaTokenizer

__all__ = ["GEMMA_LAYERS", "gemma2", "gemma3", "gemma_tokenizer"]

#: Layers of the encoders.
GEMMA_LAYERS = 2

_PIECES = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\n", "▁", *(chr(code) for code in range(33, 127))),
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
)


def gemma_tokenizer() -> GemmaTokenizer:
    """A token for each printable letter of ASCII."""
    from transformers import GemmaTokenizer

    vocabulary = {piece: index for index, piece in enumerate(_PIECES)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=1024)


def gemma2(width: int = 32) -> Gemma2Model:
    """Gemma 2, ``width`` channels."""
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(Gemma2Config(**_sizes(width)))


def gemma3(width: int = 32) -> Gemma3ForConditionalGeneration:
    """Gemma 3, ``width`` channels, with a vision encoder of one block that is not used."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    start, end, image = (_PIECES.index(piece) for piece in _PIECES[-3:])
    config = Gemma3Config(
        text_config=_sizes(width),
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=start,
        eoi_token_index=end,
        image_token_index=image,
    )
    return Gemma3ForConditionalGeneration(config)


def _sizes(width: int) -> dict[str, Any]:
    return {
        "vocab_size": len(_PIECES),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": GEMMA_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
