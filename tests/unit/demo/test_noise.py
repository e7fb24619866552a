"""The noise model: complete or absent, the same bytes for the same arguments, and fit for caching tests."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from raycache.demo.built import MARKER
from raycache.demo.noise import build_noise_model, rope_axes


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return build_noise_model(tmp_path_factory.mktemp("noise") / "model", layers=2, single_layers=3)


@pytest.fixture(scope="module")
def pipe(small) -> FluxPipeline:
    pipe = FluxPipeline.from_pretrained(small)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: FluxPipeline, prompt: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        prompt,
        height=64,
        width=96,
        num_inference_steps=4,
        max_sequence_length=32,
        generator=generator,
        output_type="pt",
    ).images


def test_marker_geometry_and_modes(small, pipe):
    assert json.loads((small / MARKER).read_text())["kind"] == "noise"
    config = pipe.transformer.config
    assert (config.num_layers, config.num_single_layers, config.num_attention_heads) == (2, 3, 4)
    assert config.guidance_embeds
    assert pipe.tokenizer_2.model_max_length == 64
    for path in small.rglob("*.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [path.name for path in small.parent.iterdir()] == [small.name]  # no scratch folder left


def test_second_call_touches_nothing(small):
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    assert build_noise_model(small, layers=2, single_layers=3) == small
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_same_arguments_same_bytes_and_global_generator_untouched(small, tmp_path):
    state = torch.get_rng_state()
    again = build_noise_model(tmp_path / "again", layers=2, single_layers=3)
    assert torch.equal(torch.get_rng_state(), state)
    for path in small.rglob("*.safetensors"):
        assert (again / path.relative_to(small)).read_bytes() == path.read_bytes()


def test_other_arguments_are_refused(small, tmp_path):
    with pytest.raises(FileExistsError, match="wanted"):
        build_noise_model(small, layers=2, single_layers=3, seed=1)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else"):
        build_noise_model(foreign)
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]


def test_image_depends_on_prompt_and_seed(pipe):
    image = draw(pipe, "a red circle")
    assert image.shape == (1, 3, 64, 96)
    assert image.std() > 0.05
    assert torch.equal(image, draw(pipe, "a red circle"))
    assert (image - draw(pipe, "a blue star")).abs().max() > 0.05
    assert (image - draw(pipe, "a red circle", seed=1)).abs().max() > 0.05


def test_every_block_moves_its_input(pipe):
    moves: list[float] = []

    def record(_module, _args, kwargs, output):
        hidden = kwargs["hidden_states"]
        moves.append(((output[1] - hidden).std() / hidden.std()).item())

    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    handles = [block.register_forward_hook(record, with_kwargs=True) for block in blocks]
    draw(pipe, "a red circle")
    for handle in handles:
        handle.remove()
    assert len(moves) == 4 * len(blocks)
    assert min(moves) > 0.01


@pytest.mark.parametrize(
    ("head_dim", "axes"), [(128, (32, 48, 48)), (32, (8, 12, 12)), (16, (4, 6, 6)), (8, (4, 2, 2))]
)
def test_rope_axes_are_even_and_sum_up(head_dim, axes):
    assert rope_axes(head_dim) == axes
    assert sum(axes) == head_dim


@pytest.mark.parametrize("head_dim", [4, 15])
def test_rope_axes_refuses_what_cannot_be_split(head_dim):
    with pytest.raises(ValueError, match="head_dim"):
        rope_axes(head_dim)
