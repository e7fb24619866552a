"""Endpoints for probes."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from raycache.ingress.auth import has_key
from raycache.ingress.dependencies import InContext

router = APIRouter()


@router.get("/healthz")
@router.head("/healthz", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """Whether the ingress is alive; independent of engines."""
    return {"status": "ok"}


@router.get("/readyz")
@router.head("/readyz", include_in_schema=False)
async def readyz(http: Request, context: InContext) -> JSONResponse:
    """200 if a request would be served: an engine with a warm gang is ready, or none runs and one can be started.

    With several models one that serves is enough: `models` has each. Otherwise 503. Both include the status of every
    engine, if the request has a valid key or no keys are set.
    """
    service = context.service
    statuses = await service.status()
    serves = any(status.ready for status in statuses)
    ready = serves or service.asleep
    engines = [{key: value for key, value in asdict(s).items() if key != "policy"} for s in statuses]
    reason = None if serves else "asleep" if service.asleep else service.shortage or "starting"
    content: dict[str, Any] = {"ready": ready, "reason": reason, "pid": os.getpid(), "engines": engines}
    if service.settings.models:
        cards = await service.models()
        content["models"] = {card.name: {"ready": card.ready, "reason": card.reason} for card in cards}
    if not has_key(service.keys, http.headers.get("authorization")):
        content = {"ready": ready, "reason": reason}
    return JSONResponse(
        content, 200 if ready else 503, None if ready else {"retry-after": str(math.ceil(service.ready_in_s))}
    )
