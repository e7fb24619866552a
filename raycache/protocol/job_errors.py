"""How a job, or a gang, ends without a result; the engine turns these into answers."""

from __future__ import annotations

__all__ = [
    "DeadlineExceeded",
    "GangBroken",
    "GangRestarting",
    "GangStartError",
    "JobCancelled",
    "JobFailed",
    "LoraNotLoaded",
]


class JobCancelled(Exception):
    """The job was aborted on request; the message is the reason given."""


class DeadlineExceeded(Exception):
    """The job's deadline passed before it was done."""


class JobFailed(Exception):
    """Every rank raised the same error, or ranks broke twice while it ran alone; the message says which."""


class LoraNotLoaded(JobFailed):
    """Its LoRA could not be loaded on every rank, so it is loaded on none; the message says where and why."""


class GangRestarting(Exception):
    """A rank died or hung and the job could not be retried in time.

    Attributes:
        retry_after_s: seconds after which a new request should succeed.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class GangStartError(RuntimeError):
    """The gang could not be started; the message says why and what to change."""


class GangBroken(RuntimeError):
    """Restarts are exhausted: the replica must be replaced."""
