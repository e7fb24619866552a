"""CORS headers for browsers on the origins in the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

__all__ = ["CorsFastAPI"]

#: Response headers that a page may read.
_EXPOSED = ("retry-after", "server-timing", "x-request-id", "x-seed", "x-should-retry")


class CorsFastAPI(FastAPI):
    """FastAPI with CORS around everything: its own middleware does not see answers to unexpected errors (500).

    Args:
        origins: allowed origins of pages; empty: no CORS.
        options: FastAPI's.
    """

    def __init__(self, origins: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._origins = tuple(origins)

    def build_middleware_stack(self) -> ASGIApp:
        """FastAPI's stack, inside of CORS if there are origins."""
        stack = super().build_middleware_stack()
        if not self._origins:
            return stack
        # No credentials: keys travel in `Authorization`, which a page sets itself, and cookies are not used.
        return CORSMiddleware(
            stack,
            allow_origins=self._origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )
