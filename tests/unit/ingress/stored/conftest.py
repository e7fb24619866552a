"""One application over a store for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

import raycache.store.store
from raycache.ingress.api import build_http_app
from raycache.ingress.auth import Key
from raycache.ingress.store_handle import StoreClient
from raycache.store.store import Store
from tests.helpers.fake_service import FakeService
from tests.helpers.stored import SETTINGS, FakeAsker, handle_of, settings_of, stopped, until
from tests.helpers.stored_app import BLUE, Application


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    service, handle = FakeService(), SimpleNamespace()
    service.keys = (Key(b"blue-key", "blue"), Key(b"green-key", "green"))
    service.max_body_bytes = 20_000
    configured = SETTINGS.model_copy(update={"store": settings_of(tmp_path / "jobs", max_jobs_per_key=8)})

    async def begin() -> tuple[Store, FakeAsker]:
        asker = FakeAsker()
        monkeypatch.setattr(raycache.store.store, "EnginePools", lambda *_: asker)
        store = Store(configured, {}, {})
        vars(handle).update(vars(handle_of(store)))
        await until(lambda: store._store._ours)
        return store, asker

    with TestClient(build_http_app(service, store=StoreClient(handle)), headers=BLUE) as http:
        store, asker = http.portal.call(begin)
        yield Application(http, asker, service)
        http.portal.call(stopped, store._store)
