"""A task's inputs, checked against the model's capabilities: images, a mask, strength, frames."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from raycache.limits import LimitSettings
from raycache.protocol.capabilities import Capabilities, Task
from raycache.protocol.errors import invalid
from raycache.protocol.job import JobInputs
from raycache.size import Size

if TYPE_CHECKING:
    from raycache.policy import Policy
    from raycache.protocol.schemas import GenerationRequest

__all__ = ["USUAL_STRENGTH", "check_inputs", "check_length", "check_task", "guided", "nearest_frames", "task_of"]

#: Default strength of image to image, as in diffusers' pipelines.
USUAL_STRENGTH = 0.6

#: The field of a request that selects each task.
_FIELD: dict[Task, str] = {
    "text-to-image": "model",
    "image-to-image": "strength",
    "edit": "image",
    "inpaint": "mask",
    "text-to-video": "model",
    "image-to-video": "input_reference",
}


def check_inputs(request: GenerationRequest, model: Capabilities, limits: LimitSettings) -> JobInputs:
    """The job's inputs other than its prompt, checked against the model.

    Raises:
        RequestError: 400 with the field, and what this model can do.
    """
    inputs = request.inputs()
    task = check_task(inputs.task, len(inputs.images), model)
    if task != inputs.task:
        inputs = replace(inputs, task=task, strength=USUAL_STRENGTH)
    _check_pixels(inputs, limits.max_input_pixels)
    if model.frame_step:
        _check_frames(inputs.num_frames, model.frame_step, limits.max_frames)
    return inputs


def task_of(*, mask: bool, strength: float | None) -> Task:
    """The task of a request with images, from its other inputs."""
    if mask:
        return "inpaint"
    return "edit" if strength is None else "image-to-image"


def check_task(task: Task, images: int, model: Capabilities) -> Task:
    """The task that a model runs for ``task`` with this many images.

    That is ``task``, except for a model without edit: it runs image to image on a single image.

    Raises:
        RequestError: 400 with the field that selects an unsupported task, and the supported ones.
    """
    if task == "edit" and task not in model.tasks and images == 1 and "image-to-image" in model.tasks:
        task = "image-to-image"
    if task not in model.tasks:
        known = ", ".join(model.tasks)
        reason = f"this model ({model.pipeline or 'not loaded yet'}) does not support {task}; it supports: {known}"
        if task == "edit" and "inpaint" in model.tasks:
            reason += "; with a `mask` this would be inpaint"
        raise invalid(_FIELD[task], reason, code="unsupported_task")
    most = 1 if task == "image-to-image" else model.max_inputs
    if images > most:
        raise invalid("image", f"got {images} images, this model takes at most {most} for {task}")
    return task


def guided(request: GenerationRequest, model: Capabilities, policy: Policy) -> tuple[float, str, float]:
    """``guidance_scale``, the negative prompt, and ``true_cfg_scale``.

    Raises:
        RequestError: 400 if they would have no effect on this model, or are too long.
    """
    prompt, defaults = request.negative_prompt, policy.defaults
    if prompt is None:
        prompt = defaults.negative_prompt if model.negative_prompt else ""
    elif prompt and not model.negative_prompt:
        raise invalid("negative_prompt", f"this model ({model.pipeline}) does not take one; leave it out")
    scale = request.true_cfg_scale
    if scale is None:
        scale = defaults.true_cfg_scale if model.true_cfg else 1.0
    elif scale > 1 and not model.true_cfg:
        raise invalid("true_cfg_scale", f"this model ({model.pipeline}) does not have it; use `guidance_scale`", [1])
    if request.negative_prompt and model.true_cfg and scale == 1:
        raise invalid("true_cfg_scale", "a negative prompt has no effect unless it is above 1", [4])
    check_length("negative_prompt", prompt, policy.limits)
    return defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale, prompt, scale


def check_length(field: str, prompt: str, limits: LimitSettings) -> None:
    """Check the number of characters.

    Raises:
        RequestError: 400.
    """
    if len(prompt) > limits.max_prompt_characters:
        reason = f"{len(prompt)} characters, at most {limits.max_prompt_characters} are allowed here"
        raise invalid(field, reason, code="string_above_max_length")


def nearest_frames(frames: int, step: int, most: int) -> list[int]:
    """Legal numbers of frames next to ``frames``: multiples of ``step`` plus one, at most ``most``.

    >>> nearest_frames(80, 4, 121)
    [81, 77]
    """
    below = max(0, (min(frames, most) - 1) // step) * step + 1
    near = {value for value in (below, below + step) if value <= most}
    return sorted(near, key=lambda value: (abs(value - frames), -value))


def _check_pixels(inputs: JobInputs, most: int) -> None:
    """Images may be arrays, from Python; files were checked before they were decoded."""
    sizes = [Size.of(image) for image in inputs.images]
    for size in sizes:
        if size.pixels > most:
            raise invalid("image", f"{size} is {size.pixels} pixels, at most {most} are allowed here")
    if inputs.mask is None:
        return
    if (own := Size.of(inputs.mask)) != sizes[0]:
        raise invalid("mask", f"it is {own}, but the first image is {sizes[0]}; they must have the same size")
    if not inputs.mask.any():
        reason = "it marks nothing to generate again: mark it transparent, or white if all is opaque"
        raise invalid("mask", reason)


def _check_frames(frames: int, step: int, most: int) -> None:
    if frames > most:
        raise invalid("num_frames", f"{frames} is more than the {most} allowed here", nearest_frames(most, step, most))
    if frames % step != 1 % step:
        reason = f"{frames} frames, but this model needs a multiple of {step}, plus one"
        raise invalid("num_frames", reason, nearest_frames(frames, step, most))
