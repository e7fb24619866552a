"""The playground: static files that use the same API as any other client."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from raycache.protocol.errors import RequestError

router = APIRouter(include_in_schema=False)

#: Where the files are. None of them is made from another; what stands there is what browsers get.
_FOLDER = Path(__file__).parents[1] / "playground"
_INDEX = "index.html"
#: Their types, by suffix: what a machine's own list calls JavaScript differs.
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: The page talks to the service it comes from and to nobody else, and no page may hold it in a frame.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


@router.get("/")
@router.head("/")
async def page(http: Request) -> Response:
    """The page itself."""
    return _answer(http, _INDEX)


@router.get("/playground/{name}")
@router.head("/playground/{name}")
async def file(http: Request, name: str) -> Response:
    """What the page consists of besides."""
    if name == _INDEX or name not in _files():
        raise RequestError(404, f"the playground has no file {name[:80]!r}", None, "not_found")
    return _answer(http, name)


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    """By name the content and its tag."""
    found = {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.is_file()}
    return {name: (content, f'"{hashlib.sha256(content).hexdigest()[:16]}"') for name, content in found.items()}


def _answer(http: Request, name: str) -> Response:
    content, tag = _files()[name]
    headers = {
        "etag": tag,
        "cache-control": "no-cache",  # asked about each time, and sent when another version is served
        "content-security-policy": _POLICY,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    if tag in http.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_MEDIA[Path(name).suffix])
