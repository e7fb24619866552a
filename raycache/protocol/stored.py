"""Kept jobs: the record that the store writes, and what it reports to an ingress."""

from __future__ import annotations

import re
import secrets
import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raycache.protocol.errors import RequestError

__all__ = ["AskedAs", "JobKind", "JobStatus", "Order", "Page", "StoredError", "StoredFile", "StoredJob", "is_job_id"]
__all__ += ["new_job_id"]

JobKind = Literal["video", "image"]
#: Words for the types of requests, see :mod:`raycache.store.requests`.
AskedAs = Literal["generation", "edit", "video"]
JobStatus = Literal["queued", "in_progress", "completed", "failed"]
Order = Literal["asc", "desc"]

#: What an id begins with: OpenAI's word for videos.
_PREFIX: dict[JobKind, str] = {"video": "video_", "image": "job_"}
_ID = re.compile(r"(video|job)_[0-9a-f]{32}")


def new_job_id(kind: JobKind, now: float | None = None) -> str:
    """An id that nobody guesses and that sorts by the time it was made, so a list goes on behind one that is gone.

    >>> new_job_id("video", 1.0) < new_job_id("video", 1.5)
    True
    """
    nanoseconds = time.time_ns() if now is None else int(now * 1e9)
    return f"{_PREFIX[kind]}{nanoseconds:016x}{secrets.token_hex(8)}"


def is_job_id(text: str) -> bool:
    """Whether ``text`` could be an id; nothing else may become part of a path.

    >>> is_job_id("video_" + "0" * 32), is_job_id("../video_1")
    (True, False)
    """
    return _ID.fullmatch(text) is not None


class StoredError(BaseModel):
    """Why a job failed, in OpenAI's words of an error."""

    message: str
    code: str
    type: str
    param: str | None = None

    @classmethod
    def of(cls, error: RequestError) -> StoredError:
        """What a client that had waited would have been told."""
        return cls(message=error.message, code=error.code or "job_failed", type=error.type, param=error.param)


class StoredFile(BaseModel):
    """One file of a job's result.

    Attributes:
        name: in the job's folder.
        media_type: as HTTP tells it.
        bytes: its size.
    """

    name: str
    media_type: str
    bytes: int


class StoredJob(BaseModel):
    """One job as it is kept.

    Attributes:
        owner: public name of the key that asked; None where there were no keys.
        progress: percent of the denoising steps; 100 once the result is there.
        created_at, completed_at, expires_at: ``time.time()``.
        begun_at: the same of its last try, from an engine's word that it has it.
        request: as JSON; with the prompt, because the API tells it again. It is in no log.
        judged: an engine's word on it was had, and what it left open was chosen for it.
        asked_as: what kind of request that is.
        pictures: sizes of the pictures that it brought, in bytes, by what they are.
        attempts: how often it was begun.
        files: the result by what a client calls it: ``video``, ``thumbnail``, ``0``, ``1``.
        about: what else is told of the result.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    kind: JobKind
    owner: str | None
    model: str
    created_at: float
    request: dict[str, Any] = Field(repr=False)
    status: JobStatus = "queued"
    progress: int = Field(default=0, ge=0, le=100)
    completed_at: float | None = None
    expires_at: float | None = None
    begun_at: float | None = None
    attempts: int = 0
    judged: bool = True
    error: StoredError | None = None
    asked_as: AskedAs = "generation"
    pictures: dict[str, int] = Field(default_factory=dict)
    files: dict[str, StoredFile] = Field(default_factory=dict)
    about: dict[str, Any] = Field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Nothing more will happen to it, but for its expiry."""
        return self.status in ("completed", "failed")

    @property
    def bytes(self) -> int:
        """Of its result, and of the pictures that it began with."""
        return sum(file.bytes for file in self.files.values()) + sum(self.pictures.values())


class Page(BaseModel):
    """Some jobs of a list, and whether there are more behind them."""

    jobs: list[StoredJob]
    has_more: bool
