"""A rank draws with whatever its family says, and knows nothing of FLUX itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch

from raycache.models.family import ModelFamily
from raycache.worker.active_job import RankContext
from raycache.worker.job_runner import JobRunner
from tests.helpers.jobs import make_job
from tests.helpers.ticks import draw
from tests.helpers.tiny_transformers import build

JOB = make_job(size="32x64", seeds=(7, 8, 9), steps=2, prompt="b")


class Strokes(ModelFamily):
    """Plain latents [n, 1, height / 8, width / 8], and prompts that are lists of letters."""

    called, transformer, with_weights, token_side = "strokes", "Strokes", (), 8
    parts: ClassVar[Mapping[str, str]] = {}

    def num_blocks(self, config: Mapping[str, Any]) -> int:
        return 1

    def num_heads(self, config: Mapping[str, Any]) -> int:
        return 1

    def text_tokens_told(self, folder: Path) -> int:
        return 4

    def load(self, folder: str, dtype: torch.dtype) -> Any:
        raise AssertionError("the test has one")

    def text_tokens(self, pipe: Any) -> int:
        return 4

    def prompt_warnings(self, pipe: Any, prompt: str, text_tokens: int) -> list[str]:
        return [f"{prompt}: {text_tokens}"]

    def encode(
        self, pipe: Any, prompts: Sequence[str], rows: Sequence[int], device: torch.device, text_tokens: int
    ) -> dict[str, Any]:
        assert len(set(prompts)) == len(prompts)
        return {"letters": [prompts[row] for row in rows]}

    def noise(
        self, pipe: Any, encoded: Mapping[str, Any], generators: Sequence[torch.Generator], height: int, width: int
    ) -> torch.Tensor:
        return torch.stack([torch.rand(1, height // 8, width // 8, generator=generator) for generator in generators])

    def decode(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> np.ndarray:
        grey = latents.repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, 3).expand(-1, height, width, 3)
        return (grey * 255).numpy().astype(np.uint8)

    def preview(
        self, pipe: Any, before: torch.Tensor, after: torch.Tensor, step: int, height: int, width: int
    ) -> np.ndarray:
        raise AssertionError("nobody asked for one")


class Pipe:
    """Its call takes what the family gives and what every pipeline of diffusers takes."""

    seen: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.transformer, self.scheduler = build("WanTransformer3DModel"), None

    def __call__(self, *, callback_on_step_end: Any, latents: torch.Tensor, **arguments: Any) -> Any:
        self.seen.update(arguments)
        for step in range(arguments["num_inference_steps"]):
            callback_on_step_end(self, step, 0, {"latents": latents})
        return SimpleNamespace(images=latents)


def test_a_family_that_is_not_flux_is_drawn_with():
    family, pipe = Strokes(), Pipe()
    runner = JobRunner(RankContext(pipe, family, 0, torch.device("cpu"), 4), None)
    drawn = draw(runner, {JOB: 0})
    output = drawn.outputs["1"]
    assert output.images.shape == (3, 64, 32, 3)
    assert output.warnings == ["b: 4"]
    assert pipe.seen["letters"] == ["b", "b", "b"]
    assert [event.step for event in drawn.progress["1"]] == [1, 2]
    alone = torch.rand(1, 8, 4, generator=torch.Generator().manual_seed(8))
    assert output.images[1, 0, 0, 0] == int(alone[0, 0, 0] * 255), "its noise depends on its seed alone"
