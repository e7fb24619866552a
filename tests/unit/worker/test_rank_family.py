"""A rank draws with whatever its pipeline is: arguments by name, the pipeline's own encoding and tail, any VAE."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from raycache.models.family import ModelFamily
from raycache.worker.active_job import RankContext
from raycache.worker.job_runner import JobRunner
from tests.helpers.jobs import make_job
from tests.helpers.ticks import draw
from tests.helpers.tiny_transformers import build

JOB = make_job(size="32x64", seeds=(7, 8, 9), steps=2, prompt="b")


class Strokes(ModelFamily):
    """Warns of every prompt."""

    called, fixed = "strokes", {"brush": "thick", "pencil": "is no argument of the pipeline"}

    def prompt_warnings(self, pipe: Any, prompt: str, text_tokens: int) -> list[str]:
        return [f"{prompt}: {text_tokens}"]


class Grey:
    """A VAE that makes 8x8 pixels of each latent, and notes how many rows it is given at once."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def decode(self, latents: torch.Tensor, shift: torch.Tensor, return_dict: bool = True) -> Any:
        self.rows.append(len(latents))
        grey = (latents - shift).repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, 3)
        return SimpleNamespace(sample=grey) if return_dict else (grey,)


class Pipe:
    """It has no `num_images_per_prompt`, no `prepare_latents` and a tail of its own; `guidance_scale` it has not."""

    seen: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.transformer, self.scheduler, self.vae = build("WanTransformer3DModel"), None, Grey()

    def encode_prompt(self, prompt: list[str]) -> list[str]:
        return [letter.upper() for letter in prompt]

    def __call__(
        self,
        prompt: Any,
        height: int,
        width: int,
        num_inference_steps: int,
        generator: list[torch.Generator],
        brush: str,
        output_type: str,
        callback_on_step_end: Any,
    ) -> Any:
        self.seen.update(letters=self.encode_prompt(prompt), brush=brush, output_type=output_type)
        latents = torch.stack([torch.rand(1, height // 8, width // 8, generator=own) for own in generator])
        for step in range(num_inference_steps):
            callback_on_step_end(self, step, 0, {"latents": latents})
        shift = torch.linspace(0, 0.1, len(latents)).reshape(-1, 1, 1, 1)
        return (self.vae.decode(latents, shift, return_dict=False)[0].expand(-1, -1, -1, 3).numpy(),)


def test_a_family_that_is_not_flux_is_drawn_with():
    pipe = Pipe()
    runner = JobRunner(RankContext(pipe, Strokes(), 0, torch.device("cpu"), 4), None)
    drawn = draw(runner, {JOB: 0})
    output = drawn.outputs["1"]
    assert output.images.shape == (3, 64, 32, 3)
    assert output.warnings == ["b: 4"]
    assert Pipe.seen == {"letters": ["B", "B", "B"], "brush": "thick", "output_type": "np"}
    assert [event.step for event in drawn.progress["1"]] == [1, 2]
    for row, shift in ((0, 0.0), (1, 0.05), (2, 0.1)):
        alone = torch.rand(1, 8, 4, generator=torch.Generator().manual_seed(7 + row))
        grey = max(0.0, float(alone[0, 0, 0]) - shift)
        assert abs(output.images[row, 0, 0, 0] - grey * 255) <= 1, "noise depends on the seed, what goes with it on row"
    assert pipe.vae.rows == [1, 1, 1], "an image is decoded alone, whatever stands beside it"


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_decode_rows_in_turn_and_the_tail_sees_no_others(rank: int):
    pipe = Pipe()
    runner = JobRunner(RankContext(pipe, Strokes(), rank, torch.device("cpu"), 4, world=2), None)
    drawn = draw(runner, {JOB: 0})
    assert sorted(drawn.decoded["1"]) == ([0, 2] if rank == 0 else [1])
    whole = draw(JobRunner(RankContext(Pipe(), Strokes(), 0, torch.device("cpu"), 4), None), {JOB: 0}).outputs["1"]
    for row, image in drawn.decoded["1"].items():
        assert np.array_equal(image, whole.images[row])


def test_a_job_that_asks_for_what_the_pipeline_has_not_ends_with_the_reason():
    runner = JobRunner(RankContext(Pipe(), Strokes(), 0, torch.device("cpu"), 4), None)
    drawn = draw(runner, {make_job(size="32x64", steps=2, negative_prompt="grey"): 0})
    assert str(drawn.failures[0]).startswith("ValueError: Pipe has no negative_prompt")
    assert not drawn.outputs
