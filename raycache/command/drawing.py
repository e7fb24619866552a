"""Drawing with the bundled model in this process: no service, no Ray."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.progress import Progress, TaskID

from raycache.command.configs import find_config
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

__all__ = ["DrawingError", "draw_here"]


class DrawingError(ValueError):
    """The request cannot be drawn; the message says which part of it, and what would be right."""


def draw_here(request: dict[str, Any], bar: Progress, task: TaskID) -> tuple[bytes, str, list[str]]:
    """One image by the bundled model, with the laptop configuration's defaults and limits.

    Args:
        request: fields of a :class:`GenerationRequest`.
        bar, task: shows its steps.

    Returns:
        The encoded image, what is told of it, and warnings.

    Raises:
        DrawingError: the request is wrong.
    """
    (settings,) = read_service(find_config("laptop"), Changes()).settings.engines
    asked, wanted = _resolved(request, settings)
    be_quiet()
    pipe, began = _loaded(settings.model), time.perf_counter()
    bar.update(task, description="drawing", total=wanted.num_inference_steps)

    def step_ended(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        bar.update(task, completed=step + 1)
        return tensors

    image, cached = _image(pipe, wanted, step_ended)
    seconds = time.perf_counter() - began
    saved = f"{cached} of {wanted.num_inference_steps} steps from the cache"
    line = f"{wanted.size}, seed {wanted.seed}, {seconds:.1f} s in this process, {saved}"
    family = family_of(type(pipe).__name__, "demo")
    warnings = family.request_warnings(wanted.prompt, wanted.size)
    return encode(image, asked.output_format, asked.output_compression), line, warnings


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


def _image(pipe: Any, wanted: ResolvedRequest, step_ended: Any) -> tuple[Any, int]:
    """uint8 ``[height, width, 3]``, and how many steps reused what was computed before."""
    import numpy as np
    import torch

    from cache_core import cache_session

    family = family_of(type(pipe).__name__)
    cache = wanted.cache.for_steps(wanted.num_inference_steps)
    with torch.no_grad(), cache_session(pipe.transformer, cache) as report:
        drawn = pipe(
            wanted.prompt,
            max_sequence_length=family.text_tokens(pipe),
            width=wanted.size.width,
            height=wanted.size.height,
            num_inference_steps=wanted.num_inference_steps,
            guidance_scale=wanted.guidance_scale,
            generator=torch.Generator().manual_seed(wanted.seed),
            output_type="np",
            callback_on_step_end=step_ended,
        )[0]
    image = (drawn[0] * 255).round().astype(np.uint8)
    return image, sum(report.cached_steps)
