"""Replies about stored jobs of any kind, and the parameters of their lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request

from raycache.protocol.errors import invalid
from raycache.protocol.stored import Order, Page, StoredJob

__all__ = ["InListing", "Listing", "job_told", "listed", "told_of_job"]

_USUAL = 20
_ORDERS: dict[str, Order] = {"asc": "asc", "desc": "desc"}


class Listing(NamedTuple):
    """The requested part of a list: ``limit`` jobs after the id ``after``, newest first with ``desc``."""

    after: str | None
    limit: int
    order: Order


async def _listing(http: Request) -> Listing:
    """The query parameters, as OpenAI's clients send them.

    Raises:
        RequestError: 400.
    """
    query = http.query_params
    limit, order = query.get("limit", str(_USUAL)), query.get("order", "desc")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 10):
        raise invalid("limit", f"must be a whole number, got {limit[:80]!r}", [_USUAL])
    if order not in _ORDERS:
        raise invalid("order", f"there is no {order[:80]!r}", _ORDERS)
    return Listing(query.get("after"), int(limit), _ORDERS[order])


InListing = Annotated[Listing, Depends(_listing)]


def listed(page: Page, told: Callable[[StoredJob], dict[str, Any]]) -> dict[str, Any]:
    """OpenAI's shape of a list."""
    data = [told(job) for job in page.jobs]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": page.has_more}


def told_of_job(job: StoredJob) -> dict[str, Any]:
    """Fields that every kind of job has. Times are whole seconds, as in OpenAI's API."""
    return {
        "id": job.id,
        "model": job.model,
        "status": job.status,
        "progress": job.progress,
        "created_at": int(job.created_at),
        "completed_at": None if job.completed_at is None else int(job.completed_at),
        "expires_at": None if job.expires_at is None else int(job.expires_at),
        "error": job.error and job.error.model_dump(),
        "seed": job.request["seed"],
        "times": job.about.get("times"),
        "warnings": job.about.get("warnings", []),
    }


def job_told(job: StoredJob) -> dict[str, Any]:
    """A job as the API shows it; without its prompt, which the client knows."""
    return {**told_of_job(job), "object": "job", "size": job.request.get("size"), "images": len(job.files)}
