"""All jobs of the store, indexed by key, by order of execution and by age."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from raycache.limits import PRIORITIES
from raycache.protocol.errors import RequestError, invalid
from raycache.protocol.stored import JobKind, Order, Page, StoredJob, is_job_id
from raycache.store_settings import StoreSettings

__all__ = ["MOST_LISTED", "JobIndex"]

#: Jobs of one page, as OpenAI allows.
MOST_LISTED = 100


class JobIndex:
    """All stored jobs.

    Args:
        settings: with the limits of the store.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._jobs: dict[str, StoredJob] = {}

    def __iter__(self) -> Iterator[StoredJob]:
        return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, id: str) -> bool:
        return id in self._jobs

    def __getitem__(self, id: str) -> StoredJob:
        return self._jobs[id]

    def put(self, job: StoredJob) -> None:
        """Add a job, or replace its state."""
        self._jobs[job.id] = job

    def drop(self, id: str) -> None:
        """Remove it, if it is known."""
        self._jobs.pop(id, None)

    def find(self, kind: JobKind, id: str, owner: str | None) -> StoredJob:
        """The job of this id, if it is ``owner``'s: other keys cannot learn that it exists.

        Raises:
            RequestError: 404.
        """
        job = self._jobs.get(id)
        if job is None or job.kind != kind or job.owner != owner:
            noun = "video" if kind == "video" else "job"
            message = f"no {noun} with the id {id[:80]!r}: never created with this key, deleted or expired"
            raise RequestError(404, message, "id", "not_found")
        return job

    def page(self, kind: JobKind, owner: str | None, after: str | None, limit: int, order: Order) -> Page:
        """The jobs of ``owner`` after the id ``after``, which may have been deleted: ids sort by time.

        Raises:
            RequestError: 400 for a limit that is out of range, or an ``after`` that is not an id.
        """
        if not 1 <= limit <= MOST_LISTED:
            raise invalid("limit", f"must be from 1 to {MOST_LISTED}, got {limit}", [1 if limit < 1 else MOST_LISTED])
        if after is not None and not is_job_id(after):
            raise invalid("after", f"must be an id from an earlier page, got {after[:80]!r}")
        own = sorted(job.id for job in self if job.kind == kind and job.owner == owner)
        if order == "desc":
            own.reverse()
        if after is not None:
            own = [id for id in own if (id < after if order == "desc" else id > after)]
        return Page(jobs=[self._jobs[id] for id in own[:limit]], has_more=len(own) > limit)

    def check_room(self, owner: str | None, bytes: int = 0) -> None:
        """Check that one more job, or ``bytes`` more of a result, may be stored for ``owner``.

        Raises:
            RequestError: 429 if the key's share is used up, 507 if the whole store is full.
        """
        limits, own = self._settings, [job for job in self if job.owner == owner]
        one_more = 0 if bytes else 1
        if owner is not None:
            _at_most(len(own) + one_more, limits.max_jobs_per_key, own, "jobs", 429)
            _at_most(_bytes(own) + max(1, bytes), limits.max_bytes_per_key, own, "bytes of results", 429)
        _at_most(len(self) + one_more, limits.max_jobs, self, "jobs", 507)
        _at_most(_bytes(self) + max(1, bytes), limits.max_bytes, self, "bytes of results", 507)

    def expired(self, now: float) -> list[StoredJob]:
        """The jobs that have expired."""
        return [job for job in self if job.expires_at is not None and job.expires_at <= now]

    def next_to_begin(self, active: Iterable[str], most: int) -> StoredJob | None:
        """The waiting job to run next: of the owner with the fewest ``active``, then by priority and age.

        Args:
            most: maximum active jobs of one model: a model without engines must not hold up others.
        """
        active = set(active)
        busy = Counter(job.owner for job in self if job.id in active)
        models = Counter(job.model for job in self if job.id in active)
        waiting = [job for job in self if not job.over and job.id not in active and models[job.model] < most]

        def rank(job: StoredJob) -> tuple[float, float, str]:
            return busy[job.owner], -PRIORITIES[job.request.get("priority", "normal")], job.id

        return min(waiting, key=rank, default=None)


def _bytes(jobs: Iterable[StoredJob]) -> int:
    return sum(job.bytes for job in jobs)


def _at_most(wanted: int, limit: int | None, jobs: Iterable[StoredJob], what: str, status: int) -> None:
    if limit is None or wanted <= limit:
        return
    whose = "this key has" if status == 429 else "the store has"
    ends = sorted(job.expires_at for job in jobs if job.expires_at is not None)
    until = f"; the next one expires at {int(ends[0])} (Unix time)" if ends else ""
    # No Retry-After: clients would wait for up to a day, and after deleting a job there is no wait.
    message = f"{whose} the {limit} {what} that may be stored; delete some finished ones{until}"
    raise RequestError(status, message, None, "store_full" if status == 507 else "too_many_stored")
