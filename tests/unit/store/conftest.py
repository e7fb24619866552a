"""Stores over one folder, and the time that they go by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from raycache.store.job_store import JobStore
from raycache.store_metrics import StoreMetrics
from tests.helpers.store_jobs import Start
from tests.helpers.stored import Clock, FakeAsker, settings_of, stopped, until


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def start(tmp_path: Path, clock: Clock) -> AsyncIterator[Start]:
    """Stores over one folder, one after the other."""
    stores: list[JobStore] = []

    async def begin(asker: FakeAsker, **fields: object) -> JobStore:
        if stores:
            await stopped(stores[-1])
        stores.append(store := JobStore(settings_of(tmp_path / "jobs", **fields), asker, StoreMetrics(), clock))
        await until(lambda: store._ours)
        return store

    yield begin
    for store in stores:
        await stopped(store)
