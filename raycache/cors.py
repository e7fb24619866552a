"""Browsers on other origins: answers carry CORS headers for those that the settings name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

__all__ = ["CorsFastAPI", "check_origin"]

#: A browser sends scheme and host in lower case, an international host in Punycode, and no port that is the usual one.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?", re.ASCII)
_USUAL_PORT = {"http": "80", "https": "443"}
#: What a page may read besides the body.
_EXPOSED = ("retry-after", "server-timing", "x-request-id", "x-seed", "x-should-retry")


def check_origin(origin: str) -> str:
    """``origin`` if a browser could send it in its ``Origin`` header, or ``*`` for all.

    Raises:
        ValueError: it would never match, and nobody would know why.
    """
    if origin == "*":
        return origin
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        reason = "is no origin: `scheme://host` or `scheme://host:port` in lower case, without a path or slash behind"
        raise ValueError(f"{origin[:200]!r} {reason}; or `*` for all")
    if match[1] == _USUAL_PORT.get(origin.partition(":")[0], ""):
        raise ValueError(f"{origin!r} names the usual port, which browsers leave out")
    return origin


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
