"""Request ids given by clients: they appear in logs and headers, so only characters valid in both are kept."""

from __future__ import annotations

__all__ = ["clean"]

_LONGEST = 128


def clean(given: str) -> str:
    """Printable ASCII, bounded; anything else becomes ``?``, so that no id can break or fake a log line."""
    return "".join(c if " " <= c <= "~" else "?" for c in given[:_LONGEST]).strip()
