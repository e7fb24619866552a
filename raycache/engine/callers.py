"""The account of a job in the scheduler: one per key and priority, with its weight."""

from __future__ import annotations

from typing import NamedTuple

from raycache.limits import PRIORITIES, LimitSettings, Priority

__all__ = ["Caller", "caller_of"]


class Caller(NamedTuple):
    """An account of the scheduler, and its weight."""

    account: str
    weight: float


def caller_of(limits: LimitSettings, key: str | None, priority: Priority) -> Caller:
    """The account that a request with ``key`` is charged to.

    A key's work of low priority must not use up the share of its other requests, so each priority has its own account.
    Names of keys contain no line break, so the joined names of accounts cannot collide.
    """
    name = key or ""
    account = name if priority == "normal" else f"{name}\n{priority}"
    return Caller(account, limits.of_key(key).weight * PRIORITIES[priority])
