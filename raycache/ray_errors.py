"""Ray's errors that mean an actor is gone."""

from __future__ import annotations

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

__all__ = ["DEATHS"]

#: ``OutOfMemoryError`` is Ray's memory monitor that killed the process; ``ObjectLostError`` an answer that went down
#: with its node before it was read.
DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, ObjectLostError)
