"""Engines made for one test each, over a fake gang: limits of keys, a misfitting model, being forgotten, logs."""

import asyncio
import logging
import time

import pytest

from raycache.engine.engine import Engine
from raycache.protocol.job_errors import JobFailed
from raycache.protocol.schemas import GenerationResult
from tests.helpers.fake_gang import SETTINGS, FakeGang, finish, order, started


async def test_a_key_has_limits_and_a_place_for_when_it_comes_again():
    limits = SETTINGS.limits.model_copy(update={"max_jobs_per_key": 1})
    reliability = SETTINGS.reliability.model_copy(update={"max_queued_requests": 9})
    engine = Engine(SETTINGS.model_copy(update={"limits": limits, "reliability": reliability}), FakeGang)
    first = asyncio.create_task(engine.generate(order(), "ingress", "blue"))
    while not engine._gang.jobs:
        await asyncio.sleep(0)
    refused = await asyncio.wait_for(engine.generate(order(), "ingress", "blue"), 5)
    assert (refused.status, refused.code) == (429, "key_limit")
    assert refused.headers()["retry-after"] == "1"
    second = asyncio.create_task(engine.generate(order(), "ingress", "green"))
    third = asyncio.create_task(engine.generate(order(), "ingress"))
    while len(engine._gang.jobs) < 3:
        await asyncio.sleep(0)
    for running in engine._gang.jobs:
        finish(running)
    assert all(isinstance(result, GenerationResult) for result in await asyncio.gather(first, second, third))


def test_an_engine_that_is_asked_no_more_hands_its_queue_back(monkeypatch):
    monkeypatch.setattr("raycache.engine.engine._CHECK_S", 0.01)
    monkeypatch.setattr("raycache.engine.engine._FORGOTTEN_S", 0.5)
    engine = Engine(SETTINGS, FakeGang)
    time.sleep(0.8)
    assert engine._gang.handed_back == 0, "nobody has asked yet: it is starting"
    engine.status()
    time.sleep(0.8)
    assert engine._gang.handed_back == 0, "a question from anybody else does not count"
    engine.poll("ingress")
    assert engine._gang.handed_back == 0
    time.sleep(0.8)
    assert engine._gang.handed_back > 0
    engine.__del__()


def test_a_model_that_does_not_divide_stops_the_gang_again():
    gangs = []

    def make(settings):
        gangs.append(FakeGang(settings))
        return gangs[0]

    ranks = SETTINGS.parallel.model_copy(update={"ranks_per_replica": 3})
    # Holding the error keeps the half-built engine alive, so that its destructor cannot be what stops the gang.
    with pytest.raises(ValueError, match="legal values: 1, 2, 4") as caught:
        Engine(SETTINGS.model_copy(update={"parallel": ranks}), make)
    assert gangs[0].stopped
    assert caught.tb is not None


def test_prompts_are_not_logged(caplog):
    async def scenario():
        engine = Engine(SETTINGS, FakeGang)
        call, running = await started(engine, prompt="secret words")
        running.future.set_exception(JobFailed("boom"))
        await call

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scenario())
    assert "boom" in caplog.text
    assert "secret" not in caplog.text
