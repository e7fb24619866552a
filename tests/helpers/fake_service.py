"""A service behind the HTTP surface that answers immediately, and helpers for tests of that surface."""

import numpy as np

from raycache.ingress.asker import asked_by
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError
from raycache.protocol.model_cards import ModelCard
from raycache.protocol.schemas import EngineStatus, GenerationResult, PreviewEvent, ProgressEvent, StageTimes
from raycache.settings import AppSettings

SETTINGS = AppSettings.model_validate({"model": {"path": "noise"}, "limits": {"max_body_bytes": 2000}})
URL = "/v1/images/generations"
READY = EngineStatus("r1", True, 2, True, 1.5, {"ranks": [{"step": 3}]}, {"num_blocks": 57}, SETTINGS.policy)
ERROR_KEYS = {"message", "type", "param", "code"}


def image(index: int) -> np.ndarray:
    return np.full((16, 32, 3), 10 * index, np.uint8)


class Counted:
    """The ingress's metrics, as a list."""

    def __init__(self) -> None:
        self.errors: list[tuple[int, str]] = []

    def answered(self, error: RequestError) -> None:
        self.errors.append((error.status, error.code))


class FakeService:
    settings = SETTINGS
    keys: tuple[bytes, ...] = ()
    max_body_bytes = SETTINGS.limits.max_body_bytes
    max_upload_bytes = SETTINGS.limits.max_upload_bytes
    capabilities: Capabilities | None = None
    shortage: str | None = None
    asleep = False
    ready_in_s = 41.3

    def __init__(self) -> None:
        self.requests, self.metrics = [], Counted()
        self.failure: Exception | None = None
        self.late_failure: Exception | None = None
        self.engines: list[EngineStatus] = []
        self.closed = False
        self.askers: list[dict[str, str]] = []

    def limits_of(self, model):
        return self.settings.limits

    def capabilities_of(self, model):
        return self.capabilities

    async def generate(self, request):
        self.requests.append(request)
        self.askers.append(asked_by())
        if self.failure:
            raise self.failure
        return GenerationResult(
            images=[image(i) for i in range(request.n)],
            seeds=[(request.seed or 0) + i for i in range(request.n)],
            report={"method": "DBCache"},
            times=StageTimes(queue=0.5, denoise=2.0),
            warnings=["odd"],
        )

    async def generate_stream(self, request):
        try:
            if self.failure:
                raise self.failure
            for step in range(1, 3):
                yield ProgressEvent(step, 2, [step == 2], [0.1], 0.5)
                if step <= request.partial_images:
                    yield PreviewEvent(step - 1, [image(9)])
            if self.late_failure:
                raise self.late_failure
            yield await self.generate(request)
        finally:
            self.closed = True

    async def status(self):
        return self.engines

    def longest_timeout_s(self, model):
        return self.settings.policy.max_timeout_s

    async def models(self):
        names, policy = self.settings.names, self.settings.policy
        ready = bool(self.engines) or self.asleep
        reason = None if self.engines else self.shortage
        return [
            ModelCard(name, names.aliases_of(name), name == names.default, ready, reason, self.capabilities, 4, policy)
            for name in names.names
        ]


def post(client, **fields):
    return client.post(URL, json={"prompt": "a circle", **fields})


def check_error(response, status, code=None, param=None):
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == ERROR_KEYS
    assert error["message"]
    if code:
        assert error["code"] == code
    assert error["param"] == param
    return error
