"""Hooks that several sessions share: the first attaches them, the last removes them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from cache_core.hooks import Attachment, attachment_of

__all__ = ["attached", "let_go"]

_logger = logging.getLogger(__name__)
_LOCK = threading.RLock()


@contextmanager
def attached(transformer: nn.Module) -> Iterator[Attachment]:
    """The attachment on a transformer, created if there is none, for as long as a session is open on it."""
    with _LOCK:
        attachment = attachment_of(transformer) or Attachment(transformer)
        attachment.sessions += 1
    try:
        yield attachment
    finally:
        with _LOCK:
            attachment.sessions -= 1
            if not attachment.sessions and not attachment.kept:
                _detach(attachment)


def let_go(attachment: Attachment) -> None:
    """Remove hooks that were kept between sessions: now, or when the last open session has ended."""
    with _LOCK:
        attachment.kept = False
        if not attachment.sessions:
            attachment.detach()


def _detach(attachment: Attachment) -> None:
    try:
        attachment.detach()
    except RuntimeError as error:
        attachment.kept = True
        _logger.warning("hooks stay on as pass-through: %s", error)
