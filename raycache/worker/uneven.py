"""Tokens and attention heads that need not divide evenly among the ranks: shares, and exchanges between ranks.

Rank r of N has what ``torch.tensor_split`` gives it: the first ranks have one more than the others. So every rank
knows all sizes from the total alone: no message is needed, and nothing is padded.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as collectives

__all__ = ["TokenSplit", "gather_heads", "gather_tokens", "scatter_heads", "shares"]


def shares(total: int, ranks: int) -> tuple[int, ...]:
    """How many of ``total`` each rank has."""
    return tuple(total // ranks + (rank < total % ranks) for rank in range(ranks))


class TokenSplit:
    """How the tokens of a transformer's call are split: recorded where they are split, read where they are gathered.

    Attributes:
        lengths: tokens over all ranks of each stream split in the current call: the latents, the text, and any others
            that the class has.
        outer_masks: a mask of token pairs is the outer product of the tokens' masks; each rank makes it from its
            own tokens.
        whole_queries: each rank has all queries, and its part of the keys.
    """

    group: dist.ProcessGroup

    def __init__(self, outer_masks: bool = False) -> None:
        self.rank, self.ranks = 0, 1
        self.lengths: dict[str, int] = {}
        self.outer_masks, self.whole_queries = outer_masks, False
        self._stream = ""

    @property
    def latents(self) -> int:
        """Tokens of the latents over all ranks; 0 = not split."""
        return self.lengths.get("latents", 0)

    @property
    def text(self) -> int:
        return self.lengths.get("text", 0)

    @property
    def even(self) -> bool:
        """Whether all ranks have the same number of tokens of every stream."""
        return all(length % self.ranks == 0 for length in self.lengths.values())

    def join(self, group: dist.ProcessGroup) -> None:
        """Set the ranks that tokens are split over."""
        self.group, self.rank, self.ranks = group, dist.get_rank(group), dist.get_world_size(group)

    def only(self, stream: str, whole_queries: bool = False) -> TokenSplit:
        """The same call, for attention to one stream. Call it after :meth:`join`."""
        view = copy.copy(self)  # ``lengths`` is one dict for both
        view._stream, view.whole_queries = stream, whole_queries
        return view

    def note(self, stream: str, tokens: int) -> None:
        """``latents`` or ``text`` is being split: record its length.

        Raises:
            ValueError: a rank would have no tokens.
        """
        if tokens < self.ranks:
            raise ValueError(
                f"{tokens} tokens of {stream} cannot be split over {self.ranks} ranks, each of which needs one: "
                "generate with more of them, or on fewer ranks (parallel.ranks_per_replica)"
            )
        self.lengths[stream] = tokens

    def forget(self, stream: str) -> None:
        """``stream`` is not part of the current call."""
        self.lengths.pop(stream, None)

    def own(self, states: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's part."""
        return states.tensor_split(self.ranks, dim)[self.rank]

    def sizes(self, own: int) -> tuple[int, ...]:
        """Tokens of each rank in a sequence; ``own``: this rank's. It is one stream, or all streams as one.

        Raises:
            ValueError: no stream that was split has this length.
        """
        parts = {stream: shares(length, self.ranks) for stream, length in self.lengths.items()}
        joint = tuple(map(sum, zip(*parts.values(), strict=True)))
        for sizes in [parts[self._stream]] if self._stream else [parts["latents"], joint]:
            if own == sizes[self.rank]:
                return sizes
        told = ", ".join(f"{sizes[self.rank]} of the {stream}" for stream, sizes in parts.items())
        raise ValueError(f"attention to {own} tokens on rank {self.rank}, which must be those of its streams: {told}")

    def exchange(self, packed: torch.Tensor, received: Sequence[int], sent: Sequence[int]) -> torch.Tensor:
        """One all-to-all of [elements]: ``sent[r]`` go to rank r, and ``received[r]`` come from it."""
        got = collectives.all_to_all_single(packed, list(received), list(sent), self.group)
        return got.wait() if isinstance(got, collectives.AsyncCollectiveTensor) else got


def gather_heads(
    split: TokenSplit, states: Sequence[torch.Tensor], sizes: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """From all heads of this rank's tokens to this rank's heads of all tokens, for all of ``states`` in one message.

    Args:
        states: [batch, own tokens, heads, channels] each, of one dtype and number of heads.
        sizes: tokens of each rank, for each of ``states``.

    Returns:
        [batch, all tokens, own heads, channels] each, tokens in the order of ranks.
    """
    heads = shares(states[0].shape[2], split.ranks)
    own = heads[split.rank]
    by_rank = zip(*(part.split(list(heads), 2) for part in states), strict=True)
    packed = torch.cat([part.reshape(-1) for parts in by_rank for part in parts])
    sent = [count * sum(part.numel() // part.shape[2] for part in states) for count in heads]
    shapes = [
        [(part.shape[0], tokens[rank], own, part.shape[3]) for part, tokens in zip(states, sizes, strict=True)]
        for rank in range(split.ranks)
    ]
    numbers = [[math.prod(shape) for shape in of_rank] for of_rank in shapes]
    got = split.exchange(packed, [sum(of_rank) for of_rank in numbers], sent)
    parts = iter(got.split(list(itertools.chain(*numbers))))
    arrived = [[next(parts).view(shape) for shape in of_rank] for of_rank in shapes]
    return [torch.cat(list(of_state), 1) for of_state in zip(*arrived, strict=True)]


def scatter_heads(
    split: TokenSplit, states: Sequence[torch.Tensor], sizes: Sequence[Sequence[int]], heads: int
) -> list[torch.Tensor]:
    """Back again: from this rank's heads of all tokens to all heads of this rank's tokens, in one message.

    Args:
        states: [batch, all tokens, own heads, channels] each.
        sizes: tokens of each rank, for each of ``states``.
        heads: of all ranks.

    Returns:
        [batch, own tokens, heads, channels] each.
    """
    by_rank = list(zip(*(part.split(list(tokens), 1) for part, tokens in zip(states, sizes, strict=True)), strict=True))
    packed = torch.cat([part.reshape(-1) for parts in by_rank for part in parts])
    sent = [sum(part.numel() for part in parts) for parts in by_rank]
    shapes = [
        [(part.shape[0], tokens[split.rank], count, part.shape[3]) for part, tokens in zip(states, sizes, strict=True)]
        for count in shares(heads, split.ranks)
    ]
    numbers = [[math.prod(shape) for shape in of_rank] for of_rank in shapes]
    got = split.exchange(packed, [sum(of_rank) for of_rank in numbers], sent)
    parts = iter(got.split(list(itertools.chain(*numbers))))
    arrived = [[next(parts).view(shape) for shape in of_rank] for of_rank in shapes]
    return [torch.cat(list(of_state), 2) for of_state in zip(*arrived, strict=True)]


def gather_tokens(split: TokenSplit, states: torch.Tensor, dim: int, sizes: Sequence[int]) -> torch.Tensor:
    """All ranks' parts of ``states`` along ``dim``, on every rank."""
    if states.dtype == torch.bool:  # not every backend sends booleans
        return gather_tokens(split, states.to(torch.uint8), dim, sizes).bool()
    first = states.movedim(dim, 0)
    row = math.prod(first.shape[1:])
    packed = first.reshape(-1).repeat(split.ranks)
    got = split.exchange(packed, [size * row for size in sizes], [first.shape[0] * row] * split.ranks)
    return got.view(sum(sizes), *first.shape[1:]).movedim(0, dim)
