"""A LoRA in a request: named as in the settings, never by a path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raycache.protocol.errors import invalid

if TYPE_CHECKING:
    from raycache.protocol.capabilities import Capabilities

__all__ = ["LoraChoice", "LoraRequest", "check_lora"]

#: Maximum characters of an unknown name that a message repeats.
_ECHO = 80


@dataclass(frozen=True, order=True)
class LoraChoice:
    """A known LoRA and its scale: 1 is as it was trained."""

    name: str
    scale: float = 1.0


class LoraRequest(BaseModel):
    """The LoRA for an image. A bare string is its name."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, description="One of those that `GET /v1/models` lists.")
    scale: float | None = Field(
        default=None, ge=-10, le=10, allow_inf_nan=False, description="Scale; default: this server's for it."
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def check_lora(asked: LoraRequest | None, model: Capabilities) -> LoraChoice | None:
    """The LoRA of a request; None without one, or if its scale is 0.

    Raises:
        RequestError: 400; the message lists the existing ones.
    """
    if asked is None:
        return None
    known = {lora.name: lora for lora in model.loras}
    if asked.name not in known:
        has = f"it has {', '.join(sorted(known))}" if known else "it has none"
        raise invalid("lora.name", f"this server does not have {asked.name[:_ECHO]!r}; {has}", code="lora_not_found")
    choice = known[asked.name] if asked.scale is None else LoraChoice(asked.name, asked.scale)
    return choice if choice.scale else None
