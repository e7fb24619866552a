"""A tiny FLUX of the real diffusers class, and jobs whose differences are on both sides of usual thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from cache_core import CacheReport, cache_session
from cache_core.hooks import attachment_of
from cache_core.session import Session

CHANNELS, TEXT_CHANNELS, POOLED = 8, 32, 16


def tiny_flux(doubles: int = 3, singles: int = 5, *, heads: int = 4, head_dim: int = 16, seed: int = 0):
    """Random weights, the same for the same arguments in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FluxTransformer2DModel(
            in_channels=CHANNELS,
            num_layers=doubles,
            num_single_layers=singles,
            attention_head_dim=head_dim,
            num_attention_heads=heads,
            joint_attention_dim=TEXT_CHANNELS,
            pooled_projection_dim=POOLED,
            axes_dims_rope=(head_dim // 4, 3 * head_dim // 8, 3 * head_dim // 8),
        )
        for parameter in model.parameters():
            parameter.data.mul_(1.3)  # with torch's own initialization blocks hardly change anything
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Job:
    """Some denoising steps: every image has its own seed, so that image k alone is ``Job(seeds=(seeds[k],))``.

    Attributes:
        seeds: one per image.
        steps: transformer calls.
        side: the image has ``side * side`` tokens.
        text: text tokens.
        pace: how far the latents drift per step; the actual drift of each image varies around it.
        extra: further arguments of the transformer.
    """

    seeds: tuple[int, ...] = (0,)
    steps: int = 10
    side: int = 4
    text: int = 4
    pace: float = 0.3
    extra: dict[str, Any] = field(default_factory=dict)

    def alone(self, image: int) -> Job:
        return replace(self, seeds=(self.seeds[image],))

    def noise(self, name: int, *shape: int) -> torch.Tensor:
        """One row per image, from that image's seed only."""
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(1000 * s + name)) for s in self.seeds]
        return torch.stack(rows)

    def static(self, text_name: int = 1) -> dict[str, Any]:
        ids = torch.zeros(self.side * self.side, 3)
        ids[:, 1] = torch.arange(self.side).repeat_interleave(self.side)
        ids[:, 2] = torch.arange(self.side).repeat(self.side)
        return {
            "encoder_hidden_states": self.noise(text_name, self.text, TEXT_CHANNELS),
            "pooled_projections": self.noise(text_name + 1, POOLED),
            "img_ids": ids,
            "txt_ids": torch.zeros(self.text, 3),
            **self.extra,
        }

    def start(self) -> torch.Tensor:
        return self.noise(3, self.side * self.side, CHANNELS)

    def timestep(self, step: int) -> torch.Tensor:
        return torch.full((len(self.seeds),), 1.0 - 0.01 * step / self.steps)

    def drift(self, step: int) -> torch.Tensor:
        """What is added to the latents after ``step``, in addition to the model's output."""
        stretch = (2.0 * self.noise(50 + step)).sigmoid().reshape(-1, 1, 1)
        return self.pace * stretch**2 * self.noise(100 + step, self.side * self.side, CHANNELS)


Forward = Callable[..., Any]


def draw(transformer: Forward, job: Job, *, on_step: Callable[[int], None] | None = None) -> list[torch.Tensor]:
    """Run the job in a closed loop (an error in one step affects the next) and return every step's output."""
    latents, static, outputs = job.start(), job.static(), []
    with torch.no_grad():
        for step in range(job.steps):
            if on_step:
                on_step(step)
            output = transformer(hidden_states=latents, timestep=job.timestep(step), return_dict=False, **static)[0]
            outputs.append(output)
            latents = latents - 0.1 * output + job.drift(step)
    return outputs


def draw_cached(transformer: Forward, options: Any, job: Job, **session: Any) -> tuple[list[torch.Tensor], CacheReport]:
    """The same in its own session."""
    with cache_session(transformer, options, **session) as report:
        outputs = draw(transformer, job)
    return outputs, report


@contextmanager
def opened(transformer: Any, options: Any, **arguments: Any) -> Iterator[Session]:
    """A session, yielding the object itself for inspection (bytes held, report)."""
    with cache_session(transformer, options, **arguments):
        session = attachment_of(transformer).session
        assert session is not None
        yield session


def decisions(
    report: CacheReport, image: int = 0, branch: str | None = None
) -> list[tuple[bool, str, tuple[int, ...]]]:
    """The decisions for one image, without the underlying numbers."""
    return [
        (d.cached, d.reason, tuple(d.pruned_blocks))
        for step in report.steps
        if branch in (None, step.branch)
        for d in [step.images[image]]
    ]


def differences(report: CacheReport, image: int = 0) -> list[dict[int, float | None]]:
    """Every comparison of one image, step by step."""
    return [{site: pair[0] for site, pair in step.images[image].differences.items()} for step in report.steps]


def gap(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """The largest difference relative to the largest value."""
    assert len(left) == len(right)
    scale = max(float(b.abs().max()) for b in right)
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True)) / scale
