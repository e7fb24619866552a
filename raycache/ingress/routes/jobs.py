"""Images requested with ``Prefer: respond-async``: stored jobs with the same result as a synchronous request."""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from raycache.ingress.contents import content, result_file
from raycache.ingress.dependencies import InStore, require_key
from raycache.ingress.jobs import InListing, job_told, listed
from raycache.ingress.store_handle import StoreClient
from raycache.protocol.stored import StoredJob

router = APIRouter(dependencies=[Depends(require_key)])


@router.get("/v1/jobs")
async def jobs(store: InStore, listing: InListing) -> dict[str, Any]:
    """This key's jobs, finished or not, newest first."""
    return listed(await store.page("image", *listing), job_told)


@router.get("/v1/jobs/{id}")
async def job(id: str, store: InStore) -> dict[str, Any]:
    """The state of a job."""
    return job_told(await store.find("image", id))


@router.get("/v1/jobs/{id}/content")
@router.head("/v1/jobs/{id}/content", include_in_schema=False)
async def job_content(http: Request, id: str, store: InStore) -> Response:
    """The same answer as without `respond-async`; with `index` one image file, or a part of it with `Range`."""
    job, index = await store.find("image", id), http.query_params.get("index")
    if index is not None:
        return await content(http, job, result_file(job, index), partial(store.read, "image", id, index))
    result_file(job, "0")  # raises if there is no result
    return JSONResponse(await _reply(job, store))


@router.delete("/v1/jobs/{id}")
async def delete(id: str, store: InStore) -> dict[str, Any]:
    """Delete a job; if it is running, it is stopped on all ranks."""
    job = await store.delete("image", id)
    return {"id": job.id, "object": "job.deleted", "deleted": True}


async def _reply(job: StoredJob, store: StoreClient) -> dict[str, Any]:
    """As :func:`raycache.ingress.replies.reply`."""
    files = [job.files[str(index)] for index in range(len(job.files))]
    images = await asyncio.gather(
        *(store.read("image", job.id, str(index), 0, file.bytes) for index, file in enumerate(files))
    )
    data = [{"b64_json": base64.b64encode(image).decode()} for image in images]
    return {"created": int(job.completed_at or job.created_at), "data": data, **job.about}
