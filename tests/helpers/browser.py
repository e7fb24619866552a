"""A real browser for tests of pages: one installed on this machine, never downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, sync_playwright

#: If it is set, tests that need a browser fail without one instead of being skipped.
REQUIRED = "RAYCACHE_REQUIRE_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def launched() -> Iterator[Browser]:
    """One of the browsers that tests can drive."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        _do_without(f"no browser: none of {', '.join(NAMES)} is on PATH")
    with sync_playwright() as playwright:
        try:
            # /dev/shm in a container is often too small.
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        except Error as error:
            _do_without(f"{path} does not start: {error.message[:500]}")
        yield browser
        browser.close()


def _do_without(reason: str) -> NoReturn:
    assert os.environ.get(REQUIRED) != "1", reason
    pytest.skip(reason)


@contextmanager
def opened(context: BrowserContext, url: str, allowed: tuple[str, ...] = ()) -> Iterator[Page]:
    """A page that must log nothing to its console and make no requests except to ``url``.

    Args:
        allowed: parts of messages that the browser itself may log about answers that a test provokes.
    """
    told, asked = [], []
    origin = "/".join(url.split("/")[:3])
    with context.new_page() as page:
        page.set_default_timeout(20_000)
        page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        yield page
    assert not [text for text in told if not any(part in text for part in allowed)]
    assert not [address for address in asked if not address.startswith((url, "data:", f"blob:{origin}/"))]


def choose(page: Page, quality: str) -> None:
    page.get_by_role("radio", name=quality, exact=True).check()


def ask(page: Page, prompt: str) -> None:
    page.get_by_role("radio", name="Fast", exact=True).wait_for(state="attached")
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()
