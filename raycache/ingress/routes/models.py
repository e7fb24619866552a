"""The models of this service and their aliases, in the format of OpenAI's API, with their capabilities."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from raycache.ingress.dependencies import Context, InContext, require_key
from raycache.protocol.model_cards import ModelCard, named

router = APIRouter(dependencies=[Depends(require_key)])


@router.get("/v1/models")
@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models/", include_in_schema=False)
async def models(context: InContext) -> dict[str, Any]:
    """All values that a request may give as `model`: models, then aliases."""
    cards = await _cards(context)
    return {"object": "list", "data": [cards[name].document(context.began) for name in context.service.settings.names]}


@router.get("/v1/models/{model:path}")
async def model(model: str, context: InContext) -> dict[str, Any]:
    """One of them."""
    named(context.service.settings.names, model)
    return (await _cards(context))[model].document(context.began)


async def _cards(context: Context) -> dict[str, ModelCard]:
    """Cards of all models, by name and alias."""
    own = {card.name: card for card in await context.service.models()}
    aliases = context.service.settings.names.aliases
    return {**own, **{alias: own[model].called(alias) for alias, model in aliases.items()}}
