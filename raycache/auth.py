"""Bearer keys from a file. Keys are compared in constant time and never logged."""

from __future__ import annotations

import hmac
from pathlib import Path

from raycache.errors import RequestError


def read_keys(path: Path | None) -> tuple[bytes, ...]:
    """Keys, one per line; blank lines and lines starting with ``#`` are skipped. No file: no keys, open to all.

    Raises:
        ValueError: the file holds no key. A service that was meant to be closed must not open by accident.
        OSError: the file cannot be read.
    """
    if path is None:
        return ()
    lines = (line.strip() for line in path.read_text().splitlines())
    keys = tuple(line.encode() for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ValueError(f"{path} holds no key; remove ingress.api_keys_file to serve without keys")
    return keys


def has_key(keys: tuple[bytes, ...], authorization: str | None) -> bool:
    """Whether the ``Authorization`` header carries one of ``keys``; true where there are none."""
    scheme, _, given = (authorization or "").partition(" ")
    # Every key is compared, so the time taken says nothing about which one was nearly right.
    matches = [hmac.compare_digest(given.strip().encode(), key) for key in keys]
    return not keys or (scheme.lower() == "bearer" and any(matches))


def check_key(keys: tuple[bytes, ...], authorization: str | None) -> None:
    """Check the ``Authorization`` header.

    Raises:
        RequestError: 401 when keys are set and the header carries none of them.
    """
    if not has_key(keys, authorization):
        message = "this key is not valid here" if authorization else "give a key: `Authorization: Bearer KEY`"
        raise RequestError(401, message, None, "invalid_api_key")
