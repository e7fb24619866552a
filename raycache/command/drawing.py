"""Drawing with the bundled model in this process: no service, no Ray."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.progress import Progress, TaskID

from raycache.command.configs import find_config
from raycache.command.drawn import Drawn
from raycache.command.serve_config import Changes, read_service
from raycache.models.folder import capabilities_told
from raycache.models.registry import family_of
from raycache.models.source import ModelNotFound, model_outline, prepare_model
from raycache.protocol.errors import RequestError
from raycache.protocol.formats import encode
from raycache.protocol.resolve import resolve
from raycache.protocol.schemas import GenerationRequest, ResolvedRequest
from raycache.quiet import be_quiet
from raycache.settings import AppSettings, ModelSettings

if TYPE_CHECKING:
    from cache_core import CacheReport

__all__ = ["BundledModel", "DrawingError"]


class DrawingError(ValueError):
    """The request cannot be drawn; the message says which part of it, and what would be right."""


class BundledModel:
    """The bundled model, with the laptop configuration's defaults and limits; its weights are read once."""

    def __init__(self) -> None:
        (self._settings,) = read_service(find_config("laptop"), Changes()).settings.engines

    @cached_property
    def _pipe(self) -> Any:
        be_quiet()
        return _loaded(self._settings.model)

    def draw(self, request: dict[str, Any], bar: Progress, task: TaskID) -> Drawn:
        """One image.

        Args:
            request: fields of a :class:`GenerationRequest`.
            bar, task: shows its steps.

        Raises:
            DrawingError: the request is wrong.
        """
        asked, wanted = _resolved(request, self._settings)
        pipe, began = self._pipe, time.perf_counter()
        bar.update(task, description="drawing", completed=0, total=wanted.num_inference_steps)

        def step_ended(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            bar.update(task, completed=step + 1)
            return tensors

        image, report = _image(pipe, wanted, step_ended)
        seconds = time.perf_counter() - began
        saved = f"{sum(report.cached_steps)} of {wanted.num_inference_steps} steps from the cache"
        family = family_of(type(pipe).__name__, "demo")
        return Drawn(
            image=encode(image, asked.output_format, asked.output_compression),
            line=f"{wanted.size}, seed {wanted.seed}, {seconds:.1f} s in this process, {saved}",
            warnings=family.request_warnings(wanted.prompt, wanted.size, wanted.guidance_scale, 1.0),
            seconds=seconds,
            computed_share=next(iter(report.computed_block_fraction), 1.0),
        )


def _resolved(request: dict[str, Any], settings: AppSettings) -> tuple[GenerationRequest, ResolvedRequest]:
    try:
        asked = GenerationRequest.model_validate(request)
        folder = model_outline(settings.model, Path())
        model = capabilities_told(folder, settings.model.max_sequence_length) if folder else None
        assert model is not None  # the bundled model tells what it is
        return asked, resolve(asked, settings.policy, model, model_name=settings.model.name, ranks=1)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        raise DrawingError(f"{item['loc'][0] if item['loc'] else 'request'}: {item['msg']}") from None
    except (RequestError, ModelNotFound) as error:
        raise DrawingError(str(error)) from None


def _loaded(settings: ModelSettings) -> Any:
    import torch

    from raycache.models.loading import load_pipeline

    folder, _ = prepare_model(settings)
    return load_pipeline(settings, folder, torch.device("cpu"))


def _image(pipe: Any, wanted: ResolvedRequest, step_ended: Any) -> tuple[Any, CacheReport]:
    """uint8 ``[height, width, 3]``, and what the cache did."""
    import numpy as np
    import torch

    from cache_core import cache_session

    family = family_of(type(pipe).__name__, "demo")
    cache = wanted.cache.for_steps(wanted.num_inference_steps)
    with torch.no_grad(), cache_session(pipe.transformer, cache) as report:
        drawn = pipe(
            wanted.prompt,
            max_sequence_length=family.text_tokens(pipe),
            width=wanted.size.width,
            height=wanted.size.height,
            num_inference_steps=wanted.num_inference_steps,
            guidance_scale=family.guidance(wanted.guidance_scale, 1.0),
            generator=torch.Generator().manual_seed(wanted.seed),
            output_type="np",
            callback_on_step_end=step_ended,
        )[0]
    image = (drawn[0] * 255).round().astype(np.uint8)
    return image, report
