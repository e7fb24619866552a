"""The base of all settings: unknown names are errors, and invisible characters are ignored."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from raycache.text_files import trimmed_within

__all__ = ["Strict"]


class Strict(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _as_typed(cls, value: Any) -> Any:
        """Strip invisible characters that editors leave around strings: no name, path or number has them."""
        return trimmed_within(value)
