"""Tokenizers for the words of the model's world; other words are dropped with a warning."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from raycache.demo.world import BACKGROUNDS, COLOURS, SHAPES, SIZES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = (*SIZES, *COLOURS, *SHAPES, "left", "right", "above", "below", *BACKGROUNDS, "background")
"""Words with a meaning; each is one token of both tokenizers."""
SILENT = ("a", "an", "and", "at", "in", "is", "of", "on", "the", "to", "with")
"""Words of a caption's grammar, without effect; dropped without a warning."""

SECOND = tuple(f"{word}2" for word in (*SIZES, *COLOURS, *SHAPES))
"""T5's tokens for the words of the thing after the relation. With the same tokens for both things the encoder learned
in minutes which size, colour and shape belong together, but in 200,000 samples not which thing comes first."""

_WORD = re.compile(r"(?<!\w['\u2019])\b\w+")  # not the part after an apostrophe inside a word
_OTHERS = rf"\b(?!(?:{'|'.join(WORDS)})\b)\w+\b|[^\w\s]|_"


def unknown_words(prompt: str) -> list[str]:
    """Words of ``prompt`` that the model does not know, each once, in order, in lower case."""
    known = {*WORDS, *SILENT}
    return list(dict.fromkeys(word for word in _words(prompt) if word not in known))


def _words(prompt: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", prompt).lower())


def prompt_warnings(prompt: str) -> list[str]:
    """Warnings about ``prompt``: one line if a word is unknown, or none is known, else none."""
    unknown = unknown_words(prompt)
    if not unknown and set(_words(prompt)) & set(WORDS):
        return []
    if not unknown:
        return [f"the prompt has no known word; known words: {', '.join(WORDS)}"]
    shown = ", ".join(repr(word[:40]) for word in unknown[:8]) + (" and more" if len(unknown) > 8 else "")
    noun = "word" if len(unknown) == 1 else "words"
    return [f"unknown {noun} {shown} ignored; known words: {', '.join(WORDS)}"]


def forward(words: list[str]) -> list[str]:
    """The same scene described with the left or upper thing first.

    >>> forward(["red", "ring", "right", "blue", "star", "gray", "background"])
    ['blue', 'star', 'left', 'red', 'ring', 'gray', 'background']
    """
    for relation, other in (("right", "left"), ("below", "above")):
        if relation in words:
            at = words.index(relation)
            end = next(index for index in range(at, len(words)) if words[index] in SHAPES) + 1
            return [*words[at + 1 : end], other, *words[:at], *words[end:]]
    return words


def make_tokenizers(length: int) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """A tokenizer for T5 and one for CLIP with one token per word of ``WORDS``; all others are dropped.

    They have the general class: T5's and CLIP's own classes rebuild their splitting when loaded.

    Args:
        length: tokens that a prompt is truncated to, including start and end.
    """
    t5_words = ["<pad>", "</s>", "<unk>", *WORDS, *SECOND]
    t5 = _tokenizer(t5_words, length, pad="<pad>", end="</s>", unknown="<unk>", mark_second=True)
    start, end = "<|startoftext|>", "<|endoftext|>"
    # CLIP finds the end of the text by the largest id, and pads with it.
    clip = _tokenizer([*WORDS, start, end], length, pad=end, end=end, unknown=end, start=start)
    return t5, clip


def _tokenizer(
    vocabulary: list[str],
    length: int,
    *,
    pad: str,
    end: str,
    unknown: str,
    start: str | None = None,
    mark_second: bool = False,
) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(_OTHERS), " ")]
    if mark_second:
        steps.append(normalizers.Replace(Regex(r"\s+"), " "))
        # A word after the relation, then one after that, then a third: size, colour, shape.
        for before in (("left", "right", "above", "below"), SECOND, SECOND):
            behind = "|".join(f"{word} " for word in before)
            steps += [normalizers.Replace(Regex(rf"(?<={behind}){mark[:-1]}\b"), mark) for mark in SECOND]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}" if start else f"$A {end}",
        special_tokens=[(word, ids[word]) for word in (start, end) if word],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        pad_token=pad,
        eos_token=end,
        unk_token=unknown,
        bos_token=start,
        padding_side="right",
    )
