"""From the output of an engine to stored files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raycache.ingress.replies import told_of
from raycache.protocol.formats import MEDIA_TYPES, encode
from raycache.protocol.schemas import GenerationRequest, GenerationResult
from raycache.protocol.stored import StoredFile, StoredJob
from raycache.protocol.video_files import THUMBNAIL_TYPE, VIDEO_TYPE, write_thumbnail, write_video
from raycache.protocol.videos import VideoRequest
from raycache.size import Size
from raycache.store.folder import JobFolder
from raycache.store_settings import StoreSettings

__all__ = ["keep_result"]


def keep_result(
    folder: JobFolder,
    settings: StoreSettings,
    job: StoredJob,
    request: GenerationRequest,
    result: GenerationResult,
    allow: Callable[[int], None],
) -> StoredJob:
    """Encode ``result`` and store its files. Blocks for as long as that takes.

    Args:
        folder: the folder of all jobs.
        settings: how videos are encoded.
        job: the job of the result.
        request: the request that the engine got.
        result: the images; for a video one array of frames.
        allow: raises :class:`RequestError` if that many bytes may not be stored.

    Returns:
        The job with its files, not yet written.

    Raises:
        OSError: no space left, or the job was removed meanwhile.
        RequestError: raised by ``allow``.
    """
    with folder.scratch() as scratch:
        if isinstance(request, VideoRequest):
            types = _write_video(scratch, settings, request, result)
        else:
            types = _write_images(scratch, request, result)
        paths = {what: next(scratch.glob(f"{what}.*")) for what in types}
        sizes = {what: path.stat().st_size for what, path in paths.items()}
        allow(sum(sizes.values()))
        for path in paths.values():
            folder.adopt(job.id, path)
    files = {
        what: StoredFile(name=path.name, media_type=types[what], bytes=sizes[what]) for what, path in paths.items()
    }
    return job.model_copy(update={"files": files, "about": _about(job, request, result)})


def _about(job: StoredJob, request: GenerationRequest, result: GenerationResult) -> dict[str, Any]:
    about = told_of(result)
    about["warnings"] = [*job.about.get("warnings", ()), *about["warnings"]]
    if isinstance(request, VideoRequest):
        frames, height, width, _ = result.images[0].shape
        return about | {"size": str(Size(width, height)), "num_frames": frames, "fps": request.fps}
    return about | {"size": str(Size.of(result.images[0])), "output_format": request.output_format}


def _write_video(
    scratch: Path, settings: StoreSettings, request: VideoRequest, result: GenerationResult
) -> dict[str, str]:
    frames, fps = result.images[0], request.fps
    assert fps  # resolved before the job was stored
    write_video(scratch / "video.mp4", frames, fps, settings.video_codec, settings.video_crf, result.sound)
    write_thumbnail(scratch / "thumbnail.webp", frames[len(frames) // 2])
    return {"video": VIDEO_TYPE, "thumbnail": THUMBNAIL_TYPE}


def _write_images(scratch: Path, request: GenerationRequest, result: GenerationResult) -> dict[str, str]:
    format = request.output_format
    for index, image in enumerate(result.images):
        (scratch / f"{index}.{format}").write_bytes(encode(image, format, request.output_compression))
    return {str(index): MEDIA_TYPES[format] for index in range(len(result.images))}
