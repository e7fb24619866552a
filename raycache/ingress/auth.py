"""Bearer keys from a file. Keys are compared in constant time and never logged; their names may be."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from raycache.protocol.errors import RequestError
from raycache.text_files import FileError, entries, odd_letter, trimmed

__all__ = ["Key", "KeyFile", "check_key", "has_key", "key_name", "read_keys", "warn_of_unknown"]

logger = logging.getLogger("ray.serve")

#: Seconds between two checks of the file: a change takes effect within twice that.
_LOOK_S = 1.0
#: A file written within this many seconds may not be complete yet.
_QUIET_S = 0.5
_LONGEST_NAME = 64
#: A key, optionally in quotes, and an optional remark.
_LINE = re.compile(r"""(?P<quote>["']?)(?P<key>\S*?)(?P=quote)(?:\s+\#(?P<remark>.*))?""", re.DOTALL)


class Key(bytes):
    """A bearer key: compares as its bytes, prints as its ``name``. See :func:`key_name`."""

    name: str

    def __new__(cls, secret: bytes, name: str = "") -> Key:
        key = super().__new__(cls, secret)
        key.name = name or "key-" + hashlib.sha256(secret).hexdigest()[:8]
        return key

    def __repr__(self) -> str:
        return f"<Key {self.name!r}>"

    __str__ = __repr__


def key_name(key: bytes) -> str:
    """The public name of a key, for limits, logs and metrics: stable over restarts, the same in every ingress.

    It is the remark after the key in its file (``KEY  # team blue``), or if there is none ``key-`` and eight hex
    digits of its SHA-256. Keys with the same remark are one caller, so a key can be replaced by a new one.
    """
    return (key if isinstance(key, Key) else Key(key)).name


def read_keys(path: Path | None) -> tuple[Key, ...]:
    """Keys, one per line, optionally in quotes and followed by a ``# remark``. No file: no keys, open to all.

    Raises:
        ValueError: a line is not a key, or the file has none. A service that was meant to be closed must not open by
            accident. The message names the line and never contains a key.
        OSError: the file cannot be read.
    """
    if path is None:
        return ()
    keys: dict[Key, Key] = {}
    for number, line in entries(path):
        key = _parsed(path, number, line)
        if keys.setdefault(key, key).name != key.name:
            raise FileError(path, number, f"this key is already above as {keys[key].name!r}; it can have one name only")
    if not keys:
        raise FileError(path, None, "has no key; remove ingress.api_keys_file to serve without keys")
    return tuple(keys)


class KeyFile:
    """The current keys, reloaded when their file changes, so that keys can be added or removed without a restart.

    If the file is missing or wrong, the last good keys stay in force, and the log says so once.

    Args:
        path: path of the file; None: no keys, open to all.

    Raises:
        ValueError, OSError: as :func:`read_keys`; at the start there are no last good keys.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._keys = read_keys(path)
        self._looked = time.monotonic()
        self._seen: tuple[int, ...] = ()
        self._complaint = ""

    def current(self) -> tuple[Key, ...]:
        """The current keys; checks the file at most once a second, and blocks only while reading it."""
        if self._path is not None and time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            self._look(self._path)
        return self._keys

    def _look(self, path: Path) -> None:
        try:
            # Follows links: Kubernetes replaces a mounted secret by pointing a link to another folder.
            found = path.stat()
            seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if seen == self._seen or 0 <= time.time() - found.st_mtime < _QUIET_S:
                return
            keys = read_keys(path)
        except (OSError, ValueError) as error:
            if str(error) != self._complaint:
                logger.error("The API keys are unchanged: %s", error)
            self._complaint = str(error)
            return
        if self._complaint or [(key, key.name) for key in keys] != [(key, key.name) for key in self._keys]:
            logger.info("API keys reloaded: %d in force", len(keys))
        self._keys, self._seen, self._complaint = keys, seen, ""


def has_key(keys: Sequence[bytes], authorization: str | None) -> bool:
    """Whether the ``Authorization`` header has one of ``keys``; True if there are none."""
    return not keys or _given(keys, authorization) is not None


def check_key(keys: Sequence[bytes], authorization: str | None) -> str | None:
    """The public name of the key in the ``Authorization`` header; None if there are no keys.

    Raises:
        RequestError: 401 if keys are set and the header has none of them.
    """
    if not keys:
        return None
    key = _given(keys, authorization)
    if key is None:
        message = "this key is not valid here" if authorization else "give a key: `Authorization: Bearer KEY`"
        raise RequestError(401, message, None, "invalid_api_key")
    return key_name(key)


def warn_of_unknown(keys: Sequence[Key], names: Iterable[str]) -> None:
    """Log a warning about ``names`` that no key has: their settings have no effect."""
    known = {key.name for key in keys}
    if unknown := sorted(set(names) - known):
        there = ", ".join(sorted(known)) or "none, because ingress.api_keys_file is not set"
        logger.warning("limits.keys: no key is named %s; there are: %s", ", ".join(unknown), there)


def _given(keys: Sequence[bytes], authorization: str | None) -> bytes | None:
    scheme, *rest = (authorization or "").split(None, 1) or [""]
    given = "".join(rest).strip().encode(errors="replace")
    # Every key is compared, so the time taken says nothing about which one was nearly right.
    matches = [key for key in keys if hmac.compare_digest(given, key)]
    return matches[0] if scheme.lower() == "bearer" and matches else None


def _parsed(path: Path, number: int, line: str) -> Key:
    match = _LINE.fullmatch(line)
    if match is None:
        raise FileError(path, number, "a key contains no spaces; a remark after it starts with a space and `#`")
    key = match["key"]
    if not key or key[0] in "\"'" or key[-1] in "\"'":
        raise FileError(path, number, "the quotes contain no key, or are not a pair")
    if odd := odd_letter(key):
        raise FileError(path, number, f"{odd}; clients cannot send it in a key, use visible ASCII")
    # The same name may be encoded in two ways that look alike; it is one caller.
    name = unicodedata.normalize("NFC", " ".join(trimmed(match["remark"] or "").split()))
    return Key(key.encode(), "".join(letter for letter in name if letter.isprintable())[:_LONGEST_NAME])
