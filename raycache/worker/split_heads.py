"""Qwen-Image 2.1's attention over ranks: heads are exchanged first, so that each rank has all tokens of some heads.

It calls torch's attention once for each part of the text and each reference image, with keys up to that part's end. So
its own code must see the whole sequence, normalize and rotate it, and, if requested, cache keys and values of this
rank's heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21AttnProcessor

from raycache.worker.uneven import TokenSplit, gather_heads, scatter_heads, shares

__all__ = ["SplitHeads"]


class SplitHeads(QwenImage21AttnProcessor):
    """Project this rank's tokens, run diffusers' processor on all tokens in this rank's heads, and send back."""

    def __init__(self, split: TokenSplit, like: QwenImage21AttnProcessor) -> None:
        super().__init__()
        self._split, self._attention_backend = split, like._attention_backend

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Takes and returns [batch, own tokens, channels]; all other arguments are of all tokens."""
        split, sizes = self._split, self._split.sizes(hidden_states.shape[1])
        own = shares(attn.heads, split.ranks)[split.rank]
        layers = (attn.to_q, attn.to_k, attn.to_v)
        states = [layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in layers]
        arrived = [part.flatten(2) for part in gather_heads(split, states, [sizes] * 3)]

        def back(answers: torch.Tensor) -> torch.Tensor:
            (sent,) = scatter_heads(split, [answers.unflatten(-1, (own, -1))], [sizes], attn.heads)
            projected: torch.Tensor = attn.to_out[0](sent.flatten(2))
            return projected

        whole: Any = _Whole(attn, arrived, back)  # only what diffusers' processor uses of an attention module
        answer: torch.Tensor = super().__call__(whole, hidden_states, *args, **kwargs)
        return answer


class _Whole:
    """An attention module with its projections already computed."""

    def __init__(self, attn: Any, states: Sequence[torch.Tensor], back: Callable[[torch.Tensor], torch.Tensor]) -> None:
        query, key, value = states
        self.to_q, self.to_k, self.to_v = (lambda _: query), (lambda _: key), (lambda _: value)
        self.norm_q, self.norm_k, self.to_out = attn.norm_q, attn.norm_k, (back, attn.to_out[1])
        self.heads, self.inner_dim = attn.heads, attn.inner_dim
