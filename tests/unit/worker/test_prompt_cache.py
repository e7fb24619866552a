"""Prompts are kept within their bytes, the latest longest, whatever is asked for: against a list that forgets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raycache.worker.prompt_cache import PromptCache


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=40), st.integers(0, 12))
def test_the_latest_that_fit_are_kept(asked: list[tuple[int, int]], most: int):
    cache, kept = PromptCache(most), list[tuple[int, int]]()
    sizes: dict[int, int] = {}
    for prompt, size in asked:
        size = sizes.setdefault(prompt, size)  # a prompt's encoding has one size
        made = {"embeds": torch.full((size,), prompt, dtype=torch.uint8), "max_sequence_length": 64}
        told, known = cache.encoded(prompt, lambda made=made: made)
        assert known == ((prompt, size) in kept)
        assert told["embeds"].tolist() == [prompt] * size
        kept = [entry for entry in kept if entry[0] != prompt]
        if size <= most:
            kept.append((prompt, size))
        while sum(size for _, size in kept) > most:
            kept.pop(0)
        assert cache.held_bytes == sum(size for _, size in kept)
