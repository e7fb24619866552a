"""What the service asks of a caching method is a type: a new method needs no threshold and no warm-up to be served."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import pytest

from cache_core.method_options import MethodOptions
from cache_core.opening import _policy_of
from cache_core.options import CacheOptions, DBCacheOptions, method_names
from raycache.engine.convert import result_of
from raycache.gang.step_timeouts import beyond_warmup
from raycache.ingress.dependencies import parse_body
from raycache.protocol.bodies import ImagesBody
from raycache.protocol.cache_choice import silent_cache
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError
from raycache.protocol.job import JobOutput
from raycache.protocol.resolve import resolve
from raycache.protocol.schemas import GenerationRequest, ResolvedRequest
from raycache.settings import AppSettings

MODEL = Capabilities("noise", 57, 4, 64, "FluxPipeline", 16)
SETTINGS = AppSettings.model_validate({"model": {"path": "noise"}})
METHODS = get_args(get_args(CacheOptions)[0])


class EveryOther(MethodOptions):
    """A method as somebody might add it: it compares nothing."""

    type: Literal["EveryOther"] = "EveryOther"
    interval: int = 2

    def why_nothing_is_saved(self, steps: int, num_blocks: int) -> list[str]:
        return [f"interval={self.interval} skips none of {steps} steps"] if self.interval > steps else []


class Plain(MethodOptions):
    """One that says nothing about itself."""

    type: Literal["Plain"] = "Plain"


def ask(cache: MethodOptions) -> ResolvedRequest:
    request = resolve(GenerationRequest(prompt="a circle"), SETTINGS.policy, MODEL, model_name="flux", ranks=1)
    return replace(request, cache=cache)


@pytest.mark.parametrize(
    ("cache", "warnings"),
    [
        (Plain(), []),
        (EveryOther(), []),
        (EveryOther(interval=99), ["cache: nothing can be saved: interval=99 skips none of 28 steps"]),
    ],
)
def test_an_image_that_is_drawn_is_answered(cache, warnings):
    request = ask(cache)
    assert silent_cache(request, MODEL) == warnings
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    output = JobOutput(images=pixels, warnings=[], report=None, encode_s=0.1, denoise_s=0.1, decode_s=0.1)
    result = result_of(request, output, 1.0, MODEL)
    assert (len(result.images), result.warnings) == (1, warnings)
    assert beyond_warmup(cache) == 2


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_contract(method):
    assert issubclass(method, MethodOptions)
    options = method()
    assert options.computed_steps == getattr(options, "warmup_steps", 0)
    assert options.why_nothing_is_saved(steps=28, num_blocks=57) == []
    assert bool(options.why_nothing_is_saved(steps=4, num_blocks=57)) == (options.type != "none")
    assert callable(_policy_of(options))


def test_options_that_nothing_implements_are_no_other_methods():
    with pytest.raises(TypeError, match="EveryOther has no implementation"):
        _policy_of(EveryOther())
    assert DBCacheOptions().computed_steps == 8


@pytest.mark.parametrize("method", method_names())
def test_a_wrong_option_is_named_without_its_method(method: str):
    """The path that pydantic tells names the member of the union, too; nobody wrote that."""
    body = {"prompt": "a circle", "cache": {"type": method, "Fn_compute_block": 1}}
    with pytest.raises(RequestError) as caught:
        parse_body(ImagesBody, json.dumps(body).encode())
    assert caught.value.param == "cache.Fn_compute_block"
