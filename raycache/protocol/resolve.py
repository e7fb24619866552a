"""Checks everything in a request that can be checked before a GPU is used.

``resolve`` either refuses with the field, the reason and the nearest legal values, or returns a complete request: it
has no None that ranks would have to interpret, so the result is a pure function of it.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from raycache.limits import PRIORITIES, LimitSettings, Priority
from raycache.policy import Policy
from raycache.presets import load_presets, presets_warning
from raycache.protocol.cache_choice import cache_options, misfit_of
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError, invalid
from raycache.protocol.lora import check_lora
from raycache.protocol.schemas import GenerationRequest, ResolvedRequest
from raycache.protocol.sizes import check_format, size_of
from raycache.protocol.tasks import check_inputs, check_length, guided
from raycache.settings import AppSettings


def resolve(
    request: GenerationRequest,
    policy: Policy,
    model: Capabilities,
    *,
    model_name: str,
    ranks: int,
    key: str | None = None,
) -> ResolvedRequest:
    """Check ``request`` and fill in every default, including the seed.

    Args:
        request: the user's request.
        policy: limits and defaults in force.
        model: the capabilities that the gang reported.
        model_name: the name that requests give for this model.
        ranks: Ulysses degree of the gang.
        key: the public name of the client's key, if there are keys.

    Raises:
        RequestError: 400, 403 for a priority that the key may not use, or 404 for another model's name.
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
        quality=request.quality if request.cache is None else "auto",  # without effect, so not reported
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
    """Check that the request names this service's model, or none.

    Raises:
        RequestError: 404.
    """
    if asked not in (None, name):
        message = f"model: this server does not have {asked[:80]!r}; it has {name!r}"
        raise RequestError(404, message, "model", "model_not_found")


def check_deployment(settings: AppSettings, policy: Policy, model: Capabilities) -> None:
    """Refuse a deployment in which no request, or no request without options, could be served.

    Raises:
        ValueError: the model does not divide over the ranks, or the defaults break the limits.
    """
    ranks = settings.parallel.ranks_per_replica
    _check_ranks(ranks, model)
    for name, options in policy.presets.items() if model.num_blocks else ():
        if misfit := misfit_of(options, model):
            raise ValueError(f"presets.{name} does not fit the model: {misfit}; set `model.presets` to one that does")
    # Checked without inputs: they are up to each request, and an editing model needs an image.
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
    """Warnings for the operator about a deployment that works."""
    warnings, own = [], settings.model
    if set(policy.presets) <= {"exact"}:
        warnings.append(load_presets(own.path, own.presets, own.quantization).source)
    if warning := presets_warning(own.path, own.presets, own.quantization):
        warnings.append(warning)
    if not model.num_blocks:
        warnings.append(f"The cache does not know the blocks of {model.pipeline}: every step computes all of them.")
    if model.kind == "noise":
        warnings.append("The model has random weights: its images are NOISE. Set model.path to generate real ones.")
    return warnings


def check_limits(request: GenerationRequest, policy: Policy, key: str | None) -> None:
    """Check the parts of ``request`` that do not depend on the model.

    Raises:
        RequestError: 400, or 403 for a priority that the key may not use.
    """
    if not request.prompt.strip():
        raise invalid("prompt", "must contain something other than white space")
    check_length("prompt", request.prompt, policy.limits)
    _check_priority(request.priority, policy.limits, key)
    _check_at_most("n", request.n, policy.limits.max_images)
    _check_at_most("num_inference_steps", _steps(request, policy), policy.limits.max_steps)
    if request.timeout_s is not None:
        _check_at_most("timeout_s", request.timeout_s, policy.max_timeout_s)


def _check_priority(priority: Priority, limits: LimitSettings, key: str | None) -> None:
    highest = limits.of_key(key).max_priority
    if PRIORITIES[priority] > PRIORITIES[highest]:
        message = f"priority: {priority!r} is more than the {highest!r} allowed for this key"
        raise RequestError(403, message, "priority", "priority_not_allowed")


def _steps(request: GenerationRequest, policy: Policy) -> int:
    return request.num_inference_steps or policy.defaults.num_inference_steps


def _check_at_most(field: str, value: float, limit: float) -> None:
    if value > limit:
        raise invalid(field, f"{_shown(value)} is more than the {_shown(limit)} allowed here", [_shown(limit)])


def _shown(number: float) -> str:
    """A number as the user wrote it: all digits of whole numbers, shortened if there are too many."""
    digits = str(number) if isinstance(number, int) else f"{number:g}"
    return digits if len(digits) <= 20 else f"{digits[:3]}... ({len(digits)} digits)"
