"""Tasks that end in videos: OpenAI's videos API. Each is a stored job, requested now and fetched later."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from raycache.ingress.contents import content, result_file
from raycache.ingress.dependencies import InContext, InStore, require_key
from raycache.ingress.jobs import InListing, listed, told_of_job
from raycache.ingress.video_uploads import read_video, video_document
from raycache.protocol.errors import invalid
from raycache.protocol.stored import StoredJob

router = APIRouter(dependencies=[Depends(require_key)])

#: Values of `variant`. OpenAI's third, a sheet of small frames, is not supported.
_VARIANTS = ("video", "thumbnail")


@router.post("/v1/videos", openapi_extra=video_document())
async def create(http: Request, context: InContext, store: InStore) -> dict[str, Any]:
    """Create a video job."""
    body, request = await read_video(http, context)
    return _video(await store.submit("video", request, body.ignored()))


@router.get("/v1/videos")
async def videos(store: InStore, listing: InListing) -> dict[str, Any]:
    """This key's videos, finished or not, newest first."""
    return listed(await store.page("video", *listing), _video)


@router.get("/v1/videos/{id}")
async def video(id: str, store: InStore) -> dict[str, Any]:
    """The state of a video."""
    job = await store.find("video", id)
    return _video(job) | ({"report": job.about.get("report")} if job.status == "completed" else {})


@router.get("/v1/videos/{id}/content")
@router.head("/v1/videos/{id}/content", include_in_schema=False)
async def video_content(http: Request, id: str, store: InStore) -> Response:
    """The file or its thumbnail; only a part of it with `Range`."""
    variant = http.query_params.get("variant", "video")
    if variant not in _VARIANTS:
        raise invalid("variant", f"there is no {variant[:80]!r}", _VARIANTS)
    job = await store.find("video", id)
    return await content(http, job, result_file(job, variant), partial(store.read, "video", id, variant))


@router.delete("/v1/videos/{id}")
async def delete(id: str, store: InStore) -> dict[str, Any]:
    """Delete a video; if it is being generated, that stops on all ranks."""
    job = await store.delete("video", id)
    return {"id": job.id, "object": "video.deleted", "deleted": True}


def _video(job: StoredJob) -> dict[str, Any]:
    """OpenAI's `Video` with our fields."""
    asked, about = job.request, job.about
    # None if no engine has checked it yet, because none runs.
    frames, fps, seconds = about.get("num_frames", asked.get("num_frames")), asked.get("fps"), asked.get("seconds")
    if frames and fps:
        seconds = frames / fps
    return {
        **told_of_job(job),
        "object": "video",
        "prompt": asked["prompt"],
        "size": about.get("size", asked.get("size")),
        "seconds": None if seconds is None else f"{seconds:.6g}",
        "num_frames": frames,
        "fps": fps,
        "remixed_from_video_id": None,
    }
