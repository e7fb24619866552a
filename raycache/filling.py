"""Fills the settings of one of several models with those beside the list of models."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from pydantic import BaseModel

__all__ = ["filled_up", "said"]

#: One thing each, not a section of many: taken whole, because cache options of two methods do not mix.
_WHOLE = frozenset({"cache", "warmup"})
#: They exclude each other: who says one takes neither from elsewhere.
_NUMBER = frozenset({"num_replicas", "autoscaling"})


def filled_up(entry: Any, beside: Mapping[str, Any], names: Set[str]) -> Any:
    """``entry`` with what stands ``beside`` in place of what it does not say; sections of both field by field.

    Args:
        entry: as a user wrote it, perhaps no mapping at all: then it is left for its validation.
        beside: settings for all entries.
        names: of the settings that both may have.
    """
    if not isinstance(entry, dict):
        return entry
    names = names - {name for name in _NUMBER if _counted_otherwise(name, entry)}
    filled = dict(entry)
    for name in names & beside.keys():
        own, others = said(entry.get(name)), said(beside[name])
        if name not in entry:
            filled[name] = beside[name]
        elif name not in _WHOLE and isinstance(own, dict) and isinstance(others, dict):
            filled[name] = {**others, **own}
    return filled


def said(section: Any) -> Any:
    """What was said in a section that is settings already, by field; anything else is as it is."""
    if isinstance(section, BaseModel):
        return {name: getattr(section, name) for name in section.model_fields_set}
    return section


def _counted_otherwise(name: str, entry: Mapping[str, Any]) -> bool:
    return name not in entry and bool(_NUMBER & entry.keys())
