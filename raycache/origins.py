"""Origins that browsers send: the pages that may call the service."""

from __future__ import annotations

import re

__all__ = ["check_origin"]

#: Browsers send scheme and host in lower case, international hosts in Punycode, and no default port.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?", re.ASCII)
_USUAL_PORT = {"http": "80", "https": "443"}


def check_origin(origin: str) -> str:
    """``origin`` if a browser could send it in its ``Origin`` header, or ``*`` for all.

    Raises:
        ValueError: it would never match any request.
    """
    if origin == "*":
        return origin
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        reason = "is not an origin: `scheme://host` or `scheme://host:port` in lower case, without path or final slash"
        raise ValueError(f"{origin[:200]!r} {reason}; or `*` for all")
    if match[1] and (match[1].startswith("0") or int(match[1]) > 65535):
        raise ValueError(f"{origin!r} has a port that no browser sends: give 1 to 65535 without leading zeros")
    if match[1] == _USUAL_PORT.get(origin.partition(":")[0], ""):
        raise ValueError(f"{origin!r} has the default port, which browsers leave out")
    return origin
