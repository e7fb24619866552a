"""Everything about a request that can be known to be wrong before a GPU is touched.

``resolve`` either refuses with the field, the reason and the nearest legal values, or returns a request that says
everything: no None is left for the ranks to interpret, so what runs is a pure function of what is returned.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from dataclasses import replace

from raycache.limits import PRIORITIES, LimitSettings, Priority
from raycache.presets import load_presets
from raycache.protocol.cache_choice import cache_options, misfit_of
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError, invalid
from raycache.protocol.formats import LONGEST_SIDE
from raycache.protocol.lora import check_lora
from raycache.protocol.schemas import GenerationRequest, ResolvedRequest
from raycache.protocol.tasks import check_inputs, check_length, guided
from raycache.settings import AppSettings, Policy
from raycache.size import Size


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
    defaults, limits = policy.defaults, policy.limits
    _check_prompt(request.prompt, limits)
    _check_priority(request.priority, limits, key)
    size = defaults.size if request.size is None or request.size == "auto" else _size(request.size)
    check_size(size, side=model.token_side, ranks=ranks, max_pixels=limits.max_pixels)
    _check_format(request.output_format, size)
    steps = _steps(request, policy)
    guidance, negative_prompt, true_cfg_scale = guided(request, model, policy)
    return ResolvedRequest(
        prompt=request.prompt,
        model=model_name,
        n=request.n,
        size=size,
        seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        quality=request.quality if request.cache is None else "auto",  # what had no effect is not told of
        cache=cache_options(request, policy, model),
        timeout_s=request.timeout_s or policy.request_timeout_s,
        priority=request.priority,
        partial_images=request.partial_images,
        negative_prompt=negative_prompt,
        true_cfg_scale=true_cfg_scale,
        inputs=check_inputs(request, model, limits, steps),
        fps=model.fps,
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
    for name, count in (("attention heads", model.num_heads), ("text tokens", model.text_tokens)):
        if count % ranks:
            fitting = ", ".join(str(d) for d in range(1, 9) if model.num_heads % d == 0 and model.text_tokens % d == 0)
            raise ValueError(
                f"parallel.ranks_per_replica={ranks}: the model's {count} {name} do not divide over {ranks} ranks; "
                f"legal values: {fitting}"
            )
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


def deployment_warnings(settings: AppSettings, policy: Policy, model: Capabilities) -> list[str]:
    """What an operator should know of a deployment that works."""
    warnings = []
    if set(policy.presets) <= {"exact"}:
        warnings.append(load_presets(settings.model.path, settings.model.presets).source)
    if not model.num_blocks:
        warnings.append(f"The cache does not know the blocks of {model.pipeline}: every step computes all of them.")
    if model.kind == "noise":
        warnings.append("The model has random weights: its pictures are NOISE. Set model.path to draw real ones.")
    return warnings


def check_size(size: Size, *, side: int, ranks: int, max_pixels: int) -> None:
    """Both sides multiples of a token's, not too large, image tokens divisible by the number of ranks.

    Raises:
        RequestError: 400 with the two nearest legal sizes.
    """
    if size.width % side or size.height % side or not size.pixels:
        reason = f"width and height must be positive multiples of {side}, got {size}"
    elif size.pixels > max_pixels:
        reason = f"{size} is {size.pixels} pixels, at most {max_pixels} are allowed here"
    elif (tokens := size.tokens(side)) % ranks:
        reason = f"{size} makes {tokens} image tokens, which do not divide over {ranks} ranks"
    else:
        return
    raise invalid("size", reason, nearest_sizes(size, side=side, ranks=ranks, max_pixels=max_pixels))


def nearest_sizes(size: Size, *, side: int, ranks: int, max_pixels: int, count: int = 2) -> list[Size]:
    """Legal sizes closest to ``size``, nearest first, by the sum of the changes of both sides."""
    shrink = min(1.0, math.sqrt(max_pixels / max(1, size.pixels)))
    columns, rows = (max(1, round(length * shrink / side)) for length in (size.width, size.height))
    tokens = max_pixels // side**2
    # Keep one side and move the other: both ways round, or a very long and thin image finds nothing.
    legal = {Size(c * side, r * side) for c, r in _divisible(columns, rows, tokens, ranks)}
    legal |= {Size(c * side, r * side) for r, c in _divisible(rows, columns, tokens, ranks)}

    legal = {each for each in legal if max(each.width, each.height) < 100_000}  # five digits can be said

    def change(other: Size) -> tuple[int, ...]:
        # Ties go to the size of nearly the same shape, then to the larger one.
        changed = abs(other.width - size.width) + abs(other.height - size.height)
        skewed = abs(other.width * size.height - other.height * size.width)
        return changed, skewed, -other.pixels, other.width

    return sorted(legal, key=change)[:count]


def _divisible(kept: int, moved: int, most: int, ranks: int) -> Iterator[tuple[int, int]]:
    """Pairs near (kept, moved), in tokens, whose product is divisible by ``ranks`` and at most ``most``."""
    for a in range(max(1, kept - ranks), kept + ranks + 1):
        step = ranks // math.gcd(a, ranks)
        below = min(moved, most // a) // step * step
        yield from ((a, b) for b in (below, below + step) if b > 0 and a * b <= most)


def _check_prompt(prompt: str, limits: LimitSettings) -> None:
    if not prompt.strip():
        raise invalid("prompt", "must hold something besides white space")
    check_length("prompt", prompt, limits)


def _check_priority(priority: Priority, limits: LimitSettings, key: str | None) -> None:
    highest = limits.of_key(key).max_priority
    if PRIORITIES[priority] > PRIORITIES[highest]:
        message = f"priority: {priority!r} is more than the {highest!r} allowed to this key"
        raise RequestError(403, message, "priority", "priority_not_allowed")


def _size(asked: str) -> Size:
    """What a request says of its size."""
    try:
        return Size.parse(asked)
    except ValueError:
        reason = f"must be WIDTHxHEIGHT in pixels or `auto`, got {asked[:80]!r}"
        raise invalid("size", reason, ["1024x1024"]) from None


def _check_format(format: str, size: Size) -> None:
    """An image that cannot be encoded must not be generated first."""
    if (longest := LONGEST_SIDE.get(format)) and max(size.width, size.height) > longest:
        raise invalid("output_format", f"{format} allows {longest} pixels a side, and {size} has more", ["png"])


def _steps(request: GenerationRequest, policy: Policy) -> int:
    """Of denoising; checked like the other numbers that have a limit."""
    steps = request.num_inference_steps or policy.defaults.num_inference_steps
    _check_at_most("n", request.n, policy.limits.max_images)
    _check_at_most("num_inference_steps", steps, policy.limits.max_steps)
    if request.timeout_s is not None:
        _check_at_most("timeout_s", request.timeout_s, policy.max_timeout_s)
    return steps


def _check_at_most(field: str, value: float, limit: float) -> None:
    if value > limit:
        raise invalid(field, f"{_shown(value)} is more than the {_shown(limit)} allowed here", [_shown(limit)])


def _shown(number: float) -> str:
    """As its writer would know it again: whole numbers digit by digit, and any length of them in a short line."""
    digits = str(number) if isinstance(number, int) else f"{number:g}"
    return digits if len(digits) <= 20 else f"{digits[:3]}... ({len(digits)} digits)"
