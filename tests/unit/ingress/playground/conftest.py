"""A browser, and a service whose jobs go as the prompts say, for tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from raycache.ingress.api import build_http_app
from tests.helpers.browser import launched, opened
from tests.helpers.scripted_service import ScriptedService, served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def usual(browser: Browser) -> Iterator[BrowserContext]:
    """What most tests share: a process of its own takes a browser longer than all that is tested in it."""
    with browser.new_context() as context:
        yield context


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def visit(browser: Browser, usual: BrowserContext, service: ScriptedService) -> Iterator[Callable[..., Page]]:
    with ExitStack() as stack:

        def visited(*allowed: str, **context: object) -> Page:
            url = stack.enter_context(served(build_http_app(service)))
            chosen = stack.enter_context(browser.new_context(**context)) if context else usual
            return stack.enter_context(opened(chosen, url, allowed))

        yield visited
