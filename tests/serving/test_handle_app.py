"""The application by Python handle, from a process on the cluster."""

from __future__ import annotations

import numpy as np
import pytest
from ray import serve
from ray.exceptions import TaskCancelledError
from ray.serve.exceptions import RequestCancelledError

from raycache import GenerationRequest, GenerationResult
from raycache.protocol.errors import RequestError
from raycache.protocol.schemas import PreviewEvent, ProgressEvent
from raycache.testing.inject import engines_now, wait_for
from tests.helpers.asking import ENDLESS


@pytest.fixture(scope="module")
def handle(flux):
    return serve.get_app_handle("flux")


def test_generate(handle, tmp_path):
    request = GenerationRequest(prompt="a red circle", seed=7, n=2)
    result = handle.generate.remote(request).result()
    assert isinstance(result, GenerationResult)
    assert [image.shape for image in result.images] == [(64, 64, 3)] * 2
    assert result.images[0].dtype == np.uint8
    assert result.seeds == [7, 8]
    assert result.times.denoise > 0
    result.save(str(tmp_path / "circle.png"))
    again = handle.generate.remote(request).result()
    np.testing.assert_array_equal(again.images, result.images)


def test_errors_are_typed(handle):
    with pytest.raises(RequestError) as caught:
        handle.generate.remote(GenerationRequest(prompt="x", size="48x48")).result()
    error = caught.value
    assert (error.status, error.param, error.code) == (400, "size", "invalid_value")
    assert "64x48" in error.message


def test_generate_stream(handle):
    request = GenerationRequest(prompt="a red circle", seed=7, partial_images=2)
    events = list(handle.options(stream=True).generate_stream.remote(request))
    assert [event.step for event in events if isinstance(event, ProgressEvent)] == [1, 2, 3, 4, 5, 6]
    previews = [event for event in events if isinstance(event, PreviewEvent)]
    assert [preview.index for preview in previews] == [0, 1]
    assert previews[0].images[0].dtype == np.uint8
    assert isinstance(events[-1], GenerationResult)
    plain = handle.generate.remote(GenerationRequest(prompt="a red circle", seed=7)).result()
    np.testing.assert_array_equal(events[-1].images, plain.images)


def test_a_refused_stream_raises(handle):
    with pytest.raises(RequestError) as caught:
        list(handle.options(stream=True).generate_stream.remote(GenerationRequest(prompt="x", n=99)))
    assert caught.value.param == "n"


def test_status(handle):
    engines = handle.status.remote().result()
    assert len(engines) == 2
    assert all(engine.ready for engine in engines)
    assert engines[0].policy.cache.type == "DBCache"


@pytest.mark.parametrize("stream", [False, True])
def test_cancel_frees_the_engine(handle, flux, stream):
    def busy() -> bool:
        return any(engine["running"] for engine in engines_now(flux))

    reference = handle.generate.remote(GenerationRequest(prompt="x", seed=1)).result()
    request = GenerationRequest(**ENDLESS)
    if stream:
        events = handle.options(stream=True).generate_stream.remote(request)
        assert isinstance(next(iter(events)), ProgressEvent)
        events.cancel()
    else:
        response = handle.generate.remote(request)
        wait_for(busy, 60)
        response.cancel()
        with pytest.raises((RequestCancelledError, TaskCancelledError)):
            response.result()
    wait_for(lambda: not busy(), 30)
    for _ in range(4):
        again = handle.generate.remote(GenerationRequest(prompt="x", seed=1)).result()
        np.testing.assert_array_equal(again.images, reference.images)
