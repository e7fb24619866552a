"""A VAE's own tiled decoding, in two passes around the actual work, so that ranks can share the work.

The first pass records what the VAE calls its decoder with, tile by tile. Then tiles are computed, in any order, on any
rank. The last pass gives the VAE the computed tiles, and it joins them as it always does. None of its code is copied
here, and the result equals that of one rank, bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raycache.settings import AppSettings

__all__ = ["TILED", "Made", "TiledRows", "TilesFault", "shared_out", "tiled_over"]

#: VAEs for which separately computed tiles were verified to equal their own tiled decode.
TILED = frozenset(
    {
        "AutoencoderDC",
        "AutoencoderKL",
        "AutoencoderKLFlux2",
        "AutoencoderKLHunyuanImage",
        "AutoencoderKLHunyuanVideo15",
        "AutoencoderKLLTX2Video",
        "AutoencoderKLLTXVideo",
        "AutoencoderKLQwenImage",
        "AutoencoderKLQwenImage21",
        "AutoencoderKLWan",
    }
)
#: Channels of a tile's placeholder in the first pass; enough for VAEs that fold pixels into channels.
_CHANNELS = 48
#: A rank's computed tiles of one row of a job, in the order of the decoder's calls.
Made = Sequence[torch.Tensor]


class TilesFault(ValueError):
    """This pipeline cannot do what ``parallel.decode_tiles`` requires."""


def tiled_over(settings: AppSettings, pipe: Any) -> float:
    """Pixels above which images of ``pipe`` are decoded by tiles.

    Raises:
        TilesFault: tiles are required, but not possible.
    """
    vae, parallel = type(getattr(pipe, "vae", None)).__name__, settings.parallel
    if parallel.decode_tiles == "always":
        if vae not in TILED:
            raise TilesFault(
                f"parallel.decode_tiles: always, but tiles of {type(pipe).__name__}'s VAE ({vae}) cannot be shared "
                f"among ranks; those of {', '.join(sorted(TILED))} can. Use auto or never"
            )
        return 0.0
    return parallel.decode_tiles_pixels if parallel.decode_tiles == "auto" and vae in TILED else math.inf


@dataclass(frozen=True)
class _Call:
    """A call of the decoder."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class TiledRows:
    """Rows of a job decoded by tiles; this rank computes its share of the tiles.

    Args:
        vae: of a class in :data:`TILED`.
        rows: arguments of ``vae.decode`` for each row.
        rank, world: this rank and how many there are.

    Attributes:
        made: for each row, this rank's computed tiles.
    """

    def __init__(self, vae: Any, rows: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]], rank: int, world: int):
        self._vae, self._rows = vae, rows
        tiles = [_tiles_of(vae, *row) for row in rows]
        turns = iter(shared_out([_size_of(tile) for row in tiles for tile in row], world))
        #: By row and tile: the rank that computes it, and its number of decoder calls.
        self._plan = [[(next(turns), len(tile)) for tile in row] for row in tiles]
        self.made: list[list[torch.Tensor]] = []
        for plan, row in zip(self._plan, tiles, strict=True):
            mine = (tile for (by, _), tile in zip(plan, row, strict=True) if by == rank)
            self.made.append([vae.decoder(*call.args, **call.kwargs) for tile in mine for call in tile])

    def blended(self, row: int, made: Sequence[Made]) -> Any:
        """What ``vae.decode`` returns for a row.

        Args:
            made: each rank's computed tiles of it. Modified.
        """
        by_rank = [iter(each) for each in made]
        outputs = [next(by_rank[by]) for by, calls in self._plan[row] for _ in range(calls)]
        args, kwargs = self._rows[row]
        given = iter(outputs)
        return _tiling(self._vae, lambda *_, **__: next(given)).decode(*args, **kwargs)


def shared_out(sizes: Sequence[int], world: int) -> list[int]:
    """The rank that computes each tile: the largest first, each to a rank with the least work."""
    busy, ranks = [0] * world, [0] * len(sizes)
    for tile in sorted(range(len(sizes)), key=lambda tile: -sizes[tile]):
        ranks[tile] = min(range(world), key=lambda rank: busy[rank])
        busy[ranks[tile]] += sizes[tile]
    return ranks


def _tiles_of(vae: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[list[_Call]]:
    """The VAE's calls of its decoder, by tile: frames of one tile share a cache of earlier frames."""
    tiles: list[list[_Call]] = []

    def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
        memory = kwargs.get("feat_cache")
        if memory is None or not tiles or tiles[-1][0].kwargs.get("feat_cache") is not memory:
            tiles.append([])
        tiles[-1].append(_Call(args, kwargs))
        latents: torch.Tensor = args[0]
        # Its content is not used; only its size must be the same for tiles of the same size.
        return torch.zeros(len(latents), _CHANNELS, *latents.shape[2:], dtype=latents.dtype)

    _tiling(vae, noted).decode(*args, **kwargs)
    return tiles


def _size_of(tile: Sequence[_Call]) -> int:
    return sum(call.args[0].numel() for call in tile)


def _tiling(vae: Any, decoder: Callable[..., torch.Tensor]) -> Any:
    """A copy of the VAE, with the same weights, that decodes by tiles and calls ``decoder`` instead of its own."""
    own = copy.copy(vae)
    own._modules = {**vae._modules, "decoder": _InPlaceOfDecoder(vae.decoder, decoder)}
    own.enable_tiling()
    return own


class _InPlaceOfDecoder(nn.Module):
    """Contains the real one: some VAEs count its layers."""

    def __init__(self, real: nn.Module, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.real, self._call = real, call

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._call(*args, **kwargs)
