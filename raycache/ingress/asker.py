"""The caller of a request within the ingress: the public name of its key."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["asked_by", "key_in_use"]

#: Set where the key is checked; None if there are no keys, or for calls of a Python handle.
key_in_use: ContextVar[str | None] = ContextVar("key_in_use", default=None)


def asked_by() -> dict[str, str]:
    """Arguments that pass it to an engine: ``key``, or none."""
    key = key_in_use.get()
    return {} if key is None else {"key": key}
