"""Stored jobs: the record that the store writes, and what it reports to an ingress."""

from __future__ import annotations

import re
import secrets
import time
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from raycache.protocol.errors import RequestError

__all__ = ["AskedAs", "JobKind", "JobStatus", "Order", "Page", "StoredError", "StoredFile", "StoredJob", "is_job_id"]
__all__ += ["new_job_id"]

JobKind = Literal["video", "image"]
#: Stored names of request types, see :mod:`raycache.store.requests`.
AskedAs = Literal["generation", "edit", "video"]
JobStatus = Literal["queued", "in_progress", "completed", "failed"]
Order = Literal["asc", "desc"]

#: Prefixes of ids; that of videos is OpenAI's.
_PREFIX: dict[JobKind, str] = {"video": "video_", "image": "job_"}
_ID = re.compile(r"(video|job)_[0-9a-f]{32}")


def new_job_id(kind: JobKind, now: float | None = None) -> str:
    """An unguessable id that sorts by creation time, so lists can continue after a deleted one.

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
    """Why a job failed, in the format of OpenAI's errors."""

    message: str
    code: str
    type: str
    param: str | None = None

    @classmethod
    def of(cls, error: RequestError) -> StoredError:
        """The error that a waiting client would have received."""
        return cls(message=error.message, code=error.code or "job_failed", type=error.type, param=error.param)


class StoredFile(BaseModel):
    """One file of a job's result.

    Attributes:
        name: file name in the job's folder.
        media_type: media type for HTTP.
        bytes: its size.
    """

    name: str
    media_type: str
    bytes: int


class StoredJob(BaseModel):
    """One stored job.

    Attributes:
        owner: public name of the client's key; None if there were no keys.
        progress: percent of the denoising steps; 100 once the result is there.
        created_at, completed_at, expires_at: ``time.time()``.
        begun_at: the same for its last try, when an engine accepted it.
        request: as JSON; with the prompt, because the job may be rerun from it. Never logged.
        judged: it was checked against an engine's status, and all open values were chosen.
        asked_as: type of the request.
        images: sizes of its input images in bytes, by name; ``pictures`` in jobs stored until November 2026.
        attempts: how often it was started.
        files: the files of the result, by the name for clients: ``video``, ``thumbnail``, ``0``, ``1``.
        about: other fields of the reply.
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
    images: dict[str, int] = Field(default_factory=dict, validation_alias=AliasChoices("images", "pictures"))
    files: dict[str, StoredFile] = Field(default_factory=dict)
    about: dict[str, Any] = Field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether it has ended; it can still expire."""
        return self.status in ("completed", "failed")

    @property
    def bytes(self) -> int:
        """Size of its result and its input images."""
        return sum(file.bytes for file in self.files.values()) + sum(self.images.values())


class Page(BaseModel):
    """Some jobs of a list, and whether more follow."""

    jobs: list[StoredJob]
    has_more: bool
