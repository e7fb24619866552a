"""The playground: static files that use the same API as any other client."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from raycache.protocol.errors import RequestError

router = APIRouter(include_in_schema=False)

#: Where the files are. There is no build step; browsers get them as they are.
_FOLDER = Path(__file__).parents[1] / "playground"
_INDEX = "index.html"
#: Their media types, by suffix: the system's list differs between machines, for example for JavaScript.
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: The page may connect only to the service that it comes from, and no page may embed it in a frame.
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
    """The other files of the page."""
    if name == _INDEX or name not in _files():
        raise RequestError(404, f"the playground has no file {name[:80]!r}", None, "not_found")
    return _answer(http, name)


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    """Content and ETag by name."""
    found = {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.is_file()}
    return {name: (content, f'"{hashlib.sha256(content).hexdigest()[:16]}"') for name, content in found.items()}


def _answer(http: Request, name: str) -> Response:
    content, tag = _files()[name]
    headers = {
        "etag": tag,
        "cache-control": "no-cache",  # revalidated each time, and sent again only if it has changed
        "content-security-policy": _POLICY,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    if tag in http.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_MEDIA[Path(name).suffix])
