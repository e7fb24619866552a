"""Parts of the training that must hold exactly: growing, packing, resuming."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from cache_core.blocks import find_blocks
from raycache.demo.family import TRAINED_SIZES
from raycache.demo.training import __main__ as training
from raycache.demo.training import drawer as drawer_module
from raycache.demo.training import losses, start
from raycache.demo.training.__main__ import Run, drop_old_student
from raycache.demo.training.autoencoder import load_autoencoder
from raycache.demo.training.drawer import TAKEN_OVER, Drawer, grow, pack, scale_gates, token_positions
from raycache.demo.training.export import make_pipeline
from raycache.demo.training.latents import OTHER_SIZES, Latents
from raycache.demo.training.losses import flow_loss, guided_loss
from raycache.demo.training.parts import TEXT_TOKENS, make_autoencoder
from raycache.demo.training.start import take_parts
from raycache.demo.training.transformer import Scenes, Stage, load_average, rate_at, train_stage
from raycache.demo.words import make_tokenizers
from raycache.size import Size

WORDS = (44, 27)
STAGE = Stage(
    name="tiny",
    layers=1,
    single_layers=1,
    steps=6,
    batch=2,
    rate=1e-3,
    warmup=2,
    fall_from=0.0,
    last_rate=0.1,
    other_sizes=0.0,
    sizes_from=0.8,
    untold=0.0,
    layout_until=3,
)


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


def test_a_grown_model_draws_nearly_the_same_and_every_block_adds_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawer_module, "LAYERS", 3)
    monkeypatch.setattr(drawer_module, "SINGLE_LAYERS", 6)
    small = trained(2, 3)
    large = grow(small, *WORDS).eval()
    assert len(find_blocks(large.transformer)) == 9
    idle = trained(2, 3)
    for block in find_blocks(idle.transformer):
        scale_gates(block.module, 0)
    without = velocity(idle)
    whole = (velocity(small) - without).norm()
    assert whole > 0
    assert (velocity(large) - velocity(small)).norm() < 0.2 * whole
    # Two of each single block: for the same tokens they add together what it adds.
    before, after = small.transformer.single_transformer_blocks, large.transformer.single_transformer_blocks
    assert torch.allclose(added(after[2]) + added(after[3]), added(before[1]), atol=1e-5)
    assert torch.allclose(added(after[3]), TAKEN_OVER * added(before[1]), atol=1e-5)
    # And they can become different: a gate's gradient flows in each.
    flow_loss(large, latents(), 0.4, np.random.default_rng(0), torch.device("cpu")).backward()
    gradients = [block.norm.linear.weight.grad for block in large.transformer.single_transformer_blocks]
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_a_finished_model_is_trained_on_from_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small, vae = trained(2, 3), make_autoencoder().eval()
    make_pipeline(small, vae, -0.25, 0.5).save_pretrained(tmp_path / "model")
    taken, scaling = take_parts(tmp_path / "model", tmp_path)
    assert scaling == (-0.25, 0.5)
    assert torch.equal(velocity(taken), velocity(small))
    image = torch.randn(1, 3, 32, 32)
    again = load_autoencoder(tmp_path, torch.device("cpu"))
    with torch.no_grad():
        encoded = [model.encode(image).latent_dist.mean for model in (vae, again)]
    torch.testing.assert_close(*encoded)  # convolutions in another memory format
    monkeypatch.setattr(drawer_module, "LAYERS", 2)
    monkeypatch.setattr(drawer_module, "SINGLE_LAYERS", 3)
    assert torch.equal(velocity(grow(taken, *WORDS).eval()), velocity(small)), "as many blocks: nothing to grow"
    monkeypatch.setattr(start, "SINGLE_LAYERS", 2)
    with pytest.raises(ValueError, match=r"2 \+ 3 blocks; .* at most 8 \+ 2"):
        take_parts(tmp_path / "model", tmp_path)


def added(block: torch.nn.Module) -> torch.Tensor:
    """What a single-stream block adds to fixed tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, 5, 64, generator=generator)
    text, image = tokens[:, :1], tokens[:, 1:]
    with torch.no_grad():
        moved = block(image, text, torch.randn(1, 64, generator=generator))
    return torch.cat(moved, dim=1) - tokens


def test_a_factor_of_zero_makes_an_identity() -> None:
    model = trained(1, 1)
    open_velocity = velocity(model)
    for block in find_blocks(model.transformer):
        scale_gates(block.module, 0)
    closed = velocity(model)
    assert not torch.allclose(open_velocity, closed)
    model.transformer.single_transformer_blocks = torch.nn.ModuleList()
    torch.testing.assert_close(velocity(model), closed)


def test_a_share_of_the_scenes_has_no_caption_as_an_empty_prompt_has() -> None:
    part = latents(200)
    tokenizers = make_tokenizers(TEXT_TOKENS)
    empty = [tokenizer("", padding="max_length", max_length=16)["input_ids"] for tokenizer in tokenizers]
    stage = replace(STAGE, batch=200, untold=0.25)
    drawn, _ = Scenes(stage, [part], 0, 0, 1).of(0)
    assert drawn.packed.shape == part.packed.shape
    silent = (drawn.t5_ids == torch.tensor(empty[0])).all(1)
    assert torch.equal(silent, (drawn.clip_ids == torch.tensor(empty[1])).all(1))
    assert 0.1 < silent.float().mean() < 0.4
    told, _ = Scenes(replace(stage, untold=0.0), [part], 0, 0, 1).of(0)
    assert not (told.t5_ids == torch.tensor(empty[0])).all(1).any()


