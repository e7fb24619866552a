"""Tasks that end in images: OpenAI's images API. A new one is a body and a route like these."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from raycache.ingress.dependencies import InContext, body_document, json_body, require_key
from raycache.ingress.replies import drawn
from raycache.ingress.uploads import edit_document, read_edit
from raycache.protocol.bodies import ImagesBody

router = APIRouter(dependencies=[Depends(require_key)])


@router.post("/v1/images/generations", openapi_extra=body_document(ImagesBody))
async def generate(
    http: Request, body: Annotated[ImagesBody, Depends(json_body(ImagesBody))], context: InContext
) -> Response:
    """Generate images."""
    return await drawn(http, body, context)


@router.post("/v1/images/edits", openapi_extra=edit_document())
async def edit(http: Request, context: InContext) -> Response:
    """Edit images."""
    body, request = await read_edit(http, context)
    return await drawn(http, body, context, request)
