"""Parts of the training that must hold exactly: growing, packing, resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cache_core.blocks import find_blocks
from raycache.demo.training import drawer as drawer_module
from raycache.demo.training.drawer import Drawer, close_gates, grow, pack, token_positions
from raycache.demo.training.latents import Latents
from raycache.demo.training.transformer import Stage, flow_loss, rate_at, train_stage

WORDS = (44, 27)
STAGE = Stage("tiny", 1, 1, 6, 2, 1e-3, 2, 0.1, 0.0, 3)


def latents(count: int = 6) -> Latents:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 9, (count, 16), generator=generator)
    clip_ids = ids.clone()
    clip_ids[:, -1] = 26
    return Latents(torch.randn(count, 4, 16, generator=generator).half(), ids, clip_ids, (2, 2))


def trained(layers: int, single_layers: int) -> Drawer:
    """A drawer whose blocks all do something."""
    torch.manual_seed(0)
    model = Drawer(layers, single_layers, *WORDS)
    for name, parameter in model.transformer.named_parameters():
        if "norm" in name or "proj_out" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def velocity(model: Drawer) -> torch.Tensor:
    part = latents()
    share = torch.full((6,), 0.5)
    with torch.no_grad():
        return model(part.packed.float(), share, share * 7, part.t5_ids, part.clip_ids, part.grid)


def test_growing_changes_nothing_but_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawer_module, "LAYERS", 5)
    monkeypatch.setattr(drawer_module, "SINGLE_LAYERS", 7)
    small = trained(2, 3)
    large = grow(small, *WORDS).eval()
    assert len(find_blocks(large.transformer)) == 12
    torch.testing.assert_close(velocity(large), velocity(small))
    # And the copies hold what they need to open: a gate's gradient flows.
    flow_loss(large, latents(), 0.4, np.random.default_rng(0), torch.device("cpu")).backward()
    gradients = [block.norm.linear.weight.grad for block in large.transformer.single_transformer_blocks]
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_closed_gates_make_an_identity() -> None:
    model = trained(1, 1)
    open_velocity = velocity(model)
    for block in find_blocks(model.transformer):
        close_gates(block.module)
    closed = velocity(model)
    assert not torch.allclose(open_velocity, closed)
    model.transformer.single_transformer_blocks = torch.nn.ModuleList()
    torch.testing.assert_close(velocity(model), closed)


def test_latents_are_packed_and_numbered_as_flux_does() -> None:
    from diffusers import FluxPipeline

    raw = torch.randn(2, 4, 6, 10)
    torch.testing.assert_close(pack(raw), FluxPipeline._pack_latents(raw, 2, 4, 6, 10))
    theirs = FluxPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(token_positions(3, 5), theirs)


@pytest.mark.slow
def test_a_resumed_stage_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    ends = []
    for folder, stops in (("whole", (6,)), ("resumed", (3, 6))):
        out = tmp_path / folder
        out.mkdir()
        for stop in stops:
            for done, _ in train_stage(
                out, STAGE, [latents()], WORDS, torch.device("cpu"), 0, compile_blocks=False, save_every=1
            ):
                if done == stop:
                    break
        ends.append(torch.load(out / "tiny.pt", weights_only=True))
    assert ends[0]["step"] == ends[1]["step"] == 6
    for name, value in ends[0]["average"].items():
        torch.testing.assert_close(ends[1]["average"][name], value, rtol=1e-5, atol=1e-6)


def test_rate_rises_then_falls() -> None:
    rates = [rate_at(step, STAGE) for step in range(STAGE.steps + 1)]
    assert rates[0] == pytest.approx(0.5)
    assert rates[2] == 1.0
    assert rates[-1] == pytest.approx(STAGE.last_rate)
    assert rates[2:] == sorted(rates[2:], reverse=True)
