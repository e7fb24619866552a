"""The caller of a request on its way through the ingress: the public name of its key."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["asked_by", "key_in_use"]

#: Set by whoever has checked the key; None where there are no keys, or where a Python handle asks.
key_in_use: ContextVar[str | None] = ContextVar("key_in_use", default=None)


def asked_by() -> dict[str, str]:
    """What an engine is told of it: an argument ``key``, or none."""
    key = key_in_use.get()
    return {} if key is None else {"key": key}
