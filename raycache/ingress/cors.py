"""CORS headers for browsers on the origins that the settings name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

__all__ = ["CorsFastAPI"]

#: What a page may read besides the body.
_EXPOSED = ("retry-after", "server-timing", "x-request-id", "x-seed", "x-should-retry")


class CorsFastAPI(FastAPI):
    """FastAPI with CORS around everything: middleware of FastAPI's own does not see the answers to bugs (500).

    Args:
        origins: that pages may come from; empty: no CORS at all.
        options: of FastAPI.
    """

    def __init__(self, origins: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._origins = tuple(origins)

    def build_middleware_stack(self) -> ASGIApp:
        """FastAPI's own, inside of CORS where there are origins."""
        stack = super().build_middleware_stack()
        if not self._origins:
            return stack
        # No credentials: keys travel in `Authorization`, which a page sets by itself, and cookies mean nothing here.
        return CORSMiddleware(
            stack,
            allow_origins=self._origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )
