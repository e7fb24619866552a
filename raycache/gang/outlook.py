"""A read-only snapshot of a gang's schedule: its jobs, their progress, and the scheduling rules."""

from __future__ import annotations

from dataclasses import dataclass

from raycache.gang.schedule import Accounts, JobState, Rules

__all__ = ["Outlook"]


@dataclass(frozen=True)
class Outlook:
    """One moment of a gang.

    Attributes:
        jobs: active and waiting, not over; arrived and deadline in seconds of ``time.monotonic()``.
        ready_in_s: seconds until ranks are ready; 0 if they are.
    """

    jobs: tuple[JobState, ...]
    accounts: Accounts
    rules: Rules
    ready_in_s: float = 0.0
