"""Tokenizers for letters, built here, and text encoders of the real classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import (
        ByT5Tokenizer,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        T5EncoderModel,
        T5Tokenizer,
        UMT5EncoderModel,
    )

__all__ = [
    "BYTE_TOKENS",
    "CLIP_TOKENS",
    "T5_TOKENS",
    "byte_tokenizer",
    "clip",
    "clip_projected",
    "clip_tokenizer",
    "t5",
    "t5_tokenizer",
    "umt5",
]

#: Tokens of every prompt, as in CLIP.
CLIP_TOKENS = 77
#: Maximum length of T5's tokenizers; pipelines pad to their own lengths by default.
T5_TOKENS = 64
#: Vocabulary size of ByT5's tokenizer.
BYTE_TOKENS = 384

_T5_PIECES = ("<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(33, 127)))


def clip_tokenizer() -> CLIPTokenizer:
    """One token for each byte, and another for each byte at the end of a word."""
    from transformers import CLIPTokenizer

    words = _clip_words()
    return CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=CLIP_TOKENS
    )


def clip(width: int = 32) -> CLIPTextModel:
    """CLIP's text encoder, ``width`` channels."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**_clip_sizes(width)))


def clip_projected(width: int = 16) -> CLIPTextModelWithProjection:
    """CLIP's text encoder with its projection, both ``width`` channels."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(**_clip_sizes(width), projection_dim=width))


def t5_tokenizer() -> T5Tokenizer:
    """A token for each printable letter of ASCII; UMT5's tokenizer has the same class."""
    from transformers import T5Tokenizer

    pieces = [(piece, 0.0 if index < 3 else -1.0) for index, piece in enumerate(_T5_PIECES)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_TOKENS)


def byte_tokenizer() -> ByT5Tokenizer:
    """ByT5's own: a token for each byte."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def t5(width: int = 32, words: int = len(_T5_PIECES)) -> T5EncoderModel:
    """T5's encoder, ``width`` channels, for a tokenizer of ``words`` tokens."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**_t5_sizes(width, words)))


def umt5(width: int = 32) -> UMT5EncoderModel:
    """UMT5's encoder, ``width`` channels."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**_t5_sizes(width, len(_T5_PIECES))))


def _clip_words() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]


def _clip_sizes(width: int) -> dict[str, Any]:
    words = len(_clip_words())
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CLIP_TOKENS,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }


def _t5_sizes(width: int, words: int) -> dict[str, Any]:
    return {
        "vocab_size": words,
        "d_model": width,
        "d_kv": width // 4,
        "d_ff": 2 * width,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,  # accepted, but not declared
    }
