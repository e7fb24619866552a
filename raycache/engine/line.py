"""The predicted queue of a gang: when jobs leave, which clients were told to come back, when there is room.

A refused client is told when to come back, and its place is kept: until then no other client is admitted that would
take its room, and clients refused after it are told later times. So a client that waits as long as it was told is
admitted, also if many are refused at once. Times are whole seconds from now, as `Retry-After` is.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Limits", "Line", "Place"]

#: Promises kept at once, and for one client; clients beyond that are told the last of these times again.
_PROMISES, _EACH = 256, 32
#: A client may be late by this many seconds, or by this share of its wait, before its place is given to others.
_LATE_S, _LATE_SHARE = 2.0, 0.1
#: Few clients wait longer than this (OpenAI's wait a third of it). One that does is admitted, but no other is refused
#: in its favour.
_PATIENT_S = 180.0
_SOON = 1e-3


@dataclass(frozen=True)
class Limits:
    """Limits of the queue: jobs, including the running one, and seconds of work; in total, and per key."""

    jobs: float
    seconds: float
    key_jobs: float = math.inf
    key_seconds: float = math.inf

    def exceeds_key(self, jobs: int, seconds: float) -> bool:
        """Whether a key with ``jobs`` jobs may not have another, with which it would have ``seconds`` of work."""
        return jobs >= self.key_jobs or seconds > self.key_seconds + _SOON


@dataclass(eq=False)
class Place:
    """A job in the queue. ``seconds``: how long it keeps the gang busy; ``key``: its key, if known."""

    seconds: float
    key: str | None = None


@dataclass(frozen=True)
class _Promise:
    """``turns``: clients refused later are told later times. ``firm``: its room is kept from others until then."""

    at: float
    until: float
    mark: Hashable
    place: Place
    turns: bool
    firm: bool


class Line:
    """Promises, and their effect on a queue that is passed with each call."""

    def __init__(self) -> None:
        self._promises: list[_Promise] = []

    def claim(self, mark: Hashable, now: float) -> bool:
        """Redeem a promise of a returning client; True if it has one and is admitted, since it waited as told."""
        self._promises = [promise for promise in self._promises if promise.until >= now]
        mine = [promise for promise in self._promises if promise.mark == mark and promise.at <= now + _SOON]
        if mine:
            self._promises.remove(min(mine, key=lambda promise: promise.at))
        return bool(mine)

    def owes(self, mark: Hashable, now: float) -> bool:
        """Whether :meth:`claim` would be True; changes nothing."""
        return any(promise.mark == mark and promise.at <= now + _SOON <= promise.until for promise in self._promises)

    def expected(self) -> list[tuple[Place, float]]:
        """The places of clients told to come back, and their times, the next first."""
        told = sorted(self._promises, key=lambda promise: promise.at)
        return [(promise.place, promise.at) for promise in told]

    def harms(self, place: Place, queue: Sequence[tuple[Place, float]], now: float, limits: Limits) -> bool:
        """Whether a client told to come back would find no room if ``place`` were admitted now.

        ``queue``: its places, and when each will have left.
        """
        firm = [promise for promise in self._promises if promise.firm]
        future = _Future(queue, now)
        held = {id(promise): future.full(promise.place, promise.at, limits) for promise in _join(firm, future)}
        future = _Future(queue, now)
        future.join(place, now)
        return any(
            future.full(promise.place, promise.at, limits) and not held[id(promise)] for promise in _join(firm, future)
        )

    def promise(
        self,
        place: Place,
        mark: Hashable,
        queue: Sequence[tuple[Place, float]],
        now: float,
        limits: Limits,
        *,
        least_s: float = 0.0,
        patience_s: float = math.inf,
        unsure: float = 0.0,
        turns: bool = True,
        firm: bool = True,
    ) -> float:
        """Seconds after which ``place`` is admitted; the place is kept for it.

        Args:
            least_s: not before this many seconds.
            patience_s: it must be done within this time after its admission.
            unsure: the share by which the times of ``queue`` may be wrong.
            turns: it comes after all clients refused before it; not if it waits for jobs of its own key.
            firm: no other client is admitted that would take its room; not if its job may run elsewhere meanwhile.
        """
        mine = [promise.at for promise in self._promises if promise.mark == mark]
        if len(mine) >= _EACH or len(self._promises) >= _PROMISES:
            return max(1.0, math.ceil(max(mine or [promise.at for promise in self._promises]) - now))
        future = _Future(queue, now, 1 + unsure)
        for _ in _join(self._promises, future):
            pass
        first = max([least_s, *(promise.at - now for promise in self._promises if promise.turns and turns)])
        ahead_s = future.wait(now) + place.seconds
        short_s = (ahead_s - most for most in (patience_s, limits.seconds) if math.isfinite(most))
        told = {first, *(at - now for at in future.leaves), *((1 + unsure) * each for each in short_s)}
        wait = first
        for wait in sorted(max(1.0, math.ceil(each - _SOON)) for each in told if each >= first):
            at = now + wait
            if future.wait(at) + place.seconds <= patience_s + _SOON and not future.full(place, at, limits):
                break
        late_s = max(_LATE_S, _LATE_SHARE * wait)
        firm = firm and wait <= _PATIENT_S
        self._promises.append(_Promise(now + wait, now + wait + late_s, mark, place, turns, firm))
        return wait


class _Future:
    """A queue that places leave one after the other, and that others join.

    ``slower``: each takes this many times its prediction. A margin on each promised time would not work: the next
    client joins after it, so the margins would accumulate.
    """

    def __init__(self, queue: Sequence[tuple[Place, float]], now: float, slower: float = 1.0) -> None:
        self._places, self._slower = [place for place, _ in queue], slower
        #: When each of them leaves, in order.
        self.leaves = [now + (end - now) * slower for _, end in queue]
        self._free = self.leaves[-1] if queue else now

    def join(self, place: Place, at: float) -> None:
        self._free = max(self._free, at) + place.seconds * self._slower
        self._places.append(place)
        self.leaves.append(self._free)

    def wait(self, at: float) -> float:
        """Predicted seconds until a place that joins at time ``at`` is at the head."""
        return max(0.0, self._free - at) / self._slower

    def full(self, place: Place, at: float, limits: Limits) -> bool:
        """Whether there is no room for ``place`` at time ``at``."""
        first = bisect_right(self.leaves, at + _SOON)
        held = len(self.leaves) - first
        if held >= limits.jobs or (held and self.wait(at) + place.seconds > limits.seconds + _SOON):
            return True
        if place.key is None:
            return False
        mine = [other.seconds for other in self._places[first:] if other.key == place.key]
        return bool(mine) and limits.exceeds_key(len(mine), sum(mine) + place.seconds)


def _join(promises: list[_Promise], future: _Future) -> Iterator[_Promise]:
    """Let clients join the future queue at their promised times; yields each promise before it joins."""
    for promise in sorted(promises, key=lambda promise: promise.at):
        yield promise
        future.join(promise.place, promise.at)
