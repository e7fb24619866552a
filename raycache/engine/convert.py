"""From a request to a job, and from its outcome to an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from cache_core.options import CacheOptions
from raycache.gang.costs import Work, work_of
from raycache.models.registry import family_of
from raycache.presets import PresetName, quality_warnings
from raycache.protocol.cache_choice import silent_cache
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError, unavailable
from raycache.protocol.job import Job, JobOutput, Progress, Trace, made_steps, one_per_seed
from raycache.protocol.job_errors import DeadlineExceeded, GangRestarting, JobCancelled, LoraNotLoaded
from raycache.protocol.schemas import GenerationResult, ResolvedRequest, StageTimes
from raycache.protocol.sound import Sound

__all__ = ["forward", "job_of", "preview_steps", "request_error", "result_of"]


def job_of(
    request: ResolvedRequest, id: str, request_id: str, *, watch: bool, trace: Trace | None = None
) -> tuple[Job, Work]:
    """The job for the ranks, and the work that admission counts.

    Args:
        request: from :func:`raycache.protocol.resolve.resolve`.
        id: unique in this replica.
        request_id: for logs.
        watch: whether the client wants previews.
        trace: trace context of the request, if it is traced.
    """
    steps = made_steps(request.num_inference_steps, request.inputs.strength)
    job = Job(
        id=id,
        size=request.size,
        images=one_per_seed(
            range(request.seed, request.seed + request.n),
            prompt=request.prompt,
            guidance_scale=request.guidance_scale,
            cache=request.cache,
            negative_prompt=request.negative_prompt,
            true_cfg_scale=request.true_cfg_scale,
        ),
        num_inference_steps=request.num_inference_steps,
        preview_steps=preview_steps(steps, request.partial_images) if watch else (),
        request_id=request_id,
        trace=trace,
        inputs=request.inputs,
        calls_per_step=request.calls_per_step,
        lora=request.lora,
    )
    return job, work_of(job)


def result_of(
    request: ResolvedRequest,
    output: JobOutput,
    seconds: float,
    model: Capabilities,
    presets: Mapping[PresetName, CacheOptions] | None = None,
) -> GenerationResult:
    """The images of a job that took ``seconds`` from its arrival; ``presets``: those in force."""
    busy = output.encode_s + output.denoise_s + output.decode_s
    return GenerationResult(
        images=list(output.images),
        seeds=[request.seed + index for index in range(request.n)],
        report=output.report,
        fps=request.fps,
        sound=_as_shown(output.sound, request.fps, model.fps),
        times=StageTimes(
            queue=max(0.0, seconds - busy), encode=output.encode_s, denoise=output.denoise_s, decode=output.decode_s
        ),
        warnings=[
            *([] if presets is None else quality_warnings(request.quality, presets)),
            *output.warnings,
            *silent_cache(request, model),
            *_no_previews(request, model),
            *family_of(model.pipeline, model.kind).request_warnings(
                request.prompt, request.size, request.guidance_scale, request.true_cfg_scale
            ),
        ],
    )


def _as_shown(sound: Sound | None, fps: float, own_fps: float) -> Sound | None:
    """``sound``, made for frames at ``own_fps``, stretched to their duration at ``fps``."""
    if sound is None or not fps or not own_fps:
        return sound
    return Sound(sound.samples, round(sound.rate * fps / own_fps))


def _no_previews(request: ResolvedRequest, model: Capabilities) -> list[str]:
    if model.previews or not request.partial_images:
        return []
    return ["`partial_images` has no effect: this model makes no previews"]


def preview_steps(steps: int, count: int) -> tuple[int, ...]:
    """Steps, from 0, after which a preview is sent: spread evenly, none after the last step.

    >>> preview_steps(28, 3)
    (6, 13, 20)
    """
    return tuple(sorted({max(0, steps * (k + 1) // (count + 1) - 1) for k in range(count)} - {steps - 1}))


def request_error(error: BaseException) -> RequestError:
    """The answer to the client for one of :mod:`raycache.protocol.job_errors`."""
    if isinstance(error, DeadlineExceeded):
        return RequestError(504, "the deadline passed before the image was done", "timeout_s", "deadline_exceeded")
    if isinstance(error, GangRestarting):
        return unavailable(
            "the ranks are being replaced after a fault; try again", error.retry_after_s, "gang_restarting"
        )
    if isinstance(error, JobCancelled):
        return RequestError(499, "the request was cancelled", None, "cancelled")
    if isinstance(error, LoraNotLoaded):
        message = "this LoRA cannot be loaded on this server; the log has the reason"
        return RequestError(500, message, "lora", "lora_not_loaded")
    return RequestError(500, "generating failed on the server; the log has the reason", None, "job_failed")


def forward(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Progress | None]) -> Callable[[Progress], None]:
    """A callback for the gang's thread that passes progress to the request's event loop."""

    def hand_over(progress: Progress) -> None:
        loop.call_soon_threadsafe(events.put_nowait, progress)

    return hand_over
