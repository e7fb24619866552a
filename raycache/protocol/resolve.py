"""Everything about a request that can be known to be wrong before a GPU is touched.

``resolve`` either refuses with the field, the reason and the nearest legal values, or returns a request that says
everything: no None is left for the ranks to interpret, so what runs is a pure function of what is returned.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator

from cache_core.method_options import BlockCountError
from cache_core.options import CacheOptions, check_block_count
from raycache.presets import PRESET_NAMES, load_presets, preset_of
from raycache.protocol.errors import RequestError, invalid
from raycache.protocol.formats import LONGEST_SIDE
from raycache.protocol.schemas import GenerationRequest, ModelInfo, ResolvedRequest
from raycache.settings import AppSettings, LimitSettings, Policy

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)


def resolve(
    request: GenerationRequest, policy: Policy, model: ModelInfo, *, model_name: str, ranks: int
) -> ResolvedRequest:
    """Check ``request`` and fill in every default, the seed included.

    Args:
        request: what the user asked.
        policy: limits and defaults in force.
        model: what the gang said about its model.
        model_name: the name this service answers to.
        ranks: Ulysses degree of the gang.

    Raises:
        RequestError: 400, or 404 for another model's name.
    """
    check_model(request.model, model_name)
    defaults, limits = policy.defaults, policy.limits
    _check_prompt(request.prompt, limits)
    size = defaults.size if request.size in (None, "auto") else request.size
    width, height = parse_size(size)
    check_size(width, height, side=model.token_side, ranks=ranks, max_pixels=limits.max_pixels)
    size = f"{width}x{height}"  # 0128x128 is the same size
    _check_format(request.output_format, size)
    _check_at_most("n", request.n, limits.max_images)
    steps = request.num_inference_steps or defaults.num_inference_steps
    _check_at_most("num_inference_steps", steps, limits.max_steps)
    if request.timeout_s is not None:
        _check_at_most("timeout_s", request.timeout_s, policy.max_timeout_s)
    if request.cache is None:
        options = _preset(request.quality, policy, model)
    else:
        check_cache(options := request.cache, model)
    return ResolvedRequest.model_validate(
        {name: getattr(request, name) for name in GenerationRequest.model_fields}
        | {
            "quality": request.quality if request.cache is None else "auto",  # what had no effect is not told of
            "model": model_name,
            "size": size,
            "num_inference_steps": steps,
            "guidance_scale": defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale,
            "cache": options,
            "seed": secrets.randbelow(2**32) if request.seed is None else request.seed,
            "timeout_s": request.timeout_s or policy.request_timeout_s,
        }
    )


def check_model(asked: str | None, name: str) -> None:
    """Only this service's own model, or none named.

    Raises:
        RequestError: 404.
    """
    if asked not in (None, name):
        message = f"model: this server does not have {asked[:80]!r}; it has {name!r}"
        raise RequestError(404, message, "model", "model_not_found")


def check_deployment(settings: AppSettings, policy: Policy, model: ModelInfo) -> None:
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
    for name, options in policy.presets.items():
        if misfit := _misfit(options, model):
            raise ValueError(f"presets.{name} does not fit the model: {misfit}; `model.presets` names a file that does")
    try:
        sample = GenerationRequest(prompt="defaults")
        resolve(sample, policy, model, model_name=settings.model.name, ranks=ranks)
    except RequestError as error:
        raise ValueError(f"the deployment's defaults break its own limits: {error}") from None


def deployment_warnings(settings: AppSettings, policy: Policy, model: ModelInfo) -> list[str]:
    """What an operator should know of a deployment that works."""
    warnings = []
    if set(policy.presets) <= {"exact"}:
        warnings.append(load_presets(settings.model.path, settings.model.presets).source)
    if model.kind == "noise":
        warnings.append("The model has random weights: its pictures are NOISE. Set model.path to draw real ones.")
    return warnings


def parse_size(size: str) -> tuple[int, int]:
    """Width and height in pixels.

    Raises:
        RequestError: 400 unless ``size`` is ``WIDTHxHEIGHT`` in digits.
    """
    match = _SIZE.fullmatch(size)
    if match is None:
        raise invalid("size", f"must be WIDTHxHEIGHT in pixels or `auto`, got {size[:80]!r}", ["1024x1024"])
    return int(match[1]), int(match[2])


def check_size(width: int, height: int, *, side: int, ranks: int, max_pixels: int) -> None:
    """Both sides multiples of a token's, not too large, image tokens divisible by the number of ranks.

    Raises:
        RequestError: 400 with the two nearest legal sizes.
    """
    if width % side or height % side or not width or not height:
        reason = f"width and height must be positive multiples of {side}, got {width}x{height}"
    elif width * height > max_pixels:
        reason = f"{width}x{height} is {width * height} pixels, at most {max_pixels} are allowed here"
    elif (tokens := (width // side) * (height // side)) % ranks:
        reason = f"{width}x{height} makes {tokens} image tokens, which do not divide over {ranks} ranks"
    else:
        return
    raise invalid("size", reason, nearest_sizes(width, height, side=side, ranks=ranks, max_pixels=max_pixels))


def nearest_sizes(width: int, height: int, *, side: int, ranks: int, max_pixels: int, count: int = 2) -> list[str]:
    """Legal sizes closest to the one given, nearest first, by the sum of the changes of both sides."""
    shrink = min(1.0, math.sqrt(max_pixels / max(1, width * height)))
    columns, rows = (max(1, round(length * shrink / side)) for length in (width, height))
    tokens = max_pixels // side**2
    # Keep one side and move the other: both ways round, or a very long and thin image finds nothing.
    legal = {(c * side, r * side) for c, r in _divisible(columns, rows, tokens, ranks)}
    legal |= {(c * side, r * side) for r, c in _divisible(rows, columns, tokens, ranks)}

    legal = {size for size in legal if max(size) < 100_000}  # five digits can be said

    def change(size: tuple[int, int]) -> tuple[int, ...]:
        # Ties go to the size of nearly the same shape, then to the larger one.
        w, h = size
        return abs(w - width) + abs(h - height), abs(w * height - h * width), -w * h, w

    nearest = sorted(legal, key=change)
    return [f"{w}x{h}" for w, h in nearest[:count]]


def _divisible(kept: int, moved: int, most: int, ranks: int) -> Iterator[tuple[int, int]]:
    """Pairs near (kept, moved), in tokens, whose product is divisible by ``ranks`` and at most ``most``."""
    for a in range(max(1, kept - ranks), kept + ranks + 1):
        step = ranks // math.gcd(a, ranks)
        below = min(moved, most // a) // step * step
        yield from ((a, b) for b in (below, below + step) if b > 0 and a * b <= most)


def check_cache(options: CacheOptions, model: ModelInfo) -> None:
    """Cache options against the model's blocks.

    Raises:
        RequestError: 400 naming the option.
    """
    try:
        check_block_count(options, model.num_blocks)
    except BlockCountError as error:
        raise invalid(f"cache.{error.field}", error.reason, [error.nearest]) from None


def silent_cache(request: ResolvedRequest, model: ModelInfo) -> list[str]:
    """Warnings for legal options under which the cache can never save anything."""
    why = request.cache.why_nothing_is_saved(request.num_inference_steps, model.num_blocks)
    return [f"cache: nothing can be saved: {reason}" for reason in why]


def _preset(quality: str, policy: Policy, model: ModelInfo) -> CacheOptions:
    """What ``quality`` stands for. A client that named it never sent these options: they are not what it did wrong."""
    try:
        options = preset_of(quality, policy.presets, policy.cache)
    except KeyError as missing:
        known = [name for name in PRESET_NAMES if name == "exact" or name in policy.presets]
        reason = f"this deployment has no preset {missing.args[0]!r}"
        raise invalid("quality", reason, [*known, "auto"]) from None
    if quality == "auto":
        check_cache(options, model)
        return options
    if misfit := _misfit(options, model):
        raise invalid("quality", f"its preset does not fit this model: {misfit}", ["exact", "auto"])
    return options


def _misfit(options: CacheOptions, model: ModelInfo) -> str:
    try:
        check_block_count(options, model.num_blocks)
    except BlockCountError as error:
        return f"{error.field}: {error.reason}"
    return ""


def _check_prompt(prompt: str, limits: LimitSettings) -> None:
    if not prompt.strip():
        raise invalid("prompt", "must hold something besides white space")
    if len(prompt) > limits.max_prompt_characters:
        reason = f"{len(prompt)} characters, at most {limits.max_prompt_characters} are allowed here"
        raise invalid("prompt", reason, code="string_above_max_length")


def _check_format(format: str, size: str) -> None:
    """An image that cannot be encoded must not be generated first."""
    if (longest := LONGEST_SIDE.get(format)) and max(parse_size(size)) > longest:
        raise invalid("output_format", f"{format} allows {longest} pixels a side, and {size} has more", ["png"])


def _check_at_most(field: str, value: float, limit: float) -> None:
    if value > limit:
        raise invalid(field, f"{_shown(value)} is more than the {_shown(limit)} allowed here", [_shown(limit)])


def _shown(number: float) -> str:
    """As its writer would know it again: whole numbers digit by digit, and any length of them in a short line."""
    digits = str(number) if isinstance(number, int) else f"{number:g}"
    return digits if len(digits) <= 20 else f"{digits[:3]}... ({len(digits)} digits)"
