"""The values that the types of OpenAI's client allow, and a service that validates them as an ingress does."""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator
from typing import Any, Literal, get_args, get_origin

import numpy as np
import typing_extensions

from raycache.engine.convert import result_of
from raycache.limits import LimitSettings
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import JobOutput
from raycache.protocol.model_cards import ModelCard
from raycache.protocol.resolve import resolve
from raycache.protocol.schemas import (
    GenerationRequest,
    GenerationResult,
    PreviewEvent,
    ProgressEvent,
    ResolvedRequest,
)
from raycache.settings import AppSettings

__all__ = ["MODEL", "SETTINGS", "Service", "hints", "values"]

SETTINGS = AppSettings.model_validate(
    {"model": {"path": "black-forest-labs/FLUX.1-dev", "name": "org/flux"}, "parallel": {"ranks_per_replica": 1}}
)
MODEL = Capabilities("folder", 57, 24, 512, "FluxPipeline", 16)


class Service:
    """Validates requests as an ingress does, and answers with black images as an engine would."""

    settings = SETTINGS
    keys = ()
    max_body_bytes = 1 << 20
    limits = SETTINGS.limits
    model = MODEL
    shortage = None
    asleep = False
    policy = SETTINGS.policy

    def __init__(self) -> None:
        self.orders: list[ResolvedRequest] = []

    class metrics:
        """Counts nothing."""

        answered = staticmethod(lambda error: None)

    @property
    def max_upload_bytes(self) -> int:
        return self.limits.max_upload_bytes

    def longest_timeout_s(self, model: str | None) -> float:
        return 3600.0

    def limits_of(self, model: str | None) -> LimitSettings:
        return self.limits

    def capabilities_of(self, model: str | None) -> Capabilities | None:
        return self.model

    async def models(self) -> list[ModelCard]:
        return [ModelCard("org/flux", (), True, True, None, self.model, 1, self.policy)]

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        order = resolve(request, self.policy, self.model, model_name="org/flux", ranks=1)
        self.orders.append(order)
        output = JobOutput(np.zeros((order.n, 16, 16, 3), np.uint8), None, 0.0, 0.0, 0.0)
        return result_of(order, output, 1.0, self.model, self.policy.presets)

    async def generate_stream(self, request: GenerationRequest) -> AsyncIterator[object]:
        result = await self.generate(request)
        yield ProgressEvent(1, 1, [], [], None)
        for index in range(request.partial_images):
            yield PreviewEvent(index, list(result.images))
        yield result


def values(kind: Any) -> list[Any]:
    """The values that one of the client's types allows: every literal, and one value of each other type."""
    origin = get_origin(kind)
    if origin in (typing.Required, typing_extensions.Required):
        return values(get_args(kind)[0])
    if origin is Literal:
        return list(get_args(kind))
    if typing.is_typeddict(kind) or typing_extensions.is_typeddict(kind):
        fields = typing_extensions.get_type_hints(kind)
        return [{name: value} for name, field in fields.items() for value in values(field)]
    if get_args(kind):
        return [value for member in get_args(kind) for value in values(member)]
    return {str: ["a word"], int: [1], float: [1.0], bool: [True], type(None): [None]}[kind]


def hints(params: Any) -> dict[str, Any]:
    """Every field of one of the client's requests, streaming or not."""
    found: dict[str, Any] = {}
    for kind in get_args(params):
        for name, field in typing_extensions.get_type_hints(kind).items():
            found[name] = found[name] | field if name in found else field
    return found
