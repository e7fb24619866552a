"""Checks all that can be checked of a request before a GPU is used.

``resolve`` either refuses with the field, the reason and the nearest legal values, or returns a request that says
everything: no None is left for the ranks to interpret, so what runs is a pure function of what is returned.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from raycache.limits import PRIORITIES, LimitSettings, Priority
from raycache.presets import load_presets, presets_warning
from raycache.protocol.cache_choice import cache_options, misfit_of
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError, invalid
from raycache.protocol.lora import check_lora
from raycache.protocol.schemas import GenerationRequest, ResolvedRequest
from raycache.protocol.sizes import check_format, size_of
from raycache.protocol.tasks import check_inputs, check_length, guided
from raycache.settings import AppSettings, Policy


def resolve(
    request: GenerationRequest,
    policy: Policy,
    model: Capabilities,
    *,
    model_name: str,
    ranks: int,
    key: str | None = None,
) -> ResolvedRequest:
    """Check ``request`` and fill in every default, the seed included.

    Args:
        request: what the user asked.
        policy: limits and defaults in force.
        model: what the gang said about its model.
        model_name: the name this service answers to.
        ranks: Ulysses degree of the gang.
        key: the public name of the client's key, where there are keys.

    Raises:
        RequestError: 400, 403 for a priority that the key may not name, or 404 for another model's name.
    """
    check_model(request.model, model_name)
    request = request.fitted(model, policy.limits)
    check_limits(request, policy, key)
    inputs = check_inputs(request, model, policy.limits)
    size = size_of(request.size, inputs, policy, side=model.token_side, ranks=ranks, uneven=model.uneven)
    check_format(request.output_format, size)
    guidance, negative_prompt, true_cfg_scale = guided(request, model, policy)
    return ResolvedRequest(
        prompt=request.prompt,
        model=model_name,
        n=request.n,
        size=size,
        seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
        num_inference_steps=_steps(request, policy),
        guidance_scale=guidance,
        quality=request.quality if request.cache is None else "auto",  # what had no effect is not told of
        cache=cache_options(request, policy, model),
        timeout_s=request.timeout_s or policy.request_timeout_s,
        priority=request.priority,
        partial_images=request.partial_images,
        negative_prompt=negative_prompt,
        true_cfg_scale=true_cfg_scale,
        inputs=inputs,
        fps=request.frames_a_second(model),
        calls_per_step=model.calls_per_step(guidance, true_cfg_scale),
        lora=check_lora(request.lora, model),
    )


def check_model(asked: str | None, name: str) -> None:
    """Only this service's own model, or none named.

    Raises:
        RequestError: 404.
    """
    if asked not in (None, name):
        message = f"model: this server does not have {asked[:80]!r}; it has {name!r}"
        raise RequestError(404, message, "model", "model_not_found")


def check_deployment(settings: AppSettings, policy: Policy, model: Capabilities) -> None:
    """Refuse a deployment in which no request, or no request that names nothing, could be generated.

    Raises:
        ValueError: the model does not divide over the ranks, or the defaults break the limits.
    """
    ranks = settings.parallel.ranks_per_replica
    _check_ranks(ranks, model)
    for name, options in policy.presets.items() if model.num_blocks else ():
        if misfit := misfit_of(options, model):
            raise ValueError(f"presets.{name} does not fit the model: {misfit}; `model.presets` names a file that does")
    # What a request brings besides is its own affair, and a model that edits needs a picture.
    bare = replace(model, tasks=("text-to-image",), frame_step=0)
    try:
        sample = GenerationRequest(prompt="defaults")
        resolve(sample, policy, bare, model_name=settings.model.name, ranks=ranks)
    except RequestError as error:
        raise ValueError(f"the deployment's defaults break its own limits: {error}") from None


def _check_ranks(ranks: int, model: Capabilities) -> None:
    def fits(count: int, over: int) -> bool:
        return count >= over if model.uneven else count % over == 0

    for name, count in (("attention heads", model.num_heads), ("text tokens", model.text_tokens)):
        if not fits(count, ranks):
            fitting = (str(d) for d in range(1, 9) if fits(model.num_heads, d) and fits(model.text_tokens, d))
            does = "are fewer than" if model.uneven else "do not divide over"
            raise ValueError(
                f"parallel.ranks_per_replica={ranks}: the model's {count} {name} {does} {ranks} ranks; "
                f"legal values: {', '.join(fitting)}"
            )


def deployment_warnings(settings: AppSettings, policy: Policy, model: Capabilities) -> list[str]:
    """What an operator should know of a deployment that works."""
    warnings, own = [], settings.model
    if set(policy.presets) <= {"exact"}:
        warnings.append(load_presets(own.path, own.presets, own.quantization).source)
    if warning := presets_warning(own.path, own.presets, own.quantization):
        warnings.append(warning)
    if not model.num_blocks:
        warnings.append(f"The cache does not know the blocks of {model.pipeline}: every step computes all of them.")
    if model.kind == "noise":
        warnings.append("The model has random weights: its pictures are NOISE. Set model.path to draw real ones.")
    return warnings


def check_limits(request: GenerationRequest, policy: Policy, key: str | None) -> None:
    """What is wrong with ``request`` whatever the model is.

    Raises:
        RequestError: 400, or 403 for a priority that the key may not name.
    """
    if not request.prompt.strip():
        raise invalid("prompt", "must hold something besides white space")
    check_length("prompt", request.prompt, policy.limits)
    _check_priority(request.priority, policy.limits, key)
    _check_at_most("n", request.n, policy.limits.max_images)
    _check_at_most("num_inference_steps", _steps(request, policy), policy.limits.max_steps)
    if request.timeout_s is not None:
        _check_at_most("timeout_s", request.timeout_s, policy.max_timeout_s)


def _check_priority(priority: Priority, limits: LimitSettings, key: str | None) -> None:
    highest = limits.of_key(key).max_priority
    if PRIORITIES[priority] > PRIORITIES[highest]:
        message = f"priority: {priority!r} is more than the {highest!r} allowed to this key"
        raise RequestError(403, message, "priority", "priority_not_allowed")


def _steps(request: GenerationRequest, policy: Policy) -> int:
    return request.num_inference_steps or policy.defaults.num_inference_steps


def _check_at_most(field: str, value: float, limit: float) -> None:
    if value > limit:
        raise invalid(field, f"{_shown(value)} is more than the {_shown(limit)} allowed here", [_shown(limit)])


def _shown(number: float) -> str:
    """As its writer would know it again: whole numbers digit by digit, and any length of them in a short line."""
    digits = str(number) if isinstance(number, int) else f"{number:g}"
    return digits if len(digits) <= 20 else f"{digits[:3]}... ({len(digits)} digits)"
