"""Logs of the engine's gang and of its ranks: text or JSON, each line with the id of the request it belongs to.

Prompts are never logged: neither requests (:mod:`raycache.protocol.schemas`) nor the images of a job
(:class:`raycache.protocol.job.ImageSpec`) show theirs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from typing import Any

from raycache.front_settings import LoggingSettings
from raycache.protocol.request_ids import clean

__all__ = ["about", "join_serve_log", "quiet_libraries", "request_id", "to_stderr"]

#: The parent of every logger in a rank, and of the gang's. Ingress and engine log to Serve's own, ``ray.serve``.
_ROOT = "raycache"
_EXTRAS = ("request_id", "job", "rank")


def request_id() -> str:
    """Serve's id of the current request, ``x-request-id`` if the client sent one; empty outside of requests."""
    from ray.serve.context import _get_serve_request_context

    return clean(_get_serve_request_context().request_id)


def about(job: Any, **more: object) -> dict[str, object]:
    """``extra`` of a log line about ``job`` (a :class:`raycache.protocol.job.Job`)."""
    return {"request_id": job.request_id, "job": job.id, **more}


def join_serve_log() -> None:
    """In a replica: write the gang's log lines to Serve's log of this replica, in Serve's encoding."""
    serve, ours = logging.getLogger("ray.serve"), logging.getLogger(_ROOT)
    ours.handlers, ours.propagate = list(serve.handlers), not serve.handlers
    ours.setLevel(serve.level)


def to_stderr(settings: LoggingSettings) -> None:
    """In a rank: log to stderr, which Ray keeps in a file per process and shows to the operator."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.encoding == "JSON" else _Text("%(levelname)s %(asctime)s %(message)s"))
    ours = logging.getLogger(_ROOT)
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(settings.level)


def quiet_libraries() -> None:
    """In a rank, best before diffusers is imported: errors only, no progress bars.

    Also for privacy: diffusers logs the end of a prompt that is too long. The reply has a warning for that.
    """
    for library in ("transformers", "diffusers"):
        wanted = os.environ.setdefault(f"{library.upper()}_VERBOSITY", "error")
        logs = sys.modules.get(f"{library}.utils.logging")  # it has read the environment, if it is there
        if logs is not None and wanted == "error":
            logs.set_verbosity_error()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"para_attn\.")


class _Json(logging.Formatter):
    """One object per line, with the keys of Serve's own JSON log."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
        }
        if record.exc_info:
            fields["exc_text"] = self.formatException(record.exc_info)
        return json.dumps(fields | _extras(record))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join([super().format(record), *(f"{name}={value}" for name, value in _extras(record).items())])


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name in _EXTRAS if (value := getattr(record, name, None)) not in (None, "")}
