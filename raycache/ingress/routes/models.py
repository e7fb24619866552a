"""The models of this service, as OpenAI's clients list them: one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from raycache.ingress.dependencies import Context, InContext, require_key
from raycache.protocol.resolve import check_model

router = APIRouter(dependencies=[Depends(require_key)])


@router.get("/v1/models")
@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models/", include_in_schema=False)
async def models(context: InContext) -> dict[str, Any]:
    """The one model of this service."""
    return {"object": "list", "data": [_model(context)]}


@router.get("/v1/models/{model:path}")
async def model(model: str, context: InContext) -> dict[str, Any]:
    """This service's model, if it is the one that was asked for."""
    check_model(model, context.service.settings.model.name)
    return _model(context)


def _model(context: Context) -> dict[str, Any]:
    name = context.service.settings.model.name
    return {"id": name, "object": "model", "created": context.began, "owned_by": "raycache"}