def test_other_sizes_come_as_often_as_the_stage_says() -> None:
    sets = [replace(latents(4), grid=(2, 2 + k)) for k in range(5)]
    stage = replace(STAGE, steps=400, other_sizes=0.5, sizes_from=0.5)
    scenes = Scenes(stage, sets, 0, 0, 1)
    columns = [scenes.of(step)[0].grid[1] - 2 for step in range(400)]
    assert set(columns[:200]) == {0}
    late = columns[200:]
    assert 0.4 < sum(map(bool, late)) / 200 < 0.6
    assert late.count(1) > late.count(2) > 0, "256x256 is half of the others, 192x192 a fifth"
    assert min(late.count(3), late.count(4)) > 0


def test_the_sizes_that_are_trained_are_those_that_no_request_is_warned_of() -> None:
    assert {Size(*size) for size in OTHER_SIZES} | {Size(128, 128)} == set(TRAINED_SIZES)


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


@pytest.mark.parametrize(("guidance", "scale"), [(0.2, 1.0), (3.0, 3.0), (9.0, 5.0)])
def test_guidance_is_learned_as_the_scale_of_true_cfg(
    guidance: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "GUIDANCE", (guidance, guidance))
    teacher, part = trained(1, 1), latents()  # its guidance has no effect yet, so it is its own unguided student
    seen: list[torch.Tensor] = []
    hook = teacher.transformer.register_forward_hook(lambda _, given, out: seen.append(out[0].detach()))
    loss = guided_loss(teacher, teacher, part, 0.4, np.random.default_rng(0), torch.device("cpu"))
    hook.remove()
    told, silent, student = seen
    torch.testing.assert_close(told, student)
    assert not torch.allclose(told, silent)
    guided = silent + scale * (told - silent)  # as FluxPipeline computes it with true_cfg_scale
    torch.testing.assert_close(loss.detach(), (guided - told).square().mean())
    assert (loss > 1e-6) == (scale > 1)


def test_a_scene_without_a_caption_is_the_same_at_any_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "GUIDANCE", (4.0, 4.0))
    silent, teacher = losses.untold(latents()), trained(1, 1)
    assert guided_loss(teacher, teacher, silent, 0.4, np.random.default_rng(0), torch.device("cpu")) < 1e-12


@pytest.mark.slow
def test_a_student_starts_as_its_teacher_and_comes_nearer_to_true_cfg(tmp_path: Path) -> None:
    teacher, stage = trained(1, 1), replace(STAGE, name="guidance", steps=40, untold=0.1)
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    run = train_stage(
        tmp_path, stage, [latents()], WORDS, torch.device("cpu"), 0, compile_blocks=False, teacher=teacher
    )
    told = [figures["loss"] for _, figures in run]
    assert told[-1] < 0.8 * told[0], "a smoothed loss, so the last is lower still"
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    student = load_average(tmp_path / "guidance.pt", 1, 1, WORDS)
    part, share = latents(), torch.full((6,), 0.5)
    few, much = (student(part.packed.float(), share, share * w, part.t5_ids, part.clip_ids, (2, 2)) for w in (2, 10))
    assert not torch.allclose(few, much), "guidance has an effect now"


def test_a_student_of_weights_that_were_trained_further_is_not_exported(tmp_path: Path) -> None:
    teacher, student = tmp_path / "all-blocks.pt", tmp_path / "guidance.pt"
    for file, changed in ((teacher, 100), (student, 200)):
        file.write_bytes(b"")
        os.utime(file, (changed, changed))
    drop_old_student(student, teacher)
    assert student.exists()
    os.utime(teacher, (300, 300))
    drop_old_student(student, teacher)
    assert not student.exists()
    drop_old_student(student, teacher)  # nothing to drop


def test_guidance_is_learned_from_all_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run(tmp_path, WORDS, torch.device("cpu"), 0, compiled=False)
    small = trained(2, 3)
    for started in (None, small):
        with pytest.raises(typer.BadParameter, match=r"has no all-blocks\.pt; run that phase first"):
            run.teacher(started)
    monkeypatch.setattr(training, "LAYERS", 2)
    monkeypatch.setattr(training, "SINGLE_LAYERS", 3)
    assert run.teacher(small) is small


def test_rate_rises_then_falls() -> None:
    rates = [rate_at(step, STAGE) for step in range(STAGE.steps + 1)]
    assert rates[0] == pytest.approx(0.5)
    assert rates[2] == 1.0
    assert rates[-1] == pytest.approx(STAGE.last_rate)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    constant = replace(STAGE, steps=10, fall_from=0.6)
    assert [rate_at(step, constant) for step in range(2, 7)] == [1.0] * 5
    assert rate_at(8, constant) == pytest.approx((1 + STAGE.last_rate) / 2)
    assert rate_at(10, constant) == pytest.approx(STAGE.last_rate)
