"""A rank draws with whatever its family says, and knows nothing of FLUX itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch

from cache_core import NoCacheOptions
from raycache.models.family import ModelFamily
from raycache.protocol.job import Job
from raycache.settings import AppSettings
from raycache.tracing import RankSpans
from raycache.worker.rank import Rank
from tests.helpers.tiny_transformers import build

JOB = Job(
    "1", "", 32, 64, (7, 8, 9), 2, 3.5, NoCacheOptions(), prompts=("b", "a", "b"), guidance_scales=(1.0, 2.0, 3.0)
)


class Strokes(ModelFamily):
    """Plain latents [n, 1, height / 8, width / 8], and prompts that are lists of letters."""

    called, transformer, with_weights, token_side = "strokes", "Strokes", (), 8
    parts: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        self.scales: list[float] = []

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

    def guided(self, pipe: Any, scales: Sequence[float]) -> AbstractContextManager[None]:
        self.scales = list(scales)
        return nullcontext()

    def decode(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> np.ndarray:
        grey = latents.repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, 3).expand(-1, height, width, 3)
        return (grey * 255).numpy().astype(np.uint8)

    def preview(
        self, pipe: Any, before: torch.Tensor, after: torch.Tensor, step: int, height: int, width: int
    ) -> np.ndarray:
        raise AssertionError("nobody asked for one")


class Pipe:
    """Its call takes what the family gives and what every pipeline of diffusers takes."""

    def __init__(self) -> None:
        self.transformer, self.seen = build("WanTransformer3DModel"), {}

    def __call__(self, *, callback_on_step_end: Any, latents: torch.Tensor, **arguments: Any) -> Any:
        self.seen = arguments
        for step in range(arguments["num_inference_steps"]):
            callback_on_step_end(self, step, 0, {"latents": latents})
        return SimpleNamespace(images=latents)


def test_a_family_that_is_not_flux_is_drawn_with(tmp_path: Path):
    settings = AppSettings.model_validate(
        {"model": {"path": "noise"}, "parallel": {"ranks_per_replica": 1, "device": "cpu"}}
    )
    rank = Rank(settings, 0, str(tmp_path / "stacks"))
    family, pipe = Strokes(), Pipe()
    rank._family, rank._pipe, rank._text_tokens = family, pipe, 4
    output = rank._draw(JOB, RankSpans(JOB, 0))
    assert output is not None
    assert output.images.shape == (3, 64, 32, 3)
    assert output.warnings == [["b: 4"], ["a: 4"], ["b: 4"]]
    assert family.scales == [1.0, 2.0, 3.0]
    assert pipe.seen["letters"] == ["b", "a", "b"]
    assert [event.step for event in rank._drain()] == [1, 2]
    alone = torch.rand(1, 8, 4, generator=torch.Generator().manual_seed(8))
    assert output.images[1, 0, 0, 0] == int(alone[0, 0, 0] * 255), "its noise depends on its seed alone"
