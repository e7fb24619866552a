"""A service whose model edits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from raycache.ingress.api import build_http_app
from tests.helpers.edits import TASKS
from tests.helpers.openai_surface import MODEL, Service


@pytest.fixture
def service() -> Service:
    service = Service()
    service.model = replace(MODEL, tasks=TASKS, max_inputs=4)
    return service


@pytest.fixture
def http(service: Service) -> Iterator[TestClient]:
    with TestClient(build_http_app(service)) as http:
        yield http
