"""Tiles that several ranks compute make what the VAE's own tiled decode makes, bit for bit, for each listed VAE."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raycache.worker.tiles import TILED, TiledRows, shared_out
from tests.helpers.tiny_models import load_tiny, small_tiles, tiny_folder

#: A family with each VAE, and the latents of two rows: more than a tile, and no multiple of it.
VAES = {
    "AutoencoderKL": ("flux", (2, 4, 14, 9)),
    "AutoencoderKLFlux2": ("flux2", (2, 4, 14, 9)),
    "AutoencoderKLQwenImage": ("qwen-image", (2, 4, 1, 14, 9)),
    "AutoencoderKLQwenImage21": ("qwen-image-2.1", (2, 4, 1, 14, 9)),
    "AutoencoderKLWan": ("wan", (2, 4, 2, 9, 9)),
    "AutoencoderKLWan, patched": ("wan-ti2v", (2, 4, 2, 9, 9)),
    "AutoencoderKLLTXVideo": ("ltx", (2, 4, 2, 9, 9)),
    "AutoencoderKLLTX2Video": ("ltx2", (2, 4, 2, 9, 9)),
    "AutoencoderKLHunyuanVideo15": ("hunyuan-video-1.5", (2, 4, 2, 9, 9)),
    "AutoencoderKLHunyuanImage": ("hunyuan-image", (2, 4, 14, 9)),
    "AutoencoderDC": ("sana", (2, 4, 14, 9)),
}
#: Tested in every quick run: one without a memory, one with, one that is handed more than latents.
QUICK = ("AutoencoderKL", "AutoencoderKLQwenImage", "AutoencoderKLLTXVideo")


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in VAES])
def test_tiles_of_three_ranks_make_what_one_rank_makes(case: str):
    name, shape = VAES[case]
    vae = small_tiles(load_tiny(tiny_folder(name)).vae)
    shape = (shape[0], getattr(vae.config, "z_dim", None) or vae.config.latent_channels, *shape[2:])
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    whole = [vae.decode(row, return_dict=False)[0] for row in latents.split(1)]
    rows = [((row,), {"return_dict": False}) for row in latents.split(1)]
    calls = [0]
    hook = vae.decoder.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    shares, counted = [], []
    for rank in range(3):
        shares.append(TiledRows(vae, rows, rank, 3))
        counted.append(calls[0])
        calls[0] = 0
    tiled = [shares[1].blended(row, [share.made[row] for share in shares])[0] for row in range(2)]
    assert calls == [0], "nothing is computed twice"
    vae.enable_tiling()
    expected = [vae.decode(row, return_dict=False)[0] for row in latents.split(1)]
    hook.remove()
    assert sum(counted) == calls[0]
    assert max(counted) <= 0.5 * calls[0]
    for made, same, other in zip(tiled, expected, whole, strict=True):
        assert torch.equal(made, same)
        assert not torch.equal(same, other), "or nothing was tiled"


def test_every_listed_vae_is_tested():
    assert {case.split(",")[0] for case in VAES} == TILED


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 5))
def test_no_rank_has_much_more_than_its_share(sizes: list[int], world: int):
    ranks = shared_out(sizes, world)
    busy = [sum(size for size, by in zip(sizes, ranks, strict=True) if by == rank) for rank in range(world)]
    assert sum(busy) == sum(sizes)
    assert max(busy) <= sum(sizes) / world + max(sizes)
