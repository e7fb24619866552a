"""Ray's errors that mean that an actor has died."""

from __future__ import annotations

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

__all__ = ["DEATHS"]

#: ``OutOfMemoryError`` means that Ray's memory monitor killed the process; ``ObjectLostError`` that an answer was lost
#: with its node before it was read.
DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, ObjectLostError)
